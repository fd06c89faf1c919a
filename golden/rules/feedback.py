"""Feedback through fixed random matrices: of the output error (DFA), or of the label alone (DRTP)."""

from collections.abc import Sequence

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import SLOPE, leaky_slope
from golden.rules.base import Rule, Trace, saturation, temperature
from spec.network import Network

__all__ = ["DFA", "DRTP", "random_feedback"]

STREAM_FEEDBACK = 2
"""Random stream of a seed; `golden.train` has others."""


def random_feedback(network: Network, seed: int) -> list[np.ndarray]:
    """A matrix for each hidden layer, float64 `(K, H·W·C)`, uniform in ±1/(P sqrt(K)) for P pixels."""
    random = np.random.RandomState([STREAM_FEEDBACK, seed])
    feedback = []
    for layer in network.geometry[:-1]:
        # The gradients of P pixels are added up, so each is sent a P-th: with more, learning is
        # unstable.
        bound = network.classes**-0.5 / layer.positions
        size = network.classes, layer.positions * layer.channels
        feedback.append(random.uniform(-bound, bound, size))
    return feedback


class DFA(Rule):
    """Direct feedback alignment: the output error reaches each hidden layer through a fixed random
    matrix.
    """

    name = "dfa"

    def __init__(self, feedback: Sequence[np.ndarray], slope: float = SLOPE):
        """`feedback[l]`: of hidden layer l, `(K, H·W·C)`, a column for each value of its output map."""
        super().__init__(slope)
        self.feedback = list(feedback)

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (e F_l) f'(z_l)`."""
        return [
            (error @ F).reshape(z.shape) * leaky_slope(z, self.slope)
            for F, z in zip(self.feedback, trace.pre, strict=False)
        ]


class DRTP(DFA):
    """Direct random target projection (Frenkel, Lefebvre and Bol, arXiv 1909.01311): DFA of an output
    that is always 0, so that a layer need not wait for it.

    Nothing ends the drive to a label but the activation's bound, beyond which its slope is 0.
    """

    name = "drtp"
    bounded = True

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: `δ_l = (-onehot F_l) f'(z_l)/T`, T that of the output's error."""
        target = np.eye(error.shape[1], dtype=error.dtype)[labels] / temperature()
        return [
            delta * (np.abs(y) < saturation(geometry))
            for delta, y, geometry in zip(
                super().signals(parameters, trace, -target, labels), trace.outputs, trace.geometry, strict=False
            )
        ]
