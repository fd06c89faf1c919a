"""The cycle simulator and the golden model against the compiled Verilog: every phase of every layer, and every weight,
over many shapes and under every learning rule."""

import random

import numpy as np
import pytest

from golden.fixed import FixedModel
from golden.train import TrainReport
from sim.benches.networks import (
    BACK_DESIGNS,
    NARROW,
    RULE_DESIGNS,
    back_networks,
    conv,
    network,
    random_network,
    windowed_machine,
)
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.cycle.step import Step
from sim.rtl.backend import RtlBackend
from spec.errors import SpecError
from spec.machine import Machine
from spec.network import FullyConnected, Network, Recipe
from spec.timing import Phase

BATCHES = 3
# (rule, rows, columns, classes, basis): one compiled design each, on which many networks run.
DESIGNS = [
    ("lls", 2, 3, 4, "square"), ("lls", 3, 2, 3, "walsh"), ("lls", 1, 1, 2, "square"), ("lls", 4, 4, 10, "sine"),
    ("drtp", 2, 4, 4, "sine"), ("dfa", 2, 4, 4, "square"), ("bp", 4, 2, 4, "square"),
    ("inference", 4, 2, 4, "square"), ("local_classifier", 2, 2, 4, "sine"),
]  # fmt: skip
CORNERS = [[1, 1], [1], [], [2, 2], [31], [5, 1, 24]]
WINDOWED_DESIGNS = [
    (windowed_machine(2, 2), 3, "square"),
    (NARROW, 4, "walsh"),
    (windowed_machine(1, 1), 2, "square"),
    (windowed_machine(4, 4), 10, "sine"),
    (windowed_machine(8, 8), 10, "square"),
    *(design for rule, design in RULE_DESIGNS.items() if rule != "local_classifier"),  # above, and in sim/
    *BACK_DESIGNS,
]


def machine_of(rule: str, rows: int, cols: int) -> Machine:
    """Room for every fully connected network of this test."""
    return Machine(
        name=f"{rule}{rows}x{cols}", rows=rows, cols=cols, weight_depth=4096, activation_depth=256,
        max_neurons=64, max_fan_in=64, bias_depth=256, max_layers=4, delta_bits=18,
        fraction_bits=12, result_fifo_depth=64, rule=rule,
    )  # fmt: skip


def networks(rows: int, cols: int, classes: int, basis: str):
    """Corner shapes, shapes that the array divides and does not, random ones."""
    draw = random.Random(f"{rows}x{cols}")
    hidden = [*CORNERS, [rows, cols], [2 * cols, 3 * rows], [2 * cols + 1, 3 * rows - 1 or 1]]
    hidden += [[draw.randint(1, 30) for _ in range(draw.randint(1, 3))] for _ in range(6)]
    for widths in hidden:
        layers = tuple(FullyConnected(n) for n in (*widths, classes))
        yield Network("n", (draw.randint(1, 40),), classes, basis, layers, Recipe(6, 5))


def windowed_networks(machine: Machine, classes: int, basis: str):
    """Corner shapes, shapes that the array divides and does not, random ones, in batches of 1 to 4."""
    r, c, kinds = machine.rows, machine.cols, {"classes": classes, "basis": basis}
    rng = np.random.default_rng([r, c])
    if machine.learning.transposes:
        yield from back_networks(r, classes).values()
        yield from (random_network(rng, machine, classes, basis) for _ in range(4))
        return
    yield network((1,), batch=2, **kinds)
    yield network((1, 1, 1), conv(1, 1), **kinds)
    yield network((1, 1, r), conv(3 * c, 1), 2 * c + 1, **kinds)
    yield network((5, 4, r), conv(c, 1, 2), c, batch=2, **kinds)
    yield network((5, 4, r + 1), conv(c + 1, 1, (5, 4)), batch=3, **kinds)
    yield network((6, 6, 1), conv(c, 3, 2, padding=1, pool="max"), conv(2 * c, 3, 1, padding=1), **kinds)
    yield network((5, 7, c), conv(c, (3, 2), 2, stride=2, depthwise=True), conv(3, 1, 1, pool="latent"), 7, **kinds)
    yield network((5, 5, c + 1), conv(c + 1, 3, 3, padding=1, depthwise=True, pool="max"), batch=2, **kinds)
    yield network((16, 12, 1), conv(2, 3, 1, padding=1), batch=1, **kinds)
    yield network((3 * r,), 2 * c, c + 1, batch=4, **kinds)
    for _ in range(8):
        yield random_network(rng, machine, classes, basis)


