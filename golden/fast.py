"""The bit-exact integer model, compiled: `golden.fixed` at the speed of the processor.

Three changes of form, none of result; the tests hold the two models equal.

- A neuron's weights lie row by row of the array: `[j][r][it]` instead of `[j][i]`, `i = it·R + r`.
  PE(r, c) meets them in this order with consecutive random numbers, so an update reads weights,
  inputs and random numbers alike as vectors. The random numbers come from one table of the LFSR's
  sequence, laid out twice, so that no run of them wraps around. Each row is padded with zeros; an
  input of 0 never changes a weight, as its update is `floor((w·2^F + random) / 2^F) = w`.
- The update is 16 bits wide where that does. With `ush = F - ls`, nested floors give
  `floor((w·2^F + random_F + v·2^ls) / 2^F) = w + floor((v + random_ush) / 2^ush)`, where `v` is the
  product of signal and input and `random_ush` the top `ush` bits of the LFSR: for signals of 8 bits
  `|v| <= 127·128` and `random_ush < 2^ush` stay within 16 bits for `ush <= 14`.
- Products are summed in 32 bits. No partial sum exceeds `2^15·Σ|x|`, so a neuron takes one sum if
  `Σ|x| < 2^16`; else it takes sums of 256 products, each of at most `256·2^22 = 2^30`.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import numba
import numpy as np

from golden.fixed import IntegerModel, StepResult, checked_samples
from golden.signals import RATE_BEYOND
from golden.train import Parameters, TrainReport
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import ACT_BITS
from spec.network import NO_LABEL
from spec.rules import BACK_DROPPED, BACK_FRAC
from spec.tables import EXP, RCP8, RCP9

__all__ = ["FastModel"]

LANES = 32
"""A row of weights is padded to a multiple of this: a 512-bit vector of 16-bit weights."""
SAMPLES_A_CALL = 1024
"""Compiled code cannot be interrupted; a Ctrl-C waits for no more than this many samples."""
BLOCK = 256
"""Products that always fit a 32-bit sum."""
BACK_BLOCK = 16
"""Products of a weight and a signal that always do."""

# What a layer is to the compiled code, a row of int64; the names are the columns.
(
    N_IN,
    N_OUT,
    ROW_TILES,
    COL_TILES,
    SPAN,  # padded row of a neuron's weights
    W_BASE,
    B_BASE,
    X_BASE,
    TABLE_BASE,
    TRAINED_BASE,
    TRAINED_SIZE,
    ACT_SHIFT,
    SCORE_SHIFT,
    RATE_SHIFT,
    BIAS_SHIFT,
    IS_OUTPUT,
    TRAINS,
    TRAINS_BELOW,
    FIELDS,
) = range(19)
# What the machine is to it, likewise.
(
    ROWS,
    COLS,
    FRACTION_BITS,
    DELTA_BITS,
    SIGNAL_BITS,
    SIGNAL_FRAC,  # of the output layer's signal
    LFSR_STRIDE,
    BASIS_FRACTION,
    TRAINED_RATE,  # shift of a trained score's rate
    SCORES,  # from here on what `spec.rules.Rule` says
    WAITS,
    TRANSPOSES,
    TRAINED_KIND,  # NOTHING, MIXING or BASIS
    CONSTANTS,
) = range(14)
NOTHING, MIXING, BASIS = range(3)
"""What is trained of a hidden layer's scores: factors and matrices are of one kind here."""
TRAINED_KINDS = {"": NOTHING, "factors": MIXING, "matrix": MIXING, "basis": BASIS}
# The small tables, rows of int64 `(3, 16)`. They are arguments, since a constant would stay in the
# compiled code that is kept on the disk, whatever became of its source.
T_EXP, T_RCP8, T_RCP9 = range(3)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled to machine code on its first call, and kept on the disk."""
    return numba.njit(function, cache=True, nogil=True, error_model="numpy")


@_compiled
def _rnd(value, shift):
    return (value + (1 << (shift - 1))) >> shift if shift > 0 else value


@_compiled
def _sat(value, bits):
    return min(max(value, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


@_compiled
def _msb(value):
    top = 0
    while value >> (top + 1):
        top += 1
    return top


@_compiled
def _dot(w, x):
    """`Σ w·x` of int16 arrays whose sum fits 32 bits."""
    total = np.int32(0)
    for i in range(w.shape[0]):
        total = np.int32(total + np.int32(np.int32(w[i]) * np.int32(x[i])))
    return np.int64(total)


@_compiled
def _long_dot(w, x):
    """`Σ w·x` of any int16 weights with any int8 codes."""
    total = np.int64(0)
    for start in range(0, w.shape[0], BLOCK):
        total += _dot(w[start : start + BLOCK], x[start : start + BLOCK])
    return total


@_compiled
def _update_row(w, first, x, x_first, sequence, at, length, minus_delta, ush, down):
    """One row of one neuron, for `ush` in 1 to 14 and `down = 16 - ush`.

    Indices are unsigned, so that none needs a check for counting from the end; arrays are whole, as
    a slice's reference count would cost as much as a row. The masks tell the compiler that 16 bits
    do for the shifts.
    """
    for i in range(length):
        i = np.uint64(i)
        v = np.int16(minus_delta * x[x_first + i])
        r = np.int16(sequence[at + i] >> (down & 15))
        change = np.int16(np.int16(v + r) >> (ush & 15))
        moved = np.int32(w[first + i]) + np.int32(change)
        w[first + i] = np.int16(min(max(moved, np.int32(-32768)), np.int32(32767)))


@_compiled
def _update_row_wide(w, first, x, x_first, sequence, at, length, minus_delta, ush):
    """The same in 32 bits, for any signal and any `ush` up to 16; below 1 it is a shift to the left."""
    left, right = np.int32(max(-ush, 0)), np.int32(max(ush, 0))
    down = np.int32(16 - right)
    for i in range(length):
        i = np.uint64(i)
        v = np.int32(minus_delta * np.int32(x[x_first + i]))
        r = np.int32(np.int32(sequence[at + i]) >> down)
        change = np.int32(np.int32(np.int32(v << left) + r) >> right)
        moved = np.int32(np.int32(w[first + i]) + change)
        w[first + i] = np.int16(min(max(moved, np.int32(-32768)), np.int32(32767)))


@_compiled
def _load_input(values, x, rows, row_tiles, span):
    """Puts a layer's input, in order, in the order of its weights; returns `Σ|x|`."""
    total = 0
    for r in range(rows):
        for it in range(row_tiles):
            i = it * rows + r
            if i < values.shape[0]:
                x[r * span + it] = values[i]
                total += abs(np.int64(values[i]))
    return total


