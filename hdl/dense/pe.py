"""The processing element: a weight memory, one multiplier, one adder.

Activations flow east, deltas and partial sums south. Forward, the multiplier takes the weight and
the adder the partial sum from above; in an update the multiplier takes the delta and the adder the
weight with random bits below it, so that the same sum is the stochastically rounded new weight.
On the way back of backpropagation the multiplier takes the weight in the activation's place, and the
adder the partial sum from the west. Control comes from the array's delay line; docs/architecture.md,
section 2, has the cycle table, docs/rules.md, section 3, that of the way back.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import saturate, truncate
from hdl.memory import DualPortMemory
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine

__all__ = ["Pe", "word_lsb"]


def word_lsb(machine: Machine) -> int:
    """The bit of a partial sum at which a word begins that is to be written to the weight memory.

    It stands above the random bits. A machine that does not learn has none, and a 0 in their place: the product of a
    HOST_WRITE, 1, must not carry into the word.
    """
    return max(1, machine.random_bits)


class Pe(wiring.Component):
    """PE(r, c). With t the cycle of a step's read address, a port belongs to the step in cycle:

    ======================  =====  ===========================================================
    ``read_addr``           t      `weight_addr_bits`
    ``forward``             t + 1  the multiplier takes the weight, else `delta_in`
    ``act_in, delta_in``    t + 1
    ``act_out, delta_out``  t + 2  to the east and south (`delta_out` means nothing in FORWARD)
    ``update``              t + 2  the adder will take the weight and `random`, else `psum_in`,
                                   and the sum be written; none in a machine that does not learn
    ``host_read``           t + 2  the adder will do so if the product is odd, but without the
                                   lowest random bit: the product, 1, must not carry into the word.
                                   One that does not learn reads as in FORWARD, the activation being 1
    ``host_write``          t + 3  the sum will be written if the product is odd
    ``random, psum_in``     t + 3  `random_bits`, signed(`psum_bits`)
    ``psum_out``            t + 4  signed(`psum_bits`)
    ``write_addr``          t + 4  where sat16(psum_out >> word_lsb) is written, if it is
    ======================  =====  ===========================================================

    Lanes are s8 and signed(`lane_bits`). With rule ``bp`` also

    ======================  =====  ===========================================================
    ``back``                t + 1  the multiplier takes the weight in the place of `act_in`, and
                                   `delta_in` (`forward` is 0); `act_out` means nothing
    ``west``                t + 2  the adder will take `psum_west` instead of `psum_in`
    ``psum_west``           t + 3  signed(`psum_bits`): the western neighbour's `psum_out`
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
    back: Signal
    west: Signal
    psum_west: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        rule = machine.learning
        transposing = {"back": In(1), "west": In(1), "psum_west": In(signed(machine.psum_bits))}
        super().__init__(
            {
                "read_addr": In(machine.weight_addr_bits),
                "write_addr": In(machine.weight_addr_bits),
                "forward": In(1),
                **({"update": In(1)} if rule.learns else {}),
                **({"host_read": In(1)} if rule.learns else {}),
                "host_write": In(1),
                **({"random": In(machine.random_bits)} if rule.learns else {}),
                "act_in": In(signed(ACT_BITS)),
                "act_out": Out(signed(ACT_BITS)),
                "delta_in": In(signed(machine.lane_bits)),
                "delta_out": Out(signed(machine.lane_bits)),
                "psum_in": In(signed(machine.psum_bits)),
                "psum_out": Out(signed(machine.psum_bits)),
                **(transposing if rule.transposes else {}),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        rule, lsb = machine.learning, word_lsb(machine)
        m = Module()
        m.submodules.weights = weights = DualPortMemory(signed(WEIGHT_BITS), machine.weight_depth)

        x = Signal(signed(machine.narrow_bits), reset_less=True)
        y = Signal(signed(machine.operand_bits), reset_less=True)
        p = Signal(signed(machine.product_bits), reset_less=True)
        psum = Signal(signed(machine.psum_bits), reset_less=True)
        # p[0] apart from p: a product that anything but the adder looks at leaves the multiplier
        # block of an iCE40.
        odd_next = x[0] & y[0]
        odd = Signal(reset_less=True)
        write = Signal(reset_less=True)

        narrow: Value = self.act_in
        addend: Value = self.psum_in
        writes: Value = self.host_write & odd
        word, late_word, control = [], [], []
        if rule.transposes:
            from_west = Signal(reset_less=True)
            control.append(from_west.eq(self.west))
            narrow = Mux(self.back, weights.read_data, self.act_in)
            addend = Mux(from_west, self.psum_west, self.psum_in)
        if rule.learns:
            w1 = Signal(signed(WEIGHT_BITS), reset_less=True)
            w2 = Signal(signed(WEIGHT_BITS), reset_less=True)
            updating = Signal(reset_less=True)
            own = Signal(reset_less=True)  # the adder takes this PE's word
            random = Cat(self.random[0] & updating, self.random[1:])
            addend = Mux(own, Cat(random, w2).as_signed(), addend)
            writes = updating | writes
            word, late_word = [w1.eq(weights.read_data)], [w2.eq(w1)]
            control += [updating.eq(self.update), own.eq(self.update | (self.host_read & odd_next))]

        m.d.sync += [
            x.eq(narrow),
            y.eq(Mux(self.forward, weights.read_data, self.delta_in)),
            *word,
            p.eq(truncate(x * y, len(p))),
            odd.eq(odd_next),
            *control,
            *late_word,
            psum.eq(p + addend),
            write.eq(writes),
        ]
        # What only the host writes needs no saturation.
        written = psum[lsb:].as_signed()
        m.d.comb += [
            weights.read_addr.eq(self.read_addr),
            weights.write_addr.eq(self.write_addr),
            weights.write_en.eq(write),
            weights.write_data.eq((saturate if rule.learns else truncate)(written, WEIGHT_BITS)),
            self.act_out.eq(x[:ACT_BITS]),
            self.delta_out.eq(y),
            self.psum_out.eq(psum),
        ]
        return m
