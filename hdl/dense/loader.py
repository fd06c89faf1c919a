"""The input loader: packets from the `samples` stream into one of two input buffers."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.streams import LABEL_BITS, SAMPLE_LAYOUT
from spec.machine import ACT_BITS, Machine
from spec.network import NO_LABEL

__all__ = ["InputLoader"]

class InputLoader(wiring.Component):
    """Loads one buffer while the sequencer works on the other; drops bad packets whole.

    Element i of a packet goes to bank i % R, word i // R of the buffer, buffer B standing `input_words`
    behind buffer A. A packet is kept when it has exactly `length` pixels and its label is a class or
    NO_LABEL; until its last beat it can be overwritten, so dropping one is to start over.

    Members
    -------
    samples : In, stream of SAMPLE_LAYOUT
        One beat a cycle while `enable` is set, a buffer is free and `load_ready`.
    length, input_words : In
        Pixels of a sample; words a bank of a buffer. Constant while packets come.
    load_valid, load_row, load_addr, load_data, load_ready
        To the activation memory. A pixel beyond `length` is taken and not written.
    sample_valid, sample_label, sample_buffer : Out
        The oldest complete sample; visible the cycle after its last beat.
    label_release, buffer_release : In, pulses
        The sequencer has taken the sample's label, and later: it needs its pixels no longer. The next
        sample is offered only after `label_release`; a buffer is loaded again after `buffer_release`.
    bad_label, bad_length : Out
        Sticky until `clear_errors`; a packet that is wrong in both sets `bad_length`.
    """

    def __init__(self, machine: Machine, classes: int):
        self._rows = machine.rows
        self._classes = classes
        self._length_bits = machine.max_fan_in.bit_length()
        super().__init__(
            {
                "samples": In(stream.Signature(SAMPLE_LAYOUT)),
                "enable": In(1),
                "length": In(self._length_bits),
                "input_words": In(machine.activation_addr_bits),
                "load_valid": Out(1),
                "load_row": Out(range(machine.rows)),
                "load_addr": Out(machine.activation_addr_bits),
                "load_data": Out(signed(ACT_BITS)),
                "load_ready": In(1),
                "sample_valid": Out(1),
                "sample_label": Out(unsigned(LABEL_BITS)),
                "sample_buffer": Out(1),
                "label_release": In(1),
                "buffer_release": In(1),
                "bad_label": Out(1),
                "bad_length": Out(1),
                "clear_errors": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # `loading`: buffer being filled; `offered`: buffer of the next sample to start; `working`:
        # oldest buffer whose pixels are still needed.
        loading, offered, working = Signal(), Signal(), Signal()
        complete, occupied = Signal(2), Signal(2)
        labels = [Signal(LABEL_BITS, name=f"label_{b}") for b in range(2)]

        count = Signal(self._length_bits)
        too_long = Signal()
        row = Signal(range(self._rows))
        word = Signal(self.load_addr.shape())

        pixel = self.samples.payload.data
        last = self.samples.payload.last
        open_ = Signal()
        beat = Signal()
        full = Signal()
        length_ok, label_ok = Signal(), Signal()
        m.d.comb += [
            open_.eq(self.enable & ~Mux(loading, occupied[1], occupied[0])),
            full.eq(count == self.length),
            self.samples.ready.eq(open_ & self.load_ready),
            beat.eq(self.samples.valid & self.samples.ready),
            self.load_valid.eq(open_ & self.samples.valid & ~last & ~full),
            self.load_row.eq(row),
            self.load_addr.eq(word + Mux(loading, self.input_words, 0)),
            self.load_data.eq(pixel),
            length_ok.eq(full & ~too_long),
            label_ok.eq((pixel < self._classes) | (pixel == NO_LABEL)),
            self.sample_valid.eq(Mux(offered, complete[1], complete[0])),
            self.sample_label.eq(Mux(offered, labels[1], labels[0])),
            self.sample_buffer.eq(offered),
        ]

        with m.If(self.clear_errors):
            m.d.sync += [self.bad_label.eq(0), self.bad_length.eq(0)]
        with m.If(beat):
            with m.If(last):
                m.d.sync += [count.eq(0), too_long.eq(0), row.eq(0), word.eq(0)]
                with m.If(~length_ok):
                    m.d.sync += self.bad_length.eq(1)
                with m.Elif(~label_ok):
                    m.d.sync += self.bad_label.eq(1)
                with m.Else():
                    m.d.sync += [
                        complete.bit_select(loading, 1).eq(1),
                        occupied.bit_select(loading, 1).eq(1),
                        loading.eq(~loading),
                    ]
                    with m.Switch(loading):
                        for b in range(2):
                            with m.Case(b):
                                m.d.sync += labels[b].eq(pixel)
            with m.Elif(full):
                m.d.sync += too_long.eq(1)
            with m.Else():
                m.d.sync += count.eq(count + 1)
                with m.If(row == self._rows - 1):
                    m.d.sync += [row.eq(0), word.eq(word + 1)]
                with m.Else():
                    m.d.sync += row.eq(row + 1)

        # A buffer is never loaded and released in the same cycle: loading needs it free before.
        with m.If(self.label_release):
            m.d.sync += [complete.bit_select(offered, 1).eq(0), offered.eq(~offered)]
        with m.If(self.buffer_release):
            m.d.sync += [occupied.bit_select(working, 1).eq(0), working.eq(~working)]
        return m
