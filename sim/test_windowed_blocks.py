"""Each block of the datapath for convolutions alone against the golden model."""

from dataclasses import replace

import pytest

from sim.runner import Design, run_bench
from spec.machine import Machine, load_machine

FINE = replace(
    load_machine("smallconv"), name="fine", rows=4, cols=2, weight_depth=64, activation_depth=128, max_neurons=128,
    max_fan_in=72, bias_depth=32,
)  # fmt: skip
"""4x2 with all 20 random bits and with inputs that can enter shifted."""
PLAIN = replace(FINE, name="plain", rows=2, cols=2, fraction_bits=14, delta_bits=16, gradient_bits=40)
"""2x2, as many columns as rows, whose LFSRs fill the random bits."""

WIDE = replace(FINE, name="wide", rows=8, cols=8, max_fan_in=64)


def machine_name(machine: Machine) -> str:
    """For the test's name."""
    return machine.name


@pytest.mark.parametrize("machine", [FINE, PLAIN], ids=machine_name)
def test_pe(machine):
    run_bench(Design("windowed_pe", machine), "bench_windowed_pe")


@pytest.mark.parametrize("machine", [FINE, PLAIN], ids=machine_name)
def test_array(machine):
    run_bench(Design("windowed_array", machine), "bench_windowed_array", turns=6)


@pytest.mark.parametrize("machine", [FINE, WIDE], ids=machine_name)
def test_reader(machine):
    design = Design("windowed_reader", machine, arguments=(("max_side", 13),))
    run_bench(design, "bench_windowed_reader", layers=36)


def test_columns():
    run_bench(Design("windowed_columns", WIDE), "bench_windowed_columns", layers=30)


def test_bias_unit():
    machine = replace(WIDE, bias_depth=62)  # banks of 8 words
    run_bench(Design("windowed_bias_unit", machine), "bench_windowed_bias_unit", layers=60)


@pytest.mark.parametrize(
    ("machine", "classes", "basis"),
    [(FINE, 10, "sine"), (PLAIN, 3, "walsh")],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_learning_signal(machine, classes, basis):
    design = Design("windowed_learning_signal", machine, classes, basis)
    run_bench(design, "bench_windowed_learning_signal", layers=60)


def test_writer():
    run_bench(Design("windowed_writer", FINE), "bench_windowed_writer", layers=60)


def test_column_memory():
    machine = replace(WIDE, slope_depth=200, signal_depth=50)
    run_bench(Design("windowed_column_memory", machine), "bench_windowed_column_memory", layers=24)


def test_loader():
    machine = replace(FINE, max_batch=3)
    run_bench(Design("windowed_loader", machine, classes=7), "bench_windowed_loader", programs=8, packets=14)
