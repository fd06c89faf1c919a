"""The learning signal of machines that sum gradients: one shifted signal a channel and window."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal

from hdl.arith import delay_line
from hdl.signal_path import SignalPath
from hdl.windowed.window_signal import WindowSignal, clipped, late
from spec import timing, windowed_timing
from spec.basis import Basis
from spec.machine import Machine

__all__ = ["LearningSignal"]


class LearningSignal(WindowSignal):
    """A layer's class scores, their errors, and from these its own signals. Ports: `WindowSignal`.

    A signal phase takes 3K + n + SIGNAL_TAIL cycles when `train` is set (n = latents), else K + ARGMAX_TAIL.

    Raises
    ------
    SpecError
        When the machine or the basis do not suit `classes`.
    """

    LATENCY = SignalPath.LATENCY + 2
    """Cycles from a gradient's asking to its shifted signal."""

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self._path = SignalPath(machine, classes, basis, machine.neuron_bits)
        super().__init__(machine, self._path.softmax)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = self._path.lanes
        m.submodules.softmax = softmax = self._path.softmax
        rewind = Signal()
        m.d.comb += rewind.eq(self._path.rewind(self))

        # -- the latents as they come, classes as scores are read and errors written, then the latents in order ----
        issue = Signal()
        steps = softmax.drain | softmax.error_strobe | issue
        index, counter, window_ends = self._order(m, rewind, steps, issue)
        gradient, weight = self._path.build(
            m,
            self,
            valid=self.latent_valid,
            latent=self.latent,
            kept=self.latent_weight,
            score=self.score,
            index=index,
            rewind=rewind,
            issue=issue,
        )
        m.d.comb += [
            self.prediction.eq(softmax.prediction),
            self.report_valid.eq(softmax.report_valid),
            self.report_score.eq(softmax.report_score),
        ]

        # -- after the softmax all latents once more ----------------------------------------------------
        final = issue & (counter == self.latents - 1)
        m.d.sync += issue.eq((softmax.done & self.train) | (issue & ~final))
        channel_ends = window_ends  # a cycle after the `issue` of the channel's last
        m.d.comb += [
            self.delta_valid.eq(delay_line(m, issue, self.LATENCY, "issue")[-1]),
            self.delta_sample_last.eq(delay_line(m, final, self.LATENCY, "final")[-1]),
            self.delta_channel_last.eq(delay_line(m, channel_ends, self.LATENCY - 1, "channel_ends")[-1]),
            self.delta_weight.eq(late(m, weight, self.LATENCY - SignalPath.KEPT_LATENCY, "weight")),
            self.done.eq(Mux(self.train, self.delta_sample_last, softmax.done)),
        ]
        left_shift = self._left_shift(m, self.rate_shift + softmax.norm_shift)
        self._shifted(m, clipped(gradient), left_shift)
        return m


# The first gradient is asked for in the cycle after the softmax's last.
assert windowed_timing.SIGNAL_TAIL == timing.SIGNAL_TAIL + LearningSignal.LATENCY
assert windowed_timing.ARGMAX_TAIL == timing.ARGMAX_TAIL
