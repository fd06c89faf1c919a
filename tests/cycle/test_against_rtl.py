"""The cycle simulator against the compiled Verilog: every phase of every layer, over many shapes."""

import random

import numpy as np
import pytest

from sim.benches.networks import conv, network, random_network, windowed_machine
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.cycle.step import Step
from sim.rtl.backend import RtlBackend
from spec.machine import Machine
from spec.network import FullyConnected, Network, Recipe
from spec.timing import Phase

BATCHES = 3
# (rows, columns, classes, basis): one compiled design each, on which many networks run.
DESIGNS = [(2, 3, 4, "square"), (3, 2, 3, "walsh"), (1, 1, 2, "square"), (4, 4, 10, "sine")]
CORNERS = [[1, 1], [1], [], [2, 2], [31], [5, 1, 24]]
WINDOWED_DESIGNS = [
    (2, 2, 3, "square"), (4, 2, 4, "walsh"), (1, 1, 2, "square"), (4, 4, 10, "sine"), (8, 8, 10, "square"),
]  # fmt: skip


def machine_of(rows: int, cols: int) -> Machine:
    """Room for every fully connected network of this test."""
    return Machine(
        name=f"m{rows}x{cols}", rows=rows, cols=cols, weight_depth=4096, activation_depth=256,
        max_neurons=64, max_fan_in=64, bias_depth=256, max_layers=4, delta_bits=18,
        fraction_bits=12, result_fifo_depth=64,
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
    yield network((1,), batch=2, **kinds)
    yield network((1, 1, 1), conv(1, 1), **kinds)
    yield network((5, 4, r), conv(c, 1, 2), c, batch=2, **kinds)
    yield network((5, 4, r + 1), conv(c + 1, 1, (5, 4)), batch=3, **kinds)
    yield network((6, 6, 1), conv(c, 3, 2, padding=1, pool="max"), conv(2 * c, 3, 1, padding=1), **kinds)
    yield network((5, 7, c), conv(c, (3, 2), 2, stride=2, depthwise=True), conv(3, 1, 1, pool="latent"), 7, **kinds)
    yield network((5, 5, c + 1), conv(c + 1, 3, 3, padding=1, depthwise=True, pool="max"), batch=2, **kinds)
    yield network((16, 12, 1), conv(2, 3, 1, padding=1), batch=1, **kinds)
    yield network((3 * r,), 2 * c, c + 1, batch=4, **kinds)
    rng = np.random.default_rng([r, c])
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


def check(machine: Machine, net: Network, classes: int, draw: np.random.RandomState) -> None:
    """Training, frozen or not, in whole batches and in one that is not filled; and inference."""
    batch, shapes = net.recipe.batch, net.shapes
    x = draw.randint(0, 128, (BATCHES * batch, net.features)).astype(np.int8)
    labels = draw.randint(0, classes, len(x))
    for train_hidden in (True, False):
        backend = RtlBackend(net, machine, 0, train_hidden)
        for batches, size in ((BATCHES, batch), (1, max(1, batch - 1))):
            before = backend.trace().astype(np.int64)
            report = backend.train(x[: batches * size], labels[: batches * size])
            step = training_step(machine, net, train_hidden=train_hidden, batch=size)
            assert cycles_of(step) == traced(backend, before, batches, size), shapes
            assert report.cycles == batches * step.cycles, shapes
    before = backend.trace().astype(np.int64)
    backend.predict(x)
    assert cycles_of(inference_step(machine, net)) == traced(backend, before, len(x), 1), shapes


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: f"{d[0]}x{d[1]}-{d[3]}")
def test_every_phase_of_every_layer(design):
    machine, draw = machine_of(*design[:2]), np.random.RandomState(0)
    for net in networks(*design):
        check(machine, net, design[2], draw)


@pytest.mark.parametrize("design", WINDOWED_DESIGNS, ids=lambda d: f"{d[0]}x{d[1]}-{d[3]}")
def test_every_phase_of_every_layer_with_windows(design):
    rows, cols, classes, basis = design
    machine, draw = windowed_machine(rows, cols), np.random.RandomState(0)
    for net in windowed_networks(machine, classes, basis):
        check(machine, net, classes, draw)
