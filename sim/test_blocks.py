"""Each block alone against the golden model, on machines of several shapes."""

from dataclasses import replace

import pytest

from sim.runner import Design, run_bench
from spec.machine import Machine, load_machine

TINY = load_machine("tiny")
NARROW = replace(load_machine("ice40up5k"), name="narrow", rows=4, cols=2, weight_depth=64, device=None)
"""4x2 with the 16-bit multipliers' widths."""
ODD = replace(TINY, name="odd", rows=3, cols=5, weight_depth=48, max_fan_in=32, max_neurons=32)
"""Neither rows nor columns are powers of two."""
BACK = replace(ODD, name="back", rule="bp", weight_depth=64)
"""The way back, through more columns than rows."""
SINGLE = replace(TINY, name="single", rows=1, cols=1)
"""No skew, and addresses of no bits for row and column."""


def machine_name(machine: Machine) -> str:
    """For the test's name."""
    return machine.name


@pytest.mark.parametrize("machine", [TINY, NARROW], ids=machine_name)
def test_pe(machine):
    run_bench(Design("pe", machine), "bench_pe")


@pytest.mark.parametrize("machine", [TINY, NARROW, ODD, SINGLE, BACK], ids=machine_name)
def test_array(machine):
    run_bench(Design("array", machine), "bench_array")


@pytest.mark.parametrize("machine", [TINY, ODD, SINGLE], ids=machine_name)
def test_activation_memory(machine):
    run_bench(Design("activation_memory", machine), "bench_activation_memory")


@pytest.mark.parametrize("machine", [TINY, NARROW], ids=machine_name)
def test_post_process(machine):
    run_bench(Design("post_process", machine), "bench_post_process")


@pytest.mark.parametrize("machine", [TINY, NARROW], ids=machine_name)
def test_bias_unit(machine):
    run_bench(Design("bias_unit", machine), "bench_bias_unit")


@pytest.mark.parametrize(("basis", "classes"), [("square", 10), ("walsh", 10), ("sine", 10), ("square", 3)])
def test_basis(basis, classes):
    # Latents that are no power of two, and more than one block of a ROM.
    machine = replace(TINY, max_neurons=200)
    arguments = (("index_bits", machine.neuron_bits),)
    run_bench(Design("basis", machine, classes, basis, arguments), "bench_basis")


@pytest.mark.parametrize(
    ("machine", "classes", "basis"),
    [(TINY, 3, "square"), (NARROW, 10, "walsh"), (ODD, 4, "sine"), (ODD, 10, "square")],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_learning_signal(machine, classes, basis):
    machine = replace(machine, max_neurons=max(machine.max_neurons, classes))
    run_bench(Design("learning_signal", machine, classes, basis), "bench_learning_signal", layers=60)
