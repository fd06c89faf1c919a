"""The input loader: packets from the `samples` stream into a ring of slots in the map memory."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.memory import DualPortMemory
from hdl.streams import LABEL_BITS, SAMPLE_LAYOUT
from hdl.windowed.map_memory import element_bits
from spec.machine import ACT_BITS, Machine
from spec.network import NO_LABEL

__all__ = ["Loader"]


class Loader(wiring.Component):
    """Loads samples while the sequencer works on earlier ones; drops bad packets whole.

    A slot is `input_words` words a bank, slot n begins at word n * input_words. A sample's elements
    lie one behind the other in its slot, but that `input_gap` elements are left out, and not written,
    after every `input_row`. A packet is kept when it has exactly `length` elements and its label is a
    class or NO_LABEL; until its last beat it can be overwritten, so dropping one is to start over.
    Samples stay in the order in which they came, one a slot, and begin in batches from the oldest on.

    Members
    -------
    samples : In, stream of SAMPLE_LAYOUT
        One beat a cycle while `enable` is set, a slot is free, `load_ready`, and not `unlabelled`.
    length, input_row, input_gap, input_words, input_slots : In
        Constant while packets come or samples are in the ring. `input_row` at least 1, `input_slots` at
        most 2 * max_batch (0: no packet is taken).
    load_valid, load_element, load_data, load_ready
        To the map memory. An element beyond `length` is taken and not written.
    waiting, unlabelled : Out
        Complete labelled samples that have not begun; behind them is a complete one without a label,
        and until that has begun no packet is taken. Visible the cycle after the last beat.
    begin, begin_count : In, pulse
        So many of the `waiting` begin; where there are none the one without a label does.
    release, release_count : In, pulse
        The elements of so many that have begun, the oldest, are needed no longer: their slots are free.
    label_slot, label : In, Out
        The label of the sample in a slot, a cycle later. It is there from the cycle in which
        `waiting` or `unlabelled` shows the sample until its slot is released.
    restart : In, pulse
        Everything but the sticky bits is as after reset: the next sample goes to slot 0. What was in
        the ring is lost; not between `begin` and `release`, nor in a cycle with `enable`.
    bad_label, bad_length : Out
        Sticky until `clear_errors`; a packet that is wrong in both sets `bad_length`.
    """

    samples: stream.Interface
    enable: Signal
    length: Signal
    input_row: Signal
    input_gap: Signal
    input_words: Signal
    input_slots: Signal
    load_valid: Signal
    load_element: Signal
    load_data: Signal
    load_ready: Signal
    waiting: Signal
    unlabelled: Signal
    begin: Signal
    begin_count: Signal
    release: Signal
    release_count: Signal
    label_slot: Signal
    label: Signal
    restart: Signal
    bad_label: Signal
    bad_length: Signal
    clear_errors: Signal

    def __init__(self, machine: Machine, classes: int):
        self.machine = machine
        self._classes = classes
        slots = 2 * machine.max_batch
        elements = element_bits(machine)
        super().__init__(
            {
                "samples": In(stream.Signature(SAMPLE_LAYOUT)),
                "enable": In(1),
                "length": In(elements),
                "input_row": In(elements),
                "input_gap": In(range(machine.rows)),
                "input_words": In(machine.activation_addr_bits),
                "input_slots": In(range(slots + 1)),
                "load_valid": Out(1),
                "load_element": Out(elements),
                "load_data": Out(signed(ACT_BITS)),
                "load_ready": In(1),
                "waiting": Out(range(slots + 1)),
                "unlabelled": Out(1),
                "begin": In(1),
                "begin_count": In(range(machine.max_batch + 1)),
                "release": In(1),
                "release_count": In(range(machine.max_batch + 1)),
                "label_slot": In(range(slots)),
                "label": Out(unsigned(LABEL_BITS)),
                "restart": In(1),
                "bad_label": Out(1),
                "bad_length": Out(1),
                "clear_errors": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        slots = 2 * self.machine.max_batch
        row_zeros = Const(0, self.machine.row_bits)
        element = self.samples.payload.data
        last = self.samples.payload.last

        slot, word = Signal(range(slots)), Signal(self.machine.activation_addr_bits)  # being filled
        occupied = Signal(range(slots + 1))
        open_, beat, kept = Signal(), Signal(), Signal()
        count = Signal.like(self.length)
        full, too_long = Signal(), Signal()
        length_ok, label_ok = Signal(), Signal()
        m.d.comb += [
            open_.eq(self.enable & (occupied != self.input_slots) & ~self.unlabelled),
            full.eq(count == self.length),
            self.samples.ready.eq(open_ & self.load_ready),
            beat.eq(self.samples.valid & self.samples.ready),
            self.load_valid.eq(open_ & self.samples.valid & ~last & ~full),
            self.load_data.eq(element),
            length_ok.eq(full & ~too_long),
            label_ok.eq((element < self._classes) | (element == NO_LABEL)),
            kept.eq(beat & last & length_ok & label_ok),
        ]

        with m.If(self.clear_errors):
            m.d.sync += [self.bad_label.eq(0), self.bad_length.eq(0)]
        with m.If(beat & last):
            with m.If(~length_ok):
                m.d.sync += self.bad_length.eq(1)
            with m.Elif(~label_ok):
                m.d.sync += self.bad_label.eq(1)

        # Where the next element goes.
        column = Signal.like(self.input_row)
        row_ends = column == self.input_row - 1
        with m.If(beat):
            with m.If(last):
                m.d.sync += [count.eq(0), too_long.eq(0), column.eq(0)]
            with m.Elif(full):
                m.d.sync += too_long.eq(1)
            with m.Else():
                m.d.sync += [
                    count.eq(count + 1),
                    column.eq(Mux(row_ends, 0, column + 1)),
                    self.load_element.eq(self.load_element + Mux(row_ends, self.input_gap + 1, 1)),
                ]
        next_word = Mux(slot == self.input_slots - 1, 0, word + self.input_words)
        with m.If(kept):
            m.d.sync += [
                slot.eq(Mux(slot == self.input_slots - 1, 0, slot + 1)),
                word.eq(next_word),
                self.load_element.eq(Cat(row_zeros, next_word)),
            ]
        with m.Elif(beat & last):
            m.d.sync += self.load_element.eq(Cat(row_zeros, word))

        # A sample is counted twice: until it begins, and until its slot is free.
        labelled = element != NO_LABEL
        begins = Mux(self.begin & (self.waiting != 0), self.begin_count, 0)
        m.d.sync += [
            self.waiting.eq(self.waiting + (kept & labelled) - begins),
            occupied.eq(occupied + kept - Mux(self.release, self.release_count, 0)),
        ]
        with m.If(self.begin & (self.waiting == 0)):
            m.d.sync += self.unlabelled.eq(0)
        with m.If(kept & ~labelled):
            m.d.sync += self.unlabelled.eq(1)

        m.submodules.labels = labels = DualPortMemory(LABEL_BITS, slots)
        m.d.comb += [
            labels.write_en.eq(kept),
            labels.write_addr.eq(slot),
            labels.write_data.eq(element),
            labels.read_addr.eq(self.label_slot),
            self.label.eq(labels.read_data),
        ]

        with m.If(self.restart):
            state = (slot, word, occupied, count, too_long, column, self.load_element, self.waiting, self.unlabelled)
            m.d.sync += [register.eq(0) for register in state]
        return m
