"""Learning rules in float64, as equations: what each says about a hidden layer's learning signal.

A layer computes `z = w * x + b`, a convolution (a matrix product where the map is one pixel); a
hidden one then `y = f(z)` with a leaky ReLU, and its pooling makes the next layer's input of `y`.
The output layer is a plain linear classifier, `e = ∂L/∂z = (softmax(z/T) - onehot)/T` of its own
cross-entropy. A rule gives `δ = ∂(its loss)/∂z` for every hidden layer; all else is common, and in
`golden.float_layer`.

LLS (Apolinario, Roy and Roy, arXiv 2405.15868): a fixed matrix `C`, K x n, turns a layer's latents
`a`, the means of its output over windows, into class scores `s = C â`, `â = a/‖a‖`, and the layer
descends the cross-entropy of `softmax(s/T)` with the label, alone. Max-pooling stands behind it.

Shapes: a batch is `(N, n)`, of maps `(N, H, W, C)`. Losses are summed over the batch, so a batch of
one is batch 1. Signals have the precision of the forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import (
    SLOPE,
    input_gradient,
    latent_gradient,
    latents_of,
    leaky_slope,
    next_map_gradient,
    spread,
)
from spec.basis import Basis, reduced_arguments
from spec.errors import SpecError, check_choice
from spec.geometry import LayerGeometry
from spec.network import Network

__all__ = [
    "DFA",
    "LLS",
    "RULES",
    "BackPropagation",
    "Frozen",
    "Rule",
    "Trace",
    "basis_matrix",
    "cross_entropy",
    "local_gradient",
    "local_scores",
    "make_rule",
    "output_error",
    "softmax",
    "temperature",
]

RULES = ("lls", "bp", "dfa", "frozen")
STREAM_FEEDBACK = 2
"""Random stream of a seed; `golden.train` has others."""


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


class Rule(Protocol):
    """A rule, for one network."""

    name: str

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """`δ` of the hidden layers, in layer order, each of the shape of that layer's `z`.

        `error` is `e` of the output layer, `(N, K)`; `labels` integers 0…K-1, `(N,)`.
        """
        ...


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


def basis_matrix(kind: str, classes: int, n: int) -> np.ndarray:
    """`C`, float64 `(classes, n)`: `square` and `walsh` as the machine has them, `sine` and
    `cosine` unrounded.
    """
    if kind in ("sine", "cosine"):
        arguments = reduced_arguments(classes, n)
        return np.sin(arguments) if kind == "sine" else np.cos(arguments)
    return Basis(kind, classes).table(n).astype(np.float64)


def local_scores(a: np.ndarray, C: np.ndarray) -> np.ndarray:
    """`s = C â` of latents `a`, `(…, n)` to `(…, K)`. A zero latent has no direction: its scores
    are 0.
    """
    return _direction(a)[0] @ C.T


def local_gradient(a: np.ndarray, labels: np.ndarray, C: np.ndarray, T: float) -> np.ndarray:
    """`∂L/∂a` of the local cross-entropy: `(g - (gᵀâ) â)/‖a‖`, `g = Cᵀ e`; 0 for a zero latent."""
    unit, norm = _direction(a)
    g = output_error(unit @ C.T, labels, T) @ C
    projection = np.sum(g * unit, axis=-1, keepdims=True) * unit
    return np.where(norm > 0, (g - projection) / np.where(norm > 0, norm, 1.0), 0.0)


class LLS:
    """Local losses with fixed bases; each layer learns from its own output and the label."""

    name = "lls"

    def __init__(self, bases: Sequence[np.ndarray], T: float, slope: float = SLOPE):
        """`bases[l]`: `C` of hidden layer l, `(K, n)`, n its latents."""
        self.bases, self.T, self.slope = list(bases), T, slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ = d f'(z)`; neither the weights nor the output error is used."""
        return [
            spread(d, geometry) * leaky_slope(z, self.slope)
            for d, z, geometry in zip(
                self.window_signals(trace, labels), trace.pre, trace.geometry, strict=False
            )
        ]

    def window_signals(self, trace: Trace, labels: np.ndarray) -> list[np.ndarray]:
        """`d = ∂L/∂y` of the hidden layers, one a window and channel: `(N, gh, gw, C)`."""
        return [
            latent_gradient(local_gradient(latents_of(y, geometry), labels, C, self.T), geometry)
            for y, C, geometry in zip(trace.outputs, self.bases, trace.geometry, strict=False)
        ]


class BackPropagation:
    """The exact gradient of the output loss."""

    name = "bp"

    def __init__(self, slope: float = SLOPE):
        self.slope = slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (δ_(l+1) W_(l+1)) f'(z_l)`, back through the pooling between."""
        signals = [error.reshape(trace.pre[-1].shape)]
        for layer in range(len(trace.outputs) - 1, -1, -1):
            weight, _ = parameters[layer + 1]
            gradient = input_gradient(signals[-1], weight, trace.geometry[layer + 1])
            gradient = next_map_gradient(gradient, trace.outputs[layer], trace.geometry[layer])
            signals.append(gradient * leaky_slope(trace.pre[layer], self.slope))
        return signals[:0:-1]


class DFA:
    """Direct feedback alignment: the output error reaches each hidden layer through a fixed random
    matrix.
    """

    name = "dfa"

    def __init__(self, feedback: Sequence[np.ndarray], slope: float = SLOPE):
        """`feedback[l]`: of hidden layer l, `(K, H·W·C)`, a column for each value of its output map."""
        self.feedback, self.slope = list(feedback), slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (e F_l) f'(z_l)`."""
        return [
            (error @ F).reshape(z.shape) * leaky_slope(z, self.slope)
            for F, z in zip(self.feedback, trace.pre, strict=False)
        ]


class Frozen:
    """Hidden layers stay at random; only the output layer learns. The control that a rule must
    beat.
    """

    name = "frozen"

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: all zero."""
        return [np.zeros_like(z) for z in trace.pre[:-1]]


def make_rule(
    name: str,
    network: Network,
    seed: int = 0,
    basis: str | None = None,
    dtype: type | np.dtype = np.float64,
) -> Rule:
    """The rule of that name for a network, its matrices in the precision `dtype`; `seed` draws DFA's
    feedback, `basis` replaces the network's.
    """
    check_choice("rule", name, RULES)
    hidden = network.geometry[:-1]
    if name == "lls":
        kind = network.basis if basis is None else basis
        check_choice("basis", kind, ("square", "walsh", "sine", "cosine"))
        bases = [basis_matrix(kind, network.classes, layer.latents) for layer in hidden]
        temp = temperature(network.recipe.temperature_shift)
        return LLS([C.astype(dtype, copy=False) for C in bases], temp)
    if basis is not None:
        raise SpecError("basis", f"must not be given for rule {name}, which has none", basis)
    if name == "bp":
        return BackPropagation()
    if name == "dfa":
        random = np.random.RandomState([STREAM_FEEDBACK, seed])
        feedback = []
        for layer in hidden:
            # The gradients of P pixels are added up, so each is sent a P-th: with more, learning is
            # unstable.
            bound = network.classes**-0.5 / layer.positions
            size = network.classes, layer.positions * layer.channels
            feedback.append(random.uniform(-bound, bound, size).astype(dtype))
        return DFA(feedback)
    return Frozen()


def _direction(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`â` and `‖a‖` (last axis kept); `â = 0` for a zero latent."""
    norm = np.sqrt(np.sum(a * a, axis=-1, keepdims=True))
    return a / np.where(norm > 0, norm, 1.0), norm
