"""The compiled model of convolutions and batches against the plain one: equal bits, whatever the sizes and values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from golden import windowed, windowed_fast
from golden.fixed import StepResult
from golden.train import Parameters
from golden.windowed import WindowedModel, left_shift
from golden.windowed_fast import FastWindowedModel
from spec.errors import SpecError
from spec.lfsr import PERIOD
from spec.machine import Machine
from spec.network import BASES, POOLS, Convolution, FullyConnected, Network, Recipe
from tests.golden.exact_scores import RULES as TRAINING_SCORES
from tests.golden.exact_scores import wild_codes

SEED = 22
LEARNING = ("lls", *TRAINING_SCORES, "drtp", "dfa", "bp")
RULES = (*LEARNING, "inference")
Models = tuple[FastWindowedModel, WindowedModel]


def machine(
    rows: int, cols: int, fraction_bits: int = 20, delta_bits: int = 18, gradient_bits: int = 48, rule: str = "lls"
) -> Machine:
    """A machine with room for the networks here."""
    return Machine(
        f"{rows}x{cols}",
        rows,
        cols,
        weight_depth=1 << 16,
        activation_depth=1 << 16,
        max_neurons=2000,
        max_fan_in=8000,
        bias_depth=4096,
        max_layers=8,
        delta_bits=delta_bits,
        fraction_bits=fraction_bits,
        gradient_bits=gradient_bits,
        result_fifo_depth=1024,
        rule=rule,
    )


def conv(channels: int, kernel: int | tuple[int, int] = 3, latent: int = 2, **more: Any) -> Convolution:
    """A convolution; one number for a square."""
    return Convolution(channels, kernel if isinstance(kernel, tuple) else (kernel, kernel), (latent, latent), **more)


def network(shape: tuple[int, ...], layers: list, basis: str = "square", **recipe: Any) -> Network:
    """With a recipe in which weights move a lot, unless it says otherwise."""
    hidden = recipe.get("hidden_rate_shift", 3)
    others = {"rate_shifts": (("drtp", max(-8, hidden - 4)), ("dfa", max(-8, hidden - 3)), ("bp", max(-8, hidden - 3)))}
    found = Recipe(**{"hidden_rate_shift": 3, "output_rate_shift": 3, **others, **recipe})
    return Network("test", shape, layers[-1].neurons, basis, tuple(layers), found)


def random_network(rng: np.random.Generator) -> Network:
    """One to three convolutions and fully connected layers of every kind."""
    height, width, channels = (int(n) for n in rng.integers((5, 5, 1), (13, 13, 4)))
    shape, layers = (height, width, channels), []
    for _ in range(rng.integers(1, 4)):
        kernel = tuple(int(rng.integers(1, min(5, size) + 1)) for size in (height, width))
        depthwise = rng.random() < 0.3
        channels = channels if depthwise else int(rng.choice([1, 3, 16, 31, 32, 33, 40]))
        layer = Convolution(
            channels,
            (kernel[0], kernel[1]),
            (int(rng.integers(1, 4)), int(rng.integers(1, 4))),
            stride=int(rng.integers(1, 3)),
            padding=int(rng.integers(0, min(kernel))),
            pool=str(rng.choice(["none", "max", "latent"])) if min(height, width) > 7 else "none",
            depthwise=depthwise,
            activation_fraction=int(rng.integers(2, 7)),
        )
        layers.append(layer)
        height, width, _ = network(shape, [*layers, FullyConnected(2)]).geometry[-2].next_input
    layers += [FullyConnected(int(n), int(rng.integers(2, 7))) for n in rng.integers(2, 40, rng.integers(0, 2))]
    layers.append(FullyConnected(int(rng.integers(2, 12))))
    rates = {name: int(rng.integers(-6, 5)) for name in ("hidden_rate_shift", "output_rate_shift")}
    batch, temperature = int(rng.choice([1, 2, 3, 16])), int(rng.integers(0, 3))
    return network(shape, layers, str(rng.choice(BASES)), batch=batch, temperature_shift=temperature, **rates)


def wild_parameters(net: Network, rng: np.random.Generator) -> Parameters:
    """Parameters of every size up to saturation, corner codes among them."""
    found = []
    for taps, channels in net.shapes:
        pair = []
        for shape in ((channels, taps), (channels,)):
            codes = rng.normal(0, 2.0 ** rng.integers(8, 16), shape)
            codes = np.where(rng.random(shape) < 0.1, rng.choice([-32768, 32767, 0], shape), codes)
            pair.append(np.clip(np.round(codes), -32768, 32767).astype(np.int16))
        found.append((pair[0], pair[1]))
    return found


def wild_samples(net: Network, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples int8, corners first."""
    x = rng.integers(-128, 128, (count, net.features)).astype(np.int8)
    x[0], x[1 % count], x[2 % count] = 127, -128, 0
    return x


