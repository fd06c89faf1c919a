"""The memory of backpropagated signals: one bank a column, read with the array's skew; two layers' at a time."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.arith import delay_line
from hdl.memory import DualPortMemory
from spec.machine import Machine
from spec.rules import BACK_BITS

__all__ = ["SignalMemory"]


class SignalMemory(wiring.Component):
    """C banks of two halves; element j of a layer's signals (signed, BACK_BITS) is in bank j mod C at word j // C.

    Members
    -------
    half : In
        Where the signals of the layer at work are.
    write_start, write_valid, write_below, write_data : In
        The signals of a layer in order, the first after `write_start`: of the layer at work or, with `write_below`, of
        the one before it, into the other half.
    step_valid, step_tile, step_last : In
        A step on the way back, and whether it is its row tile's last.
    back_delta : Out, an array of C
        Column c's signal for the step, c + `LATENCY` cycles after it; 0 for columns beyond the layer.
    read_tile, read_column, read_data : In, Out
        A signal, `READ_LATENCY` cycles after its place. Column c is not to be read in the cycle of a step that was c
        cycles before.

    A word is there from the cycle after its write on.
    """

    LATENCY = 1
    READ_LATENCY = 2

    half: Signal
    write_start: Signal
    write_valid: Signal
    write_below: Signal
    write_data: Signal
    step_valid: Signal
    step_tile: Signal
    step_last: Signal
    back_delta: list[Signal]
    read_tile: Signal
    read_column: Signal
    read_data: Signal

    def __init__(self, machine: Machine):
        self._cols = machine.cols
        tiles = -(-machine.max_neurons // machine.cols)
        self._word_bits = ceil_log2(tiles)
        super().__init__(
            {
                "half": In(1),
                "write_start": In(1),
                "write_valid": In(1),
                "write_below": In(1),
                "write_data": In(signed(BACK_BITS)),
                "step_valid": In(1),
                "step_tile": In(tiles.bit_length()),
                "step_last": In(1),
                "back_delta": Out(signed(BACK_BITS)).array(machine.cols),
                "read_tile": In(tiles.bit_length()),
                "read_column": In(range(machine.cols)),
                "read_data": Out(signed(BACK_BITS)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cols, bits = self._cols, self._word_bits

        # Where the next signal goes, and, for each half, in which bank the last one is.
        bank, word = Signal(range(cols)), Signal(bits)
        finals = [Signal(range(cols), name=f"final_{half}", reset_less=True) for half in range(2)]
        write_half = Signal()
        m.d.comb += write_half.eq(self.half ^ self.write_below)
        with m.If(self.write_valid):
            with m.If(bank == cols - 1):
                m.d.sync += [bank.eq(0), word.eq(word + 1)]
            with m.Else():
                m.d.sync += bank.eq(bank + 1)
            for half, final in enumerate(finals):
                with m.If(write_half == half):
                    m.d.sync += final.eq(bank)
        with m.If(self.write_start):
            m.d.sync += [bank.eq(0), word.eq(0)]

        valid = delay_line(m, self.step_valid, cols - 1, "valid")
        last = delay_line(m, self.step_last, cols - 1, "last")
        tile = delay_line(m, self.step_tile[:bits], cols - 1, "tile")
        final = Mux(self.half, finals[1], finals[0])
        words = []
        for c in range(cols):
            m.submodules[f"bank_{c}"] = memory = DualPortMemory(signed(BACK_BITS), 2 << bits)
            shown = Signal(name=f"shown_{c}")
            m.d.sync += shown.eq(valid[c] & ~(last[c] & (final < c)) if c else valid[c])
            m.d.comb += [
                memory.read_addr.eq(Cat(Mux(valid[c], tile[c], self.read_tile[:bits]), self.half)),
                memory.write_en.eq(self.write_valid & (bank == c)),
                memory.write_addr.eq(Cat(word, write_half)),
                memory.write_data.eq(self.write_data),
                self.back_delta[c].eq(Mux(shown, memory.read_data, 0)),
            ]
            words.append(memory.read_data)
        column = delay_line(m, self.read_column, 1, "column")[-1]
        m.d.sync += self.read_data.eq(Array(words)[column])
        return m
