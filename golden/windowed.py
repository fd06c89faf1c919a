"""The bit-exact integer model of networks with convolutions and mini-batches, in plain NumPy.

`docs/convolutions.md` is what it follows, and sections 5 to 7 of `docs/rules.md` for rules other than
`lls`. A layer reads a map and makes one; its latents are sums over windows of that map, and each
window and channel gets one learning signal, which all of the window's pixels share. So a weight's
gradient needs one product a window: the inputs that the weight saw there are added first, each
times 8 or 1, the slope of its pixel. Signals and changes of the samples of a batch are formed with
the weights before it; then the layer is updated once.

The functions stand in this order, each for one unit of the machine; scores, softmax and signals are
those of `golden.signals`, and backpropagation's those of `golden.windowed_back`. A fully connected
layer is a convolution over one pixel.

Arrays are int64 codes unless said otherwise; P is the number of positions of a layer's output map,
N that of its channels, row `j` of a weight `(N, taps)` belongs to channel `j`. Formats: weight and
bias s16, 14 fraction bits; activation and latent s8; the rest as in `golden.fixed` and
`golden.signals`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from golden.arith import random_bits, rnd, sat
from golden.fixed import (
    StatefulModel,
    StepResult,
    TrainedScores,
    bias_random,
    checked_samples,
    hidden_activation,
    local_signal,
    moved,
    output_score,
    weight_random,
)
from golden.maps import by_channel, channel_patches, max_pool, patches, window_sums
from golden.signals import (
    HIDDEN_DELTAS,
    SLOPE_SHIFT,
    feedback_delta,
    held,
    hidden_delta,
    label_delta,
    output_back_delta,
    output_delta,
    softmax_error,
)
from golden.train import Parameters, TrainReport, initial_windowed_codes
from golden.windowed_back import back_signals, back_sums, pixel_gradient, pixel_signals, window_signals
from spec.errors import SpecError
from spec.geometry import LayerGeometry
from spec.lfsr import offset
from spec.machine import ACT_BITS, Machine
from spec.network import Network
from spec.rules import part
from spec.windowed import WindowedLayer, windowed_layers

__all__ = [
    "WindowedModel",
    "depthwise_random",
    "feedback_signal",
    "gradient",
    "gradient_sums",
    "hidden_signal",
    "label_signal",
    "layer_random",
    "layer_steps",
    "left_shift",
    "next_map",
    "pre_activation",
    "taps_of",
    "window_latents",
]


# Forward.


def taps_of(x: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """What each position reads of the map `x (h, w, c)`: `(P, taps)`; depthwise `(P, N, taps)`."""
    cut = channel_patches if geometry.depthwise else patches
    return cut(x[None], geometry.kernel, geometry.stride, geometry.padding)[0]


def pre_activation(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, in_frac: int) -> np.ndarray:
    """`z (P, N)`, with 14 fraction bits more than `x`, which has `in_frac`.

    `x` from `taps_of`, `weight (N, taps)`, `bias (N,)`.
    """
    weight, bias = weight.astype(np.int64), bias.astype(np.int64)
    sums = np.einsum("pjt,jt->pj", x, weight) if x.ndim == 3 else _product(x, weight.T)
    return sums + (bias << in_frac)


def window_latents(a: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """The latents of a map of activations `(H, W, N)`, a map too: `(gh, gw, N)`, 8 bits."""
    return sat(rnd(window_sums(a[None], geometry.window)[0], geometry.latent_shift), ACT_BITS)


def next_map(a: np.ndarray, latents: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """What the next layer reads, `geometry.next_input`: the activations, pooled as the layer says."""
    if geometry.pool == "latent":
        return latents
    return max_pool(a[None])[0] if geometry.pool == "max" else a


# Hidden layers' learning signals: one for each window and channel, -127…127 with 6 fraction bits, no
# slope. `table` is int8 `(K, n)` with `fraction_bits`, of the latents by channel.


def hidden_signal(
    latents: np.ndarray,
    label: int,
    table: np.ndarray,
    fraction_bits: int,
    score_shift: int,
    own: TrainedScores | None = None,
    delta_of: Callable[..., np.ndarray] = hidden_delta,
) -> tuple[np.ndarray, np.ndarray, int]:
    """`(scores (K,), d (windows, N), k)` of `latents (gh, gw, N)` from their own scores; as `local_signal`."""
    flat = by_channel(latents[None])[0]
    scores, d, k = local_signal(flat, _no_slope(table), label, table, fraction_bits, score_shift, own, delta_of)
    return scores, _by_window(d, latents.shape[2]), k


def label_signal(latents: np.ndarray, label: int, table: np.ndarray, fraction_bits: int) -> np.ndarray:
    """`d (windows, N)` under `drtp`, of `latents (gh, gw, N)`."""
    d = label_delta(label, table, fraction_bits, _no_slope(table))
    return _by_window(held(d, by_channel(latents[None])[0]), latents.shape[2])


def feedback_signal(error: np.ndarray, table: np.ndarray, fraction_bits: int, channels: int) -> np.ndarray:
    """`d (windows, N)` under `dfa`, of the output layer's `error (K,)`, also where latents saturate."""
    return _by_window(feedback_delta(error, table, fraction_bits, _no_slope(table)), channels)


