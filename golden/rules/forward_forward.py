"""Forward-forward (Hinton, arXiv 2212.13345): two forward passes, and no signal between layers.

The label is a part of the sample: its first K inputs are 0 but for the one of the label. A layer's
input is normalised to a mean square of 1, so that nothing but its direction tells of the layer below,
and the layer's goodness is `G = mean(y²)`. Each hidden layer descends

    log(1 + exp(-β (G - θ))) of the sample with its label, plus
    log(1 + exp( β (G' - θ))) of the sample with a wrong one,

alone. Predicted is the label of the highest goodness, summed over the hidden layers, and the wrong
label to learn from is the best of the others. So nothing is drawn at random, and the passes of a
prediction are those that training needs. The output layer is not used and stays as it is.

For fully connected layers. Shapes: samples `(N, features)`, goodness `(N, K)`.
"""

from collections.abc import Iterator

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import SLOPE, leaky_relu, leaky_slope
from golden.rules.base import Gradients, Rule
from spec.geometry import LayerGeometry

__all__ = ["ForwardForward", "normalised", "with_label"]


class ForwardForward(Rule):
    """Of K classes, with threshold `θ`, sharpness `β` and the label's value as an input."""

    name = "forward_forward"

    def __init__(
        self,
        classes: int,
        threshold: float = 1.0,
        sharpness: float = 16.0,
        strength: float = 4.0,
        slope: float = SLOPE,
    ):
        super().__init__(slope)
        self.classes = classes
        self.threshold, self.sharpness, self.strength = threshold, sharpness, strength

    def layers(
        self, parameters: Parameters, x: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The input `(N, n_in)` and the output `y (N, n_out)` of each hidden layer."""
        x = with_label(x, labels, self.classes, self.strength)
        for weight, bias in parameters[:-1]:
            x = normalised(x)
            y = leaky_relu(x @ weight.T + bias, self.slope)
            yield x, y
            x = y

    def scores(
        self, geometry: tuple[LayerGeometry, ...], parameters: Parameters, x: np.ndarray
    ) -> np.ndarray:
        """See `Rule`: the goodness with each label."""
        goodness = np.zeros((len(x), self.classes), x.dtype)
        for label in range(self.classes):
            labels = np.full(len(x), label)
            for _, y in self.layers(parameters, x, labels):
                goodness[:, label] += np.mean(y * y, axis=1)
        return goodness

    def wrong_labels(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The best but for the label, `(N,)`."""
        is_label = np.arange(self.classes) == np.asarray(labels)[:, None]
        return np.where(is_label, -np.inf, scores).argmax(axis=1)

    def losses(
        self, parameters: Parameters, x: np.ndarray, labels: np.ndarray, right: bool
    ) -> np.ndarray:
        """Of each hidden layer, summed over samples shown with labels that are right or wrong."""
        sign = -1 if right else 1
        terms = [self._excess(y) for _, y in self.layers(parameters, x, labels)]
        return np.array([np.logaddexp(0, sign * excess).sum() for excess in terms])

    def gradients(
        self,
        geometry: tuple[LayerGeometry, ...],
        parameters: Parameters,
        x: np.ndarray,
        labels: np.ndarray,
    ) -> Gradients:
        """See `Rule`: `δ = ±β σ(±β (G - θ)) 2 y f'(z)/n`, + of a wrong label, - of the right one."""
        scores = self.scores(geometry, parameters, x)
        totals = [(np.zeros_like(weight), np.zeros_like(bias)) for weight, bias in parameters]
        for shown, sign in ((labels, -1), (self.wrong_labels(scores, labels), 1)):
            layers = self.layers(parameters, x, shown)
            for (weight, bias), (below, y) in zip(totals[:-1], layers, strict=True):
                pull = sign * self.sharpness / (1 + np.exp(-sign * self._excess(y)))
                # f keeps the sign, so y tells z < 0.
                delta = pull[:, None] * 2 * y * leaky_slope(y, self.slope) / y.shape[1]
                weight += delta.T @ below
                bias += delta.sum(axis=0)
        return Gradients(scores, totals, {})

    def _excess(self, y: np.ndarray) -> np.ndarray:
        """`β (G - θ)` of each sample."""
        return self.sharpness * (np.mean(y * y, axis=1) - self.threshold)


def with_label(x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """A copy of the samples, their first K inputs 0 but for the one of the label."""
    shown = x.copy()
    shown[:, :classes] = 0
    shown[np.arange(len(x)), labels] = strength
    return shown


def normalised(x: np.ndarray) -> np.ndarray:
    """`x` with a mean square of 1 along the last axis; zeros stay."""
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    return x / np.where(scale > 0, scale, 1)
