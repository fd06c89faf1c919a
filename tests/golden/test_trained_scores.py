"""Scores that are trained: their units against docs/rules.md, section 7, their state, and training near float's."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from golden import signals
from golden.data import load_dataset
from golden.fast import FastModel
from golden.fixed import FixedModel, StatefulModel, TrainedScores, local_signal
from golden.float_model import FloatBackend
from golden.train import Progress, train_epochs
from golden.windowed import WindowedModel
from golden.windowed_fast import FastWindowedModel
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import BASES, Convolution, FullyConnected, Network, Recipe, load_network
from spec.scores import first_codes, trained_shapes
from tests.golden.exact_scores import RULES, ExactScores, rnd, wild_codes

SEED = 23
KINDS = {"lls_m": "factors", "lls_mxm": "matrix", "local_classifier": "basis"}
LOW, HIGH = -(1 << 23), (1 << 23) - 1


def machine(rule: str, windowed: bool = False, vectors: int = 0) -> Machine:
    """With memories large enough for the networks here."""
    sizes = (4096, 4096, 512, 512, 512, 4, 18, 20 if windowed else 12, 64)
    return Machine("m", 3, 2, *sizes, gradient_bits=48 * windowed, rule=rule, vectors=vectors)


def networks() -> list[tuple[Network, list[type[StatefulModel]]]]:
    """One of each datapath, and its models."""
    plain = Network("plain", (9,), 4, "sine", (FullyConnected(7), FullyConnected(5), FullyConnected(4)), Recipe(3, 3))
    first = Convolution(5, (3, 3), (2, 2), padding=1, pool="max")
    layers = (first, FullyConnected(6), FullyConnected(4))
    windowed = Network("windowed", (6, 6, 1), 4, "walsh", layers, Recipe(3, 3, batch=2))
    return [(plain, [FixedModel, FastModel]), (windowed, [WindowedModel, FastWindowedModel])]


CASES = [pytest.param(*case, rule, id=f"{case[0].name} {rule}") for case, rule in product(networks(), RULES)]


def samples(net: Network, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    return rng.integers(-128, 128, (count, net.features)).astype(np.int8), rng.integers(0, net.classes, count)


# Units.


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("rule", RULES)
def test_units_are_the_page(rule: str, basis: str) -> None:
    """Forward, back and update of parameters of every size."""
    rng = np.random.default_rng(SEED)
    for trial in range(40):
        classes, n = int(rng.integers(3, 12)), int(rng.integers(2, 60))
        page = ExactScores(rule, basis, classes, n, vectors=2 if trial % 2 else 0)
        kind = Basis(basis, len(page.table))
        table, bits = kind.table(n), kind.fraction_bits
        codes = wild_codes(np.shape(page.theta), rng)
        page.theta = codes.tolist()
        a, e = rng.integers(-128, 128, n), rng.integers(-256, 265, classes)
        rate, k = int(rng.integers(-8, 21)), int(rng.integers(0, 16))
        if rule == "local_classifier":
            used, gradient = signals.used(codes), np.multiply.outer(a, signals.trained_error(e))
            scores, sent = signals.class_scores(a, used.T, 12), None
            back = [rnd(int(v), 12) for v in used @ e]
        else:
            v = signals.vector_scores(a, table, bits)
            if rule == "lls_m":
                scores, sent, gradient = (
                    signals.factor_scores(v, codes),
                    signals.factor_errors(e, codes),
                    (v * signals.trained_error(e))[:, None],
                )
            else:
                scores, sent, gradient = (
                    signals.matrix_scores(v, codes),
                    signals.matrix_errors(e, codes),
                    np.multiply.outer(v, signals.trained_error(e)),
                )
            back = [rnd(int(v), bits) for v in table.T.astype(np.int64) @ sent]
        assert scores.tolist() == page.scores(a.tolist())
        assert back == page.gradient(e.tolist(), n)
        moved = signals.moved_trained(codes, gradient, signals.trained_shift(rate, k))
        page.learn(a.tolist(), e.tolist(), rate, k)
        assert moved.dtype == np.int32 and moved.tolist() == page.theta


def test_every_width_saturates() -> None:
    n = 2048
    a = np.full(n, 127)
    ones = np.ones((2, n), np.int8)
    # Vectors at 18 bits, the only ones that 1032 latents of 127 fill.
    assert signals.vector_scores(a, ones, 0).tolist() == [(1 << 17) - 1] * 2
    assert signals.vector_scores(-a, ones, 0).tolist() == [-(1 << 17)] * 2
    assert signals.vector_scores(a[:1032], ones[:, :1032], 0).tolist() == [127 * 1032] * 2
    # Scores at 20.
    v, factors = np.array([100000, -100000]), np.array([[HIGH], [HIGH]])
    top = [(1 << 19) - 1, -(1 << 19)]
    assert signals.factor_scores(v, factors).tolist() == top
    assert signals.matrix_scores(v, np.array([[HIGH, LOW], [0, 0]])).tolist() == top
    # What goes back at 12.
    e = np.array([264, -256])
    assert signals.factor_errors(e, factors).tolist() == [2047, -2048]
    assert signals.factor_errors(np.array([255, -255]), factors).tolist() == [2040, -2040]
    assert signals.matrix_errors(e, np.array([[HIGH, LOW], [LOW, HIGH]])).tolist() == [2047, -2048]
    # Parameters at 24.
    codes, big = np.array([[HIGH - 1, LOW + 1, 0]]), np.array([[-2, 2, 0]])
    assert signals.moved_trained(codes, big, 0).tolist() == [[HIGH, LOW, 0]]
    assert signals.moved_trained(codes, -big, 0).tolist() == [[HIGH - 1 - 2048, LOW + 1 + 2048, 0]]
    # The upper bits are a floor, and the shift is clipped.
    assert signals.used(np.array([255, 256, -1, LOW, HIGH])).tolist() == [0, 1, -1, -32768, 32767]
    assert [signals.trained_shift(*pair) for pair in ((-8, 0), (7, 9), (20, 15))] == [0, 14, 31]


@pytest.mark.parametrize("rule", RULES)
def test_first_parameters_are_those_of_lls(rule: str) -> None:
    """Scores and signal start as under `lls`, but for a vector's saturation."""
    rng = np.random.default_rng(SEED)
    net = networks()[0][0]
    for basis in BASES:
        kind = Basis(basis, net.classes)
        for codes, n in zip(first_codes(replace(net, basis=basis), machine(rule)), (7, 5), strict=True):
            start = codes.copy()
            a, neg, table = rng.integers(-128, 128, n), rng.random(n) < 0.5, kind.table(n)
            own = TrainedScores(KINDS[rule], codes, 3)
            plain = local_signal(a, neg, 1, table, kind.fraction_bits, 0)
            found = local_signal(a, neg, 1, table, kind.fraction_bits, 0, own)
            assert found[0].tolist() == plain[0].tolist() and found[1].tolist() == plain[1].tolist()
            assert found[2] == plain[2] and np.any(codes != start)