def _no_slope(table: np.ndarray) -> np.ndarray:
    """That no latent is negative, `(n,)`: slopes are the pixels', and in `gradient_sums`."""
    return np.zeros(table.shape[1], dtype=bool)


def _by_window(d: np.ndarray, channels: int) -> np.ndarray:
    """`(windows, N)` of what is numbered by channel, `(n,)`."""
    return d.reshape(channels, -1).T


# Update.


def gradient_sums(x: np.ndarray, neg: np.ndarray, window_of: np.ndarray) -> np.ndarray:
    """`A (windows, N, taps)`: each window's inputs, summed, 8-fold where the slope is 1.

    `x` from `taps_of`, `neg (P, N)` bool, `window_of (P,)` each position's window.
    """
    weighed = np.where(neg, 1, 1 << SLOPE_SHIFT)
    found = []
    for window in range(window_of.max() + 1):
        inside = window_of == window
        if x.ndim == 3:
            found.append(np.einsum("pj,pjt->jt", weighed[inside], x[inside]))
        else:
            found.append(_product(weighed[inside].T, x[inside]))
    return np.array(found)


def left_shift(layer: WindowedLayer, k: int, fraction_bits: int) -> int:
    """The shift that puts a signal where the layer's rate, and `2^-k`, want it among the F bits."""
    left = fraction_bits - layer.rate_shift - k - layer.coarse
    return layer.coarse + min(max(left, 0), layer.left_max)


def gradient(sums: np.ndarray, d: np.ndarray, left: int) -> np.ndarray:
    """A sample's part of `D`, `(N, taps)`: `sums (windows, N, taps)` times `-d (windows, N)`."""
    return (sums * (-d << left)[:, :, None]).sum(axis=0)