def models(net: Network, shape: Machine, parameters: Parameters | None = None, train_hidden: bool = True) -> Models:
    """Both, alike."""
    found = FastWindowedModel(net, shape, SEED, train_hidden), WindowedModel(net, shape, SEED, train_hidden)
    if parameters is not None:
        rng = np.random.default_rng(SEED)
        trained = [wild_codes(codes.shape, rng) for codes in found[1].trained_scores()]
        for model in found:
            model.load_parameters(parameters)
            model.load_trained_scores(trained)
    return found


def assert_same_state(pair: Models) -> None:
    """The whole state, entry by entry."""
    states = pair[0].state_dict(), pair[1].state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert value.dtype == states[1][name].dtype
        wrong = np.argwhere(value != states[1][name])
        assert len(wrong) == 0, f"{name}: {len(wrong)} of {value.size} differ, first {wrong[0]}"


def assert_same_results(pair: Models, x: np.ndarray, labels: np.ndarray | None) -> None:
    """Predictions and scores of every layer, and the state they leave."""
    found, expected = (model.run(x, labels) for model in pair)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, StepResult) and one.prediction == other.prediction
        for number, (score, wanted) in enumerate(zip(one.scores, other.scores, strict=True)):
            assert (score is None) == (wanted is None), f"layer {number}"
            if score is not None and wanted is not None:
                assert score.tolist() == wanted.tolist(), f"layer {number}"
    assert_same_state(pair)


