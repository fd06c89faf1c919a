"""Forward-forward: its losses by hand, gradients against finite differences and autograd, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from golden.checkpoint import Parameters
from golden.float_model import FloatBackend
from golden.rules import ForwardForward, make_rule
from golden.train import initial_parameters
from spec.errors import SpecError
from spec.network import Convolution, FullyConnected, Network, Recipe

CLASSES = 4
NET = Network(
    "net", (9,), CLASSES, "sine", (*map(FullyConnected, (7, 8, 6)), FullyConnected(CLASSES)), Recipe(5, 4)
)
WRONG = np.array([1, 0, 3, 0, 2])


def rule() -> ForwardForward:
    """A threshold that some samples exceed, and a slope of the loss that is not the same for all."""
    return ForwardForward(CLASSES, threshold=0.4, sharpness=3.0, strength=2.0)


def batch() -> tuple[Parameters, np.ndarray, np.ndarray]:
    """Parameters, five samples as floats, labels, none of them that of WRONG."""
    random = np.random.default_rng(3)
    parameters = [(2 * w, 2 * b) for w, b in initial_parameters(NET.shapes, 1)]
    return parameters, random.normal(size=(5, NET.features)), np.array([0, 3, 1, 2, 0])


def goodness_by_hand(parameters: Parameters, sample: np.ndarray, label: int) -> list[float]:
    """Of each hidden layer, number by number."""
    values = [2.0 if c == label else 0.0 for c in range(CLASSES)] + list(sample[CLASSES:])
    goodness = []
    for weight, bias in parameters[:-1]:
        length = np.sqrt(sum(v * v for v in values) / len(values))
        values = [v / length for v in values]
        z = [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        values = [v if v >= 0 else v / 8 for v in z]
        goodness.append(sum(v * v for v in values) / len(values))
    return goodness


def test_scores_are_the_goodness_of_all_hidden_layers() -> None:
    parameters, x, _ = batch()
    found = rule().scores(NET.geometry, parameters, x)
    for n, label in np.ndindex(5, CLASSES):
        assert found[n, label] == pytest.approx(sum(goodness_by_hand(parameters, x[n], label)), rel=1e-12)


def test_losses_push_goodness_up_with_the_label_and_down_with_another() -> None:
    parameters, x, labels = batch()
    for shown, right in ((labels, True), (WRONG, False)):
        found = rule().losses(parameters, x, shown, right)
        expected = np.zeros(3)
        for n, label in enumerate(shown):
            for layer, goodness in enumerate(goodness_by_hand(parameters, x[n], label)):
                probability = 1 / (1 + np.exp(-3.0 * (goodness - 0.4)))
                expected[layer] -= np.log(probability if right else 1 - probability)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_wrong_label_is_the_best_of_the_others() -> None:
    scores = np.array([[1.0, 5, 3, 5], [1, 5, 3, 5], [0, 0, 0, 0], [-9, -8, -7, -6]])
    assert rule().wrong_labels(scores, np.array([1, 3, 0, 3])).tolist() == [3, 1, 1, 2]


def numeric_gradient(parameters: Parameters, x: np.ndarray, shown: tuple, layer: int, array: np.ndarray) -> np.ndarray:
    """Central differences of a layer's own loss by an array of `parameters`."""
    gradient, step = np.empty_like(array), 1e-6

    def loss() -> float:
        return sum(rule().losses(parameters, x, labels, right)[layer] for labels, right in shown)

    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        upper = loss()
        array[index] = kept - step
        gradient[index] = (upper - loss()) / (2 * step)
        array[index] = kept
    return gradient


def test_gradients_are_the_derivatives_of_each_layers_own_loss() -> None:
    parameters, x, labels = batch()
    made = rule()
    wrong = made.wrong_labels(made.scores(NET.geometry, parameters, x), labels)
    shown = (labels, True), (wrong, False)
    found = made.gradients(NET.geometry, parameters, x, labels)
    for layer in range(3):
        for gradient, array in zip(found.layers[layer], parameters[layer], strict=True):
            numeric = numeric_gradient(parameters, x, shown, layer, array)
            np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
            assert np.abs(numeric).max() > 1e-2
    assert not any(part.any() for part in found.layers[-1]) and not found.own


