"""Convolutions and mini-batches in floating point, against loops, finite differences and autograd."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest

from golden.checkpoint import Parameters
from golden.data import load_digits
from golden.float_layer import gradient_by_additions, latents_of, window_means
from golden.float_model import (
    FloatBackend,
    default_rates,
    float_baselines,
    forward,
    gradients,
    signals,
)
from golden.rules import (
    DFA,
    RULES,
    LocalLoss,
    Rule,
    cross_entropy,
    make_rule,
    output_error,
    temperature,
)
from golden.train import Progress, initial_parameters
from golden.windowed import WindowedModel
from spec.errors import SpecError
from spec.geometry import LayerGeometry
from spec.machine import load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe

RECIPE = Recipe(5, 4, temperature_shift=1, batch=4)
SHAPES: dict[str, tuple[tuple[int, ...], tuple]] = {
    # Odd maps whose windows the border cuts, and every kind of layer.
    "mixed": (
        (11, 9, 2),
        (
            Convolution(6, (3, 3), (2, 2), padding=1, pool="max"),
            Convolution(6, (3, 3), (2, 1), padding=1, depthwise=True),
            Convolution(5, (2, 3), (2, 3), padding=1, pool="latent"),
            FullyConnected(7),
        ),
    ),
    # Strides, of which one leaves columns unread; windows that divide the map.
    "strided": (
        (16, 13, 3),
        (
            Convolution(4, (5, 5), (4, 2), stride=2, padding=2, pool="max"),
            Convolution(5, (3, 2), (2, 1), stride=2),
        ),
    ),
    # Depthwise with stride, 1x1 behind it, max-pooling of odd maps behind both, latents of one pixel.
    "mobile": (
        (13, 15, 3),
        (
            Convolution(3, (3, 3), (3, 3), stride=2, padding=1, depthwise=True),
            Convolution(8, (1, 1), (2, 2), pool="max"),
            Convolution(8, (3, 3), (1, 1), padding=1, pool="max", depthwise=True),
            Convolution(6, (1, 1), (9, 9), pool="latent"),
            FullyConnected(5),
        ),
    ),
    "dense": ((4, 5), (FullyConnected(9), FullyConnected(6))),
}
CLASSES = 4
RULES = tuple(rule for rule in RULES if rule != "forward_forward")
LOCAL = ("lls", "lls_m", "lls_mxm", "lls_mxm of 3", "local_classifier")
"""The local losses, one of them also with 3 basis vectors."""


def network(name: str, recipe: Recipe = RECIPE, basis: str = "sine") -> Network:
    shape, layers = SHAPES[name]
    return Network("net", shape, CLASSES, basis, (*layers, FullyConnected(CLASSES)), recipe)


def samples(net: Network, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes, the corners in the first two rows, and labels."""
    random = np.random.default_rng(3)
    x = random.integers(-128, 128, (count, net.features)).astype(np.int8)
    x[:1], x[1:2] = 127, -128
    return x, random.integers(0, net.classes, count)


def batch(net: Network) -> tuple[Parameters, np.ndarray, np.ndarray]:
    """Parameters, five samples as floats, labels."""
    x, labels = samples(net)
    return initial_parameters(net.shapes, 1), x / 128, labels


def assert_equal(found: Parameters, expected: Parameters, rtol: float = 1e-11) -> None:
    """Equal but for the rounding of float64, relative to the largest of an array."""
    for pair, other in zip(found, expected, strict=True):
        for one, two in zip(pair, other, strict=True):
            assert one.shape == two.shape
            np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol * np.abs(two).max())


def rule_of(name: str, net: Network) -> Rule:
    """A rule of RULES or LOCAL; what it trains of its own is not where it started."""
    made = make_rule(name.split()[0], net, vectors=3 if name.endswith("3") else None)
    random = np.random.default_rng(6)
    for own in made.own.values():
        own += random.normal(0, 0.3, own.shape)
    return made


# The forward pass, pixel by pixel.


