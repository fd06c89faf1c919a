"""The learning signal of machines that sum gradients: one shifted signal a channel and window."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import clip_symmetric, delay_line, round_shift
from hdl.signal_path import SignalPath
from hdl.softmax import SHIFT_BITS
from hdl.windowed.bias_unit import WINDOW_WEIGHT_BITS
from spec import timing, windowed_timing
from spec.basis import Basis
from spec.machine import ACT_BITS, SCORE_BITS, Machine
from spec.windowed import COARSE
from spec.windowed_program import WINDOWED_FIELDS as FIELDS

__all__ = ["LearningSignal"]

_GRADIENT_SHIFT = 2


class LearningSignal(wiring.Component):
    """Follows a layer and sample through forward (`start`, `latent_*`) and signal (`go` to `done`).

    Members
    -------
    start : In, pulse
        A sample's forward phase begins; clears scores, norm, index. Not before the cycle after `done`.
    is_output, latents, windows, score_shift, rate_shift, left_max, coarse : In
        The layer's; held from `start` to `done`. latents = windows * channels; in an output layer that
        is K, and windows 1. `left_max` is at most delta_bits - 8; `coarse` is a bit, for a shift of 4.
    latent_valid, latent, latent_column, latent_weight, score : In
        The layer's latents, from the cycle after `start` on, at most one a cycle: s8; column tile after
        tile, in each window after window, in each column after column from 0 on (the last tile may have
        fewer); their A'. In an output layer the score (s20) in place of the latent.
    go, done : In, Out
        The signal phase, `go` not before the cycle after the last `latent_valid`. `done` is its last
        cycle: 3K + n + SIGNAL_TAIL cycles, both ends counted, when `train` is set (n = latents), else
        K + ARGMAX_TAIL.
    label, train : In
        Held from `go` to `done`.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores of the layer (s20), in order, before the phase ends.
    delta_valid, delta_value, delta_weight, delta_channel_last, delta_sample_last : Out
        When it trains: n shifted signals d', signed(`delta_bits`), one a cycle, the last in the cycle of
        `done`; channel after channel, in each window after window. With each the A' of its latent, and
        whether it is its channel's last, the sample's last.
    """

    LATENCY = SignalPath.LATENCY + 2
    """Cycles from a gradient's asking to its shifted signal."""

    start: Signal
    is_output: Signal
    latents: Signal
    windows: Signal
    score_shift: Signal
    rate_shift: Signal
    left_max: Signal
    coarse: Signal
    latent_valid: Signal
    latent: Signal
    latent_column: Signal
    latent_weight: Signal
    score: Signal
    go: Signal
    label: Signal
    train: Signal
    done: Signal
    prediction: Signal
    report_valid: Signal
    report_score: Signal
    delta_valid: Signal
    delta_value: Signal
    delta_weight: Signal
    delta_channel_last: Signal
    delta_sample_last: Signal

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self.machine = machine
        self._path = SignalPath(machine, classes, basis, machine.neuron_bits)
        softmax = self._path.softmax
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                "latents": In(range(machine.max_neurons + 1)),
                "windows": In(range(machine.max_neurons + 1)),
                "score_shift": In(FIELDS["score_shift"].width),
                "rate_shift": In(signed(FIELDS["rate_shift"].width)),
                "left_max": In(range(machine.delta_bits - ACT_BITS + 1)),
                "coarse": In(1),
                "latent_valid": In(1),
                "latent": In(signed(ACT_BITS)),
                "latent_column": In(range(machine.cols)),
                "latent_weight": In(WINDOW_WEIGHT_BITS),
                "score": In(signed(SCORE_BITS)),
                "go": In(1),
                "label": In(softmax.label.shape()),
                "train": In(1),
                "done": Out(1),
                "prediction": Out(softmax.prediction.shape()),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
                "delta_valid": Out(1),
                "delta_value": Out(signed(machine.delta_bits)),
                "delta_weight": Out(WINDOW_WEIGHT_BITS),
                "delta_channel_last": Out(1),
                "delta_sample_last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = self._path.lanes
        m.submodules.softmax = softmax = self._path.softmax
        rewind = Signal()
        m.d.comb += rewind.eq(self._path.rewind(self))

        # -- one index: the latents' as they come, classes as scores are read and errors written, then
        # the latents in order. It may pass the last one; nothing looks at it then.
        counter = Signal(self.machine.neuron_bits)  # with latents: the same window's in the next column
        next_window = Signal.like(counter)  # column 0's of the next window
        index = Signal.like(counter)
        window = Signal.like(self.windows)  # how many of a tile (in the end: of a channel) have begun
        window_ends = window == self.windows
        opens = self.latent_valid & (self.latent_column == 0)
        issue = Signal()
        steps = softmax.drain | softmax.error_strobe | issue
        following = index + 1
        m.d.comb += index.eq(Mux(opens, next_window, counter))
        with m.If(rewind):
            m.d.sync += [counter.eq(0), next_window.eq(0), window.eq(0)]
        with m.Else():
            with m.If(self.latent_valid):
                m.d.sync += counter.eq(index + self.windows)
                # A channel's windows are neighbours, and so are one channel's last, the next one's
                # first: the next tile begins behind the last column's last window.
                with m.If(opens | window_ends):
                    m.d.sync += next_window.eq(following)
            with m.Elif(steps):
                m.d.sync += counter.eq(following)
            with m.If(opens | issue):
                m.d.sync += window.eq(Mux(window_ends, 1, window + 1))

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
            self.delta_weight.eq(_late(m, weight, self.LATENCY - SignalPath.KEPT_LATENCY, "weight")),
            self.done.eq(Mux(self.train, self.delta_sample_last, softmax.done)),
        ]

        # -- the shift: what rate_shift, k and the coarse part lack to F; not right, nor too far ----------
        rate = Signal(signed(FIELDS["rate_shift"].width + 1), reset_less=True)
        left = Signal(signed(len(rate) + 1))
        left_shift = Signal.like(self.left_max, reset_less=True)
        fraction_bits = self.machine.fraction_bits
        m.d.comb += left.eq(Mux(self.coarse, fraction_bits - COARSE, fraction_bits) - rate)
        m.d.sync += [
            rate.eq(self.rate_shift + softmax.norm_shift),
            left_shift.eq(Mux(left < 0, 0, Mux(left > self.left_max, self.left_max, left))),
        ]

        # -- a cycle each: d, then d' = -d << left. |d| <= 127: shifted by delta_bits - 8 it still fits.
        d = Signal(signed(ACT_BITS), reset_less=True)
        m.d.sync += [
            d.eq(clip_symmetric(round_shift(gradient, _GRADIENT_SHIFT), ACT_BITS)),
            self.delta_value.eq(-d << left_shift),
        ]
        return m


def _late(m: Module, value: Value, cycles: int, name: str) -> Value:
    """`value` so many cycles later, by registers without reset."""
    for number in range(cycles):
        register = Signal.like(value, name=f"{name}_{number}", reset_less=True)
        m.d.sync += register.eq(value)
        value = register
    return value


assert SHIFT_BITS == FIELDS["score_shift"].width
# The first gradient is asked for in the cycle after the softmax's last.
assert windowed_timing.SIGNAL_TAIL == timing.SIGNAL_TAIL + LearningSignal.LATENCY
assert windowed_timing.ARGMAX_TAIL == timing.ARGMAX_TAIL
