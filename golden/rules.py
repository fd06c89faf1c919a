"""Learning rules in float64, as equations: what each says about a hidden layer's learning signal.

A layer computes `z = x Wᵀ + b`, a hidden one then `y = f(z)` with a leaky ReLU, and `y` is the next
layer's input. The output layer is a plain linear classifier, `e = ∂L/∂z = (softmax(z/T) -
onehot)/T` of its own cross-entropy. A rule gives `δ = ∂(its loss)/∂z` for every hidden layer; all
else is common: `∂/∂W = δᵀ x`, `∂/∂b = Σ δ`.

LLS (Apolinario, Roy and Roy, arXiv 2405.15868): a fixed matrix `C`, K x n, turns a layer's output
into class scores `s = C â`, `â = y/‖y‖`, and the layer descends the cross-entropy of `softmax(s/T)`
with the label, alone.

Shapes: a batch is `(N, n)`; a single sample may be `(n,)` with a scalar label, and then every
signal is `(n,)`. Losses are summed over the batch, so a batch of one is batch 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from golden.checkpoint import Parameters
from spec.basis import Basis, reduced_arguments
from spec.errors import SpecError, check_choice
from spec.network import Network

__all__ = [
    "DFA",
    "LLS",
    "RULES",
    "SLOPE",
    "BackPropagation",
    "Frozen",
    "Rule",
    "Trace",
    "basis_matrix",
    "cross_entropy",
    "leaky_relu",
    "leaky_slope",
    "local_gradient",
    "local_scores",
    "make_rule",
    "output_error",
    "softmax",
    "temperature",
]

SLOPE = 1 / 8
"""Slope of the leaky ReLU for z < 0."""
RULES = ("lls", "bp", "dfa", "frozen")
STREAM_FEEDBACK = 2
"""Random stream of a seed; `golden.train` has others."""


@dataclass(frozen=True)
class Trace:
    """A forward pass: `inputs[l]` and `pre[l]` are `x` and `z` of layer l; `pre[-1]` are the output
    scores.
    """

    inputs: list[np.ndarray]
    pre: list[np.ndarray]

    @property
    def hidden(self) -> list[np.ndarray]:
        """Outputs `y` of the hidden layers."""
        return self.inputs[1:]


class Rule(Protocol):
    """A rule, for one network."""

    name: str

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """`δ` of the hidden layers, in layer order, each of the shape of that layer's `z`.

        `error` is `e` of the output layer, `labels` integers 0…K-1.
        """
        ...


def temperature(shift: int = 0) -> float:
    """`2^shift/(2 ln 2)`: with it `softmax(s/T)` is `4^(s/2^shift)` normalised, which hardware does
    by shifting.
    """
    return 2.0**shift / (2 * math.log(2))


def leaky_relu(z: np.ndarray, slope: float = SLOPE) -> np.ndarray:
    """`f(z)`: z, or slope·z where z < 0."""
    return np.where(z < 0, slope * z, z)


def leaky_slope(z: np.ndarray, slope: float = SLOPE) -> np.ndarray:
    """`f'(z)`: 1, or slope where z < 0."""
    return np.where(z < 0, slope, 1.0)


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
    onehot = np.eye(scores.shape[-1])[labels]
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
        """`bases[l]`: `C` of hidden layer l, `(K, n)`."""
        self.bases, self.T, self.slope = list(bases), T, slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`; neither the weights nor the output error is used."""
        return [
            local_gradient(a, labels, C, self.T) * leaky_slope(z, self.slope)
            for a, z, C in zip(trace.hidden, trace.pre, self.bases, strict=False)
        ]


class BackPropagation:
    """The exact gradient of the output loss."""

    name = "bp"

    def __init__(self, slope: float = SLOPE):
        self.slope = slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (δ_(l+1) W_(l+1)) f'(z_l)`."""
        signals = [error]
        for (weight, _), z in zip(parameters[:0:-1], trace.pre[-2::-1], strict=True):
            signals.append((signals[-1] @ weight) * leaky_slope(z, self.slope))
        return signals[:0:-1]


class DFA:
    """Direct feedback alignment: the output error reaches each hidden layer through a fixed random
    matrix.
    """

    name = "dfa"

    def __init__(self, feedback: Sequence[np.ndarray], slope: float = SLOPE):
        """`feedback[l]`: of hidden layer l, `(K, n)`."""
        self.feedback, self.slope = list(feedback), slope

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (e F_l) f'(z_l)`."""
        return [
            (error @ F) * leaky_slope(z, self.slope)
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


def make_rule(name: str, network: Network, seed: int = 0, basis: str | None = None) -> Rule:
    """The rule of that name for a network; `seed` draws DFA's feedback, `basis` replaces the
    network's.
    """
    check_choice("rule", name, RULES)
    widths = [n_out for _, n_out in network.shapes[:-1]]
    if name == "lls":
        kind = network.basis if basis is None else basis
        check_choice("basis", kind, ("square", "walsh", "sine", "cosine"))
        bases = [basis_matrix(kind, network.classes, n) for n in widths]
        return LLS(bases, temperature(network.recipe.temperature_shift))
    if basis is not None:
        raise SpecError("basis", f"must not be given for rule {name}, which has none", basis)
    if name == "bp":
        return BackPropagation()
    if name == "dfa":
        random = np.random.RandomState([STREAM_FEEDBACK, seed])
        bound = network.classes**-0.5
        return DFA([random.uniform(-bound, bound, (network.classes, n)) for n in widths])
    return Frozen()


def _direction(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`â` and `‖a‖` (last axis kept); `â = 0` for a zero latent."""
    norm = np.sqrt(np.sum(a * a, axis=-1, keepdims=True))
    return a / np.where(norm > 0, norm, 1.0), norm
