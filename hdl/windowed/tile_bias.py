"""The biases of machines whose rule waits: updated from slopes and signals as these come by on their way to the array.

docs/convolutions.md, section 3; docs/rules.md, section 5.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import In, Out

from hdl.arith import Lfsr, delay_line, saturate, truncate
from hdl.windowed.bias_memory import BiasMemory
from hdl.windowed.bias_unit import SHIFT_BITS
from spec.lfsr import SEQUENCE, STATE_BITS, offset
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.windowed import SLOPE_SHIFT

__all__ = ["TileBias"]


class TileBias(BiasMemory):
    """Adds up a column tile's gradient, a column each, while the array is in one of the tile's steps; no multiplier.

    A bias's input is 1.0 at every position, so each adds d', or 8 d' where its slope is 1. Columns end one a cycle,
    which serves all of them with one shifter, one adder and the LFSR number R*C, as it steps once a channel, padding
    included. Biases beyond a layer's channels keep their values, as the signals there are 0.

    Ports beyond those of `BiasMemory`, which is read going forward:

    Members
    -------
    start, b_base : In
        A layer's update begins: word of its first column tile. Not before `WRITE_LATENCY` + C - 1 cycles after the last
        `step_last`.
    step, step_last : In
        Cycle t: a position of a column tile, one step of the array of it; the tile's last. Tiles end C cycles apart or
        more.
    neg[c], delta[c] : In
        In cycle t + c, of the position: the slope is 1/8; its window's d', signed(`delta_bits`), 0 beyond the layer's
        channels.
    bias_shift : In
        in_frac + 4 * coarse, 0 to 11. Held from a layer's `start` to the end of its update.
    advance : In
        Steps the LFSR, in each cycle in which it is set. Not during an update.
    stepped : Out
        The LFSR steps in this cycle.

    A tile's sum is D[j] = Σ (d' or 8 d') << bias_shift; b becomes sat16((b * 2^F + rand_F + D) >> F).
    """

    WRITE_LATENCY = 6
    """Column 0's bias can be read this many cycles after its tile's `step_last`; column c's c cycles later."""

    start: Signal
    b_base: Signal
    step: Signal
    step_last: Signal
    neg: Signal
    delta: list[Signal]
    bias_shift: Signal
    advance: Signal
    stepped: Signal

    def __init__(self, machine: Machine):
        super().__init__(
            machine,
            {
                "start": In(1),
                "b_base": In(machine.bias_bank_addr_bits),
                "step": In(1),
                "step_last": In(1),
                "neg": In(machine.cols),
                "delta": In(signed(machine.delta_bits)).array(machine.cols),
                "bias_shift": In(SHIFT_BITS),
                "advance": In(1),
                "stepped": Out(1),
            },
        )

    def elaborate(self, platform) -> Module:
        machine = self.machine
        cols, fraction_bits, psum_bits = machine.cols, machine.fraction_bits, machine.psum_bits
        m = Module()

        # -- to t + c + 2: column c's sum. Inputs of 2^7 fit psum_bits (spec.windowed's left_max), so a sum of inputs
        # of 1 has 7 bits less. It begins anew when it is taken.
        sum_bits = psum_bits - (ACT_BITS - 1)
        steps = delay_line(m, self.step, cols - 1, "step")
        ends = delay_line(m, self.step & self.step_last, cols + self.WRITE_LATENCY - 2, "ends")
        sums = []
        for c in range(cols):
            value = Signal(signed(machine.delta_bits + SLOPE_SHIFT), name=f"value_{c}", reset_less=True)
            total = Signal(signed(sum_bits), name=f"sum_{c}")
            weighed = Mux(self.neg[c], self.delta[c], self.delta[c] << SLOPE_SHIFT)
            m.d.sync += [
                value.eq(Mux(steps[c], weighed, 0)),
                total.eq(truncate(Mux(ends[c + 2], 0, total) + value, sum_bits)),
            ]
            sums.append(Mux(ends[c + 2], total, 0))

        # -- the banks: a column's word is read while its sum is complete, written three cycles later. A tile's columns
        # are all read before the next one's are, and all written.
        read_word, write_word = Signal.like(self.b_base), Signal.like(self.b_base)
        for word, tile_done in ((read_word, ends[cols + 1]), (write_word, ends[cols + 4])):
            with m.If(self.start):
                m.d.sync += word.eq(self.b_base)
            with m.Elif(tile_done):
                m.d.sync += word.eq(word + 1)
        updated = Signal(signed(WEIGHT_BITS))
        for c, bank in enumerate(self._banks(m)):
            with m.If(ends[c + 2]):
                m.d.comb += bank.read_addr.eq(read_word)
            with m.If(ends[c + 5]):
                m.d.comb += bank.write_en.eq(1)
            m.d.comb += [
                bank.write_addr.eq(Mux(self.host_valid, self.host_addr[machine.col_bits :], write_word)),
                bank.write_data.eq(Mux(self.host_valid, self.host_data, updated)),
            ]

        # -- t + c + 3: the sum of the one column that ends, and its bias with random bits below it -------------------
        m.submodules.lfsr = lfsr = Lfsr(int(SEQUENCE[offset(machine, machine.pes)]))
        random = lfsr.state[max(0, STATE_BITS - fraction_bits) :]
        ended = Signal(signed(sum_bits), reset_less=True)
        begun = Signal(len(random) + WEIGHT_BITS, reset_less=True)
        bias = reduce(or_, (Mux(ends[c + 3], self.bias[c], 0) for c in range(cols)))
        m.d.sync += [ended.eq(reduce(or_, sums)), begun.eq(Cat(random, bias))]
        m.d.comb += [
            self.stepped.eq(Cat(ends[3 : cols + 3]).any() | self.advance),
            lfsr.step.eq(self.stepped),
        ]

        # -- to t + c + 5: the new bias --------------------------------------------------------------------------------
        term, result = Signal(signed(psum_bits), reset_less=True), Signal(signed(psum_bits), reset_less=True)
        zeros = Const(0, fraction_bits - len(random))
        m.d.sync += [
            term.eq(truncate(ended << self.bias_shift, psum_bits)),
            result.eq(truncate(term + Cat(zeros, begun).as_signed(), psum_bits)),
        ]
        m.d.comb += updated.eq(saturate(result[fraction_bits:].as_signed(), WEIGHT_BITS))
        return m
