"""From class scores to errors, and the factor of the projection: the signal phase's arithmetic.

The phase is a fixed timetable over the classes: one walk finds the largest score, one sums the
exponentials, one divides by their sum. One shifter and one multiplier serve all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import bits_below, delay_line, leading_one, round_shift, saturate, truncate
from hdl.class_lanes import MAX_ERROR, ClassLanes, score_bits
from hdl.memory import DualPortMemory
from spec.machine import ERROR_BITS, ERROR_FRAC, SCORE_BITS, Machine
from spec.program import FIELDS
from spec.qformat import signed_bits
from spec.scores import basis_vectors
from spec.tables import EXP, EXP_FRACTION_BITS, RCP8, RCP9
from spec.timing import ARGMAX_TAIL, PLAIN_ARGMAX_TAIL, PLAIN_SIGNAL_TAIL, SIGNAL_TAIL, score_cycles

__all__ = ["QUOTIENT_BITS", "SHIFT_BITS", "ScaleUnit", "Softmax"]

QUOTIENT_BITS = 16
SHIFT_BITS = 5
_LABEL_BITS = 8
_EXPONENT_FRAC = 8
_MANTISSA_BITS = 4


class ScaleUnit(wiring.Component):
    """`result` = sat16(rnd(value >> amount)), `LATENCY` cycles later; `amount` is 0 to 31."""

    LATENCY = 3

    value: Signal
    amount: Signal
    result: Signal

    def __init__(self, value_bits: int):
        super().__init__(
            {
                "value": In(signed(value_bits)),
                "amount": In(SHIFT_BITS),
                "result": Out(signed(QUOTIENT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        value = Signal.like(self.value, reset_less=True)
        amount = Signal.like(self.amount, reset_less=True)
        shifted = Signal(signed(len(value) + 1), reset_less=True)  # with the bit that rounds
        m.d.sync += [
            value.eq(self.value),
            amount.eq(self.amount),
            shifted.eq(Cat(Const(0, 1), value).as_signed() >> amount),
            self.result.eq(saturate(round_shift(shifted, 1), QUOTIENT_BITS)),
        ]
        return m


class _Stage(enum.Enum, shape=3):
    """What the shifter, the multiplier and the normalisation work on."""

    MAXIMUM = 0
    EXPONENTS = 1
    ERRORS = 2
    PROJECTION = 3
    QUOTIENT = 4


@dataclass(frozen=True)
class _Timetable:
    """Cycles of the signal phase that do not depend on K; `read`: the first score's address."""

    read: int

    # From a score's address to u, and to its exponential:
    SCALED = 1 + ScaleUnit.LATENCY
    EXPONENTIAL = SCALED + 2
    # From an exponential's address to p, and to its error:
    PROBABILITY = 3 + ScaleUnit.LATENCY
    ERROR = PROBABILITY + 1

    @property
    def divide(self) -> int:
        """The first exponential's address, but for 2K. From the last exponential to the sum 1, leading one 1, mantissa
        1, reciprocal 1; the first one is divided 2 cycles after its address."""
        return self.read - 1 + self.EXPONENTIAL + 4 - 2

    @property
    def project(self) -> int:
        """The sum of e * score, but for 3K."""
        return self.divide - 1 + self.PROBABILITY + 3

    @property
    def quotient(self) -> int:
        """q, but for 3K. From that sum to h, the multiplier's operand, the product, and q."""
        return self.project + 2 * ScaleUnit.LATENCY + 2


_DRAIN = 1
_OUTPUT_ONLY = _Timetable(0)


def _all_layers(more: int) -> _Timetable:
    """A score drained is in memory, and can be read, this much later, and `more`. An output layer's are there."""
    return _Timetable(_DRAIN + ClassLanes.LATENCY + 2 + more)


# The norm is constant from cycle 3 on, so its mantissa is there in 5.
_NORM = 7


