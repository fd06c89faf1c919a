"""From a latent's gradient to its shifted learning signal, and the queue that the array takes it from."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.arith import clip_symmetric, delay_line, round_shift, saturate
from hdl.memory import DualPortMemory
from spec.machine import ACT_BITS, Machine

__all__ = ["DeltaQueue"]

_GRADIENT_SHIFT = 2
_SLOPE_SHIFT = 3
# Beyond 11 bits both branches of the slope are clipped anyway: rnd(1023 >> 3) is 128.
_KEPT_BITS = ACT_BITS + _SLOPE_SHIFT


class DeltaQueue(wiring.Component):
    """delta' = -clip(rnd(g >> 2), behind the slope) << ls, and a queue of these; one a cycle.

    Members
    -------
    reserve, room : In, Out
        A gradient that is to come has to be announced, and only while there is `room` for one more:
        so nothing behind it can be held up.
    valid, g, neg, real, left_shift : In
        A gradient, signed(`gradient_bits`), 8 fraction bits; whether z < 0; 0: padding, delta' is 0;
        ls, 0 to delta_bits - 8, constant.
    made, value, made_real : Out
        delta', signed(`delta_bits`), `LATENCY` cycles after `valid`.
    pop, head, level : In, Out
        `head` is the oldest value, if `level`, the number of values that are there, is not 0; a
        value is counted 2 cycles after it was `made`. `pop` takes it in the same cycle.
    """

    LATENCY = 3
    QUEUE_LATENCY = 2

    reserve: Signal
    room: Signal
    valid: Signal
    g: Signal
    neg: Signal
    real: Signal
    left_shift: Signal
    made: Signal
    value: Signal
    made_real: Signal
    pop: Signal
    head: Signal
    level: Signal

    def __init__(self, machine: Machine, gradient_bits: int):
        # Two values a column and what is on its way; at least what keeps one a cycle flowing.
        self.depth = 1 << ceil_log2(max(2 * machine.cols + 8, 16))
        super().__init__(
            {
                "reserve": In(1),
                "room": Out(1),
                "valid": In(1),
                "g": In(signed(gradient_bits)),
                "neg": In(1),
                "real": In(1),
                "left_shift": In(range(machine.delta_bits - ACT_BITS + 1)),
                "made": Out(1),
                "value": Out(signed(machine.delta_bits)),
                "made_real": Out(1),
                "pop": In(1),
                "head": Out(signed(machine.delta_bits)),
                "level": Out(range(self.depth + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        kept = Signal(signed(_KEPT_BITS), reset_less=True)
        delta = Signal(signed(ACT_BITS), reset_less=True)
        neg = delay_line(m, self.neg, 1, "neg")[-1]
        real = delay_line(m, self.real, 2, "real")[-1]
        m.d.sync += [
            kept.eq(saturate(round_shift(self.g, _GRADIENT_SHIFT), _KEPT_BITS)),
            delta.eq(
                clip_symmetric(Mux(neg, round_shift(kept, _SLOPE_SHIFT), kept), ACT_BITS)
            ),
            self.value.eq(Mux(real, -delta << self.left_shift, 0)),
            self.made_real.eq(real),
            self.made.eq(delay_line(m, self.valid, 2, "valid")[-1]),
        ]

        m.submodules.values = values = DualPortMemory(self.value.shape(), self.depth)
        write = Signal(range(self.depth))
        read = Signal.like(write)
        reserved = Signal.like(self.level)
        stored = Signal()
        m.d.comb += [
            values.write_en.eq(self.made),
            values.write_addr.eq(write),
            values.write_data.eq(self.value),
            values.read_addr.eq(read + self.pop),
            self.head.eq(values.read_data),
            self.room.eq(reserved != self.depth),
        ]
        m.d.sync += [
            write.eq(write + self.made),
            read.eq(values.read_addr),
            stored.eq(self.made),
            self.level.eq(self.level + stored - self.pop),
            reserved.eq(reserved + self.reserve - self.pop),
        ]
        return m