@_compiled
def _softmax_error(score, label, shift, small, e):
    """Writes the error of a layer's scores to `e`."""
    classes = score.shape[0]
    largest = np.int64(-32768)
    for c in range(classes):
        e[c] = _sat(_rnd(score[c] << 9, shift), 16)
        largest = max(largest, e[c])
    total = 0
    for c in range(classes):
        distance = largest - e[c]
        whole = distance >> 8
        e[c] = 0 if whole > 12 else small[T_EXP, (distance & 255) >> 4] >> whole
        total += e[c]
    top = _msb(total)
    reciprocal = small[T_RCP9, (total >> (top - 4)) & 15]
    for c in range(classes):
        e[c] = _rnd(e[c] * reciprocal, top + 1) - (256 if c == label else 0)


@_compiled
def _used_dot(trained, x):
    """`Σ (θ >> 8)·x` of int32 codes of 24 bits with int8 codes."""
    total = np.int64(0)
    for start in range(0, x.shape[0], BLOCK):
        part = np.int32(0)
        for i in range(start, min(start + BLOCK, x.shape[0])):
            part = np.int32(part + np.int32(np.int32(trained[i] >> np.int32(8)) * np.int32(x[i])))
        total += part
    return total


@_compiled
def _mix(trained, v, score):
    """Writes class scores to `score`, of those of the basis' vectors: a row of `trained` a vector."""
    classes = score.shape[0]
    if trained.shape[0] == classes:
        for c in range(classes):
            score[c] = _sat(_rnd((trained[c] >> 8) * v[c], 12), 20)
        return
    score[:] = 0
    for i in range(v.shape[0]):
        for c in range(classes):
            score[c] += (trained[i * classes + c] >> 8) * v[i]
    for c in range(classes):
        score[c] = _sat(_rnd(score[c], 12), 20)


