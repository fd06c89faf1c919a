"""What the learning-signal units share whose hidden layers have no class scores: they begin at the output's error."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Value
from amaranth.lib.wiring import Member

from hdl.arith import delay_line
from hdl.softmax import Softmax
from hdl.windowed.window_signal import WindowSignal
from spec import timing, windowed_timing
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import Machine

__all__ = ["ErrorSignal"]


class ErrorSignal(WindowSignal):
    """The output layer's softmax, whose errors are shifted as they are made. Ports: `WindowSignal`.

    A hidden layer's signal phase needs `train`. The output layer's takes 3K + PLAIN_SIGNAL_TAIL cycles when `train` is
    set, else K + PLAIN_ARGMAX_TAIL.

    Raises
    ------
    SpecError
        When the basis does not suit `classes`, or `max_neurons` is less.
    """

    ERROR_LATENCY = 3
    """Cycles from a class's `error_strobe` to its shifted signal: the error, d, d'."""

    def __init__(self, machine: Machine, classes: int, basis: Basis, own: dict[str, Member] | None = None):
        if basis.classes != classes:
            raise SpecError("basis.classes", f"must equal classes ({classes})", basis.classes)
        if machine.max_neurons < classes:
            raise SpecError("max_neurons", f"must be at least the number of classes, {classes}", machine.max_neurons)
        self._softmax = Softmax(machine, classes)
        super().__init__(machine, self._softmax, own)

    def _output(self, m: Module) -> Value:
        """Adds to `m` the softmax. Returns the cycle of the last error, one after its strobe, where it trains."""
        m.submodules.softmax = softmax = self._softmax
        m.d.comb += [
            softmax.start.eq(self.start),
            softmax.score_valid.eq(self.latent_valid & self.is_output),
            softmax.score.eq(self.score),
            softmax.go.eq(self.go & self.is_output),
            softmax.train.eq(self.train),
            softmax.is_output.eq(self.is_output),
            softmax.label.eq(self.label),
            softmax.score_shift.eq(self.score_shift),
            self.prediction.eq(softmax.prediction),
            self.report_valid.eq(softmax.report_valid),
            self.report_score.eq(softmax.report_score),
        ]
        return softmax.done & self.train

    def _build(self, m: Module, made: Value, final: Value, channel_ends: Value, value: Value) -> None:
        """Adds to `m` the softmax and what follows a hidden layer's `value` (s8).

        It is there a cycle after `made`, with which `final` says that it is the sample's last; with the value
        `channel_ends` says that it is its channel's. In an output layer it is that of the softmax's error.
        """
        error_last, softmax = self._output(m), self._softmax
        final = delay_line(m, final, 1, "final")[-1]
        m.d.comb += [
            self.delta_valid.eq(delay_line(m, made | softmax.error_strobe, self.ERROR_LATENCY, "made")[-1]),
            self.delta_sample_last.eq(delay_line(m, final | error_last, self.ERROR_LATENCY - 1, "sample_last")[-1]),
            self.delta_channel_last.eq(
                delay_line(m, channel_ends | self.is_output, self.ERROR_LATENCY - 1, "channel_last")[-1]
            ),
            self.done.eq(Mux(self.train, self.delta_sample_last, softmax.done)),
        ]
        self._shifted(m, value, self._left_shift(m, self.rate_shift))


assert windowed_timing.PLAIN_SIGNAL_TAIL == timing.PLAIN_SIGNAL_TAIL + ErrorSignal.ERROR_LATENCY - 1
assert windowed_timing.PLAIN_ARGMAX_TAIL == timing.PLAIN_ARGMAX_TAIL
