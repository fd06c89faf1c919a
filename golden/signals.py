"""The learning signals of the integer model: what each rule makes of a sample, a function a unit.

The output layer's signal is its error. A hidden layer's is, by `spec.rules`, made of its own scores'
error (`lls` and its kin: `hidden_delta`), of the label (`drtp`: `label_delta`), of the output layer's error
(`dfa`: `feedback_delta`) or of the signal of the layer behind it (`bp`: `back_sums`, `back_delta`).
`held` drops what would saturate further, `shift_delta` puts the rest where the rate wants it. So a
bench can check a unit by itself.

With convolutions `a` are the latents, and `neg` is False everywhere, as slopes are each pixel's.

Arrays are int64 codes unless said otherwise: activation s8, 4 fraction bits; output score s20, 9;
error s10, 8; learning signal s8, 6 in a hidden layer and 7 in the output layer, but s12, 11, in both
under `bp`. A basis is int8 `(K, n)` with `fraction_bits` (see `spec.basis.Basis`).
"""

from collections.abc import Callable

import numpy as np

from golden.arith import msb, rnd, sat
from spec.machine import ERROR_FRAC, SCORE_BITS, WEIGHT_FRAC, Machine
from spec.rules import BACK_BITS, BACK_DROPPED, BACK_FRAC
from spec.scores import BACK_ERROR_BITS, RATE_STEP, TRAINED_BITS, TRAINED_FRAC, USED_BITS, USED_FRAC, VECTOR_BITS
from spec.tables import EXP, RCP8, RCP9

__all__ = [
    "HIDDEN_DELTAS",
    "RATE_BEYOND",
    "SLOPE_SHIFT",
    "TRAINED_LEFT",
    "back_delta",
    "back_sums",
    "class_scores",
    "factor_errors",
    "factor_scores",
    "feedback_delta",
    "held",
    "hidden_delta",
    "label_delta",
    "matrix_errors",
    "matrix_scores",
    "moved_trained",
    "norm_exponent",
    "output_back_delta",
    "output_delta",
    "shift_delta",
    "softmax",
    "softmax_error",
    "sum_of_squares",
    "trained_error",
    "trained_shift",
    "used",
    "vector_scores",
]

SLOPE_SHIFT = 3
"""A negative pre-activation, and its signal, is divided by 8."""
SIGNAL_MAX = 127
ACT_MAX = 127
BACK_MAX = (1 << (BACK_BITS - 1)) - 1
COARSE_FRAC = ERROR_FRAC - 2
"""Fraction bits of the error that trained parameters learn from."""
TRAINED_LEFT = 10
"""A trained parameter's gradient is shifted left by this, so that small ones are not lost, and then right."""
RATE_BEYOND = RATE_STEP + COARSE_FRAC + TRAINED_LEFT - TRAINED_FRAC
"""What is added to the shift of the layer's rate, and the norm's exponent, for that of a trained parameter."""
ONE = 256
"""The probability 1."""

_EXP, _RCP9 = np.array(EXP, dtype=np.int64), np.array(RCP9, dtype=np.int64)


# Scores and errors.


def class_scores(a: np.ndarray, table: np.ndarray, fraction_bits: int) -> np.ndarray:
    """A hidden layer's scores `B a`, `(K,)`: 20 bits, in units of `a`.

    `a (n,)`; `table`, `fraction_bits`: the basis.
    """
    return sat(rnd(table.astype(np.int64) @ a, fraction_bits), SCORE_BITS)


def sum_of_squares(a: np.ndarray) -> int:
    """The squared norm of the latents."""
    return int(a @ a)


def norm_exponent(ss: int) -> int:
    """`k`, with `2^k` about the square root of `ss`: the norm as a power of two."""
    return (msb(ss) + 1) >> 1


def softmax(score: np.ndarray, shift: int) -> np.ndarray:
    """Probabilities, `(K,)`, of base 2: 0…264 with 8 fraction bits, summing to about 256.

    The exponents are `score · 2^(9 - shift)`, 8 fraction bits, 16 bits; `shift` 0…31.
    """
    u = sat(rnd(score << 9, shift), 16)
    distance = u.max() - u
    whole, fraction = distance >> 8, distance & 255
    e = np.where(whole > 12, 0, _EXP[fraction >> 4] >> np.minimum(whole, 12))
    total = int(e.sum())
    top = msb(total)
    return rnd(e * _RCP9[(total >> (top - 4)) & 15], top + 1)


