"""The processing element of machines that sum gradients: a weight memory, one multiplier, two adders.

Activations flow east, slope bits, deltas and partial sums south. The multiplier's narrow operand is
a sum: in an update, of a window's activations, 8-fold where the slope is 1; forward, of the one
activation. The register of partial sums is, in an update, the word being updated: it starts as the
weight with random bits below it and takes a product a window, whatever the number of positions.
On the way back of backpropagation the narrow operand is the weight, and partial sums flow east, through
the same adder and register. Control comes from the array's delay line; docs/convolutions.md, section 6,
and docs/rules.md, sections 3 and 6.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import saturate
from hdl.memory import DualPortMemory
from spec.lfsr import STATE_BITS
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.qformat import signed_bits
from spec.windowed import COARSE, SLOPE_SHIFT

__all__ = ["WINDOW_BITS", "WindowPe", "lane_bits", "west_bits"]

WINDOW_BITS = 18
"""A window's sum: 128 positions, as 128 * 8 * -2^7 = -2^17 and 128 * 8 * 127 < 2^17. Inputs that enter
shifted by `COARSE` leave room for 8."""


def lane_bits(machine: Machine) -> int:
    """An activation on its way, with a layer's coarse shift; that is 0 where the LFSR fills `rand_F`."""
    return ACT_BITS + (COARSE if machine.random_bits > STATE_BITS else 0)


def west_bits(machine: Machine) -> int:
    """A sum along a row on the way back: of `cols` products of a weight and an 8-fold signal, 2047 at most."""
    signal = (1 << (machine.signal_bits - 1)) - 1
    return signed_bits(machine.cols * signal << (WEIGHT_BITS - 1 + SLOPE_SHIFT))


