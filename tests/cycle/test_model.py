"""The closed forms against the stepped walk, over many shapes; what they must say of the presets."""

import random

import pytest

from sim.cycle.counts import COMPONENTS, PURPOSES
from sim.cycle.model import CYCLE_PHASES, RULES, inference_step, training_step
from sim.cycle.stepped import walk_training_step
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import FullyConnected, Network, Recipe, load_network
from spec.technology import weight_action

CORNERS = [
    (1, 1, [1, 2]),
    (1, 1, [3, 2, 2]),
    (2, 2, [5, 3, 3]),
    (2, 2, [2, 2, 2]),
    (1, 4, [5, 7, 3]),
    (4, 1, [5, 7, 3]),
    (3, 5, [1, 1, 2]),
    (8, 8, [64, 48, 10]),
    (2, 8, [65, 33, 9]),
    (8, 2, [65, 33, 9]),
]


def shapes(count: int, seed: int = 1):
    """Random machines and layer widths, from few to many tiles."""
    draw = random.Random(seed)
    for _ in range(count):
        widths = [draw.randint(1, 40) for _ in range(draw.randint(1, 3))]
        yield draw.randint(1, 7), draw.randint(1, 7), [*widths, draw.randint(2, 12)]


def machine_of(rows: int, cols: int) -> Machine:
    """A machine that every network here fits."""
    return Machine(
        name="m", rows=rows, cols=cols, weight_depth=65536, activation_depth=65536,
        max_neurons=65535, max_fan_in=65535, bias_depth=65536, max_layers=16, delta_bits=18,
        fraction_bits=12, result_fifo_depth=4096,
    )  # fmt: skip


def network_of(widths: list[int], basis: str = "square") -> Network:
    """Fully connected, from input to classes."""
    layers = tuple(FullyConnected(n) for n in widths[1:])
    return Network("n", (widths[0],), widths[-1], basis, layers, Recipe(6, 5))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows, cols, widths", [*CORNERS, *shapes(25)])
def test_closed_forms_equal_the_stepped_walk(rule, rows, cols, widths):
    machine, network = machine_of(rows, cols), network_of(widths)
    step = training_step(machine, network, rule)
    walked = walk_training_step(machine, network, rule)
    for closed, seen in zip(step.layers, walked, strict=True):
        assert closed.cycles == seen.cycles
        for purpose in PURPOSES:
            check_counts(purpose, machine, closed, seen)
        if rule == "bp":
            # Beside a read a column and step, each delta is read once for its own layer's update.
            reads = closed.counts.total("activation_read", "delta memory")
            writes = closed.counts.total("activation_write", "delta memory")
            assert writes == seen.events.get(("signal", "delta_write"), 0)
            assert reads == seen.events.get(("signal", "delta_read"), 0) + writes


def check_counts(purpose, machine, closed, seen):
    """What the walk saw for a purpose is what the closed form says."""

    def event(name):
        return seen.events.get((purpose, name), 0)

    def count(action, component):
        return closed.counts.total(action, component, purpose)

    part = "transposed weights" if purpose == "signal" else "matrix"
    assert closed.macs[purpose].get(part, 0) == seen.macs.get(purpose, 0)
    multiply = "multiply_8x18" if purpose == "update" else "multiply_8x16"
    assert count(multiply, "multipliers") == event("multiply")
    assert count("add_32", "adders") == event("multiply") + event("accumulate")
    assert count(weight_action(machine, "read"), "weight memory") == event("weight_read")
    assert count(weight_action(machine, "write"), "weight memory") == event("weight_write")
    assert count("activation_read", "activation memory") == event("activation_read")
    assert count("activation_write", "activation memory") == event("activation_write")
    assert count("bias_read", "bias unit") == event("bias_read")
    assert count("bias_write", "bias unit") == event("bias_write")


def test_phases_and_components_are_the_documented_ones():
    step = training_step(load_machine("digits"), load_network("digits"))
    assert tuple(step.cycles_by_phase) == CYCLE_PHASES
    assert {key[0] for key, _ in step.counts} <= set(PURPOSES)
    assert {key[1] for key, _ in step.counts} <= set(COMPONENTS)
    assert step.cycles == sum(step.cycles_by_phase.values())


def test_macs_of_digits_by_hand():
    machine, network = load_machine("digits"), load_network("digits")
    forward = 64 * 128 + 128 * 128 + 128 * 10
    lls = training_step(machine, network)
    assert lls.macs_by_phase["forward"] == lls.macs_by_phase["update"] == forward == network.macs
    assert lls.signal_macs == {
        "scores": 10 * 256,
        "gradient": 10 * 256,
        "norm": 256,
        "projection": 256 + 2 * 10,
    }
    bp = training_step(machine, network, "bp")
    # The first layer needs no transposed pass.
    assert bp.signal_macs == {"transposed weights": 128 * 128 + 128 * 10}
    dfa = training_step(machine, network, "dfa")
    assert dfa.signal_macs == {"feedback": 10 * 256}
    assert lls.utilization == pytest.approx(2 * forward / 64 / lls.cycles, rel=1e-15)


def test_mnist_reaches_nine_tenths_of_the_bound():
    step = training_step(load_machine("mnist"), load_network("mnist"))
    assert 0.9 <= step.utilization < 1


def test_frozen_layers_have_no_signal_and_no_update():
    step = training_step(load_machine("digits"), load_network("digits"), train_hidden=False)
    for layer in step.layers[:-1]:
        assert layer.cycles["signal"] == layer.cycles["update"] == 0
        assert not layer.counts.total("multiply_8x18") and not layer.macs["signal"]
    assert step.layers[-1].cycles["update"] > 0
    assert 0 < step.utilization < 1


def test_an_inference_walks_forward_only():
    machine, network = load_machine("digits"), load_network("digits")
    inference, training = inference_step(machine, network), training_step(machine, network)
    assert inference.cycles_by_phase["update"] == 0
    assert inference.cycles_by_phase["forward"] == training.cycles_by_phase["forward"]
    assert inference.cycles_by_phase["signal"] > network.classes


@pytest.mark.parametrize("basis, bits", [("walsh", 0), ("square", 1), ("sine", 8)])
def test_basis_reads_are_entries_times_their_bits(basis, bits):
    step = training_step(machine_of(4, 4), network_of([9, 7, 5], basis))
    assert step.counts.total("rom_read_bit") == 2 * 7 * 5 * bits
    assert bool(step.counts.total("multiply_8x8", "signal arithmetic") > 7) == (basis == "sine")


def test_refusals():
    with pytest.raises(SpecError, match="rule.*lls, bp, dfa.*'hebb'"):
        training_step(load_machine("digits"), load_network("digits"), "hebb")
    with pytest.raises(SpecError, match="train_hidden"):
        training_step(load_machine("digits"), load_network("digits"), "bp", train_hidden=False)
    with pytest.raises(SpecError, match="weight_depth"):
        training_step(load_machine("digits"), load_network("mnist"))
