"""The output layer of a machine that does not learn: the walk over its scores that finds the largest."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.memory import DualPortMemory
from hdl.streams import LABEL_BITS
from spec.machine import SCORE_BITS
from spec.timing import PLAIN_ARGMAX_TAIL

__all__ = ["Argmax"]


class Argmax(wiring.Component):
    """Stands in the place of a learning-signal unit, and has of its ports what an inference needs.

    Members
    -------
    start, is_output : In
        A layer begins; whether it is the output layer, constant from then on.
    in_valid, in_score : In
        The layer's neurons in order, without padding: the score (s20), of use in the output layer.
    go, done : In, Out
        The signal phase, `go` not before the cycle after the last `in_valid`. `done` is its last
        cycle: K + PLAIN_ARGMAX_TAIL cycles, both ends counted.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores, in order, before the phase ends.
    """

    start: Signal
    is_output: Signal
    in_valid: Signal
    in_score: Signal
    go: Signal
    done: Signal
    prediction: Signal
    report_valid: Signal
    report_score: Signal

    def __init__(self, classes: int):
        self._classes = classes
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                "in_valid": In(1),
                "in_score": In(signed(SCORE_BITS)),
                "go": In(1),
                "done": Out(1),
                "prediction": Out(LABEL_BITS),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.scores = scores = DualPortMemory(signed(SCORE_BITS), self._classes)
        shown = Signal(range(self._classes + 1))  # scores that have been shown, with this cycle's
        largest = Signal(signed(SCORE_BITS), reset_less=True)
        m.d.comb += [
            scores.write_en.eq(self.in_valid & self.is_output),
            scores.write_data.eq(self.in_score),
            scores.read_addr.eq(shown),
            self.report_valid.eq(shown != 0),
            self.report_score.eq(scores.read_data),
            self.done.eq(shown == self._classes),
        ]
        with m.If(self.start):
            m.d.sync += scores.write_addr.eq(0)
        with m.Elif(scores.write_en):
            m.d.sync += scores.write_addr.eq(scores.write_addr + 1)
        with m.If(self.done):
            m.d.sync += shown.eq(0)
        with m.Elif(self.go | self.report_valid):
            m.d.sync += shown.eq(shown + 1)
        with m.If(self.report_valid & ((shown == 1) | (scores.read_data > largest))):
            m.d.sync += [largest.eq(scores.read_data), self.prediction.eq(shown - 1)]
        return m


assert PLAIN_ARGMAX_TAIL == 1