@_compiled
def _unmix(trained, v, e, shift, sent):
    """Writes what is sent back through the basis to `sent`, and moves `trained`."""
    lanes = trained.shape[0] // v.shape[0]
    for i in range(v.shape[0]):
        total = 0
        for lane in range(lanes):
            at, error = i * lanes + lane, e[i if lanes == 1 else lane]
            total += (trained[at] >> 8) * error
            trained[at] = _sat(trained[at] - _rnd((v[i] * _rnd(error, 2)) << 10, shift), 24)
        sent[i] = _sat(_rnd(total, 12), 12)


@_compiled
def _send_back(row, error, back):
    """Adds what an error sends back through its row of the basis."""
    for i in range(back.shape[0]):
        back[i] += np.int32(np.int32(row[i]) * error)


@_compiled
def _send_back_trained(row, error, a, shift, back):
    """The same through a row that is trained, and moves it."""
    shift, half, coarse = np.int32(shift), np.int32((1 << shift) >> 1), np.int32((error + 2) >> 2)
    for i in range(back.shape[0]):
        code = row[i]
        back[i] += np.int32(np.int32(code >> np.int32(8)) * error)
        change = np.int32(np.int32(np.int32(np.int32(np.int32(a[i]) * coarse) << np.int32(10)) + half) >> shift)
        code = np.int32(code - change)
        row[i] = min(max(code, np.int32(-(1 << 23))), np.int32((1 << 23) - 1))


@_compiled
def _hidden_signal(
    a, neg, table, fraction, trains, trained, rate, label, score_shift, small, score, e, room, back, delta
):
    """Scores and learning signal of a hidden layer, whose trained scores it moves; returns the norm's exponent.

    `a`, `table` (int16) as in `golden.fixed`; `trains` one of NOTHING, MIXING, BASIS, `trained` (int32) the layer's
    `(I, lanes)` or `(K, n)`, `rate` the shift of its rate; writes `score`, `e` `(K,)`, `back`, `delta` `(n,)`. `room`
    `(2, I)`: the vectors' scores, and what is sent back through them.
    """
    neurons = a.shape[0]
    ss = _dot(a, a)
    top = _msb(ss)
    k = (top + 1) >> 1
    shift = min(max(rate + k, 0), 31)
    v, sent = room[0], room[1]
    if trains == BASIS:
        for c in range(score.shape[0]):
            score[c] = _sat(_rnd(_used_dot(trained[c * neurons : (c + 1) * neurons], a), 12), 20)
    else:
        for c in range(v.shape[0]):
            v[c] = _rnd(_dot(table[c * neurons : (c + 1) * neurons], a), fraction)
        if trains == NOTHING:
            for c in range(score.shape[0]):
                score[c] = _sat(v[c], 20)
        else:
            for c in range(v.shape[0]):
                v[c] = _sat(v[c], 18)
            _mix(trained, v, score)
    _softmax_error(score, label, score_shift + k, small, e)
    gs = 0
    for c in range(score.shape[0]):
        gs += e[c] * score[c]
    back[:] = 0
    if trains == BASIS:
        fraction = 12
        for c in range(score.shape[0]):
            if e[c] != 0:
                _send_back_trained(trained[c * neurons : (c + 1) * neurons], np.int32(e[c]), a, shift, back)
    else:
        if trains == NOTHING:
            sent[:] = e
        else:
            _unmix(trained, v, e, shift, sent)
        for c in range(v.shape[0]):
            _send_back(table[c * neurons : (c + 1) * neurons], np.int32(sent[c]), back)
    along = _sat(_rnd(gs << 1, k), 16)
    q = _sat(_rnd(along * small[T_RCP8, ((ss << 4) >> top) & 15], (top >> 1) + 2), 16)
    q32, fraction32 = np.int32(q), np.int32(fraction)
    half = np.int32((1 << fraction) >> 1)
    for i in range(neurons):
        g = np.int32(np.int32(back[i] + half) >> fraction32)
        g = np.int32(g - (np.int32(q32 * np.int32(a[i]) + np.int32(64)) >> np.int32(7)))
        t = np.int32(np.int32(g + np.int32(2)) >> np.int32(2))
        if neg[i]:
            t = np.int32(np.int32(t + np.int32(4)) >> np.int32(3))
        delta[i] = min(max(t, np.int32(-127)), np.int32(127))
    return k


