"""The cycle simulator against the compiled Verilog: every phase of every layer, over many shapes."""

import random
from functools import cache

import numpy as np
import pytest

import sim.rtl.backend
from hdl.dense.core import Core
from hdl.verilog import to_verilog
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.rtl.backend import RtlBackend
from spec.basis import Basis
from spec.machine import Machine
from spec.network import FullyConnected, Network, Recipe
from spec.timing import Phase

SAMPLES = 3
# (rows, columns, classes, basis): one compiled design each, on which many networks run.
DESIGNS = [(2, 3, 4, "square"), (3, 2, 3, "walsh"), (1, 1, 2, "square"), (4, 4, 10, "sine")]
CORNERS = [[1, 1], [1], [], [2, 2], [31], [5, 1, 24]]


def machine_of(rows: int, cols: int) -> Machine:
    """Room for every network of this test."""
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


def traced(backend: RtlBackend, before: np.ndarray, samples: int) -> list[dict[str, int]]:
    """Cycles of one sample by phase, a dictionary a layer, as the ports showed them."""
    spent = backend.trace().astype(np.int64) - before
    spent[Phase.WAIT] = 0  # it depends on the host
    assert not np.any(spent % samples)
    layers = len(backend.network.shapes)
    found = [{phase: int(spent[Phase[phase.upper()], n]) // samples for phase in CYCLE_PHASES} for n in range(layers)]
    # Nothing happens in layers that there are not, and `finish` belongs to the step, not to a layer.
    assert not np.any(spent[:, layers:])
    assert found[0].pop("finish") == 1 and all(layer.pop("finish") == 0 for layer in found[1:])
    return found


def cycles_of(step) -> list[dict[str, int]]:
    """The same from the closed forms."""
    return [{phase: n for phase, n in layer.cycles.items() if phase != "finish"} for layer in step.layers]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: f"{d[0]}x{d[1]}-{d[3]}")
def test_every_phase_of_every_layer(design, monkeypatch):
    rows, cols, classes, basis = design
    machine = machine_of(rows, cols)
    draw = np.random.RandomState(0)
    # All these networks run on one design: its Verilog is written once.
    written = cache(lambda: to_verilog(Core(machine, classes, Basis(basis, classes)), "top"))
    monkeypatch.setattr(sim.rtl.backend, "Core", lambda *arguments: None)
    monkeypatch.setattr(sim.rtl.backend, "to_verilog", lambda core, name: written())
    for network in networks(*design):
        x = draw.randint(0, 128, (SAMPLES, network.features)).astype(np.int8)
        labels = draw.randint(0, classes, SAMPLES)
        for train_hidden in (True, False):
            backend = RtlBackend(network, machine, 0, train_hidden)
            before = backend.trace().astype(np.int64)
            report = backend.train(x, labels)
            step = training_step(machine, network, train_hidden=train_hidden)
            assert cycles_of(step) == traced(backend, before, SAMPLES), network.shapes
            assert report.cycles == SAMPLES * step.cycles, network.shapes
        before = backend.trace().astype(np.int64)
        backend.predict(x)
        assert cycles_of(inference_step(machine, network)) == traced(backend, before, SAMPLES), network.shapes
