"""From latents to their gradients: what every learning-signal unit has, whatever it makes of them."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.utils import ceil_log2

from hdl.arith import delay_line, saturate, truncate
from hdl.class_lanes import ClassLanes, score_bits
from hdl.memory import DualPortMemory
from hdl.softmax import QUOTIENT_BITS, Softmax
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import ACT_BITS, ERROR_BITS, SCORE_BITS, Machine

__all__ = ["SignalPath"]

# The projection's product has 7 fraction bits more than the gradient.
_PROJECTION_SHIFT = 7
# Cycles from an operation on the lanes to the first multiplication that has to meet its result.
_LATENT_DELAY = ClassLanes.LATENCY - 4


class SignalPath:
    """The class lanes, the softmax, the latents' memory, and one multiplier for squares and projection.

    Built into a unit's own module, so that the unit counts the latents: one counter then serves all
    that goes by index. That counter must be 0 in the cycle after `rewind`, and go on by one in each
    cycle of the softmax's `drain` and `error_strobe`.
    """

    LATENCY = ClassLanes.LATENCY + 1
    """Cycles from a latent's `issue` to its gradient."""
    KEPT_LATENCY = _LATENT_DELAY + 1
    """Cycles from a latent's `issue` to what was kept with it."""

    def __init__(self, machine: Machine, classes: int, basis: Basis, index_bits: int):
        if basis.classes != classes:
            raise SpecError("basis.classes", f"must equal classes ({classes})", basis.classes)
        if machine.max_neurons < classes:
            raise SpecError("max_neurons", f"must be at least the number of classes, {classes}", machine.max_neurons)
        self.machine = machine
        self.lanes = ClassLanes(machine, basis, index_bits)
        self.softmax = Softmax(machine, classes)
        # Gradient = weighted - (offset + projection). |projection| <= 2^15 * 2^7 / 2^7, in 17 bits, the
        # others have lanes.bits + 1; each of the two sums takes one more.
        self.gradient_bits = 2 + max(QUOTIENT_BITS + 1, self.lanes.bits + 1)

    def rewind(self, unit: wiring.Component) -> Value:
        """The cycles after which counting begins anew: a forward phase, scores, errors, gradients."""
        return unit.start | unit.go | self.softmax.clear | self.softmax.done

    def build(
        self,
        m: Module,
        unit: wiring.Component,
        *,
        valid: Value,
        latent: Value,
        kept: Value,
        score: Value,
        index: Value,
        rewind: Value,
        issue: Value,
    ) -> tuple[Signal, Value]:
        """Adds the path to `m`, which has `lanes` and `softmax` as submodules; the gradient, and `kept`.

        `unit` has the ports `start, go, is_output, label, train, score_shift` of a learning-signal
        unit. With `valid` latent number `index` comes in (s8; `score` in an output layer), and `kept`,
        any bits. With `issue` the gradient of number `index` is asked for, in order from 0 on, from the
        cycle after the softmax's `done` on: signed(`gradient_bits`), 8 fraction bits.
        """
        lanes, softmax = self.lanes, self.softmax
        forward = Signal()
        with m.If(unit.start | unit.go):
            m.d.sync += forward.eq(unit.start)

        # -- class lanes ------------------------------------------------------------------------
        activation = Signal(signed(ACT_BITS), reset_less=True)
        addend = Signal(signed(ERROR_BITS), reset_less=True)
        m.d.sync += [
            activation.eq(latent),
            addend.eq(Mux(forward, activation, softmax.error)),
        ]
        m.d.comb += [
            lanes.index.eq(index),
            lanes.hot.eq(softmax.drain | softmax.error_strobe | (issue & unit.is_output)),
            lanes.write.eq(valid | softmax.error_strobe),
            lanes.addend.eq(addend),
            lanes.is_output.eq(unit.is_output),
            lanes.clear.eq(unit.start | softmax.clear),
        ]

        # -- latents; one multiplier for their squares and for the projection -----------------------
        m.submodules.latents = latents = DualPortMemory(ACT_BITS + len(kept), 1 << ceil_log2(self.machine.max_neurons))
        kept_latent = latents.read_data[:ACT_BITS].as_signed()
        asked = delay_line(m, issue, _LATENT_DELAY, "asked")[-1]
        with m.If(rewind):
            m.d.sync += latents.read_addr.eq(0)
        with m.Elif(asked):
            m.d.sync += latents.read_addr.eq(latents.read_addr + 1)
        x = Signal(signed(ACT_BITS), reset_less=True)
        y = Signal(signed(QUOTIENT_BITS), reset_less=True)
        product = Signal(signed(ACT_BITS + QUOTIENT_BITS), reset_less=True)
        m.d.comb += [
            latents.write_en.eq(valid),
            latents.write_addr.eq(index),
            latents.write_data.eq(Cat(latent, kept)),
        ]
        m.d.sync += [
            x.eq(Mux(forward, activation, kept_latent)),
            y.eq(Mux(forward, activation, softmax.quotient)),
            product.eq(x * y),
        ]

        norm = Signal(self.machine.norm_bits)
        squared = delay_line(m, valid, 3, "squared")[-1]
        with m.If(unit.start):
            m.d.sync += norm.eq(0)
        with m.Elif(squared):
            m.d.sync += norm.eq(norm + product[: 2 * ACT_BITS - 1])

        # -- scores and gradients: what the lanes give, less their offset and the projection ---------
        # The quotient is 0 while scores are read and in the output layer.
        offset = Cat(Const(1 << (_PROJECTION_SHIFT - 1), _PROJECTION_SHIFT), lanes.offset)
        projected = (product + offset.as_signed()) >> _PROJECTION_SHIFT
        subtrahend = Signal(projected.shape(), reset_less=True)
        result = Signal(signed(self.gradient_bits), reset_less=True)
        m.d.sync += [
            subtrahend.eq(projected),
            result.eq(truncate(lanes.weighted - subtrahend, len(result))),
        ]

        # -- errors -----------------------------------------------------------------------------
        drained = delay_line(m, softmax.drain, lanes.LATENCY + 1, "drained")[-1]
        hidden_score = saturate(truncate(result, score_bits(self.machine)), SCORE_BITS)
        m.d.comb += [
            softmax.start.eq(unit.start),
            softmax.score_valid.eq(Mux(unit.is_output, valid, drained)),
            softmax.score.eq(Mux(unit.is_output, score, hidden_score)),
            softmax.go.eq(unit.go),
            softmax.train.eq(unit.train),
            softmax.is_output.eq(unit.is_output),
            softmax.label.eq(unit.label),
            softmax.score_shift.eq(unit.score_shift),
            softmax.norm.eq(norm),
        ]
        return result, latents.read_data[ACT_BITS:]


# A gradient asked for in the cycle after the softmax's last meets the quotient at the multiplier.
assert Softmax.QUOTIENT_LATENCY == _LATENT_DELAY + 2