# The state.


@pytest.mark.parametrize(("net", "kinds", "rule"), CASES)
def test_trained_scores_are_state(net: Network, kinds: list, rule: str) -> None:
    shape = machine(rule, net.windowed, vectors=3)
    x, labels = samples(net, 8)
    for kind in kinds:
        model = kind(net, shape, SEED)
        start = model.trained_scores()
        assert [codes.shape for codes in start] == list(trained_shapes(net, shape))
        assert [codes.tolist() for codes in start] == [codes.tolist() for codes in first_codes(net, shape)]
        model.predict(x)
        model.step(x[0])
        assert [codes.tolist() for codes in model.trained_scores()] == [codes.tolist() for codes in start]
        model.train(x, labels)
        found, state = model.trained_scores(), model.state_dict()
        assert all(np.any(old != new) for old, new in zip(start, found, strict=True))
        for number, codes in enumerate(found):
            assert codes.dtype == np.int32 and np.array_equal(state[f"layer{number}_{rule}"], codes)
            codes[...] = 7
        assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())
        given = [wild_codes(codes.shape, np.random.default_rng(SEED)) for codes in found]
        model.load_trained_scores(given)
        assert [codes.tolist() for codes in model.trained_scores()] == [codes.tolist() for codes in given]
        model.load_state_dict(state)
        assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("net", "kinds", "rule"), CASES)
