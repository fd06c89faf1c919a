"""From the sums that leave the array's rows on the way back to the signals of the layer before.

docs/rules.md, section 6.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import clip_symmetric, delay_line
from hdl.windowed.descriptor import descriptor_layout
from spec.machine import WEIGHT_FRAC, Machine
from spec.rules import BACK_BITS
from spec.windowed import SLOPE_SHIFT

__all__ = ["BackSums"]

_FRAC = WEIGHT_FRAC + SLOPE_SHIFT


class BackSums(wiring.Component):
    """d = clip(rnd(r >> 17)) of every r, a row each, and where it is kept.

    Members
    -------
    start : In, pulse
        The way back through a layer begins: no total of an earlier one is to come, nor a signal.
    layer : In, `descriptor_layout`
        From `start` until the last signal.
    back_valid, back_data : In
        Totals of rows, signed(`back_sum_bits`), at most one a cycle: -r, as the array has its signals negated, from
        :class:`~hdl.windowed.back_memory.BackMemory`. Of each row tile R, in order, row tiles as
        :class:`~hdl.windowed.back_walk.BackWalk` has them; rows beyond the layer's are dropped.
    signal_valid, signal_bank, signal_word, signal_value : Out
        A signal of the layer before, `LATENCY` cycles after its total; as `BackMemory` takes them.
    """

    LATENCY = 2

    start: Signal
    layer: data.View
    back_valid: Signal
    back_data: Signal
    signal_valid: Signal
    signal_bank: Signal
    signal_word: Signal
    signal_value: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "start": In(1),
                "layer": In(descriptor_layout(machine)),
                "back_valid": In(1),
                "back_data": In(signed(machine.back_sum_bits)),
                "signal_valid": Out(1),
                "signal_bank": Out(range(machine.cols)),
                "signal_word": Out(machine.signal_addr_bits),
                "signal_value": Out(signed(BACK_BITS)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        arrived = delay_line(m, self.back_valid, self.LATENCY, "arrived")[-1]
        self._value(m)
        self._place(m, arrived)
        return m

    def _value(self, m: Module) -> None:
        """rnd of the negated total, without a negation: -v - 1 is ~v, and the 1 rounds up with what is below."""
        low, high = self.back_data[:_FRAC], self.back_data[_FRAC:]
        over_half = low[-1] & low[:-1].any()
        rounded = Signal(signed(len(high) + 1), reset_less=True)
        value = Signal.like(self.signal_value, reset_less=True)
        m.d.sync += [
            rounded.eq((~high).as_signed() + ~over_half),
            value.eq(clip_symmetric(rounded, BACK_BITS)),
        ]
        m.d.comb += self.signal_value.eq(value)

    def _place(self, m: Module, arrived: Value) -> None:
        """Channels, windows and samples of the map that the layer reads, in its order. Counters count down to 1."""
        layer, rows, cols = self.layer, self.machine.rows, self.machine.cols
        row = Signal(range(rows))
        channels = Signal.like(layer.below_channels)
        windows = Signal.like(layer.below_windows)
        window = Signal.like(self.signal_word)  # the first column tile's word of it
        following = Signal.like(self.signal_word)
        dropping = Signal()  # until the next row tile
        skipped = (layer.below_stride - layer.below_windows)[: len(window)]

        row_last = row == rows - 1
        bank_last = self.signal_bank == cols - 1
        channel_last, window_last, position_last = (Signal(name=f"{n}_last") for n in ("channel", "window", "position"))
        m.d.comb += [
            self.signal_valid.eq(arrived & ~dropping),
            channel_last.eq(channels == 1),
            window_last.eq(channel_last & (windows == 1)),
            # A map that is read flat is a single position, of all windows.
            position_last.eq(Mux(layer.in_channels == layer.below_channels, channel_last, window_last)),
            # The next sample's first window follows the last column tile of this one's last. One adder: a bit below
            # lets the 1 in.
            following.eq((Cat(1, window) + Cat(1, Mux(window_last, skipped, 0)))[1:]),
        ]
        with m.If(arrived):
            m.d.sync += [
                row.eq(Mux(row_last, 0, row + 1)),
                dropping.eq(~row_last & (dropping | position_last | (layer.depthwise & bank_last))),
            ]
        with m.If(self.signal_valid):
            m.d.sync += [
                channels.eq(Mux(channel_last, layer.below_channels, channels - 1)),
                self.signal_bank.eq(Mux(channel_last | bank_last, 0, self.signal_bank + 1)),
            ]
            with m.If(channel_last):
                m.d.sync += [
                    windows.eq(Mux(window_last, layer.below_windows, windows - 1)),
                    window.eq(following),
                    self.signal_word.eq(following),
                ]
            with m.Elif(bank_last):
                m.d.sync += self.signal_word.eq(self.signal_word + layer.below_windows)
        with m.If(self.start):
            m.d.sync += [
                row.eq(0),
                dropping.eq(0),
                channels.eq(layer.below_channels),
                windows.eq(layer.below_windows),
                self.signal_bank.eq(0),
                window.eq(layer.below_base),
                self.signal_word.eq(layer.below_base),
            ]