def layer_steps(geometry: LayerGeometry, machine: Machine) -> int:
    """Steps of the array in an update of the layer."""
    col_tiles = -(-geometry.channels // machine.cols)
    return col_tiles * (geometry.taps if geometry.depthwise else -(-geometry.taps // machine.rows))


def depthwise_random(machine: Machine, taps: int, channels: int, update_steps: int) -> np.ndarray:
    """Each depthwise weight's random bits, `(channels, taps)`: channel `j` is in PE(j % C, j % C)."""
    t, j = np.arange(taps)[None, :], np.arange(channels)[:, None]
    number = (j % machine.cols) * machine.cols + j % machine.cols
    steps = (j // machine.cols) * taps + t + number * offset(machine, 1)
    return random_bits(steps + update_steps, machine.fraction_bits)


def layer_random(geometry: LayerGeometry, machine: Machine, update_steps: int) -> np.ndarray:
    """Each weight's random bits, `(N, taps)`, in an update that begins after `update_steps`."""
    bits = depthwise_random if geometry.depthwise else weight_random
    return bits(machine, geometry.taps, geometry.channels, update_steps)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product of integers, in float64, for which processors have fast routines.

    Exact: no sum here exceeds 2^53 (2^16 taps or positions of at most 2^22 each stay below 2^38).
    """
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


# The model.


@dataclass(frozen=True)
class _Passed:
    """A sample's way through a layer: what its update needs, and what the next layer reads."""

    x: np.ndarray
    neg: np.ndarray
    a: np.ndarray
    latents: np.ndarray
    out: np.ndarray


class WindowedModel(StatefulModel):
    """The arithmetic of `docs/convolutions.md` in plain NumPy, by the machine's rule (`docs/rules.md`).

    SpecError for a network of the other arithmetic (`golden.fixed`), or one that does not fit the
    machine; `seed` is that of the initial parameters.
    `weights` int16 `(N, taps)` and `biases` int16 `(N,)`, in layer order.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def __init__(self, network: Network, machine: Machine, seed: int = 0, train_hidden: bool = True) -> None:
        if not network.windowed:
            raise SpecError(f"network {network.name}", "must have convolutions or batches for this arithmetic")
        super().__init__(network, machine, train_hidden)
        self.layers = windowed_layers(network, machine, train_hidden)
        self.tables = [self.basis.table(layer.geometry.latents) for layer in self.layers]
        self.load_parameters(initial_windowed_codes(network.shapes, seed, network.recipe.gain_shift))

    @property
    def batch(self) -> int:
        """Samples an update; those left at the end of a call of `train` are a shorter batch."""
        return self.network.recipe.batch

    def parameters(self) -> Parameters:
        """Copies of the parameters in layer order: int16 `(weight (N, taps), bias (N,))`."""
        return [(w.copy(), b.copy()) for w, b in zip(self.weights, self.biases, strict=True)]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters; the counters stay. SpecError if they are not codes of 16 bits."""
        checked = self._checked_parameters(parameters)
        self.weights = [weight for weight, _ in checked]
        self.biases = [bias for _, bias in checked]

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`, a batch of its own; trains on it as `run` does."""
        return self.run(np.asarray(x)[None], None if label is None else np.array([label]))[0]

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """Trains on samples int8 `(N, features)`, batch after batch; predictions are from before
        each update. SpecError on a machine for inference.
        """
        self._check_learns()
        return TrainReport(_predictions(self.run(x, np.asarray(labels))))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 `(N,)`. Nothing is trained."""
        return _predictions(self.run(x, None))

    def run(self, x: np.ndarray, labels: np.ndarray | None) -> list[StepResult]:
        """Samples int8 `(N, features)`, batch after batch; trains on them unless `labels` is None or the
        rule `inference`.
        """
        x, checked = checked_samples(self.network, x, labels)
        results = []
        for start in range(0, len(x), self.batch):
            part = slice(start, start + self.batch)
            maps = list(x[part].astype(np.int64))
            results += self._batch(maps, None if labels is None else checked[part].tolist())
        return results

    def _batch(self, maps: list[np.ndarray], labels: list[int] | None) -> list[StepResult]:
        """A batch, layer by layer; it is not trained on if `labels` is None."""
        waits = self.machine.learning.waits
        through: list[list[_Passed]] = []
        scores: list[list[np.ndarray | None]] = []
        for number, layer in enumerate(self.layers):
            passed = [self._forward(number, x) for x in maps]
            found: list[np.ndarray | None] = [sample.latents if layer.is_output else None for sample in passed]
            if labels is not None and waits:
                through.append(passed)
            elif labels is not None and layer.train:
                signals = [self._own_signal(number, *pair) for pair in zip(passed, labels, strict=True)]
                found = [signal[0] for signal in signals]
                self._update(number, passed, [signal[1:] for signal in signals])
            scores.append(found)
            maps = [sample.out for sample in passed]
        if labels is not None and waits:
            self._learn_back(through, labels)
        return [StepResult(int(sample[-1].argmax()), sample) for sample in zip(*scores, strict=True)]

    def _forward(self, number: int, x: np.ndarray) -> _Passed:
        """A map through a layer, whatever shape the one before it gave it."""
        layer = self.layers[number]
        geometry = layer.geometry
        seen = taps_of(x.reshape(geometry.input), geometry)
        z = pre_activation(seen, self.weights[number], self.biases[number], geometry.in_frac)
        if layer.is_output:
            score = output_score(z[0], layer.act_shift)
            return _Passed(seen, np.zeros(z.shape, dtype=bool), score, score, score)
        a, neg = hidden_activation(z, layer.act_shift)
        a = a.reshape(geometry.output)
        latents = window_latents(a, geometry)
        return _Passed(seen, neg, a, latents, next_map(a, latents, geometry))

    def _own_signal(self, number: int, sample: _Passed, label: int) -> tuple[np.ndarray | None, np.ndarray, int]:
        """A sample's `(scores (K,), d (windows, N), k)` in a layer that waits for no other."""
        layer, table, bits = self.layers[number], self.tables[number], self.basis.fraction_bits
        if layer.is_output:
            d = output_delta(softmax_error(sample.latents, label, layer.score_shift))
            return sample.latents, d[None], 0
        if not self.machine.learning.scores:
            return None, label_signal(sample.latents, label, table, bits), 0
        own, delta_of = self._own_scores(number), part(HIDDEN_DELTAS, self.machine.learning)
        return hidden_signal(sample.latents, label, table, bits, layer.score_shift, own, delta_of)

    def _learn_back(self, through: list[list[_Passed]], labels: list[int]) -> None:
        """Updates layers from a batch that went `through` all of them, the last first, by its errors (`dfa`, `bp`)."""
        shift = self.layers[-1].score_shift
        ends = zip(through[-1], labels, strict=True)
        errors = [softmax_error(sample.latents, label, shift) for sample, label in ends]
        if self.machine.learning.transposes:
            self._backpropagate(through, [output_back_delta(error) for error in errors])
            return
        for number, layer in reversed(list(enumerate(self.layers))):
            if layer.train:
                self._update(number, through[number], [(self._fed_back(number, error), 0) for error in errors])

    def _fed_back(self, number: int, error: np.ndarray) -> np.ndarray:
        """A layer's `d (windows, N)` of the output layer's `error (K,)`."""
        layer = self.layers[number]
        if layer.is_output:
            return output_delta(error)[None]
        return feedback_signal(error, self.tables[number], self.basis.fraction_bits, layer.geometry.channels)

    def _backpropagate(self, through: list[list[_Passed]], signals: list[np.ndarray]) -> None:
        """Updates layers, the last first, from `signals`: each sample's `d`, at first the output layer's `(K,)`."""
        for number, layer in reversed(list(enumerate(self.layers))):
            if not layer.train:
                return
            geometry, left = layer.geometry, left_shift(layer, 0, self.machine.fraction_bits)
            one = np.full((geometry.positions, 1), 1 << geometry.in_frac)
            own, changes = [], []
            for sample, d in zip(through[number], signals, strict=True):
                spread = window_signals(d.reshape(geometry.next_input), sample.a, geometry)
                s = pixel_signals(spread, sample.neg)
                own.append(s)
                changes.append((pixel_gradient(s, sample.x, left), pixel_gradient(s, one, left)))
            if number > 0 and self.layers[number - 1].train:
                signals = [back_signals(back_sums(s, self.weights[number], geometry)) for s in own]
            self._move(number, changes)

    def _update(self, number: int, samples: list[_Passed], signals: list[tuple[np.ndarray, int]]) -> None:
        """Updates a layer from a batch, its windows' signals `d` and its norms' exponents."""
        layer, bits = self.layers[number], self.machine.fraction_bits
        geometry = layer.geometry
        one = np.full((geometry.positions, 1), 1 << geometry.in_frac)
        changes = []
        for sample, (d, k) in zip(samples, signals, strict=True):
            left = left_shift(layer, k, bits)
            sums, ones = (gradient_sums(x, sample.neg, geometry.window_of) for x in (sample.x, one))
            changes.append((gradient(sums, d, left), gradient(ones, d, left)))
        self._move(number, changes)

    def _move(self, number: int, changes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Moves a layer's parameters by each sample's part of `D`, `(N, taps)` and of biases `(N, 1)`, and counts the
        steps, those of padding too.
        """
        machine, geometry, bits = self.machine, self.layers[number].geometry, self.machine.fraction_bits
        weight, bias = self.weights[number], self.biases[number]
        change, bias_change = (np.sum(parts, axis=0) for parts in zip(*changes, strict=True))
        random = layer_random(geometry, machine, self.update_steps)
        self.weights[number] = moved(weight, change, random, bits)
        random = bias_random(machine, geometry.channels, self.bias_steps)
        self.biases[number] = moved(bias, bias_change[:, 0], random, bits)
        self.update_steps += layer_steps(geometry, machine)
        self.bias_steps += -(-geometry.channels // machine.cols) * machine.cols


def _predictions(results: list[StepResult]) -> np.ndarray:
    """The predictions, int64 `(N,)`."""
    return np.array([result.prediction for result in results], dtype=np.int64)
