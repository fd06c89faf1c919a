"""Scores, errors and learning signals: what the arithmetic is for, its corners, and what each rule sends."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from golden import signals
from golden.data import load_digits
from golden.fast import FastModel
from golden.fixed import hidden_activation, output_score, pre_activation
from golden.float_model import forward
from golden.rules import make_rule, output_error, temperature
from spec.basis import Basis
from spec.machine import Machine, load_machine
from spec.network import BASES, load_network

SEED = 22


def machine(delta_bits: int, fraction_bits: int, rule: str = "lls") -> Machine:
    return Machine("m", 2, 2, 64, 64, 64, 64, 64, 4, delta_bits, fraction_bits, 64, rule=rule)


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    e = expected.ravel()
    return float(found @ e / np.linalg.norm(found) / np.linalg.norm(e))


def half_up(value: np.ndarray) -> np.ndarray:
    """Rounding as the page has it, of exact floats."""
    return np.floor(value + 0.5).astype(np.int64)


def slope_and_clip(exact: np.ndarray, neg: np.ndarray, largest: int) -> np.ndarray:
    """What every rule does with a gradient in the signal's units, an exact float."""
    t = half_up(exact)
    t = np.where(neg, half_up(t / 8), t)
    return np.minimum(np.maximum(t, -largest), largest)


def test_softmax_is_a_softmax_of_base_2() -> None:
    rng = np.random.default_rng(SEED)
    for classes, shift in product((2, 10, 255), (0, 9, 14)):
        for _ in range(20):
            score = rng.normal(0, 400 * 2.0 ** (shift - 9), classes).round().astype(np.int64)
            p = signals.softmax(score, shift)
            exponents = np.clip(score * 2.0 ** (9 - shift), -32768, 32767) / 256
            exact = 256 * np.exp2(exponents - exponents.max())
            exact /= exact.sum() / 256
            assert p.min() >= 0
            assert p.max() <= 264
            # Two tables of 16 entries: each within 2^(1/32), about 2.2 and 3 percent; then a half.
            assert np.all(np.abs(p - exact) <= 0.07 * exact + 1), (classes, shift)


def test_softmax_of_corner_scores() -> None:
    low, high = -(1 << 19), (1 << 19) - 1
    one = [0, 256, 0]
    assert np.abs(signals.softmax(np.array([low, high, low]), 0) - one).max() <= 8
    assert np.abs(signals.softmax(np.array([low, high, low]), 9) - one).max() <= 8
    # 13 powers of two below the largest is none at all.
    assert signals.softmax(np.array([0, -(13 << 8)]), 9)[1] == 0
    even = signals.softmax(np.zeros(4, dtype=np.int64), 0)
    assert len(set(even.tolist())) == 1
    assert abs(int(even[0]) - 64) <= 2
    for shift in (0, 31):
        for score in product((low, -1, 0, high), repeat=3):
            e = signals.softmax_error(np.array(score), 1, shift)
            assert e.min() >= -256
            assert e.max() <= 264


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("scale", [3, 12, 40])
def test_hidden_signal_is_the_gradient(basis: str, scale: int) -> None:
    """The signal has the direction of the loss's gradient, and does not see the length of `a`."""
    rng = np.random.default_rng([SEED, scale])
    n, classes = 256, 10
    kind = Basis(basis, classes)
    table, bits = kind.table(n), kind.fraction_bits
    b = table / 2.0**bits
    cosines, lengthwise = [], []
    for _ in range(20):
        a = np.clip(rng.normal(0, scale, n).round(), -128, 127).astype(np.int64)
        error = rng.integers(-100, 100, classes)
        neg = np.zeros(n, dtype=bool)
        score = signals.class_scores(a, table, bits)
        delta = signals.hidden_delta(error, score, a, neg, table, bits)
        g = b.T @ error
        exact = g - (g @ a) * a / (a @ a)
        clipped = np.clip(exact / 4, -127, 127)
        cosines.append(delta @ clipped / np.linalg.norm(delta) / np.linalg.norm(clipped))
        lengthwise.append((delta @ a) / (np.linalg.norm(delta) * np.linalg.norm(a)))
    assert min(cosines) > 0.995
    assert np.abs(lengthwise).max() < 0.06