@pytest.mark.parametrize("name", SHAPES)
def test_forward_is_the_sum_over_taps(name: str) -> None:
    net = network(name)
    parameters, x, _ = batch(net)
    trace = forward(net.geometry, parameters, x[:2])
    maps = x[:2].reshape(2, *net.geometry[0].input)
    for (weight, bias), z, layer in zip(parameters, trace.pre, net.geometry, strict=True):
        maps = maps.reshape(2, *layer.input)
        (h, w, c), (kh, kw) = layer.input, layer.kernel
        expected = np.zeros((2, *layer.output)) + bias
        for n, oy, ox, j in np.ndindex(expected.shape):
            for ky, kx in np.ndindex(kh, kw):
                y, x_at = oy * layer.stride + ky - layer.padding, ox * layer.stride + kx - layer.padding
                if not (0 <= y < h and 0 <= x_at < w):
                    continue
                if layer.depthwise:
                    expected[n, oy, ox, j] += weight[j, ky * kw + kx] * maps[n, y, x_at, j]
                else:
                    row = weight[j, (ky * kw + kx) * c : (ky * kw + kx + 1) * c]
                    expected[n, oy, ox, j] += row @ maps[n, y, x_at]
        np.testing.assert_allclose(z, expected, rtol=1e-12, atol=1e-13)
        maps = pooled(np.where(z < 0, z / 8, z), layer)
    assert np.array_equal(trace.scores, trace.pre[-1].reshape(2, CLASSES))


