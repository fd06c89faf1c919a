"""A lane a class on the rows of the score memory: sums of rows, then errors that weigh rows and change them."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import adder_tree, delay_line, round_shift, saturate, truncate
from hdl.class_lanes import MAX_ERROR
from hdl.feed import link
from hdl.score_memory import FINE_BITS, STEP_ERROR_BITS, ScoreMemory, changed, host_ports, pass_host, step_error
from spec.machine import ERROR_BITS, SCORE_BITS, Machine
from spec.qformat import signed_bits
from spec.scores import TRAINED_BITS, USED_BITS, USED_FRAC

__all__ = ["ScoreLanes"]

_TREE_STAGES = 2


class ScoreLanes(wiring.Component):
    """K lanes, a register each, and the score memory; an operation on a row a cycle. That of cycle t on row `index`:

    * `gather`: lane_c += θ'[index, c] * `value` for all c; they may be shifted from t + `GATHER_LATENCY` on;
    * else `weighted` = rnd(sum over c of θ'[index, c] * e_c >> USED_FRAC) in t + `LATENCY`, of the errors that have
      been shifted in until t + 1; and, with `learn`, θ[index, c] takes the step that `value`, e_c and `coarse` make.

    Members
    -------
    index, gather, learn : In
    value : In
        signed(`value_bits`), read in t + 1.
    clear : In
        Sets all lanes to 0.
    shift, error : In
        Lane c takes what lane c + 1 has, the last one an error.
    first_score, first_error : Out
        What lane 0 had in the cycle of the last `shift`: a sum as a score (s20), or the error.
    fine, coarse : In
        The step's shift, see `step_shift`; `fine` as errors are shifted in.
    weighted : Out
    layer_start, first_layer, size, host_... : see `ScoreMemory`
    """

    LATENCY = ScoreMemory.LATENCY + 1 + _TREE_STAGES
    GATHER_LATENCY = ScoreMemory.LATENCY + 2

    index: Signal
    gather: Signal
    learn: Signal
    value: Signal
    clear: Signal
    shift: Signal
    error: Signal
    first_score: Signal
    first_error: Signal
    fine: Signal
    coarse: Signal
    weighted: Signal
    layer_start: Signal
    first_layer: Signal
    size: Signal

    def __init__(self, machine: Machine, classes: int, vectors: int, value_bits: int, terms: int, index_bits: int):
        """`terms`: most rows that are gathered."""
        self._machine, self._classes = machine, classes
        self._memory = memory = ScoreMemory(machine, classes, vectors, index_bits)
        self._sum_bits = signed_bits(classes * MAX_ERROR << (USED_BITS - 1))
        # A sum, or an error and what a step is made of.
        self._lane_bits = max(signed_bits(terms << (value_bits + USED_BITS - 2)), ERROR_BITS + STEP_ERROR_BITS)
        super().__init__(
            {
                "index": In(index_bits),
                "gather": In(1),
                "learn": In(1),
                "value": In(signed(value_bits)),
                "clear": In(1),
                "shift": In(1),
                "error": In(signed(ERROR_BITS)),
                "first_score": Out(signed(SCORE_BITS)),
                "first_error": Out(signed(ERROR_BITS)),
                "fine": In(FINE_BITS),
                "coarse": In(2),
                "weighted": Out(signed(self._sum_bits - USED_FRAC + 1)),
                "layer_start": In(1),
                "first_layer": In(1),
                "size": In(memory.size.shape()),
                **host_ports(machine),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = self._memory
        gather = delay_line(m, self.gather, ScoreMemory.LATENCY + 1, "gather")
        learn = delay_line(m, self.learn, ScoreMemory.WRITE_LATENCY, "learn")
        m.d.comb += [
            *link(memory, self, "index", "layer_start", "first_layer", "size"),
            *pass_host(self, memory, self._machine),
            memory.write.eq(learn[-1]),
        ]

        # 0 unless it counts, so that a row that passes by stays as it is.
        value = Signal.like(self.value, name="present", reset_less=True)
        m.d.sync += value.eq(Mux(gather[1] | learn[1], self.value, 0))
        entering = Cat(self.error, step_error(self.error, self.fine))
        lanes = [Signal(signed(self._lane_bits), name=f"lane_{c}") for c in range(self._classes)]
        terms: list[Value] = []
        for c, (lane, following, row) in enumerate(zip(lanes, [*lanes[1:], entering], memory.row, strict=True)):
            operand = Signal(signed(max(ERROR_BITS, len(value))), name=f"operand_{c}", reset_less=True)
            term = Signal(signed(USED_BITS + len(operand)), name=f"term_{c}", reset_less=True)
            step = Signal(signed(len(value) + STEP_ERROR_BITS), name=f"step_{c}", reset_less=True)
            changed_row = changed(row, step, self.coarse)
            written = Signal.like(changed_row, name=f"written_{c}", reset_less=True)
            m.d.sync += [
                operand.eq(Mux(gather[2], value, lane[:ERROR_BITS].as_signed())),
                term.eq(operand * row[TRAINED_BITS - USED_BITS :].as_signed()),
                step.eq(value * lane[ERROR_BITS : ERROR_BITS + STEP_ERROR_BITS].as_signed()),
                written.eq(changed_row),
            ]
            with m.If(self.clear):
                m.d.sync += lane.eq(0)
            with m.Elif(self.shift):
                m.d.sync += lane.eq(following)
            with m.Elif(gather[-1]):
                m.d.sync += lane.eq(lane + term)
            m.d.comb += memory.written[c].eq(saturate(written, TRAINED_BITS))
            terms.append(truncate(term, self._sum_bits))

        total = adder_tree(m, terms, self._sum_bits, _TREE_STAGES)
        m.d.comb += self.weighted.eq(round_shift(total, USED_FRAC))
        with m.If(self.shift):
            m.d.sync += [
                self.first_score.eq(saturate(round_shift(lanes[0], USED_FRAC), SCORE_BITS)),
                self.first_error.eq(lanes[0][:ERROR_BITS]),
            ]
        return m
