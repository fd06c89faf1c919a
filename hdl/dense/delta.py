"""From a neuron's gradient to its shifted learning signal, and the queue that the array takes it from."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out
from amaranth.utils import ceil_log2

from hdl.arith import clip_symmetric, delay_line, round_shift, saturate
from hdl.memory import DualPortMemory
from spec.machine import Machine
from spec.program import FIELDS

__all__ = ["CLIP_LATENCY", "DeltaQueue", "SignalQueue", "clipped_slope", "left_shift", "signal_order"]

_GRADIENT_SHIFT = 2
_SLOPE_SHIFT = 3
CLIP_LATENCY = 2
"""Cycles from a gradient to what :func:`clipped_slope` makes of it."""


def clipped_slope(m: Module, g: Value, shift: int, neg: Value, bits: int) -> Signal:
    """clip(rnd(g >> shift), behind the slope), signed(`bits`), one a cycle; `neg` (z < 0) comes a cycle after `g`."""
    # Beyond `bits` + 3 both branches of the slope are clipped anyway: at 8 bits rnd(1023 >> 3) is 128.
    kept = Signal(signed(bits + _SLOPE_SHIFT), reset_less=True)
    delta = Signal(signed(bits), reset_less=True)
    m.d.sync += [
        kept.eq(saturate(round_shift(g, shift), len(kept))),
        delta.eq(clip_symmetric(Mux(neg, round_shift(kept, _SLOPE_SHIFT), kept), bits)),
    ]
    return delta


def signal_order(
    m: Module, machine: Machine, issue: Signal, go: Value, room: Value, col_tiles: Value
) -> tuple[Signal, Signal, Value]:
    """Drives `issue`: from `go` on a layer's `col_tiles` * C signals are asked for, one a cycle while there is `room`.

    Returns a signal's column tile and column, and whether it is the layer's last.
    """
    making = Signal()
    column = Signal(range(machine.cols))
    tile = Signal.like(col_tiles, name="tile")
    following = Signal.like(tile)
    last_column = column == machine.cols - 1
    last = last_column & (following == col_tiles)
    m.d.comb += [
        issue.eq((go | making) & room),
        following.eq(tile + 1),
    ]
    m.d.sync += making.eq((go | making) & ~(issue & last))
    with m.If(issue):
        m.d.sync += column.eq(Mux(last_column, 0, column + 1))
        with m.If(last_column):
            m.d.sync += tile.eq(Mux(last, 0, following))
    return tile, column, last


def left_shift(m: Module, machine: Machine, rate_shift: Value) -> Signal:
    """ls = clip(F - rate_shift, 0, delta_bits - signal_bits), two cycles after `rate_shift`."""
    # rate_shift is what the shifted signal lacks to F; it cannot shift right, nor too far.
    most = machine.delta_bits - machine.signal_bits
    rate = Signal(signed(FIELDS["rate_shift"].width + 1), reset_less=True)
    left = Signal(signed(len(rate) + 1))
    left_shift = Signal(range(most + 1), reset_less=True)
    m.d.comb += left.eq(machine.fraction_bits - rate)
    m.d.sync += [
        rate.eq(rate_shift),
        left_shift.eq(Mux(left < 0, 0, Mux(left > most, most, left))),
    ]
    return left_shift


class SignalQueue(wiring.Component):
    """delta' = -delta << ls, and a queue of these; one a cycle.

    Members
    -------
    reserve, room : In, Out
        A signal that is to come has to be announced, and only while there is `room` for one more:
        so nothing behind it can be held up.
    valid, delta, real, left_shift : In
        A signal, signed(`signal_bits`); 0: padding, delta' is 0; ls, 0 to delta_bits - signal_bits, constant.
    made, value, made_real : Out
        delta', signed(`delta_bits`), `LATENCY` cycles after `valid`.
    pop, head, level : In, Out
        `head` is the oldest value, if `level`, the number of values that are there, is not 0; a
        value is counted 2 cycles after it was `made`. `pop` takes it in the same cycle.
    """

    LATENCY = 1
    QUEUE_LATENCY = 2

    reserve: Signal
    room: Signal
    valid: Signal
    delta: Signal
    real: Signal
    left_shift: Signal
    made: Signal
    value: Signal
    made_real: Signal
    pop: Signal
    head: Signal
    level: Signal

    def __init__(self, machine: Machine):
        self._make(machine, {"delta": In(signed(machine.signal_bits))})

    def _make(self, machine: Machine, signal: dict[str, Member]) -> None:
        # Two values a column and what is on its way; at least what keeps one a cycle flowing.
        self.depth = 1 << ceil_log2(max(2 * machine.cols + 8, 16))
        super().__init__(
            {
                "reserve": In(1),
                "room": Out(1),
                "valid": In(1),
                **signal,
                "real": In(1),
                "left_shift": In(range(machine.delta_bits - machine.signal_bits + 1)),
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
        self._fill(m, self.valid, self.delta, self.real)
        return m

    def _fill(self, m: Module, valid: Value, delta: Value, real: Value) -> None:
        m.d.sync += [
            self.value.eq(Mux(real, -delta << self.left_shift, 0)),
            self.made_real.eq(real),
            self.made.eq(valid),
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


class DeltaQueue(SignalQueue):
    """The same from a neuron's gradient on: delta = clip(rnd(g >> 2), behind the slope).

    Members
    -------
    g, neg : In
        In place of `delta`: signed(`gradient_bits`), 8 fraction bits; whether z < 0.
    saturated : In, where the rule `holds`
        The activation is at the end of its range that `neg` says: a delta that would push it further is 0.
    """

    LATENCY = CLIP_LATENCY + SignalQueue.LATENCY

    g: Signal
    neg: Signal
    saturated: Signal

    def __init__(self, machine: Machine, gradient_bits: int):
        self._machine = machine
        end = {"saturated": In(1)} if machine.learning.holds else {}
        self._make(machine, {"g": In(signed(gradient_bits)), "neg": In(1), **end})

    def elaborate(self, platform):
        m = Module()
        neg = delay_line(m, self.neg, 1, "neg")[-1]
        real = delay_line(m, self.real, CLIP_LATENCY, "real")[-1]
        valid = delay_line(m, self.valid, CLIP_LATENCY, "valid")[-1]
        delta: Value = clipped_slope(m, self.g, _GRADIENT_SHIFT, neg, self._machine.signal_bits)
        if self._machine.learning.holds:
            # Weights move against delta: a negative one raises the activation.
            low, end = (delay_line(m, port, CLIP_LATENCY, name)[-1] for port, name in (
                (self.neg, "low"), (self.saturated, "end")
            ))  # fmt: skip
            delta = Mux(end & (low ^ delta[-1]), 0, delta)
        self._fill(m, valid, delta, real)
        return m