def test_hidden_signal_of_nothing() -> None:
    """No latents, no scores: the norm is 0, and nothing may fail."""
    table = Basis("walsh", 3).table(8)
    zero, neg = np.zeros(8, dtype=np.int64), np.array([False] * 4 + [True] * 4)
    error = np.array([100, -200, 50])
    delta = signals.hidden_delta(error, np.zeros(3, dtype=np.int64), zero, neg, table, 0)
    g = table.T.astype(np.int64) @ error
    expected = (g + 2) >> 2
    expected[4:] = (expected[4:] + 4) >> 3
    assert delta.tolist() == np.clip(expected, -127, 127).tolist()
    assert signals.norm_exponent(0) == 0


def test_norm_exponent_is_near_the_norm() -> None:
    for ss in [1, 2, 3, 4, 5, 15, 16, 17, 1000, 128 * 128 * 512]:
        assert 2**-0.5 - 1e-9 <= 2 ** signals.norm_exponent(ss) / math.sqrt(ss) <= 2**0.5 + 1e-9


@pytest.mark.parametrize("basis", BASES)
def test_label_signal_is_the_basis(basis: str) -> None:
    kind = Basis(basis, 10)
    table, bits = kind.table(300), kind.fraction_bits
    neg = np.random.default_rng(SEED).random(300) < 0.5
    for label in range(10):
        # -B with 6 fraction bits: -64 where B is 1, -8 on the slope.
        exact = half_up(-256.0 * table[label] / 2.0**bits) / 4
        delta = signals.label_delta(label, table, bits, neg)
        assert delta.tolist() == slope_and_clip(exact, neg, 127).tolist()
        assert np.abs(delta + np.where(neg, 8, 64) * table[label] / 2.0**bits).max() <= 1


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("scale", [3, 40, 256])
def test_feedback_signal_is_the_error_sent_back(basis: str, scale: int) -> None:
    kind = Basis(basis, 10)
    table, bits = kind.table(300), kind.fraction_bits
    rng = np.random.default_rng([SEED, scale])
    clipped = 0
    for _ in range(20):
        error, neg = rng.integers(-scale, scale + 1, 10), rng.random(300) < 0.5
        exact = half_up(error @ table.astype(np.int64) / 2.0**bits) / 4
        delta = signals.feedback_delta(error, table, bits, neg)
        assert delta.tolist() == slope_and_clip(exact, neg, 127).tolist()
        clipped += int(np.sum(np.abs(delta) == 127))
    assert (clipped > 0) == (scale == 256)


def test_feedback_signal_of_a_label_is_the_labels() -> None:
    """`drtp` is `dfa` with an output that is always 0."""
    neg = np.arange(64) % 3 == 0
    for basis in BASES:
        kind = Basis(basis, 7)
        table, bits = kind.table(64), kind.fraction_bits
        for label in range(7):
            error = -signals.ONE * (np.arange(7) == label)
            label_delta = signals.label_delta(label, table, bits, neg)
            assert label_delta.tolist() == signals.feedback_delta(error, table, bits, neg).tolist()


def test_saturated_activations_are_pushed_back_only() -> None:
    """A signal is the gradient: a positive one lowers the activation."""
    a, delta = np.array([127, 127, -128, -128, 126, -127, 127, -128]), np.array([-64, 64, -8, 8, -64, 8, 0, 0])
    assert signals.held(delta, a).tolist() == [0, 64, -8, 0, -64, 8, 0, 0]
    assert signals.held(np.array([-1, 1, -1, 1]), np.array([127, 127, -128, -128])).tolist() == [0, 1, -1, 0]


def test_sums_sent_back_are_exact() -> None:
    rng = np.random.default_rng(SEED)
    weight = rng.integers(-(1 << 15), 1 << 15, (37, 23)).astype(np.int16)
    delta = rng.integers(-2047, 2048, 37)
    expected = [sum(int(weight[j, i]) * int(delta[j]) for j in range(37)) for i in range(23)]
    assert signals.back_sums(delta, weight).tolist() == expected
    # The largest: as many products of 2^15 * 2047 as a machine has neurons.
    most = np.full((65535, 1), -32768, dtype=np.int16)
    assert signals.back_sums(np.full(65535, -2047), most).tolist() == [65535 * 32768 * 2047]


