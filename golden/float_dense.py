"""Plain SGD at batch 1 of a fully connected network in floating point, as compiled loops.

One sample's updates touch every weight once, so the work is bound by memory and by the overhead of
calls: NumPy would spend ten times as long. `golden.float_model` holds the same equations to read.
"""

import numpy as np
from numba import njit

__all__ = ["RULE_CODES", "train_forward_forward", "train_samples"]

LLS, LLS_M, LLS_MXM, LOCAL_CLASSIFIER, BP, DFA, DRTP, FROZEN = range(8)
RULE_CODES = {
    "lls": LLS,
    "lls_m": LLS_M,
    "lls_mxm": LLS_MXM,
    "local_classifier": LOCAL_CLASSIFIER,
    "bp": BP,
    "dfa": DFA,
    "drtp": DRTP,
    "frozen": FROZEN,
}
"""The rules of `train_samples`; local losses have the lowest codes."""
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
def _local_signal(rule, a, label, C, own, inverse_temperature, own_rate, of_vectors, of_classes, delta):
    """Adds `∂L/∂a` of a local loss to `delta`, and trains the layer's own parameters `own (·, K)`,
    which for a local classifier are `C`.

    `of_vectors` (2, I), `of_classes` (2, K): scores and errors of the basis vectors and of the classes.
    """
    raw, back = of_vectors[0], of_vectors[1]
    scores, error = of_classes[0], of_classes[1]
    vectors, classes = raw.size, scores.size
    norm = np.sqrt(_dot(a, a))
    if norm <= a.dtype.type(0):
        return
    for i in range(vectors):
        raw[i] = _dot(C[i], a) / norm
    if rule == LLS_MXM:
        for c in range(classes):
            scores[c] = _dot(own[:, c], raw)
    elif rule == LLS_M:
        for c in range(classes):
            scores[c] = own[0, c] * raw[c]
    else:
        scores[:] = raw
    _error(scores, label, inverse_temperature, error)
    if rule == LLS_MXM:
        for i in range(vectors):
            back[i] = _dot(own[i], error)
            _add_scaled(own[i], -own_rate * raw[i], error)
    elif rule == LLS_M:
        for c in range(classes):
            back[c] = own[0, c] * error[c]
            own[0, c] -= own_rate * raw[c] * error[c]
    else:
        back[:] = error
    for i in range(vectors):
        _add_scaled(delta, back[i] / norm, C[i])
    _add_scaled(delta, -_dot(error, scores) / (norm * norm), a)
    if rule == LOCAL_CLASSIFIER:
        for c in range(classes):
            _add_scaled(C[c], -own_rate * error[c] / norm, a)


@njit(cache=True)
def train_samples(rule, weights, biases, matrices, own, bounds, constants, x, labels, predictions, scratch):
    """SGD over samples in order. Of each hidden layer, `matrices` are its basis or its feedback, `own`
    what its loss trains of its own, `bounds` where its activations saturate under DRTP; `scratch`
    (4, layers + 1, widest): activations, signals, scores.
    """
    # Rounding is the compiler's choice: it sums in another order where it knows that arrays do not
    # overlap, as those that are allocated here.
    slope, inverse_output, inverse_hidden, hidden_rate, output_rate, own_rate = constants
    layers = len(weights)
    values, signals, of_vectors, of_classes = scratch
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for n in range(labels.size):
        values[0, : x.shape[1]] = x[n]
        for layer in range(layers):
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                z = _dot(weights[layer][j], values[layer, :n_in]) + biases[layer][j]
                if z < zero and layer < layers - 1:
                    z *= slope
                if rule == DRTP and layer < layers - 1:
                    z = min(max(z, -bounds[layer]), bounds[layer])
                values[layer + 1, j] = z
        classes = biases[layers - 1].size
        error = signals[layers - 1, :classes]
        predictions[n] = _error(values[layers, :classes], labels[n], inverse_output, error)

        for layer in range(layers - 2, -1, -1):
            width = biases[layer].size
            a = values[layer + 1, :width]
            delta = signals[layer, :width]
            delta[:] = zero
            C = matrices[layer]
            if rule <= LOCAL_CLASSIFIER:
                _local_signal(
                    rule,
                    a,
                    labels[n],
                    C,
                    own[layer],
                    inverse_hidden,
                    own_rate,
                    of_vectors[:2, : C.shape[0]],
                    of_classes[:2, :classes],
                    delta,
                )
            elif rule == BP:
                for j in range(biases[layer + 1].size):
                    _add_scaled(delta, signals[layer + 1, j], weights[layer + 1][j])
            elif rule == DFA:
                for c in range(classes):
                    _add_scaled(delta, error[c], C[c])
            elif rule == DRTP:
                for i in range(width):
                    if abs(a[i]) < bounds[layer]:
                        delta[i] = -inverse_output * C[labels[n], i]
            for i in range(width):
                # f keeps the sign, so y tells z < 0.
                delta[i] *= slope if a[i] < zero else one

        for layer in range(layers):
            if rule == FROZEN and layer < layers - 1:
                continue
            rate = hidden_rate if layer < layers - 1 else output_rate
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                step = -rate * signals[layer, j]
                _add_scaled(weights[layer][j], step, values[layer, :n_in])
                biases[layer][j] += step


