"""The result FIFO: what a step has to say waits here for the host, so that the step never has to."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.memory import DualPortMemory
from hdl.streams import LABEL_BITS, RESULT_LAYOUT, SUMMARY_LAYOUT
from spec.errors import SpecError
from spec.machine import SCORE_BITS, Machine

__all__ = ["ResultFifo"]


class ResultFifo(wiring.Component):
    """`machine.result_fifo_depth` beats; one in and one out a cycle, offered two cycles after.

    Nothing holds up the pushing side. Instead `room` says whether a sample may begin: when the beats
    that it can have (`layers` times `classes` scores, if they are wanted, and the summary) all fit.
    A machine with `gradient_bits` asks for a batch: `batch` times as many beats must fit.

    Members
    -------
    layers, scores : In
        Layers of the program; whether results carry scores. The latter is taken at `begin` (a pulse).
    score_valid, score : In
        A class score, signed(SCORE_BITS); dropped if this sample's scores are not wanted.
    summary, prediction, label : In
        The last beat of a result. Not in the cycle of a score.
    room : Out
        Counts a beat that is pushed in this cycle; follows `layers` a cycle later.
    batch, single : In, with `gradient_bits`
        Samples of a batch; 1: it is one sample alone that is to begin. `room` is then valid in a cycle
        without a score, and follows `layers` three cycles later, `batch` two, `single` one.
    results : Out, stream of RESULT_LAYOUT

    Raises
    ------
    SpecError
        When not even the scores of a single layer fit.
    """

    def __init__(self, machine: Machine, classes: int):
        self._windowed = machine.windowed
        self._depth = machine.result_fifo_depth
        self._classes = classes
        if self._depth < classes + 1:
            raise SpecError(
                "result_fifo_depth",
                f"must be at least {classes + 1} for the result of one layer with {classes} classes",
                self._depth,
            )
        super().__init__(
            {
                "layers": In(machine.max_layers.bit_length()),
                "scores": In(1),
                "begin": In(1),
                "score_valid": In(1),
                "score": In(signed(SCORE_BITS)),
                "summary": In(1),
                "prediction": In(unsigned(LABEL_BITS)),
                "label": In(unsigned(LABEL_BITS)),
                "room": Out(1),
                "results": Out(stream.Signature(RESULT_LAYOUT)),
                **({"batch": In(range(machine.max_batch + 1)), "single": In(1)} if machine.windowed else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.beats = beats = DualPortMemory(SCORE_BITS + 1, self._depth)
        write, read = Signal(range(self._depth)), Signal(range(self._depth))
        level, left = Signal(range(self._depth + 1)), Signal(range(self._depth + 1))
        wanted, push, taken = Signal(), Signal(), Signal()

        def after(pointer):
            return Mux(pointer == self._depth - 1, 0, pointer + 1)

        room = self._batch_room(m, level + push) if self._windowed else level + push <= self._most(m)
        summary = Signal(SUMMARY_LAYOUT)
        m.d.comb += [
            summary.prediction.eq(self.prediction),
            summary.label.eq(self.label),
            self.room.eq(room),
            push.eq((self.score_valid & wanted) | self.summary),
            taken.eq(self.results.valid & self.results.ready),
            left.eq(level - taken),
            beats.write_en.eq(push),
            beats.write_addr.eq(write),
            beats.write_data[:SCORE_BITS].eq(Mux(self.summary, summary.as_value(), self.score)),
            beats.write_data[SCORE_BITS].eq(self.summary),
            # The next beat is read while the present one is taken. A beat that is only now being
            # written is not offered yet, so a read that counts never meets the write of its word.
            beats.read_addr.eq(Mux(taken, after(read), read)),
            self.results.payload.data.eq(beats.read_data[:SCORE_BITS].as_signed()),
            self.results.payload.last.eq(beats.read_data[SCORE_BITS]),
        ]
        m.d.sync += [
            level.eq(left + push),
            self.results.valid.eq(left != 0),
            read.eq(beats.read_addr),
        ]
        with m.If(self.begin):
            m.d.sync += wanted.eq(self.scores)
        with m.If(push):
            m.d.sync += write.eq(after(write))
        return m

    def _most(self, m: Module) -> Value:
        """The beats that may lie here when a sample begins. With scores registered, because the product would be the
        longest path of the core; LAYERS is written before the core is enabled."""
        bound = max(self._depth, self._classes << len(self.layers))
        most = Signal(range(-bound, bound))
        m.d.sync += most.eq(self._depth - 1 - self.layers * self._classes)
        return Mux(self.scores, most, self._depth - 1)

    def _batch_room(self, m: Module, level: Value) -> Value:
        """Whether there is room for a batch, or a sample alone, from registers. A short batch is taken for a whole one.

        `level` counts this cycle's beat. In the next cycle there is one more at most, a summary, and in a
        cycle in which a batch may begin no other.
        """
        beats = Signal(range((self._classes << len(self.layers)) + 1))  # of a sample with scores
        bits = range(-(1 << len(beats) + len(self.batch)), self._depth)
        of_one, of_batch, unscored = (Signal(bits, name=f"most_{name}") for name in ("one", "batch", "unscored"))
        m.d.sync += [
            beats.eq(self.layers * self._classes + 1),
            of_one.eq(self._depth - beats),
            of_batch.eq(self._depth - self.batch * beats),
            unscored.eq(self._depth - self.batch),
        ]
        rooms = []
        for name, one, batch in (("scored", of_one, of_batch), ("unscored", self._depth - 1, unscored)):
            most = Mux(self.single, one, batch)
            fits, fits_with_one = Signal(name=f"fits_{name}"), Signal(name=f"fits_{name}_with_one")
            m.d.sync += [fits.eq(level <= most), fits_with_one.eq(level < most)]
            rooms.append(Mux(self.summary, fits_with_one, fits))
        return Mux(self.scores, *rooms)