def test_gradients_equal_autograd() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    parameters, x, labels = batch()
    made = rule()
    found = made.gradients(NET.geometry, parameters, x, labels)
    wrong = made.wrong_labels(found.scores, labels)
    leaves = [tuple(torch.tensor(part, requires_grad=True) for part in pair) for pair in parameters[:-1]]
    loss = torch.zeros((), dtype=torch.float64)
    for shown, sign in ((labels, -1), (wrong, 1)):
        label = 2.0 * functional.one_hot(torch.tensor(shown), CLASSES)
        y = torch.cat([label, torch.tensor(x)[:, CLASSES:]], dim=1)
        for weight, bias in leaves:
            y = functional.normalize(y.detach(), dim=1) * y.shape[1] ** 0.5
            y = functional.leaky_relu(functional.linear(y, weight, bias), 1 / 8)
            loss = loss + functional.softplus(sign * 3.0 * ((y**2).mean(dim=1) - 0.4)).sum()
    loss.backward()
    for pair, leaf in zip(found.layers, leaves, strict=False):
        for mine, theirs in zip(pair, leaf, strict=True):
            np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_a_layer_sees_only_the_direction_of_the_one_below() -> None:
    parameters, x, labels = batch()
    louder = [(3 * parameters[0][0], 3 * parameters[0][1]), *parameters[1:]]
    for (below, y), (same_below, same_y) in list(
        zip(rule().layers(parameters, x, labels), rule().layers(louder, x, labels), strict=True)
    )[1:]:
        np.testing.assert_allclose(np.mean(below**2, axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(below, same_below, rtol=1e-12)
        np.testing.assert_allclose(y, same_y, rtol=1e-12)


def test_the_inputs_in_the_labels_place_do_not_matter() -> None:
    parameters, x, labels = batch()
    changed = x.copy()
    changed[:, :CLASSES] = np.nan
    one, other = (rule().gradients(NET.geometry, parameters, samples, labels) for samples in (x, changed))
    assert np.array_equal(one.scores, other.scores)
    assert all(np.array_equal(w, v) for (w, _), (v, _) in zip(one.layers, other.layers, strict=True))
    assert np.isnan(changed).any() and not np.array_equal(one.scores[0], one.scores[1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_training_leaves_the_output_layer(batch_size: int) -> None:
    """By the compiled loops and by the equations."""
    net = replace(NET, recipe=Recipe(5, 4, batch=batch_size))
    random = np.random.default_rng(0)
    x, labels = random.integers(0, 128, (20, 9)).astype(np.int8), random.integers(0, CLASSES, 20)
    backend = FloatBackend(net, "forward_forward", dtype=np.float64)
    before = backend.parameters()
    made, parameters = make_rule("forward_forward", net), backend.parameters()
    for start in range(0, 20, batch_size):
        part = slice(start, start + batch_size)
        steps = made.gradients(net.geometry, parameters, x[part] / 128, labels[part]).layers
        parameters = [
            (w - backend.hidden_rate * dw, b - backend.hidden_rate * db)
            for (w, b), (dw, db) in zip(parameters, steps, strict=True)
        ]
    backend.train(x, labels)
    for pair, other, start in zip(backend.parameters(), parameters, before, strict=True):
        for one, two, old in zip(pair, other, start, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-13)
            assert np.array_equal(one, old) == (len(old) == CLASSES)


def test_it_needs_hidden_layers_and_room_for_the_label() -> None:
    convolution = Convolution(3, (3, 3), (2, 2), padding=1)
    for layers, shape in (
        ((FullyConnected(CLASSES),), (9,)),
        ((convolution, FullyConnected(CLASSES)), (5, 5)),
        ((FullyConnected(5), FullyConnected(CLASSES)), (4,)),
    ):
        with pytest.raises(SpecError, match="rule: must have .* for this, got 'forward_forward'"):
            make_rule("forward_forward", Network("net", shape, CLASSES, "sine", layers, Recipe(5, 4)))