class WindowPe(wiring.Component):
    """PE(r, c). With t the cycle of a step's read address, a port belongs to the step in cycle:

    ======================  =====  ===========================================================
    ``read_addr``           t      `weight_addr_bits`
    ``forward``             t + 1  the multiplier takes the weight, else `delta_in`
    ``window_first``        t + 1  the sum of activations begins anew: each FORWARD and host step too
    ``act_in``              t + 1  signed(`lane_bits`); 0 in a cycle without a step
    ``neg_in, delta_in``    t + 1  activation times 1, not 8: 1 unless UPDATE; signed(`delta_bits`)
    ``act_out``             t + 2  to the east
    ``neg_out, delta_out``  t + 2  to the south (`delta_out` means nothing in FORWARD)
    ``add``                 t + 2  `psum_out` will change: each step but UPDATE before `window_last`
    ``update``              t + 2  the adder will take `psum_out`, else `psum_in`
    ``load``                t + 2  or rather the weight and `random`: a tile's first `add` in UPDATE
    ``host_read``           t + 2  or that if the product is odd, but without the lowest random bit:
                                   the product, 1, must not carry into the word
    ``store``               t + 3  the sum will be written: a tile's last `add` in UPDATE
    ``host_write``          t + 3  the sum will be written if the product is odd
    ``random, psum_in``     t + 3  top bits of an LFSR, signed(`psum_bits`)
    ``psum_out``            t + 4  signed(`psum_bits`)
    ``write_addr``          t + 4  where sat16(psum_out >> fraction_bits) is written, if it is
    ======================  =====  ===========================================================

    With rule ``bp`` also

    ======================  =====  ===========================================================
    ``skip_in``             t + 1  UPDATE: the activation is not added
    ``skip_out``            t + 2  to the south
    ``back``                t + 1  where `window_first`: the multiplier takes the weight in the place
                                   of the sum, and `delta_in`; `forward` and `act_in` are 0
    ``west``                t + 2  the adder will take `psum_west` instead of `psum_in`
    ``psum_west``           t + 3  signed(`west_bits`), low bits of the western neighbour's `psum_out`;
                                   what `psum_out` has above them means nothing
    ======================  =====  ===========================================================

    A word written can be read from t + 5 on. Control of the long adder arrives a cycle before it
    acts, so that what drives it is a register of the PE's own. No register has a reset.
    """

    LATENCY = 4
    """Cycles from `read_addr` to `psum_out`, and to the cycle of the write."""

    read_addr: Signal
    write_addr: Signal
    forward: Signal
    window_first: Signal
    add: Signal
    update: Signal
    load: Signal
    store: Signal
    host_read: Signal
    host_write: Signal
    random: Signal
    act_in: Signal
    act_out: Signal
    neg_in: Signal
    neg_out: Signal
    delta_in: Signal
    delta_out: Signal
    psum_in: Signal
    psum_out: Signal
    skip_in: Signal
    skip_out: Signal
    back: Signal
    west: Signal
    psum_west: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        transposing = {
            "skip_in": In(1),
            "skip_out": Out(1),
            "back": In(1),
            "west": In(1),
            "psum_west": In(signed(west_bits(machine))),
        }
        super().__init__(
            {
                "read_addr": In(machine.weight_addr_bits),
                "write_addr": In(machine.weight_addr_bits),
                "forward": In(1),
                "window_first": In(1),
                "add": In(1),
                "update": In(1),
                "load": In(1),
                "store": In(1),
                "host_read": In(1),
                "host_write": In(1),
                "random": In(min(machine.fraction_bits, STATE_BITS)),
                "act_in": In(signed(lane_bits(machine))),
                "act_out": Out(signed(lane_bits(machine))),
                "neg_in": In(1),
                "neg_out": Out(1),
                "delta_in": In(signed(machine.delta_bits)),
                "delta_out": Out(signed(machine.delta_bits)),
                "psum_in": In(signed(machine.psum_bits)),
                "psum_out": Out(signed(machine.psum_bits)),
                **(transposing if machine.learning.transposes else {}),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        fraction_bits = machine.fraction_bits
        m = Module()
        m.submodules.weights = weights = DualPortMemory(signed(WEIGHT_BITS), machine.weight_depth)

        act = Signal(signed(lane_bits(machine)), reset_less=True)
        neg = Signal(reset_less=True)
        x = Signal(signed(WINDOW_BITS), reset_less=True)
        y = Signal(signed(machine.operand_bits), reset_less=True)
        # |x| <= 2^17. In an update |y| <= max_delta < 2^(operand_bits - 1), so one bit less than the
        # operands' holds the product; forward |x * y| <= 2^7 * 2^15, on the way back 2^15 * 2^14. What
        # lies above psum_bits cannot count in a sum of psum_bits.
        p = Signal(signed(min(WINDOW_BITS + machine.operand_bits - 1, machine.psum_bits)), reset_less=True)
        # Forward at most rows * 2^22 in magnitude, back cols * 2^29; in an update w * 2^F + rand + D or
        # a part of D, which spec.windowed's left_max makes fit; for the host a word << F, and 1.
        psum = Signal(signed(machine.psum_bits), reset_less=True)
        w1 = Signal(signed(WEIGHT_BITS), reset_less=True)
        w2 = Signal(signed(WEIGHT_BITS), reset_less=True)
        odd_next = x[0] & y[0]
        odd = Signal(reset_less=True)
        adding = Signal(reset_less=True)
        updating = Signal(reset_less=True)
        own = Signal(reset_less=True)  # the adder takes this PE's word
        write = Signal(reset_less=True)

        zeros = Const(0, fraction_bits - len(self.random))
        random = Cat(zeros, self.random)
        word = Cat(random[0] & updating, random[1:], w2).as_signed()
        entering: Value = Mux(self.neg_in, self.act_in, self.act_in << SLOPE_SHIFT)
        begun: Value = Const(0)
        neighbour: Value = self.psum_in
        if machine.learning.transposes:
            skip = Signal(reset_less=True)
            from_west = Signal(reset_less=True)
            # Both in lookup tables that are there: a bit of each operand of x then depends on four.
            entering = Mux(self.skip_in, 0, entering)
            begun = Mux(self.back, weights.read_data, 0)
            # Above west_bits the sum from the north is as good, and costs nothing.
            eastward = Cat(self.psum_west, self.psum_in[len(self.psum_west) :]).as_signed()
            neighbour = Mux(from_west, eastward, self.psum_in)
            m.d.sync += [skip.eq(self.skip_in), from_west.eq(self.west)]
            m.d.comb += self.skip_out.eq(skip)
        m.d.sync += [
            act.eq(self.act_in),
            neg.eq(self.neg_in),
            x.eq(entering + Mux(self.window_first, begun, x)),
            y.eq(Mux(self.forward, weights.read_data, self.delta_in)),
            w1.eq(weights.read_data),
            p.eq(x * y),
            odd.eq(odd_next),
            adding.eq(self.add),
            updating.eq(self.update),
            own.eq(self.load | (self.host_read & odd_next)),
            w2.eq(w1),
            write.eq(self.store | (self.host_write & odd)),
        ]
        with m.If(adding):
            m.d.sync += psum.eq(p + Mux(own, word, Mux(updating, psum, neighbour)))
        m.d.comb += [
            weights.read_addr.eq(self.read_addr),
            weights.write_addr.eq(self.write_addr),
            weights.write_en.eq(write),
            weights.write_data.eq(saturate(psum[fraction_bits:].as_signed(), WEIGHT_BITS)),
            self.act_out.eq(act),
            self.neg_out.eq(neg),
            self.delta_out.eq(y),
            self.psum_out.eq(psum),
        ]
        return m
