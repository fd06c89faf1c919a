"""The bias memory: a prefetched stream going forward, a read-modify-write stream in an update."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import Lfsr, delay_line, saturate, truncate
from hdl.memory import DualPortMemory
from spec.lfsr import SEQUENCE, offset
from spec.machine import WEIGHT_BITS, Machine
from spec.program import FIELDS

__all__ = ["BiasUnit"]


class BiasUnit(wiring.Component):
    """Biases (s16) in neuron order, one a cycle; LFSR number R*C rounds their updates.

    In a machine that does not learn nothing but the host writes them: `delta_...`, `bias_shift` and
    `advance` are not there.

    Members
    -------
    start, delta_start, b_base : In
        A forward or an update stream begins at `b_base`: the first bias is there `LATENCY` cycles
        later, and so may the first `pop` or `delta_valid` be.
    pop, bias_data : In, Out
        The stream's present bias; after a cycle with `pop` the next one.
    delta_valid, delta, delta_write, bias_shift : In
        The next shifted signal, signed(`delta_bits`): the present bias becomes
        sat16((b * 2^F + rand_F + (delta << bias_shift)) >> F). With `delta_write` 0 the value is
        padding: the LFSR steps, no bias is touched. Each bias is visited once in an update, and a
        new stream may begin `WRITE_LATENCY` cycles after the last `delta_valid`.
    advance : In
        Steps the LFSR, in each cycle in which it is set. Not together with `delta_valid`.
    host_valid, host_addr, host_write, host_data, host_q : In, Out
        Host access, between streams only: the word read is in `host_q` in the next cycle.
    """

    LATENCY = 2
    WRITE_LATENCY = 3

    start: Signal
    b_base: Signal
    pop: Signal
    bias_data: Signal
    delta_start: Signal
    delta_valid: Signal
    delta: Signal
    delta_write: Signal
    bias_shift: Signal
    advance: Signal
    host_valid: Signal
    host_addr: Signal
    host_write: Signal
    host_data: Signal
    host_q: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        learning = {
            "delta_start": In(1),
            "delta_valid": In(1),
            "delta": In(signed(machine.delta_bits)),
            "delta_write": In(1),
            "bias_shift": In(FIELDS["bias_shift"].width),
            "advance": In(1),
        }
        super().__init__(
            {
                "start": In(1),
                "b_base": In(machine.bias_addr_bits),
                "pop": In(1),
                "bias_data": Out(signed(WEIGHT_BITS)),
                **(learning if machine.learning.learns else {}),
                "host_valid": In(1),
                "host_addr": In(machine.bias_addr_bits),
                "host_write": In(1),
                "host_data": In(signed(WEIGHT_BITS)),
                "host_q": Out(signed(WEIGHT_BITS)),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        m = Module()
        m.submodules.biases = biases = DualPortMemory(signed(WEIGHT_BITS), machine.bias_depth)
        present = Signal(machine.bias_addr_bits)
        following = Signal.like(present)
        begin, taken = self.start, self.pop
        if machine.learning.learns:
            update = Signal()
            m.d.comb += update.eq(self.delta_valid & self.delta_write)
            begin, taken = begin | self.delta_start, taken | update
        m.d.comb += [
            following.eq(present + taken),
            biases.read_addr.eq(Mux(self.host_valid, self.host_addr, following)),
            self.bias_data.eq(biases.read_data),
            self.host_q.eq(biases.read_data),
        ]
        m.d.sync += present.eq(Mux(begin, self.b_base, following))
        if not machine.learning.learns:
            m.d.comb += [
                biases.write_en.eq(self.host_write),
                biases.write_addr.eq(self.host_addr),
                biases.write_data.eq(self.host_data),
            ]
            return m

        m.submodules.lfsr = lfsr = Lfsr(int(SEQUENCE[offset(machine, machine.pes)]))
        m.d.comb += lfsr.step.eq(self.delta_valid | self.advance)
        # The stream reads ahead of what it writes, and never the same word twice: no collisions.
        word = Signal(signed(WEIGHT_BITS + machine.fraction_bits), reset_less=True)
        term = Signal(signed(machine.bias_sum_bits), reset_less=True)
        total = Signal(signed(machine.bias_sum_bits), reset_less=True)
        m.d.sync += [
            word.eq(Cat(lfsr.state[-machine.fraction_bits :], biases.read_data)),
            term.eq(self.delta << self.bias_shift),
            total.eq(truncate(word + term, len(total))),
        ]
        write = delay_line(m, update, 2, "write")[-1]
        address = delay_line(m, present, 2, "address")[-1]
        updated = saturate(total[machine.fraction_bits :].as_signed(), WEIGHT_BITS)
        m.d.comb += [
            biases.write_en.eq(write | self.host_write),
            biases.write_addr.eq(Mux(write, address, self.host_addr)),
            biases.write_data.eq(Mux(write, updated, self.host_data)),
        ]
        return m
