"""The learning signal of machines that sum gradients: one shifted signal a channel and window."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import In

from hdl.arith import delay_line
from hdl.signal_path import SignalPath
from hdl.windowed.window_signal import WindowSignal, clipped, late
from spec import timing, windowed_timing
from spec.basis import Basis
from spec.machine import Machine
from spec.windowed_program import WINDOWED_FIELDS as FIELDS

__all__ = ["LearningSignal"]

_SCORE_RATE = 17
"""What a hidden layer's `rate_shift - act_shift - latent_shift` lacks to the rate's shift of its trained scores."""


class LearningSignal(WindowSignal):
    """A layer's class scores, their errors, and from these its own signals. Ports: `WindowSignal`.

    A signal phase takes 3K + n + SIGNAL_TAIL cycles when `train` is set (n = latents), else K + ARGMAX_TAIL; and
    those of `spec.timing.score_cycles`. With a trained part of the class scores it has also the ports

    layer_start : In, pulse
        The program's next layer begins, with its first sample's `start`.
    act_shift, latent_shift : In
        The layer's; held.
    first_layer, host_... : see `SignalPath.ports`

    Raises
    ------
    SpecError
        When the machine or the basis do not suit `classes`.
    """

    act_shift: Signal
    latent_shift: Signal
    layer_start: Signal

    LATENCY = SignalPath.LATENCY + 2
    """Cycles from a gradient's asking to its shifted signal."""
    PROJECTS = True
    """Whether gradients lose their part along the latents; a rule's own unit may say otherwise."""

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self._path = SignalPath(machine, classes, basis, machine.neuron_bits, self.PROJECTS)
        shifts = {name: In(FIELDS[name].width) for name in ("act_shift", "latent_shift")}
        trained = {"layer_start": In(1), **shifts, **self._path.ports}
        super().__init__(machine, self._path.softmax, trained if machine.learning.trains else None)

    def elaborate(self, platform) -> Module:
        m = Module()
        softmax = self._path.softmax
        for name, block in self._path.submodules.items():
            m.submodules[name] = block
        rewind = Signal()
        m.d.comb += rewind.eq(self._path.rewind(self))

        # -- the latents as they come, classes as scores are read and errors written, then the latents in order ----
        issue = Signal()
        steps = softmax.drain | self._path.error_strobe | issue
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
        if self.machine.learning.trains:
            self._path.train(
                m, self, start=self.layer_start, latents=self.latents,
                rate=self.rate_shift - self.act_shift - self.latent_shift + _SCORE_RATE, learn=issue & ~self.is_output,
            )  # fmt: skip
        left_shift = self._left_shift(m, self.rate_shift + softmax.norm_shift)
        self._shifted(m, clipped(gradient), left_shift)
        return m


# The first gradient is asked for in the cycle after the softmax's last.
assert windowed_timing.SIGNAL_TAIL == timing.SIGNAL_TAIL + LearningSignal.LATENCY
assert windowed_timing.ARGMAX_TAIL == timing.ARGMAX_TAIL