def test_signal_sent_back_rounds_then_slopes_then_clips() -> None:
    half = 1 << 13
    sums = np.array([0, half - 1, half, -half, -half - 1, 3 << 14, 4 << 14, -4 << 14, -(4 << 14) - half - 1])
    flat = np.zeros(len(sums), dtype=bool)
    assert signals.back_delta(sums, flat).tolist() == [0, 0, 1, 0, -1, 3, 4, -4, -5]
    assert signals.back_delta(sums, ~flat).tolist() == [0, 0, 0, 0, 0, 0, 1, 0, -1]
    wide = np.array([2047, 2048, -2047, -2048, 8 * 2047 + 3, 8 * 2047 + 4, -(1 << 30), (1 << 41)]) << 14
    flat = np.zeros(len(wide), dtype=bool)
    assert signals.back_delta(wide, flat).tolist() == [2047, 2047, -2047, -2047, 2047, 2047, -2047, 2047]
    assert signals.back_delta(wide, ~flat).tolist() == [256, 256, -256, -256, 2047, 2047, -2047, 2047]


def test_output_signals_of_every_error() -> None:
    error = np.arange(-256, 265)
    plain, back = signals.output_delta(error), signals.output_back_delta(error)
    assert plain.tolist() == [min(max((v + 1) // 2, -127), 127) for v in error.tolist()]
    assert back.tolist() == [min(max((v + 4) // 8 * 64, -2047), 2047) for v in error.tolist()]


@pytest.mark.parametrize(("rule", "bits"), [("lls", 8), ("drtp", 8), ("dfa", 8), ("bp", 12)])
def test_shifted_signal_fits_its_bits(rule: str, bits: int) -> None:
    largest = (1 << (bits - 1)) - 1
    delta = np.array([-largest, 0, largest])
    for delta_bits, fraction_bits, rate in product((bits, 16, 18), (1, 10, 16), range(-30, 31)):
        shifted = signals.shift_delta(delta, rate, machine(delta_bits, fraction_bits, rule))
        left = min(max(fraction_bits - rate, 0), delta_bits - bits)
        assert shifted.tolist() == (-delta * 2**left).tolist()
        assert np.abs(shifted).max() < 2 ** (delta_bits - 1)


def test_bp_sends_back_the_gradient() -> None:
    """A trained network's signals against the gradient of its loss, and against that of the error as it is."""
    net, shape = load_network("digits"), replace(load_machine("digits"), rule="bp")
    data = load_digits()
    model = FastModel(net, shape)
    model.train(data.x_train, data.y_train)
    parameters, layers = model.parameters(), model.layers
    scales = [(2.0**-14, 2.0 ** -(7 + in_frac)) for in_frac in (7, 4, 4)]
    floats = [(w * s, b * t) for (w, b), (s, t) in zip(parameters, scales, strict=True)]
    rule, found, exact, cosines = make_rule("bp", net), [], [], []
    for x, label in zip(data.x_test, data.y_test, strict=True):
        a, slopes = x.astype(np.int64), []
        for (weight, bias), layer in zip(parameters[:-1], layers[:-1], strict=True):
            a, neg = hidden_activation(pre_activation(a, weight, bias), layer.act_shift)
            slopes.append(neg)
        score = output_score(pre_activation(a, *parameters[-1]), layers[-1].act_shift)
        error = signals.softmax_error(score, label, layers[-1].score_shift)
        last = signals.back_delta(signals.back_sums(signals.output_back_delta(error), parameters[2][0]), slopes[1])
        first = signals.back_delta(signals.back_sums(last, parameters[1][0]), slopes[0])
        labels, trace = np.array([label]), forward(net.geometry, floats, x[None] / 128)
        gradient = rule.signals(floats, trace, output_error(trace.scores, labels, temperature()), labels)
        found += [first, last]
        exact += [layer.ravel() for layer in gradient]
        if np.abs(error).max() >= 32:  # a smaller one does not fill the signals' bits
            gradient = rule.signals(floats, trace, error[None] / signals.ONE, labels)
            cosines += [cosine(*pair) for pair in zip((first, last), gradient, strict=True)]
    assert len(cosines) > 100
    # Some pre-activations near 0 change their sign, and so their slope, by rounding.
    assert np.quantile(cosines, 0.02) > 0.98
    assert np.median(cosines) > 0.998
    for part in (slice(0, None, 2), slice(1, None, 2)):
        assert cosine(np.concatenate(found[part]), np.concatenate(exact[part])) > 0.98