@_compiled
def _output_signal(error, machine, delta):
    """Writes the output layer's signal to `delta`: its error, of 7 fraction bits, or 5 where it goes back."""
    drop = BACK_DROPPED if machine[TRANSPOSES] != 0 else 1
    left = machine[SIGNAL_FRAC] - 8 + drop
    largest = (1 << (machine[SIGNAL_BITS] - 1)) - 1
    for c in range(error.shape[0]):
        t = _rnd(error[c], drop) << left
        delta[c] = min(max(t, -largest), largest)


@_compiled
def _signals(gradient, shift, neg, largest, delta):
    """Writes a hidden layer's signal to `delta`: the gradient rounded, times the slope, clipped."""
    for i in range(gradient.shape[0]):
        t = _rnd(np.int64(gradient[i]), shift)
        if neg[i]:
            t = _rnd(t, 3)
        delta[i] = min(max(t, -largest), largest)


@_compiled
def _hold(delta, a):
    """Takes back the signals that would push a saturated activation further."""
    for i in range(a.shape[0]):
        if (a[i] == 127 and delta[i] < 0) or (a[i] == -128 and delta[i] > 0):
            delta[i] = 0


@_compiled
def _label_gradient(row, fraction, back):
    """Writes the label's `row` of the basis, times -256 and rounded, to `back`."""
    for i in range(back.shape[0]):
        back[i] = _rnd(-256 * np.int64(row[i]), fraction)


@_compiled
def _feedback(error, table, fraction, back):
    """Writes `B^T e`, rounded, to `back`; `table` int16, flat."""
    neurons = back.shape[0]
    back[:] = 0
    for c in range(error.shape[0]):
        row, e = table[c * neurons : (c + 1) * neurons], error[c]
        if e != 0:
            for i in range(neurons):
                back[i] += np.int64(row[i]) * e
    for i in range(neurons):
        back[i] = _rnd(back[i], fraction)


