"""Between class lanes and softmax a trained factor a class: on the scores, and on the errors that go back."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line, round_shift, saturate
from hdl.class_lanes import ClassLanes
from hdl.feed import link
from hdl.memory import DualPortMemory
from hdl.score_memory import FINE_BITS, STEP_ERROR_BITS, ScoreMemory, changed, host_ports, pass_host, step_error
from spec.machine import ERROR_BITS, SCORE_BITS, Machine
from spec.scores import BACK_ERROR_BITS, TRAINED_BITS, USED_BITS, USED_FRAC, VECTOR_BITS
from spec.timing import score_cycles

__all__ = ["ScoreFactors"]


class ScoreFactors(wiring.Component):
    """One multiplier for what passes by either way, one for the factors' steps; a class a cycle.

    Members
    -------
    start, is_output : In
        A layer or sample begins; an output layer's errors pass by as they are, its factors stay.
    drain, vector : In
        A class's score without its factor (s18), from class 0 on, is asked for; it is in `vector` `VECTOR_LATENCY`
        cycles later.
    score_valid, score : Out
        `SCORE_LATENCY` cycles after `drain`: s20.
    enter, entering : In
        The next class's error (s10) is in `entering` in the next cycle. Its factor takes a step.
    error_strobe, error : Out
        `BACK_LATENCY` cycles after `enter`: the next class's error (s12) is in `error` in the next cycle.
    fine, coarse : In
        The step's shift, see `step_shift`.
    layer_start, first_layer, size, host_... : see `ScoreMemory`
    """

    VECTOR_LATENCY = ClassLanes.LATENCY + 1
    SCORE_LATENCY = VECTOR_LATENCY + 2
    BACK_LATENCY = ScoreMemory.LATENCY

    start: Signal
    is_output: Signal
    drain: Signal
    vector: Signal
    score_valid: Signal
    score: Signal
    enter: Signal
    entering: Signal
    error_strobe: Signal
    error: Signal
    fine: Signal
    coarse: Signal
    layer_start: Signal
    first_layer: Signal
    size: Signal

    def __init__(self, machine: Machine, classes: int):
        self._machine, self._classes = machine, classes
        self._index = Signal(range(classes), name="class_index")
        self._memory = memory = ScoreMemory(machine, classes, classes, len(self._index))
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                "drain": In(1),
                "vector": In(signed(VECTOR_BITS)),
                "score_valid": Out(1),
                "score": Out(signed(SCORE_BITS)),
                "enter": In(1),
                "entering": In(signed(ERROR_BITS)),
                "error_strobe": Out(1),
                "error": Out(signed(BACK_ERROR_BITS)),
                "fine": In(FINE_BITS),
                "coarse": In(2),
                "layer_start": In(1),
                "first_layer": In(1),
                "size": In(memory.size.shape()),
                **host_ports(machine),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = self._memory
        index = self._index
        # A factor is asked for so early that it meets its class's score, an error so late that its factor does.
        drain = delay_line(m, self.drain, self.SCORE_LATENCY, "drain")
        asked = drain[self.VECTOR_LATENCY - ScoreMemory.LATENCY + 1]
        came = drain[self.VECTOR_LATENCY]
        enter = delay_line(m, self.enter, self.BACK_LATENCY, "enter")
        learn = delay_line(m, self.enter & ~self.is_output, ScoreMemory.WRITE_LATENCY, "learn")
        with m.If(self.start):
            m.d.sync += index.eq(0)
        with m.Elif(asked | self.enter):
            m.d.sync += index.eq(Mux(index == self._classes - 1, 0, index + 1))
        row = memory.row[0]

        m.submodules.vectors = vectors = DualPortMemory(signed(VECTOR_BITS), self._classes)
        m.d.comb += [
            *link(memory, self, "layer_start", "first_layer", "size"),
            *pass_host(self, memory, self._machine),
            memory.index.eq(index),
            vectors.write_en.eq(came),
            vectors.write_addr.eq(delay_line(m, index, 2, "index")[-1]),
            vectors.write_data.eq(self.vector),
            vectors.read_addr.eq(index),
        ]

        # -- passing by ---------------------------------------------------------------------------
        late = Signal.like(self.entering, reset_less=True)
        operand = Signal(signed(VECTOR_BITS), reset_less=True)
        product = Signal(signed(VECTOR_BITS + USED_BITS), reset_less=True)
        plain = Signal.like(self.entering, reset_less=True)
        m.d.sync += [
            late.eq(self.entering),
            operand.eq(Mux(enter[2], late, self.vector)),
            product.eq(operand * row[TRAINED_BITS - USED_BITS :].as_signed()),
            plain.eq(operand),
        ]
        scaled = round_shift(product, USED_FRAC)
        m.d.comb += [
            self.score_valid.eq(drain[-1]),
            self.score.eq(saturate(scaled, SCORE_BITS)),
            self.error_strobe.eq(enter[-1]),
            self.error.eq(Mux(self.is_output, plain, saturate(scaled, BACK_ERROR_BITS))),
        ]

        # -- the factors' steps; none where nothing is learned, so that a factor stays as it is -------
        vector = Signal(signed(VECTOR_BITS), reset_less=True)
        shifted = Signal(signed(STEP_ERROR_BITS), reset_less=True)
        step = Signal(signed(VECTOR_BITS + STEP_ERROR_BITS), reset_less=True)
        changed_factor = changed(row, step, self.coarse)
        written = Signal.like(changed_factor, reset_less=True)
        m.d.sync += [
            vector.eq(Mux(learn[1], vectors.read_data, 0)),
            shifted.eq(step_error(self.entering, self.fine)),
            step.eq(vector * shifted),
            written.eq(changed_factor),
        ]
        m.d.comb += [
            memory.write.eq(learn[-1]),
            memory.written[0].eq(saturate(written, TRAINED_BITS)),
        ]
        return m


_MORE = ScoreFactors.SCORE_LATENCY - ScoreFactors.VECTOR_LATENCY
assert score_cycles("factors", 0) == (_MORE, _MORE)
