"""What all learning rules in float64 share: the trace of a forward pass, the losses, what a rule is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import SLOPE, leaky_relu, next_map, pre_activation, taps_of, weight_gradient
from spec.geometry import LayerGeometry

__all__ = [
    "Gradients",
    "Rule",
    "Trace",
    "cross_entropy",
    "forward",
    "output_error",
    "saturation",
    "signals",
    "softmax",
    "temperature",
]


@dataclass(frozen=True)
class Trace:
    """A forward pass of a batch through layers of this `geometry`.

    Of layer l: `taps[l]` is what its pixels read (see `taps_of`), `pre[l]` is `z (N, H, W, C)`, and
    `outputs[l]`, of a hidden layer, `y = f(z)`.
    """

    geometry: tuple[LayerGeometry, ...]
    taps: list[np.ndarray]
    pre: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def scores(self) -> np.ndarray:
        """Of the output layer, `(N, K)`."""
        return self.pre[-1].reshape(len(self.pre[-1]), -1)


@dataclass(frozen=True)
class Gradients:
    """What a batch asks of all that is trained: `layers`, `(∂W, ∂b)` of each layer; `own`, of the
    rule's own parameters by name. `scores (N, K)` of its samples, the largest of which is predicted.
    """

    scores: np.ndarray
    layers: Parameters
    own: Mapping[str, np.ndarray]


class Rule:
    """A rule, for one network: `δ = ∂(its loss)/∂z` of every hidden layer.

    `own` are arrays of the rule itself that training changes, in place, by name: the parameters that
    `own_gradients` is about.
    """

    name: str
    bounded = False
    """Whether activations saturate; see `forward`."""

    def __init__(self, slope: float = SLOPE):
        self.slope = slope
        self.own: dict[str, np.ndarray] = {}

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """`δ` of the hidden layers, in layer order, each of the shape of that layer's `z`.

        `error` is `e` of the output layer, `(N, K)`; `labels` integers 0…K-1, `(N,)`.
        """
        raise NotImplementedError

    def own_gradients(self, trace: Trace, labels: np.ndarray) -> dict[str, np.ndarray]:
        """`∂L` by the rule's own parameters, each of the loss of its layer, summed over the batch."""
        return {}

    def scores(
        self, geometry: tuple[LayerGeometry, ...], parameters: Parameters, x: np.ndarray
    ) -> np.ndarray:
        """`(N, K)` of samples `x (N, features)`: the largest is the prediction."""
        return forward(geometry, parameters, x, self.slope, self.bounded).scores

    def gradients(
        self,
        geometry: tuple[LayerGeometry, ...],
        parameters: Parameters,
        x: np.ndarray,
        labels: np.ndarray,
    ) -> Gradients:
        """Of a batch `x (N, features)`, summed over it."""
        trace = forward(geometry, parameters, x, self.slope, self.bounded)
        deltas = signals(trace, parameters, labels, self)
        layers = [
            weight_gradient(delta, taps, layer)
            for delta, taps, layer in zip(deltas, trace.taps, geometry, strict=True)
        ]
        return Gradients(trace.scores, layers, self.own_gradients(trace, labels))


def forward(
    geometry: tuple[LayerGeometry, ...],
    parameters: Parameters,
    x: np.ndarray,
    slope: float = SLOPE,
    bounded: bool = False,
) -> Trace:
    """The forward pass of a batch `x (N, features)` through a network of this geometry, in the
    precision of `x` and the parameters. `bounded` activations saturate where the machine's do.
    """
    trace = Trace(geometry, [], [], [])
    for layer, (weight, bias) in zip(geometry, parameters, strict=True):
        trace.taps.append(taps_of(x, layer))
        trace.pre.append(pre_activation(trace.taps[-1], weight, bias, layer))
        if len(trace.pre) < len(geometry):
            y = leaky_relu(trace.pre[-1], slope)
            bound = saturation(layer)
            trace.outputs.append(y.clip(-bound, bound) if bounded else y)
            x = next_map(trace.outputs[-1], layer)
    return trace


def saturation(layer: LayerGeometry) -> float:
    """The bound of a hidden layer's activations in the machine: of 8 bits, with its fraction bits."""
    return 2.0 ** (7 - layer.act_frac)


def signals(trace: Trace, parameters: Parameters, labels: np.ndarray, rule: Rule) -> list[np.ndarray]:
    """`δ` of every layer under `rule`, each of the shape of its `z`."""
    error = output_error(trace.scores, labels, temperature())
    return [*rule.signals(parameters, trace, error, labels), error.reshape(trace.pre[-1].shape)]


def temperature(shift: int = 0) -> float:
    """`2^shift/(2 ln 2)`: with it `softmax(s/T)` is `4^(s/2^shift)` normalised, which hardware does
    by shifting.
    """
    return 2.0**shift / (2 * math.log(2))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def cross_entropy(scores: np.ndarray, labels: np.ndarray, T: float) -> float:
    """`-log softmax(scores/T)[label]`, summed over the batch."""
    scaled = scores / T
    top = scaled.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(scaled - top).sum(axis=-1)) + top[..., 0]
    chosen = np.take_along_axis(scaled, np.asarray(labels)[..., None], axis=-1)[..., 0]
    return float(np.sum(log_sum - chosen))


def output_error(scores: np.ndarray, labels: np.ndarray, T: float) -> np.ndarray:
    """`∂ cross_entropy/∂ scores = (softmax(scores/T) - onehot)/T`."""
    onehot = np.eye(scores.shape[-1], dtype=scores.dtype)[labels]
    return (softmax(scores / T) - onehot) / T