def traced(backend: RtlBackend, before: np.ndarray, batches: int, samples: int) -> list[dict[str, int]]:
    """Cycles of one batch by phase, a dictionary a layer, as the ports showed them; ``samples`` in each."""
    spent = backend.trace().astype(np.int64) - before
    spent[Phase.WAIT] = 0  # it depends on the host
    # `finish` belongs to the step, not to a layer.
    assert spent[Phase.FINISH].sum() == batches * samples
    spent[Phase.FINISH] = 0
    assert not np.any(spent % batches)
    layers = len(backend.network.shapes)
    # Nothing happens in layers that there are not.
    assert not np.any(spent[:, layers:])
    return [{phase: int(spent[Phase[phase.upper()], n]) // batches for phase in CYCLE_PHASES} for n in range(layers)]


def cycles_of(step: Step) -> list[dict[str, int]]:
    """The same from the closed forms."""
    return [{phase: 0 if phase == "finish" else layer.cycles[phase] for phase in CYCLE_PHASES} for layer in step.layers]


def check(machine: Machine, net: Network, draw: np.random.RandomState) -> bool:
    """Training, frozen or not, in whole batches and in one that is not filled; and inference.

    Whether a weight changed where values are checked.
    """
    changed = False
    batch, shapes, learns = net.recipe.batch, net.shapes, machine.learning.learns
    x = draw.randint(0, 128, (BATCHES * batch, net.features)).astype(np.int8)
    labels = draw.randint(0, net.classes, len(x))
    for train_hidden in (True, False):
        backend = RtlBackend(net, machine, 0, train_hidden)
        if not machine.windowed:
            changed |= check_values(backend, FixedModel(net, machine, 0, train_hidden), x, labels, draw)
        for batches, size in ((BATCHES, batch), (1, max(1, batch - 1))):
            before = backend.trace().astype(np.int64)
            report = (backend.train if learns else backend.run)(x[: batches * size], labels[: batches * size])
            step = training_step(machine, net, train_hidden=train_hidden, batch=size)
            assert cycles_of(step) == traced(backend, before, batches, size), shapes
            assert not isinstance(report, TrainReport) or report.cycles == batches * step.cycles, shapes
    before = backend.trace().astype(np.int64)
    backend.predict(x)
    assert cycles_of(inference_step(machine, net)) == traced(backend, before, len(x), 1), shapes
    return changed


def check_values(
    backend: RtlBackend, golden: FixedModel, x: np.ndarray, labels: np.ndarray, draw: np.random.RandomState
) -> bool:
    """Every score, prediction, weight, bias and counter, from weights that saturate activations, or hardly any.

    Whether a weight changed: samples that are certain already train nothing.
    """
    shapes, scale = backend.network.shapes, draw.choice((6000, 24000))

    def codes(*shape: int) -> np.ndarray:
        found = draw.normal(0, scale, shape).clip(-32768, 32767).astype(np.int16)
        # A slope of 1/8 needs the most negative sums to saturate.
        found[-1] = -32768
        return found

    start = [(codes(n_out, n_in), codes(n_out)) for n_in, n_out in shapes]
    scores = [np.clip(codes(*c.shape).astype(int) * 300, -(1 << 23), (1 << 23) - 1) for c in golden.trained_scores()]
    for model in (backend, golden):
        model.load_parameters(start)
        model.load_trained_scores(scores)
    for pixels, label in zip(x, labels, strict=True):
        for tag in (int(label), None):
            got, wanted = backend.step(pixels, tag), golden.step(pixels, tag)
            np.testing.assert_equal((got.prediction, got.scores), (wanted.prediction, wanted.scores), str(shapes))
    got, wanted = backend.state_dict(), golden.state_dict()
    np.testing.assert_equal(got, wanted, str(shapes))
    return any(np.any(got[f"layer{n}_weight"] != weight) for n, (weight, _) in enumerate(start))


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: "{}-{}x{}-{}".format(*d[:3], d[4]))
def test_every_phase_of_every_layer(design):
    rule, rows, cols, classes, basis = design
    machine, draw = machine_of(rule, rows, cols), np.random.RandomState(0)
    changed = sum(check(machine, net, draw) for net in networks(rows, cols, classes, basis))
    assert changed > 10 if machine.learning.learns else changed == 0


@pytest.mark.parametrize("design", WINDOWED_DESIGNS, ids=lambda d: "-".join((d[0].rule, d[0].name, d[2])))
def test_every_phase_of_every_layer_with_windows(design):
    machine, classes, basis = design
    draw = np.random.RandomState(0)
    for net in windowed_networks(machine, classes, basis):
        check(machine, net, draw)


@pytest.mark.parametrize("windowed", [False, True], ids=["dense", "windowed"])
def test_a_core_for_inference_refuses_to_train(windowed):
    machine, net = machine_of("inference", 4, 2), next(iter(networks(4, 2, 4, "square")))
    if windowed:
        machine, classes, basis = RULE_DESIGNS["inference"]
        net = next(windowed_networks(machine, classes, basis))
    with pytest.raises(SpecError, match=f"machine {machine.name}: cannot train: its rule is inference"):
        RtlBackend(net, machine).train(np.zeros((1, net.features), np.int8), np.zeros(1, np.int64))
