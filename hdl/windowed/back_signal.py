"""The learning signal of backpropagation, as far as the array does not make it: the output layer's errors.

docs/rules.md, sections 1 and 6.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import In, Out

from hdl.arith import clip_symmetric, delay_line, round_shift
from hdl.windowed.error_signal import ErrorSignal
from spec.basis import Basis
from spec.machine import ERROR_FRAC, Machine
from spec.rules import BACK_BITS, BACK_DROPPED, BACK_FRAC

__all__ = ["BackSignal"]


class BackSignal(ErrorSignal):
    """Rounds the output layer's errors to signals, and says where they are kept. Ports: `WindowSignal`, and

    layer_start, signal_base : In
        Pulse, a layer's first sample begins, and the first word of its signals.
    signal_valid, signal_bank, signal_word, signal_value : Out
        When it trains: K signals d, signed(`BACK_BITS`), one a cycle, the last in the cycle before `done`; as
        :class:`~hdl.windowed.back_memory.BackMemory` takes them. Words of a sample follow those of the one before.
    left_shift : Out
        What an update shifts signals by, 0 to `left_max`: of the layer, two cycles late.
    """

    layer_start: Signal
    signal_base: Signal
    signal_valid: Signal
    signal_bank: Signal
    signal_word: Signal
    signal_value: Signal
    left_shift: Signal

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        """`basis`: not read, but as for every rule it must be one of so many classes."""
        own = {
            "layer_start": In(1),
            "signal_base": In(machine.signal_addr_bits),
            "signal_valid": Out(1),
            "signal_bank": Out(range(machine.cols)),
            "signal_word": Out(machine.signal_addr_bits),
            "signal_value": Out(signed(BACK_BITS)),
            "left_shift": Out(range(machine.delta_bits - BACK_BITS + 1)),
        }
        super().__init__(machine, classes, basis, own)

    def elaborate(self, platform) -> Module:
        m = Module()
        error_last, softmax = self._output(m), self._softmax

        # 6 fraction bits of the error: finer, what the softmax's tables leave of a certain class never ends.
        rounded = round_shift(softmax.error, BACK_DROPPED)
        error = Cat(Const(0, BACK_FRAC - ERROR_FRAC + BACK_DROPPED), rounded).as_signed()
        value = Signal.like(self.signal_value, reset_less=True)
        m.d.sync += value.eq(clip_symmetric(error, BACK_BITS))

        last = delay_line(m, error_last, self.ERROR_LATENCY - 1, "last")
        m.d.comb += [
            self.signal_valid.eq(delay_line(m, softmax.error_strobe, 2, "made")[-1]),
            self.signal_value.eq(value),
            self.done.eq(Mux(self.train, last[-1], softmax.done)),
            self.left_shift.eq(self._left_shift(m, self.rate_shift)),
        ]
        with m.If(self.layer_start):
            m.d.sync += [self.signal_bank.eq(0), self.signal_word.eq(self.signal_base)]
        with m.Elif(self.signal_valid):
            with m.If(last[1] | (self.signal_bank == self.machine.cols - 1)):
                m.d.sync += [self.signal_bank.eq(0), self.signal_word.eq(self.signal_word + 1)]
            with m.Else():
                m.d.sync += self.signal_bank.eq(self.signal_bank + 1)
        return m
