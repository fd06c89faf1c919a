"""Local losses: each hidden layer learns from class scores of its own output, and the label.

LLS (Apolinario, Roy and Roy, arXiv 2405.15868): a fixed matrix `C`, K x n, turns a layer's latents
`a`, the means of its output over windows, into class scores `s = C â`, `â = a/‖a‖`, and the layer
descends the cross-entropy of `softmax(s/T)` with the label, alone. Max-pooling stands behind it.

The others train a part of the scores too, on the same loss: whatever it is, the scores are `E â`, and
`∂L/∂E = eᵀ â` is all that its gradient is made of.

* LLS-M: `s_c = m_c (C â)_c`, a factor for each class, 1 at the start;
* LLS-MxM: `s = (C â)ᵀ M`, `M` I x K: `C` has I basis vectors, K or fewer (the reduced form);
* local classifiers: `C` itself.
"""

from collections.abc import Sequence

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import SLOPE, latent_gradient, latents_of, leaky_slope, spread
from golden.rules.base import Rule, Trace, output_error
from spec.basis import Basis, reduced_arguments

__all__ = [
    "LLS",
    "LLSM",
    "LLSMxM",
    "LocalClassifier",
    "LocalLoss",
    "basis_matrix",
    "first_mixing",
    "local_gradient",
    "local_scores",
    "score_gradient",
]


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


def score_gradient(a: np.ndarray, labels: np.ndarray, C: np.ndarray, T: float) -> np.ndarray:
    """`∂L/∂C (K, n) = eᵀ â` of the local cross-entropy, summed over the batch of latents `a (N, n)`."""
    unit = _direction(a)[0]
    return output_error(unit @ C.T, labels, T).T @ unit


class LocalLoss(Rule):
    """What local losses share; `score_matrices` is what tells them apart."""

    def __init__(self, bases: Sequence[np.ndarray], T: float, slope: float = SLOPE):
        """`bases[l]`: `C` of hidden layer l, `(K, n)`, n its latents; or `(I, n)`."""
        super().__init__(slope)
        self.bases, self.T = list(bases), T

    def score_matrices(self) -> list[np.ndarray]:
        """`E (K, n)` of each hidden layer, with which its scores are `E â`."""
        return self.bases

    def own_of(self, layer: int) -> np.ndarray:
        """What a hidden layer trains of its scores, itself."""
        return self.own[f"layer{layer}_{self.name}"]

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
            latent_gradient(local_gradient(latents_of(y, geometry), labels, E, self.T), geometry)
            for y, E, geometry in zip(
                trace.outputs, self.score_matrices(), trace.geometry, strict=False
            )
        ]

    def own_gradients(self, trace: Trace, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See `Rule`."""
        if not self.own:
            return {}
        return {
            name: self._own_gradient(score_gradient(latents_of(y, geometry), labels, E, self.T), C)
            for name, y, E, C, geometry in zip(
                self.own, trace.outputs, self.score_matrices(), self.bases, trace.geometry, strict=False
            )
        }

    def _own_gradient(self, gradient: np.ndarray, C: np.ndarray) -> np.ndarray:
        """Of what a layer trains of its scores, from `∂L/∂E`."""
        raise NotImplementedError

    def _train(self, starts: Sequence[np.ndarray]) -> None:
        """What each hidden layer trains of its scores starts as a copy of these."""
        for layer, start in enumerate(starts):
            self.own[f"layer{layer}_{self.name}"] = np.array(start, order="C")


class LLS(LocalLoss):
    """Fixed bases."""

    name = "lls"


class LLSM(LocalLoss):
    """A trained factor `m (K,)` for each class's score."""

    name = "lls_m"

    def __init__(self, bases: Sequence[np.ndarray], T: float, slope: float = SLOPE):
        """See `LocalLoss`; `m` starts at 1."""
        super().__init__(bases, T, slope)
        self._train([np.ones(len(C), C.dtype) for C in bases])

    def score_matrices(self) -> list[np.ndarray]:
        """See `LocalLoss`: `diag(m) C`."""
        return [self.own_of(layer)[:, None] * C for layer, C in enumerate(self.bases)]

    def _own_gradient(self, gradient: np.ndarray, C: np.ndarray) -> np.ndarray:
        return np.sum(gradient * C, axis=1)


class LLSMxM(LocalLoss):
    """Scores mixed by a trained matrix `M (I, K)`, of I basis vectors."""

    name = "lls_mxm"

    def __init__(
        self, bases: Sequence[np.ndarray], classes: int, T: float, slope: float = SLOPE
    ):
        """See `LocalLoss`; `M` starts as `first_mixing`."""
        super().__init__(bases, T, slope)
        self._train([first_mixing(len(C), classes).astype(C.dtype) for C in bases])

    def score_matrices(self) -> list[np.ndarray]:
        """See `LocalLoss`: `Mᵀ C`."""
        return [self.own_of(layer).T @ C for layer, C in enumerate(self.bases)]

    def _own_gradient(self, gradient: np.ndarray, C: np.ndarray) -> np.ndarray:
        return C @ gradient.T


class LocalClassifier(LocalLoss):
    """A trained `C`, which starts as what is given for the bases."""

    name = "local_classifier"

    def __init__(self, bases: Sequence[np.ndarray], T: float, slope: float = SLOPE):
        """See `LocalLoss`."""
        super().__init__(bases, T, slope)
        self._train(bases)

    def score_matrices(self) -> list[np.ndarray]:
        """See `LocalLoss`: `C` as trained so far."""
        return list(self.own.values())

    def _own_gradient(self, gradient: np.ndarray, C: np.ndarray) -> np.ndarray:
        return gradient


def first_mixing(vectors: int, classes: int) -> np.ndarray:
    """`M (I, K)` before training: class c reads vector `c mod I`, so the identity where I = K."""
    return np.eye(vectors)[:, np.arange(classes) % vectors]


def _direction(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`â` and `‖a‖` (last axis kept); `â = 0` for a zero latent."""
    norm = np.sqrt(np.sum(a * a, axis=-1, keepdims=True))
    return a / np.where(norm > 0, norm, 1.0), norm