class Softmax(wiring.Component):
    """The signal phase; cycle 0 is that of `go`.

    ===================  ======================================================================
    from cycle           K cycles each
    ===================  ======================================================================
    1                    `drain`: a hidden layer's lanes are read into the score memory
    `read` = 9           first walk over the scores: report, maximum, prediction
    `read` + K           second walk: exponentials, their sum
    `divide` + 2K        third walk: errors; the scores follow five cycles later
    ===================  ======================================================================

    then, `project` + 3K and on, the quotient of the projection. With a trained part of the class scores `read` and all
    behind it come later, and `done` later still (`spec.timing.score_cycles`); a machine with a matrix drains its I
    vectors, then has `arrive` for K cycles, and `back` for I behind the last error.

    Where hidden layers have no scores of their own (`machine.learning.scores`) only an output layer's
    come: there is neither drain nor projection, `read` is 0, and `norm`, `drain`, `clear`, `norm_shift`
    and `quotient` are not there.

    Members
    -------
    start : In
        A layer begins.
    score_valid, score : In
        The next class's score (s20): K of them, in a layer's forward phase (output layer), or
        `ClassLanes.LATENCY` + 1 cycles after each `drain` (hidden layer; with trained factors the cycles later that an
        inference takes, with a matrix one after each `arrive`).
    go : In
        Begins the phase.
    train, is_output, label, score_shift, norm : In
        `norm` is the sum of squares, constant from 3 cycles after `go` on; the others from `go` on.
    drain : Out
        Read the next class's lane.
    arrive, back : Out, with a matrix
        Take the next class's sum of vectors; send errors back through the next vector's row.
    clear : Out, pulse
        Scores are read; the lanes are needed for the errors.
    error_strobe, error : Out
        The next class's error (s10, 8 fraction bits) is in `error` in the next cycle.
    norm_shift : Out
        k: half of the norm's leading one, 0 for the output layer; from cycle 8 to the next phase.
    quotient : Out
        q, sQ9.7: valid `QUOTIENT_LATENCY` cycles after `done`; 0 from `go` on, and in output layers.
    report_valid, report_score : Out
        The scores, in order.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    done : Out
        The phase's last cycle: 3K + SIGNAL_TAIL cycles with `go`'s when it trains, else
        K + ARGMAX_TAIL, and those of `spec.timing.score_cycles`; with output layers only
        3K + PLAIN_SIGNAL_TAIL, the cycle after the last `error_strobe`, else K + PLAIN_ARGMAX_TAIL.
    """

    QUOTIENT_LATENCY = 4

    start: Signal
    score_valid: Signal
    score: Signal
    go: Signal
    train: Signal
    is_output: Signal
    label: Signal
    score_shift: Signal
    norm: Signal
    drain: Signal
    arrive: Signal
    back: Signal
    clear: Signal
    error_strobe: Signal
    error: Signal
    norm_shift: Signal
    quotient: Signal
    report_valid: Signal
    report_score: Signal
    prediction: Signal
    done: Signal

    def __init__(self, machine: Machine, classes: int):
        self.machine = machine
        self.classes = classes
        trains = machine.learning.trains
        self._score_bits = SCORE_BITS if trains else min(SCORE_BITS, score_bits(machine))
        self._scores = machine.learning.scores
        self._matrix = trains == "matrix"
        self._vectors = basis_vectors(machine, classes)
        self._more = score_cycles(trains, self._vectors)
        super().__init__(
            {
                "start": In(1),
                "score_valid": In(1),
                "score": In(signed(SCORE_BITS)),
                "go": In(1),
                "train": In(1),
                "is_output": In(1),
                "label": In(_LABEL_BITS),
                "score_shift": In(FIELDS["score_shift"].width),
                **({"norm": In(machine.norm_bits), "drain": Out(1), "clear": Out(1)} if self._scores else {}),
                **({"arrive": Out(1), "back": Out(1)} if self._matrix else {}),
                "error_strobe": Out(1),
                "error": Out(signed(ERROR_BITS)),
                **({"norm_shift": Out(SHIFT_BITS), "quotient": Out(signed(QUOTIENT_BITS))} if self._scores else {}),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
                "prediction": Out(_LABEL_BITS),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        K = self.classes
        times, signal_tail, argmax_tail = _OUTPUT_ONLY, PLAIN_SIGNAL_TAIL, PLAIN_ARGMAX_TAIL
        end = 3 * K + signal_tail - 1
        if self._scores:
            more_trained, more_inferred = self._more
            times = _all_layers(more_inferred)
            signal_tail, argmax_tail = SIGNAL_TAIL + more_trained, ARGMAX_TAIL + more_inferred
            end = 3 * K + max(times.quotient, signal_tail - 1)

        # -- the timetable ----------------------------------------------------------------------
        time = Signal(range(end + 1))
        infers = Signal()
        stage = Signal(_Stage)
        m.d.comb += [
            infers.eq(~self.train & (time == K + argmax_tail - 1)),
            self.done.eq(infers | (self.train & (time == 3 * K + signal_tail - 1))),
        ]
        with m.If(self.go):
            m.d.sync += time.eq(1)
        with m.Elif(infers | (time == end)):
            m.d.sync += time.eq(0)
        with m.Elif(time != 0):
            m.d.sync += time.eq(time + 1)

        def at(cycle: int) -> Value:
            return self.go if cycle == 0 else time == cycle

        def window(first: int, count: int, name: str) -> Value:
            """1 in the cycles first ... first + count - 1."""
            if first == 0:
                return self.go | window(1, count - 1, name)
            strobe = Signal(name=name)
            with m.If(infers | at(first + count - 1)):
                m.d.sync += strobe.eq(0)
            with m.Elif(at(first - 1)):
                m.d.sync += strobe.eq(1)
            return strobe

        def enter(new: _Stage, cycle: int) -> None:
            with m.If(at(cycle)):
                m.d.sync += stage.eq(new)

        if self._scores:
            draining = window(_DRAIN, self._vectors, "draining")
        reading = window(times.read, 2 * K, "reading")
        shown = window(times.read + 1, K, "shown")
        summing = window(times.read + K + times.EXPONENTIAL, K, "summing")
        dividing = window(times.divide + 2 * K, K, "dividing")
        scoring = window(times.divide + 2 * K + times.PROBABILITY - 1, K, "scoring")
        scored = delay_line(m, scoring, 3 if self._scores else 1, "scored")
        enter(_Stage.MAXIMUM, 0)
        enter(_Stage.EXPONENTS, times.read + K)
        enter(_Stage.ERRORS, 2 * K + times.divide)
        if self._scores:
            enter(_Stage.PROJECTION, 3 * K + times.project - 1)
            enter(_Stage.QUOTIENT, 3 * K + times.project + 1)
            m.d.comb += [
                self.drain.eq(draining & ~self.is_output),
                self.clear.eq(at(times.read + K)),
            ]
        if self._matrix:
            arriving = window(times.read - 2, K, "arriving")
            returning = window(3 * K + times.divide + times.PROBABILITY, self._vectors, "returning")
            m.d.comb += [self.arrive.eq(arriving & ~self.is_output), self.back.eq(returning & ~self.is_output)]
        m.d.comb += self.error_strobe.eq(scored[1])

        # -- memories; each port counts its own addresses -----------------------------------------
        m.submodules.scores = scores = DualPortMemory(signed(SCORE_BITS), K)
        m.submodules.exponentials = exponentials = DualPortMemory(EXP_FRACTION_BITS, K)

        def port(strobe: Value, address: Signal) -> None:
            with m.If(self.start):
                m.d.sync += address.eq(0)
            with m.Elif(strobe):
                m.d.sync += address.eq(Mux(address == K - 1, 0, address + 1))

        port(self.score_valid, scores.write_addr)
        port(reading | scoring, scores.read_addr)
        port(summing, exponentials.write_addr)
        port(dividing, exponentials.read_addr)

        # -- shifter, multiplier, normalisation ---------------------------------------------------
        products = Signal(signed(QUOTIENT_BITS + max(RCP9).bit_length()), reset_less=True)
        # Of use where hidden layers have scores, as all that is made of the norm.
        projected = Signal(signed(signed_bits(K * MAX_ERROR << (self._score_bits - 1))))
        exponential_sum = Signal(range(K * max(EXP) + 1))
        top = Signal(SHIFT_BITS, reset_less=True)
        mantissa = Signal(_MANTISSA_BITS, reset_less=True)
        norm_top = Signal.like(top)
        norm_mantissa = Signal.like(mantissa)

        score_value = Cat(Const(0, 9), scores.read_data).as_signed()
        gs_value = Cat(Const(0, 1), projected).as_signed()
        scale_bits = max(len(score_value), len(gs_value) * self._scores, len(products))
        m.submodules.scale = scale = ScaleUnit(scale_bits)
        score_amount = Signal(SHIFT_BITS, reset_less=True)
        with m.Switch(stage):
            with m.Case(_Stage.ERRORS):
                m.d.comb += [scale.value.eq(products), scale.amount.eq(top + 1)]
            if self._scores:
                with m.Case(_Stage.PROJECTION):
                    m.d.comb += [scale.value.eq(gs_value), scale.amount.eq(self.norm_shift)]
                with m.Case(_Stage.QUOTIENT):
                    m.d.comb += [scale.value.eq(products), scale.amount.eq(norm_top[1:] + 2)]
            with m.Default():
                m.d.comb += [scale.value.eq(score_value), scale.amount.eq(score_amount)]
        score_shift = self.score_shift + self.norm_shift if self._scores else self.score_shift
        m.d.sync += score_amount.eq(score_shift)

        dividend = Signal(signed(QUOTIENT_BITS), reset_less=True)
        reciprocal = Signal(range(max(RCP9) + 1), reset_less=True)
        softmax_stage = (stage == _Stage.ERRORS) | (stage == _Stage.EXPONENTS)
        exponential = exponentials.read_data
        factor: Value = _table(m, RCP9, mantissa)
        measured = exponential_sum
        if self._scores:
            exponential = Mux(stage == _Stage.ERRORS, exponential, scale.result)
            factor = Mux(softmax_stage, factor, _table(m, RCP8, norm_mantissa))
            measured = Signal(max(len(self.norm), len(exponential_sum)))
        m.d.sync += [
            dividend.eq(exponential),
            reciprocal.eq(factor),
            products.eq(dividend * reciprocal),
        ]

        if self._scores:
            m.d.comb += measured.eq(Mux(stage == _Stage.MAXIMUM, self.norm, exponential_sum))
        m.d.sync += [top.eq(leading_one(measured)), mantissa.eq(bits_below(measured, top, 4))]
        if self._scores:
            with m.If(at(_NORM)):
                m.d.sync += [norm_top.eq(top), norm_mantissa.eq(mantissa)]
            m.d.comb += self.norm_shift.eq(Mux(self.is_output, 0, (norm_top + 1) >> 1))

        # -- first walk: u is monotonic in the score, so the largest score has the largest u --------
        largest = Signal(signed(SCORE_BITS), reset_less=True)
        shown_class = Signal.like(scores.read_addr, reset_less=True)
        better = Signal()
        better_scaled = delay_line(m, better, ScaleUnit.LATENCY, "better")[-1]
        maximum = Signal.like(scale.result, reset_less=True)
        m.d.comb += [
            better.eq(shown & (at(times.read + 1) | (scores.read_data > largest))),
            self.report_valid.eq(shown),
            self.report_score.eq(scores.read_data),
        ]
        m.d.sync += shown_class.eq(scores.read_addr)
        with m.If(better):
            m.d.sync += [largest.eq(scores.read_data), self.prediction.eq(shown_class)]
        with m.If(better_scaled):
            m.d.sync += maximum.eq(scale.result)

        # -- second walk ------------------------------------------------------------------------
        distance = Signal(QUOTIENT_BITS + 1, reset_less=True)
        whole = distance[_EXPONENT_FRAC:]
        power = _table(m, EXP, distance[_EXPONENT_FRAC - 4 : _EXPONENT_FRAC])
        m.d.sync += [
            distance.eq(maximum - scale.result),
            # 12 and more leave nothing of 12 bits.
            exponentials.write_data.eq(Mux(whole[4:].any(), 0, power >> whole[:4])),
        ]
        m.d.comb += exponentials.write_en.eq(summing)
        with m.If(self.go):
            m.d.sync += exponential_sum.eq(0)
        with m.Elif(summing):
            m.d.sync += exponential_sum.eq(exponential_sum + exponentials.write_data)

        # -- third walk -------------------------------------------------------------------------
        hit = Signal(reset_less=True)
        probability = scale.result[:ERROR_BITS]
        weight = Signal(signed(self._score_bits), reset_less=True)
        product = Signal(signed(self._score_bits + ERROR_BITS), reset_less=True)
        m.d.sync += [
            hit.eq(scores.read_addr == self.label),
            # Minus one, 256, for the label's class.
            self.error.eq(
                Cat(probability[:ERROR_FRAC], truncate(probability[ERROR_FRAC:] - hit, 2))
            ),
        ]
        m.d.comb += [
            scores.write_en.eq(self.score_valid),
            scores.write_data.eq(self.score),
        ]
        if not self._scores:
            return m

        # -- projection -------------------------------------------------------------------------
        m.d.sync += [weight.eq(truncate(scores.read_data, len(weight))), product.eq(self.error * weight)]
        with m.If(self.go):
            m.d.sync += projected.eq(0)
        with m.Elif(scored[3]):
            m.d.sync += projected.eq(projected + product)
        with m.If(self.go):
            m.d.sync += self.quotient.eq(0)
        with m.Elif(at(3 * K + times.quotient) & ~self.is_output):
            m.d.sync += self.quotient.eq(scale.result)
        return m


def _table(m: Module, entries: tuple[int, ...], index: Value) -> Signal:
    """The entry of a small table, by combinational logic."""
    value = Signal(range(max(entries) + 1))
    with m.Switch(index):
        for number, entry in enumerate(entries):
            with m.Case(number):
                m.d.comb += value.eq(entry)
    return value


assert SIGNAL_TAIL + Softmax.QUOTIENT_LATENCY == _all_layers(0).quotient + 2
assert ARGMAX_TAIL == _all_layers(0).read + 1
assert PLAIN_SIGNAL_TAIL == _OUTPUT_ONLY.divide + _Timetable.ERROR
assert PLAIN_ARGMAX_TAIL == _OUTPUT_ONLY.read + 1
