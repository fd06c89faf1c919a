"""The biases of machines that sum gradients: read by column going forward, updated from signals.

docs/convolutions.md, sections 3 and 6.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.arith import Lfsr, delay_line, saturate, truncate
from hdl.memory import DualPortMemory
from spec.lfsr import SEQUENCE, STATE_BITS, offset
from spec.machine import WEIGHT_BITS, Machine
from spec.windowed import SLOPE_SHIFT
from spec.windowed_program import MAX_WINDOW

__all__ = ["SHIFT_BITS", "WINDOW_WEIGHT_BITS", "BiasUnit"]

WINDOW_WEIGHT_BITS = (MAX_WINDOW << SLOPE_SHIFT).bit_length()
"""A', unsigned: a window's positions, each counted 8-fold or once."""
SHIFT_BITS = 4


class BiasUnit(wiring.Component):
    """C banks of `bias_bank_depth` biases (s16); channel j of a layer is in bank j mod C, word
    b_base + j div C. LFSR number R*C rounds the updates.

    Going forward, signals and the host take turns: none of them while another is under way.

    Members
    -------
    read_addr, bias[c] : In, Out
        Forward. A word in cycle t; column c's bias is there in cycle t + 1 + c. A word every cycle.
    layer_start, b_base : In
        A layer begins: its first channels' word, taken with the pulse.
    delta_valid, delta_value, delta_weight, delta_channel_last, delta_sample_last : In
        Signals of a sample, channel by channel from 0 on, in each window by window, one a cycle or
        fewer: d', signed(`delta_bits`), and A', 0 to 8 * MAX_WINDOW; the channel's last window, the
        last channel's last window. The first may come in the cycle after `layer_start`.
    sample_first, sample_last : In, with `delta_valid`
        The sample is its batch's first, its last.
    bias_shift : In
        in_frac + 4 * coarse, 0 to 11. Held from a sample's first `delta_valid` to two cycles after its
        last.
    pad, pad_count : In
        A pulse, once a batch: the LFSR takes so many further steps, 0 to C - 1, one a cycle from the next
        on. After a batch's first sample, in the cycle after its last `delta_valid` or later.
    advance : In
        Steps the LFSR, in each cycle in which it is set. Not together with signals or padding.
    stepped : Out
        The LFSR steps in this cycle.
    host_valid, host_addr, host_write, host_data, host_q : In, Out
        `host_addr` is word << col_bits | column; the word read is in `host_q` in the next cycle. With
        `host_write` too it is written.

    A channel's sum is D[j] = Σ (d' * A') << bias_shift over the windows of the batch's samples. It starts
    from b * 2^F + rand_F with the first sample, in whose first window the LFSR steps (the bits are
    those before the step). Between samples it is kept in a memory; with the last sample
    sat16(sum >> F) is the new bias. A channel comes back only with the next sample, whose signals must
    begin `WRITE_LATENCY` cycles after the last of this one, or later: by then all sums are stored.
    """

    LATENCY = 1
    """Cycles from `read_addr` to column 0's bias; column c's comes c cycles later."""
    WRITE_LATENCY = 5
    """A bias (or a sum) can be read this many cycles after its channel's last `delta_valid`."""

    read_addr: Signal
    bias: list[Signal]
    layer_start: Signal
    b_base: Signal
    sample_first: Signal
    sample_last: Signal
    delta_valid: Signal
    delta_value: Signal
    delta_weight: Signal
    delta_channel_last: Signal
    delta_sample_last: Signal
    bias_shift: Signal
    pad: Signal
    pad_count: Signal
    advance: Signal
    stepped: Signal
    host_valid: Signal
    host_addr: Signal
    host_write: Signal
    host_data: Signal
    host_q: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        word_bits = machine.bias_bank_addr_bits
        super().__init__(
            {
                "read_addr": In(word_bits),
                "bias": Out(signed(WEIGHT_BITS)).array(machine.cols),
                "layer_start": In(1),
                "b_base": In(word_bits),
                "sample_first": In(1),
                "sample_last": In(1),
                "delta_valid": In(1),
                "delta_value": In(signed(machine.delta_bits)),
                "delta_weight": In(WINDOW_WEIGHT_BITS),
                "delta_channel_last": In(1),
                "delta_sample_last": In(1),
                "bias_shift": In(SHIFT_BITS),
                "pad": In(1),
                "pad_count": In(range(machine.cols)),
                "advance": In(1),
                "stepped": Out(1),
                "host_valid": In(1),
                "host_addr": In(word_bits + machine.col_bits),
                "host_write": In(1),
                "host_data": In(signed(WEIGHT_BITS)),
                "host_q": Out(signed(WEIGHT_BITS)),
            }
        )

    def elaborate(self, platform) -> Module:
        machine = self.machine
        cols, fraction_bits, psum_bits = machine.cols, machine.fraction_bits, machine.psum_bits
        m = Module()

        # -- t: where the channel is; its sum and its word are read with each of its signals -----------
        base = Signal(machine.bias_bank_addr_bits)
        word = Signal.like(base)
        column = Signal(range(cols))
        # No layer has more channels than biases, or than latents.
        sums_depth = min(machine.max_neurons, machine.bias_bank_depth * cols)
        channel = Signal(ceil_log2(sums_depth))
        opening = Signal(init=1)  # the next signal is its channel's first
        with m.If(self.delta_valid):
            m.d.sync += opening.eq(self.delta_channel_last)
            with m.If(self.delta_sample_last):
                m.d.sync += [channel.eq(0), column.eq(0), word.eq(base)]
            with m.Elif(self.delta_channel_last):
                m.d.sync += channel.eq(channel + 1)
                with m.If(column == cols - 1):
                    m.d.sync += [column.eq(0), word.eq(word + 1)]
                with m.Else():
                    m.d.sync += column.eq(column + 1)
        with m.If(self.layer_start):
            m.d.sync += [base.eq(self.b_base), word.eq(self.b_base)]

        ends = self.delta_valid & self.delta_channel_last
        valid = delay_line(m, self.delta_valid, 3, "valid")[3]
        first = delay_line(m, self.delta_valid & opening, 3, "first")[3]
        starts = delay_line(m, self.sample_first, 2, "starts")
        begins = delay_line(m, self.delta_valid & opening & self.sample_first, 1, "begins")[1]
        keep = delay_line(m, ends & ~self.sample_last, 4, "keep")[4]
        store = delay_line(m, ends & self.sample_last, 4, "store")[4]
        words = delay_line(m, word, 4, "word")
        columns = delay_line(m, column, 4, "column")
        channels = delay_line(m, channel, 4, "channel")

        # -- the banks; one word of all of them is chosen, for signals and for the host ----------------
        host_column = self.host_addr[: machine.col_bits]
        host_word = self.host_addr[machine.col_bits :]
        shared = Mux(self.host_valid, host_word, word)
        lines = delay_line(m, self.read_addr, cols - 1, "read")
        updated = Signal(signed(WEIGHT_BITS))
        host_write = self.host_valid & self.host_write
        for c in range(cols):
            bank = DualPortMemory(signed(WEIGHT_BITS), machine.bias_bank_depth)
            m.submodules[f"bank_{c}"] = bank
            m.d.comb += [
                bank.read_addr.eq(Mux(self.host_valid | self.delta_valid, shared, lines[c])),
                self.bias[c].eq(bank.read_data),
                bank.write_en.eq((store & (columns[4] == c)) | (host_write & (host_column == c))),
                bank.write_addr.eq(Mux(store, words[4], host_word)),
                bank.write_data.eq(Mux(store, updated, self.host_data)),
            ]
        chosen = Signal(range(cols), reset_less=True)
        m.d.sync += chosen.eq(Mux(self.host_valid, host_column, column))
        m.d.comb += self.host_q.eq(Array(self.bias)[chosen])

        # -- t + 1: the bias with random bits below it. They step with a batch's first sample, in every
        # channel, and for padding ---------------------------------------------------------------------
        m.submodules.lfsr = lfsr = Lfsr(int(SEQUENCE[offset(machine, machine.pes)]))
        padding = Signal(range(cols))
        with m.If(self.pad):
            m.d.sync += padding.eq(self.pad_count)
        with m.Elif(padding != 0):
            m.d.sync += padding.eq(padding - 1)
        m.d.comb += [
            self.stepped.eq(begins | (padding != 0) | self.advance),
            lfsr.step.eq(self.stepped),
        ]
        random = lfsr.state[max(0, STATE_BITS - fraction_bits) :]
        fresh = Signal(len(random) + WEIGHT_BITS, reset_less=True)
        m.d.sync += fresh.eq(Cat(random, self.host_q))

        # -- to t + 3: what the channel's sum begins with, and what is added to it ----------------------
        # |d'| < 2^(delta_bits - 1) and A' <= 2^(WINDOW_WEIGHT_BITS - 1), which gives the product's bits.
        # Shifted it is a part of D, and all sums are b * 2^F + rand_F + a part of D, which
        # spec.windowed's left_max makes fit psum_bits, for an input of 2^in_frac as for any other.
        m.submodules.sums = sums = DualPortMemory(signed(psum_bits), sums_depth)
        m.d.comb += sums.read_addr.eq(channels[1])
        value = Signal.like(self.delta_value, reset_less=True)
        weight = Signal.like(self.delta_weight, reset_less=True)
        product = Signal(signed(machine.delta_bits + WINDOW_WEIGHT_BITS - 1), reset_less=True)
        term = Signal(signed(psum_bits), reset_less=True)
        begun = Signal(signed(psum_bits), reset_less=True)
        zeros = Const(0, fraction_bits - len(random))
        m.d.sync += [
            value.eq(self.delta_value),
            weight.eq(self.delta_weight),
            product.eq(truncate(value * weight, len(product))),
            term.eq(truncate(product << self.bias_shift, psum_bits)),
            begun.eq(Mux(starts[2], Cat(zeros, fresh).as_signed(), sums.read_data)),
        ]

        # -- t + 4: the sum, on its way back to its memory or, as a bias, to its bank --------------------
        total = Signal(signed(psum_bits), reset_less=True)
        with m.If(valid):
            m.d.sync += total.eq(truncate(Mux(first, begun, total) + term, psum_bits))
        m.d.comb += [
            sums.write_en.eq(keep),
            sums.write_addr.eq(channels[4]),
            sums.write_data.eq(total),
            updated.eq(saturate(total[fraction_bits:].as_signed(), WEIGHT_BITS)),
        ]
        return m
