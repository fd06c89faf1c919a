"""The whole core against the bit-exact model, trained on real digits, with every weight compared
after every sample."""

from dataclasses import replace

import pytest

from sim.benches.streams import PATTERNS
from sim.runner import Design, run_bench
from spec.machine import load_machine
from spec.network import FullyConnected, Network, Recipe, load_network

TINY = load_machine("tiny")
TWO = replace(
    TINY,
    name="two",
    weight_depth=256,
    activation_depth=128,
    max_neurons=16,
    max_fan_in=64,
    bias_depth=32,
    result_fifo_depth=64,
)
"""The tiny array with memories for digits."""
FOUR = replace(load_machine("ice40up5k"), name="four", rows=4, cols=2, weight_depth=256, device=None)
"""4x2, and the narrow operands of a 16-bit multiplier."""
EIGHT = replace(load_machine("digits"), name="eight", weight_depth=256, max_neurons=32, device=None)
"""The digits preset with smaller memories, which compile faster."""
ODD = replace(TINY, name="odd", rows=3, cols=5, weight_depth=48, activation_depth=32, max_fan_in=32)
"""Neither rows nor columns are powers of two."""
SINGLE = replace(TINY, name="single", rows=1, cols=1, weight_depth=128, activation_depth=64)
"""An array without any skew."""

BASES = ("square", "walsh", "sine")


def network(*sizes: int, basis: str = "square", **recipe: int) -> Network:
    """Fully connected from ``sizes[0]`` inputs to ``sizes[-1]`` classes."""
    return Network(
        name="-".join(map(str, sizes)),
        input_shape=(sizes[0],),
        classes=sizes[-1],
        basis=basis,
        layers=tuple(FullyConnected(size) for size in sizes[1:]),
        recipe=Recipe(**{"hidden_rate_shift": 6, "output_rate_shift": 5, **recipe}),
    )


def run(case: str, machine, net: Network, **parameters) -> None:
    """Run one case of the core's bench."""
    design = Design("core", machine, net.classes, net.basis)
    run_bench(design, "bench_core", case=case, network=net, **parameters)


@pytest.mark.parametrize("stalls", PATTERNS)
@pytest.mark.parametrize("basis", BASES)
def test_tiny_trains(basis, stalls):
    net = replace(load_network("tiny"), basis=basis)
    run("trains", TINY, net, samples=40, stalls=stalls)


@pytest.mark.parametrize("sizes", [(4, 3), (8, 8, 3), (1, 2, 3), (5, 4, 3, 3), (7, 1, 2, 3)], ids=str)
def test_tiny_shapes(sizes):
    run("trains", TINY, network(*sizes), samples=16, weight_scale=6000)


def test_tiny_recipe():
    net = network(5, 3, 3, hidden_rate_shift=2, output_rate_shift=9, temperature_shift=2)
    run("trains", TINY, net, samples=16, weight_scale=3000)


@pytest.mark.parametrize("train_hidden", [True, False], ids=["all", "frozen"])
@pytest.mark.parametrize("stalls", [*PATTERNS, "slow"])
def test_tiny_pipelined(stalls, train_hidden):
    run(
        "pipelined", TINY, load_network("tiny"), samples=60, stalls=stalls, train_hidden=train_hidden, weight_scale=4000
    )  # fmt: skip


def test_tiny_frozen():
    run("trains", TINY, network(5, 4, 3, 3), samples=16, train_hidden=False)


@pytest.mark.parametrize("case", ["bad_packets", "scores_off", "phases", "identity", "memories"])
def test_tiny_protocol(case):
    run(case, TINY, load_network("tiny"), samples=6, stalls="random")


@pytest.mark.parametrize("steps", [(1, 2), (65534, 65533), (1000, 40000)], ids=str)
def test_tiny_resumes(steps):
    run("resumes", TINY, load_network("tiny"), samples=4, update_steps=steps[0], bias_steps=steps[1])


@pytest.mark.parametrize("sizes", [(6, 10, 4), (7, 6, 11, 4), (3, 5, 4)], ids=str)
def test_odd_array(sizes):
    machine = replace(ODD, max_neurons=16, bias_depth=32)
    run("trains", machine, network(*sizes, basis="sine"), samples=12, stalls="random")


def test_single_pe():
    run("trains", SINGLE, network(8, 4, 3, basis="walsh"), samples=8, stalls="random")


@pytest.mark.parametrize(
    ("machine", "sizes", "basis", "stalls"),
    [
        (TWO, (64, 7, 10), "walsh", "random"),
        (FOUR, (64, 9, 6, 10), "sine", "every_other"),
        (EIGHT, (64, 16, 16, 10), "square", "none"),
        (EIGHT, (64, 13, 10), "square", "bursts"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_digits_trains(machine, sizes, basis, stalls):
    run("trains", machine, network(*sizes, basis=basis), samples=8, stalls=stalls)


def test_digits_pipelined():
    run("pipelined", EIGHT, network(64, 24, 17, 10), samples=60, stalls="bursts")