def softmax_error(score: np.ndarray, label: int, shift: int) -> np.ndarray:
    """`softmax - onehot(label)`, `(K,)`: 10 bits, 8 fraction bits."""
    e = softmax(score, shift)
    e[label] -= ONE
    return e


# Scores that are trained, of parameters `(rows, lanes)`: s24, 20 fraction bits.


def used(trained: np.ndarray) -> np.ndarray:
    """What products take of trained parameters: 16 bits, 12 fraction bits; its shape."""
    return trained.astype(np.int64) >> (TRAINED_BITS - USED_BITS)


def vector_scores(a: np.ndarray, table: np.ndarray, fraction_bits: int) -> np.ndarray:
    """The scores of a basis' vectors, `(I,)`: 18 bits, in units of `a`; `table (I, n)`."""
    return sat(rnd(table.astype(np.int64) @ a, fraction_bits), VECTOR_BITS)


def factor_scores(v: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Class scores of `lls_m`, `(K,)`: 20 bits; `v (K,)` from `vector_scores`, trained `factors (K, 1)`."""
    return sat(rnd(used(factors)[:, 0] * v, USED_FRAC), SCORE_BITS)


def factor_errors(error: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """What `lls_m` sends back through the basis, `(K,)`: 12 bits, 8 fraction bits; `error (K,)`."""
    return sat(rnd(used(factors)[:, 0] * error, USED_FRAC), BACK_ERROR_BITS)


def matrix_scores(v: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Class scores of `lls_mxm`, `(K,)`: 20 bits; `v (I,)` from `vector_scores`, the trained `matrix (I, K)`."""
    return sat(rnd(v @ used(matrix), USED_FRAC), SCORE_BITS)


def matrix_errors(error: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What `lls_mxm` sends back through the basis, `(I,)`: 12 bits, 8 fraction bits; `error (K,)`."""
    return sat(rnd(used(matrix) @ error, USED_FRAC), BACK_ERROR_BITS)


def trained_error(error: np.ndarray) -> np.ndarray:
    """What trained parameters learn from, `(K,)`: 8 bits, 6 fraction bits.

    The softmax's tables leave an error of -2 in a class that is certain: finer, it would never end.
    """
    return rnd(error, ERROR_FRAC - COARSE_FRAC)


def trained_shift(rate_shift: int, k: int) -> int:
    """The shift to the right of a trained parameter's gradient, 0…31: a quarter of the rate `2^-rate_shift` of the
    layer's weights, divided by the norm, whose exponent is `k`.
    """
    return min(max(rate_shift + RATE_BEYOND + k, 0), 31)


def moved_trained(trained: np.ndarray, gradient: np.ndarray, shift: int) -> np.ndarray:
    """Trained parameters after a sample: int32, its shape; `gradient` of that shape, `shift` from `trained_shift`."""
    change = rnd(gradient << TRAINED_LEFT, shift)
    return sat(trained.astype(np.int64) - change, TRAINED_BITS).astype(np.int32)


# Signals.


def hidden_delta(
    error: np.ndarray,
    score: np.ndarray,
    a: np.ndarray,
    neg: np.ndarray,
    table: np.ndarray,
    fraction_bits: int,
    back: np.ndarray | None = None,
) -> np.ndarray:
    """A hidden layer's signal from its own scores, `(n,)`: -127…127 with 6 fraction bits.

    It is the gradient times the norm: `B^T e` without its part along `a` (dividing by the norm makes
    the loss blind to the length of `a`), times the slope. `error`, `score (K,)` the layer's own; `a`,
    `neg (n,)` as of `golden.fixed.hidden_activation`; `back (I,)` what is sent back through the table, where it is
    not the error.
    """
    ss = sum_of_squares(a)
    top = msb(ss)
    along = sat(rnd(int(error @ score) << 1, norm_exponent(ss)), 16)
    quotient = sat(rnd(along * RCP8[(ss << 4 >> top) & 15], (top >> 1) + 2), 16)
    sent = rnd(table.astype(np.int64).T @ (error if back is None else back), fraction_bits)
    gradient = sent - rnd(quotient * a, 7)
    return _sloped(gradient, 2, neg, SIGNAL_MAX)


HIDDEN_DELTAS: dict[str, Callable[..., np.ndarray]] = {"own": hidden_delta}
"""A hidden layer's signal from its own scores, by a rule's name where that has another (`spec.rules.part`); compiled
models have none but the first.
"""


def label_delta(label: int, table: np.ndarray, fraction_bits: int, neg: np.ndarray) -> np.ndarray:
    """A hidden layer's signal under `drtp`, `(n,)`: -127…127 with 6 fraction bits.

    That of an error of -1 in the label's class and 0 elsewhere: `table`'s row of the label, negated.
    `neg (n,)`: the hidden layer's.
    """
    gradient = rnd(-ONE * table[label].astype(np.int64), fraction_bits)
    return _sloped(gradient, 2, neg, SIGNAL_MAX)


def feedback_delta(error: np.ndarray, table: np.ndarray, fraction_bits: int, neg: np.ndarray) -> np.ndarray:
    """A hidden layer's signal under `dfa`, `(n,)`: -127…127 with 6 fraction bits.

    `error (K,)` the output layer's; `neg (n,)` the hidden layer's.
    """
    gradient = rnd(table.astype(np.int64).T @ error, fraction_bits)
    return _sloped(gradient, 2, neg, SIGNAL_MAX)


def held(delta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """`delta`, but 0 where it would push a saturated activation `a` further, both `(n,)`."""
    further = ((a == ACT_MAX) & (delta < 0)) | ((a == -ACT_MAX - 1) & (delta > 0))
    return np.where(further, 0, delta)


def back_sums(delta: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What a layer sends back under `bp`, `W^T delta (n_in,)`: exact, 25 fraction bits.

    `delta (n_out,)` its signal, `weight (n_out, n_in)` before its update, integers of any width.
    """
    return delta.astype(np.int64) @ weight.astype(np.int64)


def back_delta(sums: np.ndarray, neg: np.ndarray) -> np.ndarray:
    """A hidden layer's signal under `bp`, `(n,)`: -2047…2047 with 11 fraction bits.

    `sums (n,)` from `back_sums` of the layer behind it; `neg (n,)` its own slopes.
    """
    return _sloped(sums, WEIGHT_FRAC, neg, BACK_MAX)


def output_delta(error: np.ndarray) -> np.ndarray:
    """The output layer's signal, `(K,)`, except under `bp`: -127…127 with 7 fraction bits."""
    return np.clip(rnd(error, 1), -SIGNAL_MAX, SIGNAL_MAX)


def output_back_delta(error: np.ndarray) -> np.ndarray:
    """The output layer's signal under `bp`, `(K,)`: -2047…2047 with 11 fraction bits, of which the last 6 are 0.

    The softmax's tables leave an error of -2 in a class that is certain: finer, it would never end.
    """
    return np.clip(rnd(error, BACK_DROPPED) << (BACK_FRAC - ERROR_FRAC + BACK_DROPPED), -BACK_MAX, BACK_MAX)


def shift_delta(delta: np.ndarray, rate_shift: int, machine: Machine) -> np.ndarray:
    """`-delta`, shifted to where the rate `2^-rate_shift` puts it: `delta_bits` bits.

    In a hidden layer with scores `rate_shift` includes the norm's exponent, which divides by the norm.
    """
    left = min(max(machine.fraction_bits - rate_shift, 0), machine.delta_bits - machine.signal_bits)
    return -delta << left


def _sloped(gradient: np.ndarray, shift: int, neg: np.ndarray, largest: int) -> np.ndarray:
    """A gradient by the activations as a signal: rounded, times the slope, clipped to `±largest`."""
    signal = rnd(gradient, shift)
    return np.clip(np.where(neg, rnd(signal, SLOPE_SHIFT), signal), -largest, largest)
