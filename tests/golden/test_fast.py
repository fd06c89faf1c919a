"""The compiled model against the plain one: equal bits, whatever the sizes, widths and values."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from golden import fast
from golden.data import load_digits
from golden.fast import FastModel
from golden.fixed import FixedModel, IntegerModel, StepResult
from golden.train import Parameters
from spec.errors import SpecError
from spec.lfsr import PERIOD
from spec.machine import Machine, load_machine
from spec.network import BASES, FullyConnected, Network, Recipe, load_network
from spec.rules import RULES
from tests.golden.exact_scores import wild_codes

SEED = 21
LEARNING = [name for name, rule in RULES.items() if rule.learns]
RULES_AND_BASES = [(name, basis) for name, rule in RULES.items() for basis in (BASES if rule.basis else BASES[:1])]


def machine(rows: int, cols: int, delta_bits: int = 18, fraction_bits: int = 12, rule: str = "lls") -> Machine:
    """A machine with memories large enough for the networks here."""
    return Machine(
        f"{rows}x{cols}",
        rows,
        cols,
        weight_depth=1 << 16,
        activation_depth=4096,
        max_neurons=600,
        max_fan_in=2000,
        bias_depth=1024,
        max_layers=4,
        delta_bits=delta_bits,
        fraction_bits=fraction_bits,
        result_fifo_depth=64,
        rule=rule,
    )


def network(sizes: list[int], basis: str, hidden: int, output: int, t: int = 0) -> Network:
    """Fully connected, the last size being the classes; the rates are those of every rule."""
    layers = tuple(FullyConnected(n) for n in sizes[1:])
    shifts = (("drtp", hidden + 1), ("dfa", hidden), ("bp", hidden - 1))
    return Network("test", (sizes[0],), sizes[-1], basis, layers, Recipe(hidden, output, t, rate_shifts=shifts))


def wild_parameters(net: Network, rng: np.random.Generator) -> Parameters:
    """Parameters of every size up to saturation, corner codes among them."""
    found = []
    for n_in, n_out in net.shapes:
        pair = []
        for shape in ((n_out, n_in), (n_out,)):
            codes = rng.normal(0, 2.0 ** rng.integers(8, 16), shape)
            codes = np.where(rng.random(shape) < 0.1, rng.choice([-32768, 32767, 0], shape), codes)
            pair.append(np.clip(np.round(codes), -32768, 32767).astype(np.int16))
        found.append((pair[0], pair[1]))
    return found


def wild_samples(features: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples int8, corners first."""
    x = rng.integers(-128, 128, (count, features)).astype(np.int8)
    x[0], x[1 % count], x[2 % count] = 127, -128, 0
    return x


def assert_same_state(found: IntegerModel, expected: IntegerModel) -> None:
    """The whole state, entry by entry."""
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert value.dtype == states[1][name].dtype
        wrong = np.argwhere(value != states[1][name])
        assert len(wrong) == 0, f"{name}: {len(wrong)} of {value.size} differ, first {wrong[0]}"


def assert_same_result(found: StepResult, expected: StepResult) -> None:
    """Prediction and scores."""
    assert found.prediction == expected.prediction
    for number, (score, other) in enumerate(zip(found.scores, expected.scores, strict=True)):
        assert (score is None) == (other is None), f"layer {number}"
        if score is not None and other is not None:
            assert score.tolist() == other.tolist(), f"layer {number}"


CASES = [
    # rows, cols, delta_bits, fraction_bits, sizes, hidden and output rate shift, temperature
    (2, 2, 18, 12, [5, 3, 3], 6, 5, 0),
    (1, 1, 18, 12, [4, 3, 2], 0, -2, 0),
    (3, 2, 16, 10, [7, 5, 6, 4], 3, 2, 1),
    (8, 8, 18, 12, [64, 40, 33, 10], 6, 5, 0),
    (8, 8, 18, 12, [64, 40, 33, 10], -6, -6, 0),
    (5, 7, 16, 10, [199, 31, 12], 4, 3, 2),
    (1, 3, 18, 12, [301, 17, 5], 2, 3, 0),
    (32, 32, 18, 12, [70, 35, 3], 1, 1, 0),
    # 15 and 16 random bits in the change, and fewer than none: the wide form of the update.
    (4, 3, 8, 16, [60, 27, 5], 2, 0, 0),
    (4, 3, 9, 16, [60, 27, 5], 2, 0, 0),
    (4, 3, 10, 16, [60, 27, 5], 2, 0, 0),
    (3, 4, 18, 4, [38, 26, 5], -7, -8, 3),
    (3, 4, 18, 10, [38, 26, 5], -7, -8, 3),
    (2, 3, 12, 8, [50, 4], 1, 4, 0),
]


