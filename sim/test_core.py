"""The whole core against the bit-exact model, under each learning rule, with every weight compared after every
sample."""

from dataclasses import replace
from typing import Any

import pytest

from sim.benches.streams import PATTERNS
from sim.runner import Design, run_bench
from spec.machine import Machine, load_machine
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

SMALL = replace(
    TINY, weight_depth=128, activation_depth=64, max_neurons=16, max_fan_in=16, bias_depth=32, result_fifo_depth=32
)
"""Room for the networks of the rules' tests."""
MACHINES = {
    "drtp": (replace(SMALL, name="drtp", rule="drtp"), "walsh"),
    "dfa": (replace(SMALL, name="dfa", rule="dfa", rows=4, delta_bits=16, fraction_bits=10), "sine"),
    "bp": (replace(SMALL, name="bp", rule="bp", cols=4), "square"),
    "inference": (replace(SMALL, name="inference", rule="inference", rows=1, cols=1, weight_depth=512), "square"),
    "lls_mxm": (replace(SMALL, name="lls_mxm", rule="lls_mxm", vectors=2), "square"),
}
"""A small machine for rules other than ``lls``, and its basis: 2x2, 4x2 with narrow operands, 2x4, 1x1; one of fewer
vectors than classes. Designs take long to compile: others that train their scores, by the same units, are in
``sim/test_windowed_core.py``."""

BASES = ("square", "walsh", "sine")


def network(*sizes: int, basis: str = "square", **recipe: Any) -> Network:
    """Fully connected from ``sizes[0]`` inputs to ``sizes[-1]`` classes."""
    return Network(
        name="-".join(map(str, sizes)),
        input_shape=(sizes[0],),
        classes=sizes[-1],
        basis=basis,
        layers=tuple(FullyConnected(size) for size in sizes[1:]),
        recipe=Recipe(**{"hidden_rate_shift": 6, "output_rate_shift": 5, **recipe}),
    )


def run(case: str, machine: Machine, *networks: Network, **parameters) -> None:
    """Run one case of the core's bench on networks of equal classes and basis."""
    design = Design("core", machine, networks[0].classes, networks[0].basis)
    run_bench(design, "bench_core", case=case, networks=networks, **parameters)


@pytest.mark.parametrize("stalls", PATTERNS)
@pytest.mark.parametrize("basis", BASES)
def test_tiny_trains(basis, stalls):
    net = replace(load_network("tiny"), basis=basis)
    run("trains", TINY, net, samples=40, stalls=stalls)


def test_tiny_shapes():
    sizes = (8, 8, 3), (4, 3), (1, 2, 3), (5, 4, 3, 3), (7, 1, 2, 3)
    run("trains", TINY, *(network(*widths) for widths in sizes), samples=16, weight_scale=6000)


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


@pytest.mark.parametrize("case", ["bad_packets", "scores_off", "phases", "identity", "memories", "watched"])
def test_tiny_protocol(case):
    run(case, TINY, load_network("tiny"), samples=6, stalls="random")


@pytest.mark.parametrize("steps", [(1, 2), (65534, 65533), (1000, 40000)], ids=str)
def test_tiny_resumes(steps):
    run("resumes", TINY, load_network("tiny"), samples=4, update_steps=steps[0], bias_steps=steps[1])


def test_odd_array():
    machine = replace(ODD, max_neurons=16, bias_depth=32)
    sizes = (7, 6, 11, 4), (6, 10, 4), (3, 5, 4)
    run("trains", machine, *(network(*widths, basis="sine") for widths in sizes), samples=12, stalls="random")


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


def networks(basis: str) -> tuple[Network, ...]:
    """Three classes behind 1 to 4 layers, of sizes that arrays of 2 and 4 divide or not; rates from end to end."""
    sizes = (9, 11, 6, 7, 3), (16, 8, 4, 3), (4, 3), (1, 2, 3), (7, 1, 2, 3)
    fast, slow = {"output_rate_shift": -2, "hidden_rate_shift": -2}, {"output_rate_shift": 12, "hidden_rate_shift": 12}
    return (
        *(network(*widths, basis=basis) for widths in sizes),
        network(7, 5, 6, 3, basis=basis, **fast),
        network(5, 9, 3, basis=basis, **slow),
    )


@pytest.mark.parametrize("rule", MACHINES)
def test_rule_trains(rule):
    machine, basis = MACHINES[rule]
    run("trains", machine, *networks(basis), samples=12, stalls="random", weight_scale=14000)


@pytest.mark.parametrize("rule", [rule for rule in MACHINES if rule != "inference"])
def test_rule_frozen(rule):
    machine, basis = MACHINES[rule]
    run("trains", machine, *networks(basis)[:3], samples=6, train_hidden=False, weight_scale=6000)


@pytest.mark.parametrize("stalls", ["bursts", "slow"])
@pytest.mark.parametrize("rule", MACHINES)
def test_rule_pipelined(rule, stalls):
    machine, basis = MACHINES[rule]
    run("pipelined", machine, networks(basis)[0], samples=40, stalls=stalls, weight_scale=4000)


@pytest.mark.parametrize("rule", MACHINES)
def test_rule_protocol(rule):
    machine, basis = MACHINES[rule]
    learning = machine.learning
    cases = "phases+identity" + "+resumes" * learning.learns + "+watched+memories" * bool(learning.trains)
    run(cases, machine, networks(basis)[0], samples=4, weight_scale=4000, update_steps=1000, bias_steps=40000)
