"""What the learning-signal units of machines that sum gradients share: ports, the order of latents, the shift."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out

from hdl.arith import clip_symmetric, round_shift
from hdl.softmax import SHIFT_BITS, Softmax
from hdl.windowed.bias_unit import WINDOW_WEIGHT_BITS
from spec.machine import ACT_BITS, SCORE_BITS, Machine
from spec.windowed import COARSE
from spec.windowed_program import WINDOWED_FIELDS as FIELDS

__all__ = ["WindowSignal", "clipped", "late"]

_GRADIENT_SHIFT = 2


class WindowSignal(wiring.Component):
    """Follows a layer and sample through forward (`start`, `latent_*`) and signal (`go` to `done`).

    Members
    -------
    start : In, pulse
        A sample's forward phase begins; clears scores, norm, index. Not before the cycle after `done`.
    is_output, latents, windows, score_shift, rate_shift, left_max, coarse : In
        The layer's; held from `start` to `done`. latents = windows * channels; in an output layer that
        is K, and windows 1. `left_max` is at most delta_bits - signal_bits; `coarse` is a bit, for a shift of 4.
    latent_valid, latent, latent_column, latent_weight, score : In
        The layer's latents, from the cycle after `start` on, at most one a cycle: s8; column tile after
        tile, in each window after window, in each column after column from 0 on (the last tile may have
        fewer); their A'. In an output layer the score (s20) in place of the latent. Rules that do not form
        `latents` in every layer take scores alone, and of other layers nothing.
    go, done : In, Out
        The signal phase, `go` not before the cycle after the last `latent_valid`. `done` is its last
        cycle, as `spec.windowed_timing.signal_cycles` has it, both ends counted.
    label, train : In
        Held from `go` to `done`.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores of a layer that forms some (s20), in order, before the phase ends.
    delta_valid, delta_value, delta_weight, delta_channel_last, delta_sample_last : Out
        When it trains: n shifted signals d', signed(`delta_bits`), one a cycle, the last in the cycle of
        `done`; channel after channel, in each window after window. With each the A' of its latent, where
        the rule forms `latents`, and whether it is its channel's last, the sample's last.

    Where the rule `transposes` only the output layer has a signal phase: it lacks `latents, windows` and `delta_*`.
    """

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

    def __init__(self, machine: Machine, softmax: Softmax, own: dict[str, Member] | None = None):
        """`own`: ports that only this unit has."""
        self.machine = machine
        forms, transposes = machine.learning.latents, machine.learning.transposes
        count = In(range(machine.max_neurons + 1))
        delta = {
            "delta_valid": Out(1),
            "delta_value": Out(signed(machine.delta_bits)),
            **({"delta_weight": Out(WINDOW_WEIGHT_BITS)} if forms else {}),
            "delta_channel_last": Out(1),
            "delta_sample_last": Out(1),
        }
        latent = {
            "latent": In(signed(ACT_BITS)),
            "latent_column": In(range(machine.cols)),
            "latent_weight": In(WINDOW_WEIGHT_BITS),
        }
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                **({} if transposes else {"latents": count, "windows": count}),
                "score_shift": In(FIELDS["score_shift"].width),
                "rate_shift": In(signed(FIELDS["rate_shift"].width)),
                "left_max": In(range(machine.delta_bits - machine.signal_bits + 1)),
                "coarse": In(1),
                "latent_valid": In(1),
                **(latent if forms else {}),
                "score": In(signed(SCORE_BITS)),
                "go": In(1),
                "label": In(softmax.label.shape()),
                "train": In(1),
                "done": Out(1),
                "prediction": Out(softmax.prediction.shape()),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
                **({} if transposes else delta),
                **(own or {}),
            }
        )

    def _order(self, m: Module, rewind: Value, steps: Value, issue: Value) -> tuple[Signal, Signal, Value]:
        """One index: the latents' as they come, then of what is counted in `steps`, as the latents in order (`issue`).

        It may pass the last one; nothing looks at it then. Returns it, the same where no latent comes, from a register,
        and, valid a cycle after `issue`, whether the channel's last window was asked for.
        """
        counter = Signal(self.machine.neuron_bits)  # with latents: the same window's in the next column
        next_window = Signal.like(counter)  # column 0's of the next window
        index = Signal.like(counter)
        window = Signal.like(self.windows)  # how many of a tile (in the end: of a channel) have begun
        window_ends = window == self.windows
        opens = self.latent_valid & (self.latent_column == 0)
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
        return index, counter, window_ends

    def _left_shift(self, m: Module, rate_shift: Value) -> Signal:
        """What `rate_shift` and the coarse part lack to F, two cycles later; not right, nor too far."""
        rate = Signal(signed(FIELDS["rate_shift"].width + 1), reset_less=True)
        left = Signal(signed(len(rate) + 1))
        left_shift = Signal.like(self.left_max, reset_less=True)
        fraction_bits = self.machine.fraction_bits
        m.d.comb += left.eq(Mux(self.coarse, fraction_bits - COARSE, fraction_bits) - rate)
        m.d.sync += [
            rate.eq(rate_shift),
            left_shift.eq(Mux(left < 0, 0, Mux(left > self.left_max, self.left_max, left))),
        ]
        return left_shift

    def _shifted(self, m: Module, value: Value, left_shift: Value) -> None:
        """`value` to d, and in a further cycle to d' = -d << left. |d| <= 127: shifted by delta_bits - 8 it fits."""
        d = Signal(signed(ACT_BITS), reset_less=True)
        m.d.sync += [d.eq(value), self.delta_value.eq(-d << left_shift)]


def clipped(gradient: Value) -> Value:
    """clip(rnd(g >> 2)), signed(8), of a gradient with 8 fraction bits."""
    return clip_symmetric(round_shift(gradient, _GRADIENT_SHIFT), ACT_BITS)


def late(m: Module, value: Value, cycles: int, name: str) -> Value:
    """`value` so many cycles later, by registers without reset."""
    for number in range(cycles):
        register = Signal.like(value, name=f"{name}_{number}", reset_less=True)
        m.d.sync += register.eq(value)
        value = register
    return value


assert SHIFT_BITS == FIELDS["score_shift"].width