def assert_same_training(pair: Models, rng: np.random.Generator, batches: int = 3) -> None:
    """Results, training and inference over batches and a shorter one at the end."""
    net = pair[0].network
    assert_same_state(pair)
    count = (batches - 1) * net.recipe.batch + max(1, net.recipe.batch // 2)
    x, labels = wild_samples(net, count, rng), rng.integers(0, net.classes, count)
    assert_same_results(pair, x[: net.recipe.batch], labels[: net.recipe.batch])
    if pair[0].machine.learning.learns:
        reports = [model.train(x, labels) for model in pair]
        assert reports[0].predictions.tolist() == reports[1].predictions.tolist()
        assert reports[0].cycles is None
        assert_same_state(pair)
    assert pair[0].predict(x).tolist() == pair[1].predict(x).tolist()
    assert_same_results(pair, x[:3], None)


@pytest.mark.parametrize("start", ["initial", "wild"])
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("rule", RULES)
def test_random_networks(rule: str, seed: int, start: str) -> None:
    rng = np.random.default_rng([SEED, seed])
    net = random_network(rng)
    rows = int(rng.integers(1, 9))
    bits = int(rng.choice([12, 16, 18, 20, 24] if start == "initial" else [4, 12, 20]))
    delta_bits = int(rng.integers(15 if rule == "bp" else 14, 19))
    shape = machine(rows, int(rng.integers(1, rows + 1)), bits, delta_bits, rule=rule)
    if start == "wild":
        shape = replace(shape, vectors=net.classes // 2 + 1)
    pair = models(net, shape, None if start == "initial" else wild_parameters(net, rng))
    before = pair[0].parameters()
    assert_same_training(pair, rng)
    moved = [bool(np.any(old[0] != new[0])) for old, new in zip(before, pair[0].parameters(), strict=True)]
    if rule == "inference":
        assert not any(moved)
    elif start == "initial":
        assert any(moved), "weights that stayed compare nothing"


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("rule", LEARNING)
def test_frozen(rule: str, basis: str) -> None:
    net = network((6, 6, 2), [conv(9, 3, 2, pool="latent"), FullyConnected(20), FullyConnected(4)], basis, batch=3)
    pair = models(net, machine(3, 2, rule=rule), train_hidden=False)
    before = pair[0].parameters()
    assert_same_training(pair, np.random.default_rng(SEED))
    moved = [bool(np.any(old[0] != new[0])) for old, new in zip(before, pair[0].parameters(), strict=True)]
    assert moved == [False, False, True]


# What random networks may miss.


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fraction", [0, 7])
def test_sums_beyond_32_bits(sign: int, fraction: int) -> None:
    """The largest possible pre-activations, in layers of just as many taps as 32 bits hold, and more."""
    extreme = -32768 if sign > 0 else 32767
    for taps in (503, 504, 505, 512, 2000):
        net = network((taps,), [FullyConnected(3, fraction), FullyConnected(2)], batch=2)
        pair = models(net, machine(3, 2))
        parameters = pair[0].parameters()
        parameters[0][0][:], parameters[0][1][:] = extreme, -extreme - 1
        for model in pair:
            model.load_parameters(parameters)
        x = np.full((4, taps), -128, dtype=np.int8)
        x[1, ::2], x[2] = 127, 127
        x[3, 512:] = 0  # 512 products: exactly 2^31
        assert_same_results(pair, x, None)
        assert_same_results(pair, x, np.arange(4) % 2)
    layers = [conv(33, 5, 1, padding=2, activation_fraction=fraction), FullyConnected(2)]
    net = network((4, 4, 21), layers)
    parameters = [
        (np.full((channels, taps), extreme, dtype=np.int16), np.full(channels, extreme, dtype=np.int16))
        for taps, channels in net.shapes
    ]
    pair = models(net, machine(3, 3), parameters)
    x = np.full((2, net.features), -128, dtype=np.int8)
    assert_same_results(pair, x, None)
    assert_same_results(pair, x, np.arange(2))


@pytest.mark.parametrize("rule", LEARNING)
def test_more_positions_than_32_bits_hold(rule: str) -> None:
    """Gradients are then collected in 64 bits: 19 samples of 961 positions, all of them as large as can be."""
    net = network((31, 31, 1), [conv(2, 1, 1), FullyConnected(2)], batch=19, hidden_rate_shift=9)
    pair = models(net, machine(2, 2, rule=rule))
    x = np.full((19, net.features), -128, dtype=np.int8)
    x[::2] = 127
    assert_same_results(pair, x, np.zeros(19, dtype=np.int64))
    rng = np.random.default_rng(SEED)
    assert_same_training(pair, rng, 2)


@pytest.mark.parametrize("room", [0, 1000, 100000])
@pytest.mark.parametrize("rule", LEARNING)
def test_collected_wherever(rule: str, room: int) -> None:
    """The same bits if 32 bits held fewer positions, also where samples are cut."""
    for layer in (conv(33, 3, 3, padding=1, pool="latent"), conv(2, 3, 3, depthwise=True)):
        net = network((50, 50, 2), [layer, FullyConnected(4)], batch=2)
        pair = models(net, machine(4, 4, rule=rule))
        pair[0]._machine["room"] = room
        assert_same_training(pair, np.random.default_rng(SEED), 2)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_signals(pool: str, sign: int) -> None:
    """Of 12 bits, 8-fold, all of one sign, with the largest weights: no sum fits 32 bits."""
    layers = [conv(5, 1, 9, pool=pool), conv(33, 2, 2, pool=pool), FullyConnected(2)]
    # So slow that weights do not saturate at once.
    net = network((31, 31, 1), layers, batch=3, hidden_rate_shift=17)
    extreme = 32767 if sign > 0 else -32768
    parameters = [
        (np.full((channels, taps), extreme, dtype=np.int16), np.full(channels, 32767, dtype=np.int16))
        for taps, channels in net.shapes
    ]
    parameters[0] = (np.abs(parameters[0][0] // 2), parameters[0][1])
    # The classes' scores must differ, and so must their weights' signs, or signals cancel.
    parameters[-1][0][1] = -extreme - 1
    pair = models(net, machine(3, 3, rule="bp"), parameters)
    x = np.full((3, net.features), 127, dtype=np.int8)
    assert_same_results(pair, x, np.ones(3, dtype=np.int64))
    assert_same_training(pair, np.random.default_rng(SEED), 2)


def test_samples_of_very_different_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their shifts differ by more than those of samples that are summed together may."""
    net = network((8, 8, 2), [conv(8, 3, 3), FullyConnected(20), FullyConnected(3)], batch=6, hidden_rate_shift=11)
    pair = models(net, machine(4, 4, delta_bits=18, gradient_bits=60))
    parameters = pair[0].parameters()
    for _, bias in parameters:
        bias[:] = 0
    for model in pair:
        model.load_parameters(parameters)
    lefts: list[int] = []

    def noted(*arguments) -> int:
        lefts.append(left_shift(*arguments))
        return lefts[-1]

    monkeypatch.setattr(windowed, "left_shift", noted)
    rng = np.random.default_rng(SEED)
    scale = np.array([1, 127, 3, 127, 10, 127])[:, None]
    x = (scale * rng.uniform(-1, 1, (6, net.features))).astype(np.int8)
    assert_same_results(pair, x, rng.integers(0, 3, 6))
    first = lefts[:6]
    assert max(first) - min(first) > windowed_fast.SPREAD and first != sorted(first)
    assert_same_training(pair, rng)


@pytest.mark.parametrize("bits", [17, 20, 24])
def test_small_rates(bits: int) -> None:
    """Shifts small enough that random bits below the LFSR's are 0, and that a signal is not shifted at all."""
    for rate in (8, 14, 20):
        net = network((6, 6, 2), [conv(5, 3, 2), FullyConnected(3)], batch=4, hidden_rate_shift=rate)
        assert_same_training(models(net, machine(3, 3, bits)), np.random.default_rng(SEED))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 5), (3, 2), (5, 1), (8, 8), (32, 32), (31, 7)])
@pytest.mark.parametrize("rule", LEARNING)
def test_machine_shapes(rule: str, shape: tuple[int, int]) -> None:
    net = network((6, 5, 3), [conv(40, (2, 3), 2, pool="max"), FullyConnected(35), FullyConnected(3)], batch=2)
    assert_same_training(models(net, machine(*shape, rule=rule)), np.random.default_rng(SEED))


@pytest.mark.parametrize("steps", [PERIOD - 1, PERIOD - 7, 40000, 0])
@pytest.mark.parametrize("rule", LEARNING)
def test_random_numbers_wrap_around(rule: str, steps: int) -> None:
    layers = [conv(16, 3, 2), conv(16, 3, 2, depthwise=True), FullyConnected(40), FullyConnected(3)]
    net = network((7, 7, 3), layers, batch=2)
    pair = models(net, machine(8, 8, rule=rule))
    for model in pair:
        model.update_steps = model.bias_steps = steps
    assert_same_training(pair, np.random.default_rng(SEED))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rule", LEARNING)
def test_many_positions(rule: str, batch: int) -> None:
    """More than are worked on together, forward and update."""
    for layer in (conv(33, 3, 3, padding=1, pool="latent"), conv(2, 3, 3, depthwise=True)):
        net = network((50, 50, 2), [layer, FullyConnected(4)], batch=batch)
        assert net.geometry[0].positions > windowed_fast.ROWS_MAX
        assert_same_training(models(net, machine(4, 4, rule=rule)), np.random.default_rng(SEED), 2)


@pytest.mark.parametrize("cut", [4, 60])
@pytest.mark.parametrize("rule", LEARNING)
def test_resumed_across_calls_and_models(monkeypatch: pytest.MonkeyPatch, rule: str, cut: int) -> None:
    monkeypatch.setattr(windowed_fast, "SAMPLES_A_CALL", 10)
    net = network((6, 6, 1), [conv(8, 3, 2, pool="max"), FullyConnected(5)], batch=4)
    shape = machine(4, 4, rule=rule)
    rng = np.random.default_rng(SEED)
    x, labels = wild_samples(net, 90, rng), rng.integers(0, 5, 90)
    whole, first, second = (FastWindowedModel(net, shape, seed) for seed in (3, 3, 4))
    whole.train(x, labels)
    first.train(x[:cut], labels[:cut])
    second.load_state_dict(first.state_dict())
    first.train(x[:5], labels[:5])  # the state that was given away must not follow
    second.train(x[cut:-10], labels[cut:-10])
    plain = WindowedModel(net, shape)
    plain.load_state_dict(second.state_dict())
    plain.train(x[-10:], labels[-10:])
    assert_same_state((whole, plain))
    assert plain.identity() == whole.identity()
    assert plain.batch == whole.batch == 4
    assert whole.predict(x).tolist() == plain.predict(x).tolist()
    assert len(whole.predict(x[:0])) == 0


def test_inference_changes_nothing() -> None:
    net = network((6, 6, 1), [conv(8, 3, 2, pool="max"), FullyConnected(5)], batch=4)
    model = FastWindowedModel(net, machine(4, 4), SEED)
    before = model.state_dict()
    model.predict(wild_samples(net, 20, np.random.default_rng(SEED)))
    model.step(np.zeros(36, dtype=np.int8))
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_parameters_are_copies() -> None:
    net = network((6, 6, 1), [conv(8, 3, 2, pool="max"), FullyConnected(5)], batch=4)
    model = FastWindowedModel(net, machine(4, 4), SEED)
    given = model.parameters()
    model.load_parameters(given)
    before = model.state_dict()
    for pair in (*given, *model.parameters()):
        for array in pair:
            array[...] = 1
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_refuses_what_the_plain_model_refuses() -> None:
    net = network((6, 6, 1), [conv(8, 3, 2), FullyConnected(5)], batch=4)
    with pytest.raises(SpecError, match="gradient_bits"):
        FastWindowedModel(net, machine(4, 4, fraction_bits=12, gradient_bits=0))
    model = FastWindowedModel(net, machine(4, 4))
    with pytest.raises(SpecError, match="labels"):
        model.train(np.zeros((1, 36), dtype=np.int8), np.array([5]))
    with pytest.raises(SpecError, match="int8"):
        model.predict(np.zeros((1, 36)))
    model = FastWindowedModel(net, machine(4, 4, rule="inference"))
    with pytest.raises(SpecError, match=r"^machine 4x4: cannot train: its rule is inference$"):
        model.train(np.zeros((1, 36), dtype=np.int8), np.array([0]))


def test_kept_code_is_that_of_its_sources() -> None:
    """Every module that the compiled code calls into is in the checksum that it is kept with."""
    modules, met, waiting = set(), set(), [windowed_fast._run]
    while waiting:
        function = waiting.pop().py_func
        for name in function.__code__.co_names:
            called = function.__globals__.get(name)
            modules.add(getattr(called, "__module__", None))
            if hasattr(called, "py_func") and called not in met:
                met.add(called)
                waiting.append(called)
    golden = {name for name in modules if str(name).startswith("golden.")} - {windowed_fast.__name__}
    assert {"golden.fast", "golden.vectors", "golden.windowed_fast_back"} <= golden
    assert golden <= {module.__name__ for module in windowed_fast.CALLED}
    assert [type(cell.cell_contents) for cell in windowed_fast._run.py_func.__closure__] == [int]
