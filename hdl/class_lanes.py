"""The class lanes: an accumulator a class, and the sum of what they hold, weighted by the basis.

The same registers and multipliers serve all that a layer's class vectors go through: they gather
the scores while activations pass by, are read out one by one, take the errors, and then give the
gradient of one latent a cycle. Where hidden layers have no scores of their own, the lanes hold the output
layer's errors until all layers are through.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import adder_tree, delay_line, round_shift, truncate
from hdl.basis import BasisEntries
from spec.basis import Basis
from spec.machine import ACT_BITS, ERROR_BITS, ERROR_FRAC, Machine
from spec.qformat import signed_bits
from spec.scores import BACK_ERROR_BITS

__all__ = ["ClassLanes", "MAX_ERROR", "score_bits"]

MAX_ERROR = 264
"""Largest magnitude of an error: the softmax's table and reciprocal give at most 264/256."""

_TREE_STAGES = 3


def score_bits(machine: Machine) -> int:
    """Bits of a hidden layer's class score, before it saturates.

    It lies within -128 n ... 128 n - 1: to reach 128 n all entries would have to be -1, but that of
    latent 0 is 1 (walsh) or 0, and those of sine are less than 1.
    """
    return signed_bits((machine.max_neurons << (ACT_BITS - 1)) - 1)


class ClassLanes(wiring.Component):
    """K lanes; an operation a cycle on the entries e_c = B[c, index], or, with `hot`, on lane `index`
    alone (e_c = 1 there, 0 elsewhere). An operation that is issued in cycle t:

    * `write`: lane_c += e_c * `addend` for all c, `addend` being read in cycle t + 2; seen by
      readings issued from t + `WRITE_LATENCY` on;
    * else `weighted` - `offset` is the sum over c of e_c * lane_c, divided by 2^basis_frac and
      rounded, `weighted` in cycle t + `LATENCY` and `offset` one cycle earlier.

    One-bit bases add only where the entry is +1. With P that partial sum and A the sum of all, the
    full sum is 2 P - A: `weighted` is 2 P, `offset` is A, kept beside the lanes. Lanes then hold no
    more than a score's bits but one, and wrap around: only 2 P - A, modulo 2^score_bits, matters.

    Members
    -------
    index, hot, write, addend : In
        See above; `addend` is signed(`addend_bits`): ERROR_BITS, or BACK_ERROR_BITS of an error that came back through
        a factor or a matrix.
    is_output : In
        Constant from `clear` on, or without hidden scores for a layer's readings. Set: a `hot` reading
        gives twice the lane, `offset` being 0; so the learning signal of an output layer takes a hidden
        one's path.
    clear : In
        Sets all lanes and A to 0.
    weighted, offset : Out
    """

    LATENCY = 3 + _TREE_STAGES
    WRITE_LATENCY = 2

    index: Signal
    hot: Signal
    write: Signal
    addend: Signal
    is_output: Signal
    clear: Signal
    weighted: Signal
    offset: Signal

    def __init__(self, machine: Machine, basis: Basis, index_bits: int):
        self.machine = machine
        self.basis = basis
        self.one_bit = basis.kind != "sine"
        scores, trains = machine.learning.scores, machine.learning.trains
        self.addend_bits = BACK_ERROR_BITS if trains else ERROR_BITS
        errors = basis.classes * (1 << (BACK_ERROR_BITS - 1) if trains else MAX_ERROR)
        if self.one_bit:
            self.bits = max((score_bits(machine) - 1) * scores, signed_bits(errors))
        else:
            raw = (machine.max_neurons << (ACT_BITS - 1)) * scores
            self.bits = signed_bits(max(raw, errors) * ((1 << basis.fraction_bits) - 1))
        super().__init__(
            {
                "index": In(index_bits),
                "hot": In(1),
                "write": In(1),
                "addend": In(signed(self.addend_bits)),
                "is_output": In(1),
                "clear": In(1),
                "weighted": Out(signed(self.bits + 1)),
                "offset": Out(signed(self.bits + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.basis = basis = BasisEntries(self.machine, self.basis, len(self.index))
        hot = delay_line(m, self.hot, 2, "hot")
        write = delay_line(m, self.write, 3, "write")
        m.d.comb += basis.index.eq(self.index)

        terms: list[Value] = []
        for c, entry in enumerate(basis.entries):
            lane = Signal(signed(self.bits), name=f"lane_{c}")
            term = Signal(signed(self.bits), name=f"term_{c}", reset_less=True)
            chosen = Signal(name=f"chosen_{c}", reset_less=True)
            operand = Mux(write[2], self.addend, lane)
            m.d.sync += chosen.eq(self.hot & (self.index == c))
            select = Signal(name=f"select_{c}", reset_less=True)
            if self.one_bit:
                m.d.sync += [
                    select.eq(Mux(hot[1], chosen, entry)),
                    term.eq(Mux(select, operand, 0)),
                ]
            else:
                factor = Signal.like(entry, name=f"factor_{c}", reset_less=True)
                product = factor * truncate(operand, self.addend_bits)
                m.d.sync += [
                    select.eq(chosen),
                    factor.eq(entry),
                    term.eq(Mux(hot[2], Mux(select, operand, 0), product)),
                ]
            with m.If(self.clear):
                m.d.sync += lane.eq(0)
            with m.Elif(write[3]):
                m.d.sync += lane.eq(lane + term)
            terms.append(term)

        total = adder_tree(m, terms, self.bits, _TREE_STAGES)
        doubled = Cat(Const(0, 1), total).as_signed()
        if self.one_bit:
            zero = Signal()
            counted = Signal(signed(self.bits + 1))
            m.d.sync += zero.eq(basis.zero & ~hot[1])
            counting = write[2] & ~zero
            # With scores A stays 0 in an output layer; else it holds what the hidden layers need.
            scores = self.machine.learning.scores
            with m.If(self.clear):
                m.d.sync += counted.eq(0)
            with m.Elif(counting & ~self.is_output if scores else counting):
                m.d.sync += counted.eq(counted + self.addend)
            late = delay_line(m, zero, self.LATENCY - 3, "zero")[-1]
            without = late if scores else late | self.is_output
            m.d.comb += [self.weighted.eq(doubled), self.offset.eq(Mux(without, 0, counted))]
        else:
            rounded = round_shift(total, self.basis.fraction_bits)
            m.d.comb += self.weighted.eq(Mux(self.is_output, doubled, rounded))
        return m


assert 1 << ERROR_FRAC <= MAX_ERROR < 1 << (ERROR_BITS - 1)
