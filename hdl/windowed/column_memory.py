"""What an update needs again of the batch, a column each: the slope bits of positions, the signals of windows."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.arith import delay_line
from hdl.memory import DualPortMemory
from hdl.verilog import make
from spec.machine import Machine

__all__ = ["ColumnMemory"]


class ColumnMemory(wiring.Component):
    """`slope_depth` words of C slope bits, and C banks of `signal_depth` signals (`delta_bits`).

    Members
    -------
    layer_start : In, pulse
        Both memories are filled from word 0 on. Not in a cycle with `slope_valid` or `delta_valid`.
    slope_base : In, where the rule `waits`
        With `layer_start`: slopes are filled from this word on instead, as those of all layers are kept.
    slope_valid, slope[c] : In
        The next word. Sample by sample, in the order of column tiles and positions: words ``(b·T + jt)·P + p``. More
        than the memory holds leave it undefined: a layer that does not train may have as many positions as it likes.
    delta_valid, delta_value, delta_channel_last, delta_sample_last : In
        The channel's next window. Channel j of the layer's T·C goes to bank ``j % C``; after bank C - 1, or after the
        last channel of a sample, which has `delta_sample_last` with its `delta_channel_last`, the banks go on with new
        words: sample b's windows w are words ``(b·T + j // C)·W + w``. All channels have the same number of them.
    slope_addr, signal_addr, signal_channels : In
        Cycle t - 1: the words of a step, and the columns that the tile uses.
    neg[c], delta[c] : Out
        Cycle t + c: column c's slope bit and signal, which is 0 from column `signal_channels` on.

    What is written in a cycle can be asked for from `WRITE_LATENCY` cycles later on.
    """

    WRITE_LATENCY = 1

    layer_start: Signal
    slope_base: Signal
    slope_valid: Signal
    slope: Signal
    delta_valid: Signal
    delta_value: Signal
    delta_channel_last: Signal
    delta_sample_last: Signal
    slope_addr: Signal
    signal_addr: Signal
    signal_channels: Signal
    neg: Signal
    delta: list[Signal]

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "layer_start": In(1),
                **({"slope_base": In(machine.slope_addr_bits)} if machine.learning.waits else {}),
                "slope_valid": In(1),
                "slope": In(machine.cols),
                "delta_valid": In(1),
                "delta_value": In(signed(machine.delta_bits)),
                "delta_channel_last": In(1),
                "delta_sample_last": In(1),
                "slope_addr": In(ceil_log2(machine.slope_depth)),
                "signal_addr": In(ceil_log2(machine.signal_depth)),
                "signal_channels": In(range(machine.cols + 1)),
                "neg": Out(machine.cols),
                "delta": Out(signed(machine.delta_bits)).array(machine.cols),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        self._slopes(m)
        self._signals(m, platform)
        return m

    def _slopes(self, m: Module) -> None:
        """One memory, as a position's bits come and are needed together; the skew is behind it."""
        depth = self.machine.slope_depth
        m.submodules.slopes = slopes = DualPortMemory(self.machine.cols, depth)
        word = Signal(range(depth))
        m.d.comb += [
            slopes.read_addr.eq(self.slope_addr),
            slopes.write_addr.eq(word),
            slopes.write_data.eq(self.slope),
            slopes.write_en.eq(self.slope_valid),
        ]
        with m.If(self.layer_start):
            m.d.sync += word.eq(self.slope_base if self.machine.learning.waits else 0)
        with m.Elif(self.slope_valid):
            m.d.sync += word.eq(word + 1)
        for c in range(self.machine.cols):
            m.d.comb += self.neg[c].eq(delay_line(m, slopes.read_data[c], c, f"neg_{c}")[-1])

    def _signals(self, m: Module, platform) -> None:
        """A bank a column: they are written a channel after the other. The skew is in the addresses."""
        cols, depth = self.machine.cols, self.machine.signal_depth
        bank, word = Signal(range(cols)), Signal(range(depth))
        tile = Signal(range(depth))  # its first word
        tile_ends = self.delta_sample_last | (bank == cols - 1)
        with m.If(self.layer_start):
            m.d.sync += [bank.eq(0), word.eq(0), tile.eq(0)]
        with m.Elif(self.delta_valid):
            m.d.sync += word.eq(word + 1)
            with m.If(self.delta_channel_last):
                with m.If(tile_ends):
                    m.d.sync += [bank.eq(0), tile.eq(word + 1)]
                with m.Else():
                    m.d.sync += [bank.eq(bank + 1), word.eq(tile)]

        addr = delay_line(m, self.signal_addr, cols - 1, "signal_addr")
        used = delay_line(m, Cat(self.signal_channels > c for c in range(cols)), cols, "used")
        shape = signed(self.machine.delta_bits)
        for c in range(cols):
            signals, m.submodules[f"signals_{c}"] = make(platform, "signals", lambda: DualPortMemory(shape, depth))
            m.d.comb += [
                signals.read_addr.eq(addr[c]),
                signals.write_addr.eq(word),
                signals.write_data.eq(self.delta_value),
                signals.write_en.eq(self.delta_valid & (bank == c)),
                self.delta[c].eq(Mux(used[c + 1][c], signals.read_data, 0)),
            ]