def pooled(y: np.ndarray, layer: LayerGeometry) -> np.ndarray:
    """What the next layer reads, block by block or window by window."""
    height, width = (2, 2) if layer.pool == "max" else layer.window
    found = np.empty((len(y), *layer.next_input))
    if layer.pool == "none":
        return y
    for row, column in np.ndindex(found.shape[1:3]):
        part = y[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        found[:, row, column] = part.max(axis=(1, 2)) if layer.pool == "max" else share(part, layer)
    return found


def share(window: np.ndarray, layer: LayerGeometry) -> np.ndarray:
    """A window's sum over the power of two next to the pixels of a whole one."""
    return window.sum(axis=(1, 2)) / 2 ** round(math.log2(math.prod(layer.window)))


def test_latents_are_numbered_by_channel_row_and_column() -> None:
    net = network("mixed")
    layer = net.geometry[0]
    assert layer.window == (6, 6) and layer.grid == (2, 2)
    y = np.random.default_rng(0).normal(size=(3, *layer.output))
    found = latents_of(y, layer)
    for n, j, wy, wx in np.ndindex(3, layer.channels, 2, 2):
        window = y[n, 6 * wy : 6 * wy + 6, 6 * wx : 6 * wx + 6, j]
        assert found[n, j * 4 + wy * 2 + wx] == pytest.approx(window.sum() / 32, rel=1e-13)


# Gradients without autograd.


def numeric_gradient(loss: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """Central differences of a loss by an array that it reads, for 40 of its elements; else NaN."""
    gradient, step = np.full(array.size, np.nan), 1e-6
    flat = array.reshape(-1)
    for index in np.random.default_rng(0).permutation(array.size)[:40]:
        kept = flat[index]
        flat[index] = kept + step
        upper = loss()
        flat[index] = kept - step
        gradient[index] = (upper - loss()) / (2 * step)
        flat[index] = kept
    return gradient.reshape(array.shape)


def scores_by_definition(made: LocalLoss, layer: int, a: np.ndarray) -> np.ndarray:
    """Class scores `(N, K)` of latents, as each rule is stated."""
    C = made.bases[layer]
    unit = a / np.sqrt((a**2).sum(axis=1, keepdims=True))
    own = list(made.own.values())
    if made.name == "local_classifier":
        return np.einsum("kn,bn->bk", own[layer], unit)
    of_vectors = np.einsum("in,bn->bi", C, unit)
    if made.name == "lls_m":
        return of_vectors * own[layer]
    return np.einsum("bi,ik->bk", of_vectors, own[layer]) if made.name == "lls_mxm" else of_vectors


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rule", ["bp", *LOCAL])
def test_gradients_are_the_derivatives_of_the_losses(name: str, rule: str) -> None:
    net = network(name)
    parameters, x, labels = batch(net)
    made = rule_of(rule, net)
    found = made.gradients(net.geometry, parameters, x, labels)

    def loss(layer: int) -> float:
        trace = forward(net.geometry, parameters, x)
        if rule == "bp" or layer == len(parameters) - 1:
            return cross_entropy(trace.scores, labels, temperature())
        assert isinstance(made, LocalLoss)
        latents = latents_of(trace.outputs[layer], net.geometry[layer])
        return cross_entropy(scores_by_definition(made, layer, latents), labels, temperature(1))

    trained = [(layer, array) for layer, arrays in enumerate(parameters) for array in arrays]
    trained += list(enumerate(made.own.values()))
    steps = [*(step for pair in found.layers for step in pair), *found.own.values()]
    assert found.own.keys() == made.own.keys()
    assert len(made.own) == (0 if rule in ("bp", "lls") else len(parameters) - 1)
    for (layer, array), gradient in zip(trained, steps, strict=True):
        numeric = numeric_gradient(partial(loss, layer), array)
        known = ~np.isnan(numeric)
        assert gradient.shape == array.shape
        np.testing.assert_allclose(gradient[known], numeric[known], rtol=1e-5, atol=1e-7)
        assert np.abs(numeric[known]).max() > 1e-3


@pytest.mark.parametrize("rule", LOCAL)
@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_needs_one_product_a_window(name: str, rule: str) -> None:
    net = network(name)
    parameters, x, labels = batch(net)
    made = rule_of(rule, net)
    assert isinstance(made, LocalLoss)
    trace = forward(net.geometry, parameters, x)
    expected = gradients(net.geometry, parameters, x, labels, made)[:-1]
    windows = made.window_signals(trace, labels)
    found = [
        gradient_by_additions(d, z, taps, layer)
        for d, z, taps, layer in zip(windows, trace.pre, trace.taps, net.geometry, strict=False)
    ]
    assert len(found) == len(parameters) - 1
    assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_is_the_sum_of_its_samples(rule: str, name: str) -> None:
    net = network(name)
    parameters, x, labels = batch(net)
    made = rule_of(rule, net)
    whole = made.gradients(net.geometry, parameters, x, labels)
    each = [slice(n, n + 1) for n in range(len(x))]
    single = [made.gradients(net.geometry, parameters, x[n], labels[n]) for n in each]
    layers = [one.layers for one in single]
    sums = [tuple(sum(part) for part in zip(*layer, strict=True)) for layer in zip(*layers, strict=True)]
    assert_equal(whole.layers, [(np.asarray(w), np.asarray(b)) for w, b in sums])
    np.testing.assert_allclose(whole.scores, np.concatenate([one.scores for one in single]), rtol=1e-11)
    for key, own in whole.own.items():
        np.testing.assert_allclose(own, sum(one.own[key] for one in single), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", ["dfa", "drtp"])
@pytest.mark.parametrize("name", SHAPES)
def test_fixed_feedback_reaches_every_pixel(name: str, rule: str) -> None:
    """Of the output error, or of what it is of an output of 0: minus the label, in units of 1/T."""
    net = network(name)
    parameters, x, labels = batch(net)
    parameters = [(15 * w, 15 * b) for w, b in parameters]
    dfa = make_rule(rule, net, seed=3)
    assert isinstance(dfa, DFA)
    trace = forward(net.geometry, parameters, x, bounded=dfa.bounded)
    error = output_error(trace.scores, labels, temperature())
    onehot = np.array([[float(c == label) for c in range(CLASSES)] for label in labels])
    sent = error if rule == "dfa" else -2 * np.log(2) * onehot
    largest = max(np.abs(y).max() for y in trace.outputs)
    assert largest == 8 if rule == "drtp" else largest > 16
    for F, z, delta in zip(dfa.feedback, trace.pre, dfa.signals(parameters, trace, error, labels), strict=False):
        assert F.shape == (CLASSES, z[0].size) and delta.shape == z.shape
        slopes = np.where(z < 0, 1 / 8, 1)
        if rule == "drtp":
            slopes[(z >= 8) | (z <= -64)] = 0
        expected = np.einsum("nk,ki->ni", sent, F) * slopes.reshape(len(z), -1)
        np.testing.assert_allclose(delta.reshape(len(z), -1), expected, rtol=1e-12, atol=1e-16)
        assert 0.7 < np.abs(F).max() * z[0, :, :, 0].size * np.sqrt(CLASSES) <= 1
    frozen = signals(trace, parameters, labels, make_rule("frozen", net))
    assert not any(delta.any() for delta in frozen[:-1])
    np.testing.assert_array_equal(frozen[-1].reshape(len(x), -1), error)


# Against autograd.


def torch_gradients(
    torch: ModuleType, net: Network, parameters: Parameters, x: np.ndarray, labels: np.ndarray, made: Rule
) -> tuple[Parameters, dict[str, np.ndarray]]:
    """The rules as autograd has them, in PyTorch's order of axes: local losses and feedback on detached
    layers. Also the gradients of what a rule trains of its own.
    """
    functional = torch.nn.functional
    leaves = [tuple(torch.tensor(array, requires_grad=True) for array in pair) for pair in parameters]
    target = torch.tensor(labels)
    shape = net.input_shape if len(net.input_shape) == 3 else (*net.input_shape, 1)
    y = torch.tensor(x).reshape(len(x), *shape).permute(0, 3, 1, 2)
    outputs, losses = [], []
    own = {key: torch.tensor(array, requires_grad=True) for key, array in made.own.items()}
    for index, ((weight, bias), layer) in enumerate(zip(leaves, net.layers, strict=True)):
        channels = y.shape[1]
        if isinstance(layer, FullyConnected):
            if y.ndim == 4:
                y = y.permute(0, 2, 3, 1)
            y = functional.linear(y.flatten(1), weight, bias)
        else:
            groups = channels if layer.depthwise else 1
            kernel = weight.reshape(len(bias), *layer.kernel, channels // groups).permute(0, 3, 1, 2)
            y = functional.conv2d(y, kernel, bias, layer.stride, layer.padding, groups=groups)
        if index == len(leaves) - 1:
            losses.append(functional.cross_entropy(y / temperature(), target, reduction="sum"))
            break
        y = functional.leaky_relu(y, 1 / 8)
        if made.name == "drtp":
            y = y.clamp(-(2.0 ** (7 - layer.activation_fraction)), 2.0 ** (7 - layer.activation_fraction))
        outputs.append(y)
        latents = y
        if isinstance(layer, Convolution):
            height, width = (-(-size // grid) for size, grid in zip(y.shape[2:], layer.latent, strict=True))
            if layer.pool == "max":
                height, width = height + height % 2, width + width % 2
            sums = functional.avg_pool2d(y, (height, width), ceil_mode=True, divisor_override=1)
            latents = sums / 2 ** round(math.log2(height * width))
        if isinstance(made, LocalLoss):
            unit = functional.normalize(latents.flatten(1), dim=1)
            trained = list(own.values())[index] if own else None
            C = trained if made.name == "local_classifier" else torch.tensor(made.bases[index])
            scores = functional.linear(unit, C)
            if made.name == "lls_m":
                scores = scores * trained
            elif made.name == "lls_mxm":
                scores = scores @ trained
            scale = temperature(net.recipe.temperature_shift)
            losses.append(functional.cross_entropy(scores / scale, target, reduction="sum"))
        if isinstance(layer, Convolution) and layer.pool == "max":
            y = functional.max_pool2d(y, 2)
        elif isinstance(layer, Convolution) and layer.pool == "latent":
            y = latents
        if made.name != "bp":
            y = y.detach()
    if isinstance(made, DFA):
        output = 0 if made.name == "drtp" else functional.softmax(y / temperature(), dim=1)
        error = (output - functional.one_hot(target, net.classes).double()).detach()
        for out, F in zip(outputs, made.feedback, strict=True):
            sent = (error / temperature()) @ torch.tensor(F)
            if out.ndim == 4:
                sent = sent.reshape(len(x), *out.shape[2:], out.shape[1]).permute(0, 3, 1, 2)
            losses.append((out * sent).sum())
    torch.stack(losses).sum().backward()
    found = []
    for pair in leaves:
        weight, bias = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in pair)
        found.append((weight.numpy(), bias.numpy()))
    return found, {key: leaf.grad.numpy() for key, leaf in own.items()}


@pytest.mark.parametrize("rule", sorted({*RULES, *LOCAL}))
@pytest.mark.parametrize("name", SHAPES)
def test_every_rule_equals_autograd(name: str, rule: str) -> None:
    torch = pytest.importorskip("torch")
    for basis in ("square", "sine") if rule in LOCAL else ("sine",):
        net = network(name, basis=basis)
        parameters, x, labels = batch(net)
        # So that drtp's activations saturate, some of them.
        parameters = [(15 * w, 15 * b) if rule == "drtp" else (w, b) for w, b in parameters]
        made = rule_of(rule, net)
        found = made.gradients(net.geometry, parameters, x, labels)
        layers, own = torch_gradients(torch, net, parameters, x, labels, made)
        assert_equal(found.layers, layers)
        assert found.own.keys() == own.keys()
        assert_equal([(found.own[key], found.own[key]) for key in own], [(g, g) for g in own.values()])


def test_of_equal_pixels_the_first_takes_the_gradient() -> None:
    """Black images make all pixels equal: what matters is that the rest of the block gets nothing."""
    torch = pytest.importorskip("torch")
    layers = (Convolution(3, (1, 1), (2, 2), pool="max"), FullyConnected(CLASSES))
    net = Network("net", (5, 6), CLASSES, "sine", layers, RECIPE)
    parameters = initial_parameters(net.shapes, 1)
    x, labels = np.zeros((2, net.features)), np.array([0, 3])
    bp = make_rule("bp", net)
    found = gradients(net.geometry, parameters, x, labels, bp)
    assert_equal(found, torch_gradients(torch, net, parameters, x, labels, bp)[0])
    trace = forward(net.geometry, parameters, x)
    delta = signals(trace, parameters, labels, bp)[0]
    assert delta[:, :4:2, ::2].all() and np.count_nonzero(delta) == delta[:, :4:2, ::2].size


@pytest.mark.parametrize("pool", ["none", "max", "latent"])
@pytest.mark.parametrize("grid", [(4, 2), (2, 3), (1, 6), (4, 1)])
def test_windows_that_divide_the_map_are_adaptive_pooling(grid: tuple[int, int], pool: str) -> None:
    torch = pytest.importorskip("torch")
    layers = (Convolution(3, (3, 3), grid, padding=1, pool=pool), FullyConnected(CLASSES))
    layer = Network("net", (8, 12), CLASSES, "sine", layers, RECIPE).geometry[0]
    y = np.random.default_rng(0).normal(size=(2, 8, 12, 3))
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(y).permute(0, 3, 1, 2), grid)
    theirs *= math.prod(layer.window) / 2 ** round(math.log2(math.prod(layer.window)))
    np.testing.assert_allclose(window_means(y, layer), theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(latents_of(y, layer), theirs.flatten(1).numpy(), rtol=1e-12)


# The trainer.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHAPES)
def test_training_is_sgd_on_the_equations(name: str, rule: str) -> None:
    """Batches of 4, 4 and 3; each of a batch is predicted before its update."""
    net = network(name, replace(RECIPE, gain_shift=1))
    x, labels = samples(net, 11)
    backend = FloatBackend(net, rule, seed=7, dtype=np.float64)
    assert backend.batch == 4
    parameters = [(2 * w, 2 * b) for w, b in initial_parameters(net.shapes, 7)]
    assert_equal(backend.parameters(), parameters, 0)
    hidden, output = default_rates(net, rule)
    made = make_rule(rule, net, 7)
    predictions: list[int] = []
    for start in (0, 4, 8):
        part = slice(start, min(start + 4, 11))
        predictions += forward(net.geometry, parameters, x[part] / 128).scores.argmax(axis=1).tolist()
        found = made.gradients(net.geometry, parameters, x[part] / 128, labels[part])
        steps = found.layers
        rates = [hidden] * (len(steps) - 1) + [output]
        for key, own in made.own.items():
            own -= hidden / 4 * found.own[key]
        parameters = [
            (w - rate * dw, b - rate * db)
            for (w, b), (dw, db), rate in zip(parameters, steps, rates, strict=True)
        ]
    report = backend.train(x, labels)
    assert report.predictions.tolist() == predictions and report.cycles is None
    assert_equal(backend.parameters(), parameters)
    for key, own in made.own.items():
        np.testing.assert_allclose(backend.state_dict()[key], own, rtol=1e-11)
    expected = forward(net.geometry, parameters, x / 128).scores.argmax(axis=1)
    assert np.array_equal(backend.predict(x), expected)


@pytest.mark.parametrize("rule", RULES)
def test_training_in_whole_batches_is_training_at_once(rule: str) -> None:
    net = network("mixed")
    x, labels = samples(net, 23)
    whole, parts = FloatBackend(net, rule, 1), FloatBackend(net, rule, 1)
    predictions = whole.train(x, labels).predictions
    first = parts.train(x[:12], labels[:12]).predictions
    resumed = FloatBackend(net, rule, 1)
    resumed.load_parameters(initial_parameters(net.shapes, 99))
    resumed.load_state_dict(parts.state_dict())
    second = resumed.train(x[12:], labels[12:]).predictions
    assert np.array_equal(predictions, np.concatenate([first, second]))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    for key, array in expected.items():
        assert np.array_equal(array, found[key]) and array.dtype == np.float32


def test_single_precision_follows_double() -> None:
    """So nothing in between is of lower precision, and nothing is left out by the conversion."""
    for rule in RULES:
        net = network("mobile")
        x, labels = samples(net, 12)
        single, double = FloatBackend(net, rule), FloatBackend(net, rule, dtype=np.float64)
        for backend in (single, double):
            backend.train(x, labels)
        trace = forward(net.geometry, single.parameters(), (x / 128).astype(np.float32))
        deltas = signals(trace, single.parameters(), labels, make_rule(rule, net, dtype=np.float32))
        assert {array.dtype for array in (*trace.pre, *trace.outputs, *deltas)} == {np.dtype(np.float32)}
        assert_equal([*single.parameters()], double.parameters(), 1e-4)


def test_predictions_do_not_depend_on_how_many_there_are() -> None:
    net = network("strided")
    x, _ = samples(net, 300)
    backend = FloatBackend(net, dtype=np.float64)
    single = [int(backend.predict(x[n : n + 1])[0]) for n in range(300)]
    assert backend.predict(x).tolist() == single and len(set(single)) > 1
    assert backend.predict(x[:0]).shape == (0,)


def test_the_rates_are_the_integer_models() -> None:
    """An update of a batch is that of `golden.windowed`, but for its rounding of all quantities, its
    norm among them: to a power of two.
    """
    layers = (
        Convolution(6, (3, 3), (2, 2), padding=1, pool="max", activation_fraction=5),
        Convolution(8, (3, 3), (2, 2), padding=1, depthwise=False, stride=2, pool="latent"),
        FullyConnected(32),
        FullyConnected(CLASSES),
    )
    net = Network("net", (8, 8), CLASSES, "square", layers, Recipe(8, 8, batch=64, temperature_shift=1, gain_shift=1))
    random = np.random.default_rng(0)
    x, labels = random.integers(0, 128, (64, 64)).astype(np.int8), random.integers(0, CLASSES, 64)
    integer = WindowedModel(net, load_machine("smallconv"), 2)
    before = [(w / 2**14, b / 2**14) for w, b in integer.parameters()]
    integer.train(x, labels)
    backend = FloatBackend(net, seed=2, dtype=np.float64)
    backend.load_parameters(before)
    backend.train(x, labels)
    for start, codes, floats in zip(before, integer.parameters(), backend.parameters(), strict=True):
        for old, code, new in zip(start, codes, floats, strict=True):
            theirs, ours = (code / 2**14 - old).ravel(), (new - old).ravel()
            assert theirs @ ours > 0.9 * np.linalg.norm(theirs) * np.linalg.norm(ours)
            assert 0.7 < np.linalg.norm(theirs) / np.linalg.norm(ours) < 1.4


def test_wrong_samples_are_refused() -> None:
    net = network("strided")
    x, labels = samples(net, 6)
    with pytest.raises(SpecError, match="labels: must lie in 0…3, got"):
        FloatBackend(net).train(x, labels + CLASSES)
    with pytest.raises(SpecError, match="samples: must be"):
        FloatBackend(net).train(x[:, 1:], labels)
    with pytest.raises(SpecError, match="parameters: must have the shapes"):
        FloatBackend(net).load_parameters(initial_parameters(network("mixed").shapes, 0))
    assert FloatBackend(net).train(x[:0], labels[:0]).predictions.shape == (0,)


def test_convolutions_learn_digits_by_local_losses() -> None:
    """Four epochs of batches of 8: 98 %, and 85 with frozen hidden layers."""
    layers = (
        Convolution(16, (3, 3), (4, 4), padding=1, pool="max"),
        Convolution(32, (3, 3), (2, 2), padding=1, pool="latent"),
        FullyConnected(10),
    )
    recipe = Recipe(5, 5, temperature_shift=1, batch=8, gain_shift=1)
    net = Network("net", (8, 8), 10, "square", layers, recipe)
    runs = float_baselines(net, load_digits(), 4, (0,), ("lls", "frozen"), Progress(quiet=True))
    reached = {rule: results[0].test_accuracy for rule, results in runs.items()}
    assert reached["lls"] >= 94 and reached["frozen"] <= 90, reached
