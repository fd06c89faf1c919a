"""From latents to their gradients: what every learning-signal unit has, whatever it makes of them."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member
from amaranth.utils import ceil_log2

from hdl.arith import delay_line, saturate, truncate
from hdl.class_lanes import ClassLanes, score_bits
from hdl.feed import feed
from hdl.local_classifier import LocalClassifier
from hdl.memory import DualPortMemory
from hdl.score_factors import ScoreFactors
from hdl.score_matrix import ScoreMatrix
from hdl.score_memory import host_ports, pass_host, step_shift
from hdl.softmax import QUOTIENT_BITS, Softmax
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import ACT_BITS, SCORE_BITS, Machine
from spec.scores import VECTOR_BITS, basis_vectors

__all__ = ["SignalPath", "check_basis"]

# The projection's product has 7 fraction bits more than the gradient.
_PROJECTION_SHIFT = 7
# Cycles from an operation on the lanes to the first multiplication that has to meet its result.
_LATENT_DELAY = ClassLanes.LATENCY - 4


def check_basis(machine: Machine, classes: int, basis: Basis) -> None:
    """SpecError for a basis of another number of vectors than the machine has for `classes`, or of more than these."""
    vectors = basis_vectors(machine, classes)
    if basis.classes != vectors:
        rule = "classes" if vectors == classes else "the machine's vectors"
        raise SpecError("basis.classes", f"must equal {rule} ({vectors})", basis.classes)
    if basis.classes > classes:
        raise SpecError("vectors", f"must be at most the {classes} classes", basis.classes)


class SignalPath:
    """The class lanes, the softmax, the latents' memory, and one multiplier for squares and projection.

    Built into a unit's own module, so that the unit counts the latents: one counter then serves all
    that goes by index. That counter must be 0 in the cycle after `rewind`, and go on by one in each
    cycle of the softmax's `drain` and of `error_strobe`. Where the rule trains factors or a matrix, these
    stand between lanes and softmax; where it trains all of the basis, in place of the lanes.
    """

    LATENCY = ClassLanes.LATENCY + 1
    """Cycles from a latent's `issue` to its gradient."""
    KEPT_LATENCY = _LATENT_DELAY + 1
    """Cycles from a latent's `issue` to what was kept with it."""

    def __init__(self, machine: Machine, classes: int, basis: Basis, index_bits: int, projects: bool = True):
        """`projects`: whether gradients lose their part along the latents."""
        check_basis(machine, classes, basis)
        if machine.max_neurons < classes:
            raise SpecError("max_neurons", f"must be at least the number of classes, {classes}", machine.max_neurons)
        self.machine, self._projects = machine, projects
        trains = machine.learning.trains
        classifies = trains == "basis"
        self.lanes: Any = (
            LocalClassifier(machine, classes, index_bits) if classifies else ClassLanes(machine, basis, index_bits)
        )
        self.softmax = Softmax(machine, classes)
        self._matrix = ScoreMatrix(machine, classes, basis.classes) if trains == "matrix" else None
        self._between: Any = ScoreFactors(machine, classes) if trains == "factors" else self._matrix
        # What has the trained parameters; where class errors come from on their way to the lanes.
        self._trained = self.lanes if classifies else self._between
        self._errors = self._between or self.softmax
        self._rows = basis.classes if self._between else 0
        # Gradient = weighted - (offset + projection). |projection| <= 2^15 * 2^7 / 2^7, in 17 bits, the
        # others have lanes.bits + 1; each of the two sums takes one more.
        self.gradient_bits = 2 + max(QUOTIENT_BITS + 1, self.lanes.bits + 1)

    @property
    def submodules(self) -> dict[str, Any]:
        """What it is built of, by name."""
        between = {"scores": self._between} if self._between else {}
        return {"lanes": self.lanes, "softmax": self.softmax, **between}

    @property
    def ports(self) -> dict[str, Member]:
        """Of a unit with a trained part of the class scores, for `train`: `first_layer`, In, whether the layer is the
        program's first one; and `hdl.score_memory.host_ports`.
        """
        return {"first_layer": In(1), **host_ports(self.machine)} if self._trained else {}

    def train(self, m: Module, unit: Any, *, start: Value, latents: Value, rate: Value, learn: Value) -> None:
        """What a trained part of the class scores needs beyond `build`.

        `start`: the program's next layer begins; `latents` of it; `rate`: LR - RATE_STEP; `learn`: the latent whose
        gradient is being asked for is a real one of a hidden layer.
        """
        fine, coarse = step_shift(m, rate, self.softmax.norm_shift)
        m.d.comb += [
            *feed(self._trained, layer_start=start, first_layer=unit.first_layer, size=self._rows or latents),
            *feed(self._trained, fine=fine, coarse=coarse, learn=learn),
            *pass_host(unit, self._trained, self.machine),
        ]

    @property
    def error_strobe(self) -> Signal:
        """The next lane takes its error."""
        return self._errors.error_strobe

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
        lanes, softmax, errors = self.lanes, self.softmax, self._errors
        forward = Signal()
        with m.If(unit.start | unit.go):
            m.d.sync += forward.eq(unit.start)

        # -- class lanes ------------------------------------------------------------------------
        activation = Signal(signed(ACT_BITS), reset_less=True)
        addend = Signal(signed(lanes.addend_bits), reset_less=True)
        m.d.sync += [
            activation.eq(latent),
            addend.eq(Mux(forward, activation, errors.error)),
        ]
        m.d.comb += [
            lanes.index.eq(index),
            lanes.hot.eq(softmax.drain | errors.error_strobe | (issue & unit.is_output)),
            lanes.write.eq(valid | errors.error_strobe),
            lanes.addend.eq(addend),
            lanes.is_output.eq(unit.is_output),
            lanes.clear.eq(unit.start | softmax.clear),
        ]

        # -- latents; one multiplier for their squares and for the projection -----------------------
        m.submodules.latents = latents = DualPortMemory(ACT_BITS + len(kept), 1 << ceil_log2(self.machine.max_neurons))
        # A trained basis needs a latent as early as its entries.
        classifies = lanes is self._trained
        asked = issue if classifies else delay_line(m, issue, _LATENT_DELAY, "asked")[-1]
        if classifies:
            m.d.comb += lanes.value.eq(Mux(forward, activation, latents.read_data[:ACT_BITS].as_signed()))
        known = delay_line(m, latents.read_data, _LATENT_DELAY, "known")[-1] if classifies else latents.read_data
        kept_latent = known[:ACT_BITS].as_signed()
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
            y.eq(Mux(forward, activation, softmax.quotient if self._projects else 0)),
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
        # A matrix has the output layer's errors, as there may be fewer vectors.
        weighted = Mux(unit.is_output, self._matrix.taken << 1, lanes.weighted) if self._matrix else lanes.weighted
        m.d.sync += [
            subtrahend.eq(projected),
            result.eq(truncate(weighted - subtrahend, len(result))),
        ]

        # -- errors -----------------------------------------------------------------------------
        drained, hidden_score = self._hidden_scores(m, unit, result, issue & unit.is_output)
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
        return result, known[ACT_BITS:]

    def _hidden_scores(self, m: Module, unit: Any, result: Value, take: Value) -> tuple[Value, Value]:
        """Whether a hidden layer's next class score is there, and it, s20. `take`: an output layer's error is due."""
        softmax, between = self.softmax, self._between
        if not between:
            bits = SCORE_BITS if self._trained else score_bits(self.machine)
            drained = delay_line(m, softmax.drain, self.lanes.LATENCY + 1, "drained")[-1]
            return drained, saturate(truncate(result, bits), SCORE_BITS)
        m.d.comb += [
            *feed(between, start=unit.start, is_output=unit.is_output),
            between.drain.eq(softmax.drain),
            between.vector.eq(saturate(truncate(result, score_bits(self.machine)), VECTOR_BITS)),
            between.enter.eq(softmax.error_strobe),
            between.entering.eq(softmax.error),
        ]
        if not self._matrix:
            return between.score_valid, between.score
        m.d.comb += [between.arrive.eq(softmax.arrive), between.back.eq(softmax.back), between.take.eq(take)]
        return delay_line(m, softmax.arrive, 1, "arrived")[-1], between.score


# A gradient asked for in the cycle after the softmax's last meets the quotient at the multiplier.
assert Softmax.QUOTIENT_LATENCY == _LATENT_DELAY + 2