@_compiled
def _back_sums(w, delta, layer, rows, part, sums, back):
    """Writes `W^T delta` of a layer to `back`, in the order of the layer before it.

    `part` int32 and `sums` are room for a neuron's weights. So few products of 2^26 are summed in 32 bits
    that they fit.
    """
    span, n_in = layer[SPAN], layer[N_IN]
    size = rows * span
    sums[:size] = 0
    for start in range(0, layer[N_OUT], BACK_BLOCK):
        part[:size] = 0
        for j in range(start, min(start + BACK_BLOCK, layer[N_OUT])):
            d, first = np.int32(delta[j]), j * size
            if d != 0:
                for i in range(size):
                    part[i] += np.int32(np.int32(w[first + i]) * d)
        for i in range(size):
            sums[i] += part[i]
    for i in range(n_in):
        back[i] = sums[(i % rows) * span + i // rows]


@_compiled
def _update_layer(layer, machine, w, b, x, delta, k, sequence, counters):
    """Updates a layer's weights and biases, and counts the steps; `k` is the norm's exponent or 0."""
    rows, cols, bits = machine[ROWS], machine[COLS], machine[FRACTION_BITS]
    stride, span, n_out = machine[LFSR_STRIDE], layer[SPAN], layer[N_OUT]
    ls = min(max(bits - (layer[RATE_SHIFT] + k), 0), machine[DELTA_BITS] - machine[SIGNAL_BITS])
    row_tiles, ush = layer[ROW_TILES], bits - ls
    for j in range(n_out):
        if delta[j] == 0:
            continue  # as an input of 0: nothing changes
        at = (counters[0] + (j // cols) * row_tiles + (j % cols) * stride) % PERIOD
        for r in range(rows):
            first = (j * rows + r) * span
            if 1 <= ush <= 14 and -127 <= delta[j] <= 127:
                _update_row(
                    w,
                    np.uint64(first),
                    x,
                    np.uint64(r * span),
                    sequence,
                    np.uint64(at),
                    span,
                    np.int16(-delta[j]),
                    np.int16(ush),
                    np.int16(16 - ush),
                )
            else:
                _update_row_wide(
                    w,
                    np.uint64(first),
                    x,
                    np.uint64(r * span),
                    sequence,
                    np.uint64(at),
                    span,
                    np.int32(-delta[j]),
                    ush,
                )
            at += cols * stride  # less than the period
            if at >= PERIOD:
                at -= PERIOD
    counters[0] += row_tiles * layer[COL_TILES]
    first = counters[1] + rows * cols * stride
    for j in range(n_out):
        r = np.int64(sequence[(first + j) % PERIOD]) >> (16 - bits)
        shifted = (np.int64(-delta[j]) << ls) << layer[BIAS_SHIFT]
        b[j] = _sat(((np.int64(b[j]) << bits) + r + shifted) >> bits, 16)
    counters[1] += layer[COL_TILES] * cols


@_compiled
def _run(
    samples,
    labels,
    layers,
    machine,
    small,
    weights,
    biases,
    tables,
    trained,
    sequence,
    counters,
    x,
    scores,
    room,
    formed,
):
    """Samples one after another, each with its update unless its label is none; the predictions.

    `x` is room for each layer's input, `room` that of `_hidden_signal`; `scores`, `formed` `(L, K)`, `(L,)` are the
    last sample's.
    """
    rows, vectors, kind = machine[ROWS], room.shape[1], machine[TRAINED_KIND]
    fraction, largest = machine[BASIS_FRACTION], (1 << (machine[SIGNAL_BITS] - 1)) - 1
    waits, last = machine[WAITS] != 0, layers.shape[0] - 1
    widest = max(layers[:, N_OUT].max(), layers[:, N_IN].max())
    a, neg = np.zeros((last + 1, widest), np.int16), np.zeros((last + 1, widest), np.bool_)
    back, delta, below = np.zeros(widest, np.int32), np.zeros(widest, np.int16), np.zeros(widest, np.int16)
    gradient = np.zeros(widest, np.int64)
    part, sums = np.zeros(x.shape[0], np.int32), np.zeros(x.shape[0], np.int64)
    e = np.zeros(scores.shape[1], np.int64)
    predictions = np.empty(samples.shape[0], np.int64)
    for s in range(samples.shape[0]):
        label = labels[s]
        for number in range(last + 1):
            layer = layers[number]
            n_out, act_shift, span = layer[N_OUT], layer[ACT_SHIFT], layer[SPAN]
            size = rows * span
            w = weights[layer[W_BASE] : layer[W_BASE] + n_out * size]
            b = biases[layer[B_BASE] : layer[B_BASE] + n_out]
            inputs = x[layer[X_BASE] : layer[X_BASE] + size]
            if number == 0:
                magnitude = _load_input(samples[s], inputs, rows, layer[ROW_TILES], span)
            else:
                magnitude = _load_input(a[number - 1, : layer[N_IN]], inputs, rows, layer[ROW_TILES], span)
            output, score = layer[IS_OUTPUT] != 0, scores[number]
            activation, negative = a[number, :n_out], neg[number, :n_out]
            for j in range(n_out):
                row = w[j * size : (j + 1) * size]
                z = _dot(row, inputs) if magnitude < 1 << 16 else _long_dot(row, inputs)
                z += np.int64(b[j]) << 7
                if output:
                    score[j] = _sat(_rnd(z, act_shift), 20)
                else:
                    negative[j] = z < 0
                    activation[j] = _sat(_rnd(z >> 3 if z < 0 else z, act_shift), 8)
            trains = layer[TRAINS] != 0 and label != NO_LABEL and not output and not waits
            formed[number] = output or (trains and machine[SCORES] != 0)
            if not trains:
                continue
            k, first = 0, layer[TABLE_BASE]
            if machine[SCORES] != 0:
                k = _hidden_signal(
                    activation,
                    negative,
                    tables[first : first + vectors * n_out],
                    fraction,
                    kind,
                    trained[layer[TRAINED_BASE] : layer[TRAINED_BASE] + layer[TRAINED_SIZE]],
                    machine[TRAINED_RATE],
                    label,
                    layer[SCORE_SHIFT],
                    small,
                    score,
                    e,
                    room,
                    back[:n_out],
                    delta,
                )
            else:
                first += label * n_out
                _label_gradient(tables[first : first + n_out], fraction, gradient[:n_out])
                _signals(gradient[:n_out], 2, negative, largest, delta)
                _hold(delta, activation)
            _update_layer(layer, machine, w, b, inputs, delta, k, sequence, counters)
        predictions[s] = scores[last].argmax()
        learns = layers[last, TRAINS] != 0 or layers[last, TRAINS_BELOW] != 0
        if label == NO_LABEL or not learns:
            continue
        _softmax_error(scores[last], label, layers[last, SCORE_SHIFT], small, e)
        _output_signal(e, machine, delta)
        for number in range(last, -1, -1):
            layer = layers[number]
            n_in, n_out, size = layer[N_IN], layer[N_OUT], rows * layer[SPAN]
            w = weights[layer[W_BASE] : layer[W_BASE] + n_out * size]
            b = biases[layer[B_BASE] : layer[B_BASE] + n_out]
            inputs = x[layer[X_BASE] : layer[X_BASE] + size]
            if layer[TRAINS_BELOW] != 0:
                if machine[TRANSPOSES] != 0:
                    _back_sums(w, delta, layer, rows, part, sums, gradient)
                    _signals(gradient[:n_in], 14, neg[number - 1], largest, below)
                else:
                    first = layers[number - 1, TABLE_BASE]
                    _feedback(e, tables[first : first + vectors * n_in], fraction, gradient[:n_in])
                    _signals(gradient[:n_in], 2, neg[number - 1], largest, below)
                    _hold(below, a[number - 1, :n_in])
            if layer[TRAINS] != 0:
                _update_layer(layer, machine, w, b, inputs, delta, 0, sequence, counters)
            if layer[TRAINS_BELOW] == 0:
                break
            delta, below = below, delta
    return predictions


class FastModel(IntegerModel):
    """`golden.fixed.FixedModel` compiled: the same interface, the same bits."""

    def parameters(self) -> Parameters:
        """Copies of the parameters in layer order: int16 `(weight (n_out, n_in), bias (n_out,))`."""
        found = []
        for number, layer in enumerate(self.layers):
            tiles = self._rows_of(self._weights, number)[:, :, : layer.row_tiles]
            weight = tiles.transpose(0, 2, 1).reshape(layer.n_out, -1)[:, : layer.n_in]
            bias = self._biases[layer.b_base : layer.b_base + layer.n_out]
            found.append((weight.copy(), bias.copy()))
        return found

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters; the counters stay. SpecError if they are not codes of 16 bits."""
        checked = self._checked_parameters(parameters)
        weights = np.zeros(self._w_bases[-1], dtype=np.int16)
        for number, (layer, (weight, _)) in enumerate(zip(self.layers, checked, strict=True)):
            padded = np.zeros((layer.n_out, layer.row_tiles * self.machine.rows), dtype=np.int16)
            padded[:, : layer.n_in] = weight
            tiles = padded.reshape(layer.n_out, layer.row_tiles, -1).transpose(0, 2, 1)
            self._rows_of(weights, number)[:, :, : layer.row_tiles] = tiles
        self._weights = weights
        self._biases = np.concatenate([bias for _, bias in checked])

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`; trains on it unless `label` is None or the rule `inference`."""
        sample = np.asarray(x)[None]
        labels = None if label is None else np.array([label])
        prediction = self._run(*checked_samples(self.network, sample, labels))[0]
        scores = zip(self._formed, self._scores, strict=True)
        return StepResult(int(prediction), tuple(score.copy() if formed else None for formed, score in scores))

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """Trains on samples int8 `(N, features)` in turn; predictions are from before each update.

        SpecError on a machine for inference.
        """
        self._check_learns()
        return TrainReport(self._run(*checked_samples(self.network, x, labels)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 `(N,)`. Nothing is trained."""
        return self._run(*checked_samples(self.network, x, None))

    def _prepare(self) -> None:
        """Lays out the memory of the compiled code."""
        self._check_compiled()
        rows, layers, rule = self.machine.rows, self.layers, self.machine.learning
        sizes = [codes.size for codes in self.trained] or [0] * (len(layers) - 1)
        self._lay_out_trained(sizes)
        self._spans = [-(-layer.row_tiles // LANES) * LANES for layer in layers]
        self._w_bases = _bases(layer.n_out * rows * s for layer, s in zip(layers, self._spans, strict=True))
        columns = {
            N_IN: [layer.n_in for layer in layers],
            N_OUT: [layer.n_out for layer in layers],
            ROW_TILES: [layer.row_tiles for layer in layers],
            COL_TILES: [layer.col_tiles for layer in layers],
            SPAN: self._spans,
            W_BASE: self._w_bases[:-1],
            B_BASE: [layer.b_base for layer in layers],
            X_BASE: _bases(rows * span for span in self._spans)[:-1],
            TABLE_BASE: _bases(table.size for table in self.tables)[:-1],
            TRAINED_BASE: _bases(sizes),
            TRAINED_SIZE: [*sizes, 0],
            ACT_SHIFT: [layer.act_shift for layer in layers],
            SCORE_SHIFT: [layer.score_shift for layer in layers],
            RATE_SHIFT: [layer.rate_shift for layer in layers],
            BIAS_SHIFT: [layer.bias_shift for layer in layers],
            IS_OUTPUT: [layer.is_output for layer in layers],
            TRAINS: [layer.train for layer in layers],
            TRAINS_BELOW: [layer.trains_below for layer in layers],
        }
        table = [columns[field] for field in range(FIELDS)]
        self._layers = np.array(table, dtype=np.int64).T.copy()
        constants = {
            ROWS: rows,
            COLS: self.machine.cols,
            FRACTION_BITS: self.machine.fraction_bits,
            DELTA_BITS: self.machine.delta_bits,
            SIGNAL_BITS: self.machine.signal_bits,
            SIGNAL_FRAC: BACK_FRAC if rule.transposes else ACT_BITS - 1,
            LFSR_STRIDE: offset(self.machine, 1),
            BASIS_FRACTION: self.basis.fraction_bits,
            TRAINED_RATE: self.network.recipe.rate_shift(rule.name) + RATE_BEYOND,
            SCORES: rule.scores,
            WAITS: rule.waits,
            TRANSPOSES: rule.transposes,
            TRAINED_KIND: TRAINED_KINDS[rule.trains],
        }
        self._machine = np.array([constants[field] for field in range(CONSTANTS)], dtype=np.int64)
        self._small = np.array([EXP, RCP8, RCP9], dtype=np.int64)
        self._tables = np.concatenate([table.ravel() for table in self.tables]).astype(np.int16)
        self._sequence = np.resize(SEQUENCE, 2 * PERIOD + LANES)
        self._x = np.zeros(rows * sum(self._spans), dtype=np.int16)
        self._scores = np.zeros((len(layers), self.network.classes), dtype=np.int64)
        self._room = np.zeros((2, self.basis.classes), dtype=np.int64)
        self._formed = np.zeros(len(layers), dtype=np.bool_)

    def _lay_out_trained(self, sizes: list[int]) -> None:
        """Copies what is trained of the scores to the compiled code's memory, a basis class by class; `trained` are
        views of it.
        """
        self._trained = np.zeros(sum(sizes), dtype=np.int32)
        for number, (codes, first) in enumerate(zip(self.trained, _bases(sizes), strict=False)):
            kept = self._trained[first : first + codes.size]
            by_class = self.machine.learning.trains == "basis"
            self.trained[number] = kept.reshape(codes.T.shape).T if by_class else kept.reshape(codes.shape)
            self.trained[number][...] = codes

    def _rows_of(self, weights: np.ndarray, number: int) -> np.ndarray:
        """A layer's weights as a view `(n_out, R, padded row)`."""
        flat = weights[self._w_bases[number] : self._w_bases[number + 1]]
        return flat.reshape(-1, self.machine.rows, self._spans[number])

    def _run(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Checked samples through the compiled code, between whose calls the state is whole."""
        predictions = np.empty(len(x), dtype=np.int64)
        for first in range(0, len(x), SAMPLES_A_CALL):
            part = slice(first, first + SAMPLES_A_CALL)
            predictions[part] = _run(
                x[part],
                labels[part],
                self._layers,
                self._machine,
                self._small,
                self._weights,
                self._biases,
                self._tables,
                self._trained,
                self._sequence,
                self.counters,
                self._x,
                self._scores,
                self._room,
                self._formed,
            )
        return predictions


def _bases(sizes: Iterable[int]) -> list[int]:
    """Where things of these sizes begin, one behind the other, and where the last one ends."""
    return list(accumulate(sizes, initial=0))