def test_wrong_trained_scores_are_refused(net: Network, kinds: list, rule: str) -> None:
    for kind in kinds:
        model = kind(net, machine(rule, net.windowed))
        good = model.trained_scores()
        for wrong, message in [
            (good[:1], "trained scores: must have 2 layers, got 1"),
            ([good[0], good[1].T], f"layer1_{rule}: must have the shape {good[1].shape}, got {good[1].T.shape}"),
            ([good[0] / 2, good[1]], f"layer0_{rule}: must hold integer codes, got 'float64'"),
            ([good[0], good[1] + (1 << 23)], f"layer1_{rule}: must hold codes of 24 bits"),
        ]:
            if rule == "lls_mxm" and "shape" in message:
                continue  # square
            with pytest.raises(SpecError) as error:
                model.load_trained_scores(wrong)
            assert str(error.value) == message
        state = model.state_dict()
        del state[f"layer1_{rule}"]
        with pytest.raises(SpecError, match=f"^state: has entries missing or unknown, got 'layer1_{rule}'"):
            model.load_state_dict(state)


@pytest.mark.parametrize(("net", "kinds"), networks())
def test_where_nothing_is_trained_there_is_no_state(net: Network, kinds: list) -> None:
    """Frozen trainings of all rules are one; others, and other numbers of vectors, are told apart."""
    for kind in kinds:
        assert kind(net, machine("lls", net.windowed)).trained_scores() == []
        frozen = [kind(net, machine(rule, net.windowed), train_hidden=False) for rule in ("lls", *RULES)]
        for model in frozen:
            assert model.trained_scores() == [] and model.identity() == frozen[0].identity()
            assert set(model.state_dict()) == set(frozen[0].state_dict())
        shapes = [*(machine(rule, net.windowed) for rule in ("lls", *RULES)), machine("lls_mxm", net.windowed, 3)]
        assert all(a != b for a, b in combinations([kind(net, shape).identity() for shape in shapes], 2))
        with pytest.raises(SpecError, match="^vectors: must be at most the 4 classes"):
            kind(net, machine("lls_mxm", net.windowed, 5))


# Against float.


@pytest.mark.parametrize("datapath", ["dense", "windowed"])
@pytest.mark.parametrize("rule", RULES)
def test_it_trains_as_in_float(rule: str, datapath: str) -> None:
    """Three epochs of digits: right as often, and what is trained has moved the same way and as far."""
    net, shape = load_network("digits"), load_machine("digits").built_for(rule)
    kind = FastModel
    if datapath == "windowed":
        first = Convolution(8, (3, 3), (4, 4), padding=1, pool="max", activation_fraction=5)
        layers = (first, FullyConnected(24, 5), FullyConnected(10))
        net = Network("test", (8, 8), 10, "walsh", layers, Recipe(5, 6, batch=2, gain_shift=1))
        kind, shape = FastWindowedModel, machine(rule, windowed=True)
    data = load_dataset("digits", net)
    model, backend = kind(net, shape, SEED), FloatBackend(net, rule, SEED)
    start = model.trained_scores()
    quiet = Progress(quiet=True)
    right = [train_epochs(trained, data, 3, SEED, progress=quiet).test_accuracy for trained in (model, backend)]
    assert right[1] > 85 and right[0] > right[1] - 4, right
    for old, new, own in zip(start, model.trained_scores(), backend.rule.own.values(), strict=True):
        own = own.T if rule == "local_classifier" else own.reshape(old.shape)
        found, expected = (new - old) / 2.0**20, own - old / 2.0**20
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8, right
        assert 0.7 < np.linalg.norm(found) / np.linalg.norm(expected) < 1.4, right
