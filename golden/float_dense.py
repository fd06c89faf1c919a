"""Plain SGD at batch 1 of a fully connected network in floating point, as compiled loops.

One sample's updates touch every weight once, so the work is bound by memory and by the overhead of
calls: NumPy would spend ten times as long. `golden.float_model` holds the same equations to read.
"""

import numpy as np
from numba import njit

__all__ = ["RULE_CODES", "train_samples"]

RULE_CODES = {"lls": 0, "bp": 1, "dfa": 2, "frozen": 3}
FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that loops become vector instructions; infinities and NaN keep their
meaning.
"""


@njit(fastmath=FAST_MATH, cache=True, inline="never")
def _dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(fastmath=FAST_MATH, cache=True, inline="never")
def _add_scaled(target, factor, a):
    for i in range(target.size):
        target[i] += factor * a[i]


@njit(cache=True)
def _error(scores, label, inverse_temperature, error):
    """`error = (softmax(scores/T) - onehot)/T`; the index of the first largest score."""
    best = 0
    for c in range(1, scores.size):
        if scores[c] > scores[best]:
            best = c
    total = scores.dtype.type(0)
    for c in range(scores.size):
        error[c] = np.exp((scores[c] - scores[best]) * inverse_temperature)
        total += error[c]
    for c in range(scores.size):
        error[c] *= inverse_temperature / total
    error[label] -= inverse_temperature
    return best


@njit(cache=True)
def train_samples(rule, weights, biases, matrices, constants, x, labels, predictions, scratch):
    """SGD over samples in order; `scratch` (3, layers + 1, widest): activations, signals, class
    scores.
    """
    slope, inverse_output, inverse_hidden, hidden_rate, output_rate = constants
    layers = len(weights)
    values, signals, small = scratch
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for n in range(labels.size):
        values[0, : x.shape[1]] = x[n]
        for layer in range(layers):
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                z = _dot(weights[layer][j], values[layer, :n_in]) + biases[layer][j]
                if z < zero and layer < layers - 1:
                    z *= slope
                values[layer + 1, j] = z
        classes = biases[layers - 1].size
        error = signals[layers - 1, :classes]
        predictions[n] = _error(values[layers, :classes], labels[n], inverse_output, error)

        for layer in range(layers - 2, -1, -1):
            width = biases[layer].size
            a = values[layer + 1, :width]
            delta = signals[layer, :width]
            delta[:] = zero
            if rule == 0:
                norm = np.sqrt(_dot(a, a))
                if norm > zero:
                    scores, local = small[0, :classes], small[1, :classes]
                    for c in range(classes):
                        scores[c] = _dot(matrices[layer][c], a) / norm
                    _error(scores, labels[n], inverse_hidden, local)
                    for c in range(classes):
                        _add_scaled(delta, local[c] / norm, matrices[layer][c])
                    _add_scaled(delta, -_dot(local, scores) / (norm * norm), a)
            elif rule == 1:
                for j in range(biases[layer + 1].size):
                    _add_scaled(delta, signals[layer + 1, j], weights[layer + 1][j])
            elif rule == 2:
                for c in range(classes):
                    _add_scaled(delta, error[c], matrices[layer][c])
            for i in range(width):
                # f keeps the sign, so y tells z < 0.
                delta[i] *= slope if a[i] < zero else one

        for layer in range(layers):
            if rule == 3 and layer < layers - 1:
                continue
            rate = hidden_rate if layer < layers - 1 else output_rate
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                step = -rate * signals[layer, j]
                _add_scaled(weights[layer][j], step, values[layer, :n_in])
                biases[layer][j] += step
