"""Post-processing: one pipeline that turns the array's totals into activations and scores."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line, round_shift, saturate, truncate
from spec.machine import ACT_BITS, BIAS_LEFT_SHIFT, SCORE_BITS, WEIGHT_BITS, Machine
from spec.program import FIELDS

__all__ = ["PostProcess"]

# Of act_shift: 14 + in_frac - 9 at least.
_MIN_SHIFT = 9
_MAX_SHIFT = 24
_SLOPE_SHIFT = 3


class PostProcess(wiring.Component):
    """z = acc + (bias << 7), leaky ReLU of slope 1/8, rounding shift, saturation; one a cycle.

    Members
    -------
    acc_valid, acc_data : In
        A total of the array, signed(`acc_bits`), 14 + in_frac fraction bits.
    bias_data, bias_pop : In, Out
        The bias of the same neuron (s16, 7 + in_frac fraction bits), taken in the cycle of
        `bias_pop`, which is that of `acc_valid`.
    act_shift, is_output : In
        9 to 24; no slope for the output layer. Constant while results are on their way.
    out_valid, out_a, out_neg, out_score : Out
        `LATENCY` cycles after `acc_valid`: the activation (s8 sQ4.4), whether z < 0, and the score
        (s20 sQ11.9, of use in the output layer only).
    """

    LATENCY = 3

    acc_valid: Signal
    acc_data: Signal
    bias_data: Signal
    bias_pop: Signal
    act_shift: Signal
    is_output: Signal
    out_valid: Signal
    out_a: Signal
    out_neg: Signal
    out_score: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "acc_valid": In(1),
                "acc_data": In(signed(machine.acc_bits)),
                "bias_data": In(signed(WEIGHT_BITS)),
                "bias_pop": Out(1),
                "act_shift": In(FIELDS["act_shift"].width),
                "is_output": In(1),
                "out_valid": Out(1),
                "out_a": Out(signed(ACT_BITS)),
                "out_neg": Out(1),
                "out_score": Out(signed(SCORE_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # rnd((z >> 3) >> s) = rnd(z >> (s + 3)): the slope is a longer shift. Both shifts count
        # from the smallest one, and one more bit is kept for the rounding.
        base = _MIN_SHIFT - 1
        z = Signal(signed(self.machine.acc_bits), reset_less=True)
        plain = Signal(range(_MAX_SHIFT + 1 - base), reset_less=True)
        sloped = Signal(range(_MAX_SHIFT + _SLOPE_SHIFT + 1 - base), reset_less=True)
        shift = Signal.like(sloped)
        shifted = Signal(signed(self.machine.acc_bits - base), reset_less=True)
        rounded = round_shift(shifted, 1)
        neg = Signal()
        aligned = Cat(Const(0, BIAS_LEFT_SHIFT), self.bias_data).as_signed()
        m.d.comb += [
            self.bias_pop.eq(self.acc_valid),
            neg.eq(z < 0),
            shift.eq(Mux(neg & ~self.is_output, sloped, plain)),
        ]
        m.d.sync += [
            z.eq(truncate(self.acc_data + aligned, len(z))),
            plain.eq(self.act_shift - _MIN_SHIFT),
            sloped.eq(self.act_shift - _MIN_SHIFT + _SLOPE_SHIFT),
            shifted.eq(z[base:].as_signed() >> shift),
            self.out_a.eq(saturate(rounded, ACT_BITS)),
            self.out_score.eq(saturate(rounded, SCORE_BITS)),
            self.out_neg.eq(delay_line(m, neg, 1, "neg")[-1]),
            self.out_valid.eq(delay_line(m, self.acc_valid, 2, "valid")[-1]),
        ]
        return m
