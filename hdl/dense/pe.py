"""The processing element: a weight memory, one multiplier, one adder.

Activations flow east, deltas and partial sums south. Forward, the multiplier takes the weight and
the adder the partial sum from above; in an update the multiplier takes the delta and the adder the
weight with random bits below it, so that the same sum is the stochastically rounded new weight.
Control comes from the array's delay line; docs/architecture.md, section 2, has the cycle table.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import saturate
from hdl.memory import DualPortMemory
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine

__all__ = ["Pe"]


class Pe(wiring.Component):
    """PE(r, c). With t the cycle of a step's read address, a port belongs to the step in cycle:

    ======================  =====  ===========================================================
    ``read_addr``           t      `weight_addr_bits`
    ``forward``             t + 1  the multiplier takes the weight, else `delta_in`
    ``act_in, delta_in``    t + 1  s8, signed(`delta_bits`)
    ``act_out, delta_out``  t + 2  to the east and south (`delta_out` means nothing in FORWARD)
    ``update``              t + 2  the adder will take the weight and `random`, else `psum_in`,
                                   and the sum be written
    ``host_read``           t + 2  the adder will do so if the product is odd, but without the
                                   lowest random bit: the product, 1, must not carry into the word
    ``host_write``          t + 3  the sum will be written if the product is odd
    ``random, psum_in``     t + 3  `fraction_bits`, signed(`psum_bits`)
    ``psum_out``            t + 4  signed(`psum_bits`)
    ``write_addr``          t + 4  where sat16(psum_out >> fraction_bits) is written, if it is
    ======================  =====  ===========================================================

    A word written can be read from t + 5 on. Control arrives a cycle before it acts, so that what
    drives a whole adder is a register of the PE's own, which differs from its neighbours' and thus
    stays one. No register has a reset, so that they can move into multiplier blocks.
    """

    LATENCY = 4
    """Cycles from `read_addr` to `psum_out`, and to the cycle of the write."""

    read_addr: Signal
    write_addr: Signal
    forward: Signal
    update: Signal
    host_read: Signal
    host_write: Signal
    random: Signal
    act_in: Signal
    act_out: Signal
    delta_in: Signal
    delta_out: Signal
    psum_in: Signal
    psum_out: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "read_addr": In(machine.weight_addr_bits),
                "write_addr": In(machine.weight_addr_bits),
                "forward": In(1),
                "update": In(1),
                "host_read": In(1),
                "host_write": In(1),
                "random": In(machine.fraction_bits),
                "act_in": In(signed(ACT_BITS)),
                "act_out": Out(signed(ACT_BITS)),
                "delta_in": In(signed(machine.delta_bits)),
                "delta_out": Out(signed(machine.delta_bits)),
                "psum_in": In(signed(machine.psum_bits)),
                "psum_out": Out(signed(machine.psum_bits)),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        fraction_bits = machine.fraction_bits
        m = Module()
        m.submodules.weights = weights = DualPortMemory(signed(WEIGHT_BITS), machine.weight_depth)

        x = Signal(signed(ACT_BITS), reset_less=True)
        y = Signal(signed(machine.operand_bits), reset_less=True)
        p = Signal(signed(machine.product_bits), reset_less=True)
        psum = Signal(signed(machine.psum_bits), reset_less=True)
        w1 = Signal(signed(WEIGHT_BITS), reset_less=True)
        w2 = Signal(signed(WEIGHT_BITS), reset_less=True)
        # p[0] apart from p: a product that anything but the adder looks at leaves the multiplier
        # block of an iCE40.
        odd_next = x[0] & y[0]
        odd = Signal(reset_less=True)
        updating = Signal(reset_less=True)
        own = Signal(reset_less=True)  # the adder takes this PE's word
        write = Signal(reset_less=True)

        random = Cat(self.random[0] & updating, self.random[1:])
        word = Cat(random, w2).as_signed()
        m.d.sync += [
            x.eq(self.act_in),
            y.eq(Mux(self.forward, weights.read_data, self.delta_in)),
            w1.eq(weights.read_data),
            p.eq(x * y),
            odd.eq(odd_next),
            updating.eq(self.update),
            own.eq(self.update | (self.host_read & odd_next)),
            w2.eq(w1),
            psum.eq(p + Mux(own, word, self.psum_in)),
            write.eq(updating | (self.host_write & odd)),
        ]
        m.d.comb += [
            weights.read_addr.eq(self.read_addr),
            weights.write_addr.eq(self.write_addr),
            weights.write_en.eq(write),
            weights.write_data.eq(saturate(psum[fraction_bits:].as_signed(), WEIGHT_BITS)),
            self.act_out.eq(x),
            self.delta_out.eq(y),
            self.psum_out.eq(psum),
        ]
        return m
