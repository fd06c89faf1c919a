"""Between class lanes and softmax a trained matrix: from scores of vectors to those of classes, and errors back."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line, saturate
from hdl.class_lanes import ClassLanes
from hdl.feed import link
from hdl.memory import DualPortMemory
from hdl.score_lanes import ScoreLanes
from hdl.score_memory import FINE_BITS, host_ports, pass_host
from spec.machine import ERROR_BITS, SCORE_BITS, Machine
from spec.scores import BACK_ERROR_BITS, VECTOR_BITS
from spec.timing import score_cycles

__all__ = ["ScoreMatrix"]


class ScoreMatrix(wiring.Component):
    """I vectors in, K scores out; K errors in, an error a vector out, while the matrix is updated.

    Members
    -------
    start : In
        A layer or sample begins.
    drain, vector : In
        A vector's score (s18), from 0 on, is asked for; it is in `vector` `VECTOR_LATENCY` cycles later.
    arrive, score : In, Out
        K times, of the next class: s20, in the next cycle. From `ARRIVE_LATENCY` cycles after the last `drain` on.
    enter, entering : In
        The next class's error (s10) is in `entering` in the next cycle.
    back : In
        I times, in hidden layers, from the cycle of the last `enter` on: the next vector's error is made, its row
        updated.
    error_strobe, error : Out
        `BACK_LATENCY` cycles later: the next vector's error (s12) is in `error` in the next cycle.
    take, taken : In, Out
        The next class's error comes back as it is, `TAKE_LATENCY` cycles later.
    fine, coarse, layer_start, first_layer, size, host_... : see `ScoreLanes`
    """

    VECTOR_LATENCY = ClassLanes.LATENCY + 1
    ARRIVE_LATENCY = VECTOR_LATENCY - 1 + ScoreLanes.GATHER_LATENCY
    BACK_LATENCY = ScoreLanes.LATENCY - 1
    TAKE_LATENCY = ClassLanes.LATENCY

    start: Signal
    drain: Signal
    vector: Signal
    arrive: Signal
    score: Signal
    enter: Signal
    entering: Signal
    back: Signal
    error_strobe: Signal
    error: Signal
    take: Signal
    taken: Signal
    fine: Signal
    coarse: Signal
    layer_start: Signal
    first_layer: Signal
    size: Signal

    def __init__(self, machine: Machine, classes: int, vectors: int):
        self._machine, self._vectors = machine, vectors
        self._rows = Signal(range(vectors), name="vector_index")
        self._lanes = lanes = ScoreLanes(machine, classes, vectors, VECTOR_BITS, vectors, len(self._rows))
        super().__init__(
            {
                "start": In(1),
                "drain": In(1),
                "vector": In(signed(VECTOR_BITS)),
                "arrive": In(1),
                "score": Out(signed(SCORE_BITS)),
                "enter": In(1),
                "entering": In(signed(ERROR_BITS)),
                "back": In(1),
                "error_strobe": Out(1),
                "error": Out(signed(BACK_ERROR_BITS)),
                "take": In(1),
                "taken": Out(signed(ERROR_BITS)),
                "fine": In(FINE_BITS),
                "coarse": In(2),
                "layer_start": In(1),
                "first_layer": In(1),
                "size": In(lanes.size.shape()),
                **host_ports(machine),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = lanes = self._lanes
        # An operation on a row reads its vector's score a cycle later.
        row = self._rows
        gather = delay_line(m, self.drain, self.VECTOR_LATENCY - 1, "gather")[-1]
        came = delay_line(m, gather, 1, "came")[-1]
        entered = delay_line(m, self.enter, 1, "entered")[-1]
        taking = delay_line(m, self.take, self.TAKE_LATENCY - 1, "taking")[-1]
        with m.If(self.start):
            m.d.sync += row.eq(0)
        with m.Elif(gather | self.back):
            m.d.sync += row.eq(Mux(row == self._vectors - 1, 0, row + 1))

        m.submodules.vectors = vectors = DualPortMemory(signed(VECTOR_BITS), self._vectors)
        m.d.comb += [
            vectors.write_en.eq(came),
            vectors.write_addr.eq(delay_line(m, row, 1, "row")[-1]),
            vectors.write_data.eq(self.vector),
            vectors.read_addr.eq(row),
            *link(lanes, self, "fine", "coarse", "layer_start", "first_layer", "size"),
            *pass_host(self, lanes, self._machine),
            lanes.index.eq(row),
            lanes.gather.eq(gather),
            lanes.learn.eq(self.back),
            lanes.value.eq(Mux(came, self.vector, vectors.read_data)),
            lanes.clear.eq(self.start),
            lanes.shift.eq(self.arrive | entered | taking),
            lanes.error.eq(self.entering),
            self.score.eq(lanes.first_score),
            self.error_strobe.eq(delay_line(m, self.back, self.BACK_LATENCY, "back")[-1]),
            self.error.eq(saturate(lanes.weighted, BACK_ERROR_BITS)),
            self.taken.eq(lanes.first_error),
        ]
        return m


# Beyond a cycle a vector. Without a matrix the first score is there as soon as the first vector's is here.
assert score_cycles("matrix", 0)[1] == ScoreMatrix.ARRIVE_LATENCY - ScoreMatrix.VECTOR_LATENCY