@pytest.mark.parametrize(("rule", "basis"), RULES_AND_BASES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("start", ["initial", "wild"])
def test_models_are_equal(rule: str, case: tuple, basis: str, start: str) -> None:
    rows, cols, delta_bits, bits, sizes, hidden, output, t = case
    if rule == "bp":
        delta_bits += 4  # as many more as its signal has
        delta_bits = min(delta_bits, 18)
    net = network(sizes, basis, hidden, output, t)
    shape = machine(rows, cols, delta_bits, bits, rule)
    rng = np.random.default_rng([SEED, rows, cols, sizes[0]])
    if start == "wild":
        shape = replace(shape, vectors=net.classes // 2 + 1)
    plain, compiled = FixedModel(net, shape, SEED), FastModel(net, shape, SEED)
    assert_same_state(compiled, plain)
    if start == "wild":
        parameters = wild_parameters(net, rng)
        trained = [wild_codes(codes.shape, rng) for codes in plain.trained_scores()]
        for model in (plain, compiled):
            model.load_parameters(parameters)
            model.load_trained_scores(trained)
    before = compiled.parameters()
    x = wild_samples(net.features, 30, rng)
    labels = rng.integers(0, net.classes, 30)
    for number in range(10):
        label = None if number % 4 == 3 else int(labels[number])
        results = compiled.step(x[number], label), plain.step(x[number], label)
        assert_same_result(*results)
        assert_same_state(compiled, plain)
    if RULES[rule].learns:
        reports = compiled.train(x, labels), plain.train(x, labels)
        assert reports[0].predictions.tolist() == reports[1].predictions.tolist()
        assert reports[0].cycles is None
        assert_same_state(compiled, plain)
    assert compiled.predict(x).tolist() == plain.predict(x).tolist()
    assert_same_state(compiled, plain)
    for old, new in zip(before, compiled.parameters(), strict=True):
        moved = bool(np.any(old[0] != new[0]))
        assert moved == RULES[rule].learns, "a layer whose weights stayed compares nothing"


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_32_bits(sign: int) -> None:
    """The largest possible pre-activations: 2000 products of 2^22."""
    net = network([2000, 3, 2], "square", 6, 6)
    x = np.full((4, 2000), -128, dtype=np.int8)
    x[1, ::2], x[2] = 127, 127
    x[3] = np.where(np.arange(2000) < 512, -128, 0)  # 512 products: exactly 2^31
    models = FixedModel(net, machine(3, 2)), FastModel(net, machine(3, 2))
    extreme = -32768 if sign > 0 else 32767
    for model in models:
        weight, bias = model.parameters()[0]
        weight[:], bias[:] = extreme, -extreme - 1
        model.load_parameters([(weight, bias), model.parameters()[1]])
    for codes in x:
        assert_same_result(models[1].step(codes), models[0].step(codes))
    for number, codes in enumerate(x):
        assert_same_result(models[1].step(codes, number % 2), models[0].step(codes, number % 2))
    assert_same_state(models[1], models[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_sent_back_beyond_32_bits(sign: int) -> None:
    """Signals of 2047, all of one sign, through 500 of the largest weights."""
    net, shape = network([8, 500, 500, 10], "square", 2, 2), machine(5, 4, rule="bp")
    models = FixedModel(net, shape, SEED), FastModel(net, shape, SEED)
    x = wild_samples(8, 6, np.random.default_rng(SEED))
    for model in models:
        parameters = model.parameters()
        # The errors of the label and of the others differ in sign: with these weights they add up.
        parameters[2][0][:] = np.where(np.arange(10)[:, None] == 0, -32768, 32767)
        for weight, bias in parameters[:2]:
            weight[:], bias[:] = np.sign(weight), 32767
        parameters[1][0][:] = sign * 32767
        model.load_parameters(parameters)
    for number, codes in enumerate(x):
        assert_same_result(models[1].step(codes, number % 2), models[0].step(codes, number % 2))
        assert_same_state(models[1], models[0])


@pytest.mark.parametrize("rule", LEARNING)
@pytest.mark.parametrize("train_hidden", [True, False])
def test_long_trainings_are_equal(rule: str, train_hidden: bool) -> None:
    """Samples of a data set, so that layers come to all magnitudes; some without a label between them."""
    net, shape = load_network("digits"), replace(load_machine("digits"), rule=rule)
    data = load_digits()
    models = [m(net, shape, SEED, train_hidden) for m in (FixedModel, FastModel)]
    before = models[1].parameters()
    for start in range(0, 400, 80):
        x, labels = data.x_train[start : start + 80], data.y_train[start : start + 80]
        predictions = [model.train(x, labels).predictions.tolist() for model in models]
        assert predictions[0] == predictions[1]
        assert_same_result(models[1].step(x[0]), models[0].step(x[0]))
        assert_same_state(models[1], models[0])
    for number, (old, new) in enumerate(zip(before, models[1].parameters(), strict=True)):
        assert np.any(old[0] != new[0]) == (train_hidden or number == 2)


@pytest.mark.parametrize("steps", [PERIOD - 1, PERIOD - 7, 40000, 0])
@pytest.mark.parametrize("rule", LEARNING)
def test_random_numbers_wrap_around(rule: str, steps: int) -> None:
    net, shape = network([64, 40, 10], "square", 6, 5), machine(8, 8, rule=rule)
    models = FixedModel(net, shape, SEED), FastModel(net, shape, SEED)
    x = wild_samples(64, 6, np.random.default_rng(SEED))
    for model in models:
        model.update_steps = model.bias_steps = steps
        model.train(x, np.arange(6))
    assert_same_state(models[1], models[0])


@pytest.mark.parametrize("cut", [1, 500])
@pytest.mark.parametrize("rule", LEARNING)
def test_resumed_across_calls_and_models(monkeypatch: pytest.MonkeyPatch, rule: str, cut: int) -> None:
    monkeypatch.setattr(fast, "SAMPLES_A_CALL", 64)
    net, shape = load_network("digits"), replace(load_machine("digits"), rule=rule)
    rng = np.random.default_rng(SEED)
    x = rng.integers(0, 128, (700, 64)).astype(np.int8)
    labels = rng.integers(0, 10, 700)
    whole, first, second = (FastModel(net, shape, seed) for seed in (3, 3, 4))
    whole.train(x, labels)
    first.train(x[:cut], labels[:cut])
    second.load_state_dict(first.state_dict())
    first.train(x[:5], labels[:5])  # the state that was given away must not follow
    second.train(x[cut:-20], labels[cut:-20])
    plain = FixedModel(net, shape)
    plain.load_state_dict(second.state_dict())
    plain.train(x[-20:], labels[-20:])
    assert_same_state(plain, whole)
    assert plain.identity() == whole.identity()


def test_a_rule_that_learns_nothing_refuses_to_train() -> None:
    model = FastModel(network([9, 7, 3], "walsh", 6, 6), machine(2, 2, rule="inference"))
    with pytest.raises(SpecError, match=r"^machine 2x2: cannot train: its rule is inference$"):
        model.train(np.zeros((1, 9), np.int8), np.zeros(1, np.int64))


def test_parameters_are_copies() -> None:
    model = FastModel(network([9, 7, 3], "walsh", 6, 6), machine(2, 2), SEED)
    given = model.parameters()
    model.load_parameters(given)
    before = model.state_dict()
    for pair, other in product(given, model.parameters()):
        for array in (*pair, *other):
            array[...] = 1
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