@njit(cache=True)
def train_forward_forward(weights, biases, constants, x, labels, predictions, values):
    """SGD of forward-forward over samples in order; `values` (K, layers, widest): each label's outputs
    of the hidden layers.

    What the labels share is computed once: the first layer's products with all but the label, and
    the length of its input.
    """
    slope, threshold, sharpness, strength, rate = constants
    classes, hidden = values.shape[0], len(weights) - 1
    zero, one = x.dtype.type(0), x.dtype.type(1)
    shared = np.zeros(biases[0].size, x.dtype)
    squares = np.zeros((classes, hidden), x.dtype)
    goodness = np.zeros(classes, x.dtype)
    for n in range(labels.size):
        rest = x[n, classes:]
        first = one / np.sqrt((_dot(rest, rest) + strength * strength) / x.shape[1])
        for j in range(shared.size):
            shared[j] = _dot(weights[0][j, classes:], rest)
        for c in range(classes):
            goodness[c] = zero
            for layer in range(hidden):
                n_out, n_in = weights[layer].shape
                y = values[c, layer, :n_out]
                scale = first if layer == 0 else _inverse_root(squares[c, layer - 1])
                for j in range(n_out):
                    if layer == 0:
                        z = shared[j] + strength * weights[0][j, c]
                    else:
                        z = _dot(weights[layer][j], values[c, layer - 1, :n_in])
                    z = z * scale + biases[layer][j]
                    y[j] = slope * z if z < zero else z
                squares[c, layer] = _dot(y, y) / x.dtype.type(n_out)
                goodness[c] += squares[c, layer]
        label, wrong = labels[n], -1
        predictions[n] = np.argmax(goodness)
        for c in range(classes):
            if c != label and (wrong < 0 or goodness[c] > goodness[wrong]):
                wrong = c

        for shown, sign in ((label, -one), (wrong, one)):
            for layer in range(hidden):
                n_out, n_in = weights[layer].shape
                excess = sharpness * (squares[shown, layer] - threshold)
                pull = sign * sharpness / (one + np.exp(-sign * excess))
                factor = -rate * pull * x.dtype.type(2) / x.dtype.type(n_out)
                scale = first if layer == 0 else _inverse_root(squares[shown, layer - 1])
                for j in range(n_out):
                    y = values[shown, layer, j]
                    step = factor * y * (slope if y < zero else one)
                    biases[layer][j] += step
                    row = weights[layer][j]
                    if layer == 0:
                        _add_scaled(row[classes:], step * scale, rest)
                        row[shown] += step * scale * strength
                    else:
                        _add_scaled(row, step * scale, values[shown, layer - 1, :n_in])


@njit(cache=True)
def _inverse_root(square):
    """`square^-1/2`; 1 for 0."""
    one = type(square)(1)
    return one / np.sqrt(square) if square > 0 else one
