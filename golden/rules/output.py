"""The output layer's loss alone: backpropagated, or of no concern to hidden layers that stay frozen."""

import numpy as np

from golden.checkpoint import Parameters
from golden.float_layer import input_gradient, leaky_slope, next_map_gradient
from golden.rules.base import Rule, Trace

__all__ = ["BackPropagation", "Frozen"]


class BackPropagation(Rule):
    """The exact gradient of the output loss."""

    name = "bp"

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


class Frozen(Rule):
    """Hidden layers stay at random; only the output layer learns. The control that a rule must
    beat.
    """

    name = "frozen"

    def signals(
        self, parameters: Parameters, trace: Trace, error: np.ndarray, labels: np.ndarray
    ) -> list[np.ndarray]:
        """See `Rule`: all zero."""
        return [np.zeros_like(z) for z in trace.pre[:-1]]
