"""The model of forward-forward against a count of its passes, one after the other."""

from dataclasses import replace

import pytest

from sim.cycle.dense import forward_cycles, update_cycles
from sim.cycle.forward_forward import KEPT
from sim.cycle.memory import memory_bytes
from sim.cycle.model import training_step
from spec import timing
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.program import Program

DIGITS = load_machine("digits"), load_network("digits")
HIDDEN = ((64, 128), (128, 128))


def test_passes_of_digits():
    """64-128-128-10 on 8x8, pass by pass: what labels share is formed once, and the output layer is not there."""
    step = training_step(*DIGITS, "forward_forward")
    assert isinstance(step.program, Program)
    layers = step.program.layers[:-1]
    cycles, macs, setups = 0, 0, 0
    first, second = layers
    # All inputs but the labels', then each label's row tile.
    cycles += forward_cycles(first, step.machine)
    macs += 64 * 128
    setups += 1
    for _ in range(10):
        cycles += forward_cycles(replace(first, row_tiles=1), step.machine)
        cycles += forward_cycles(second, step.machine)
        macs += 128 + 128 * 128
        setups += 2
    # Of the label and of a wrong one.
    updates = sum(2 * update_cycles(layer, step.machine) for layer in layers)
    setups += len(layers)
    assert step.cycles_by_phase == {
        "setup": setups * timing.SETUP_CYCLES,
        "forward": cycles,
        "signal": 10 + timing.PLAIN_ARGMAX_TAIL,
        "update": updates,
        "finish": timing.FINISH_CYCLES,
    }
    assert step.macs_by_phase["forward"] == macs
    assert step.macs_by_phase["update"] == 2 * sum(a * b for a, b in HIDDEN)
    # Goodness and norm of each pass, and two products of a neuron.
    assert step.macs_by_phase["signal"] == (10 + 10 + 2) * 256
    assert len(step.layers) == 2
    assert "no hardware" in step.label


def test_it_costs_more_than_any_rule_with_hardware():
    ours = training_step(*DIGITS, "forward_forward")
    bp = training_step(*DIGITS, "bp")
    assert ours.cycles > 3 * bp.cycles
    found, theirs = memory_bytes(ours), memory_bytes(bp)
    assert found["activations"] == KEPT * 256
    assert found["weights"] < theirs["weights"] and found["basis table"] == 0


def test_refusals():
    with pytest.raises(SpecError, match="forward_forward takes fully connected"):
        training_step(load_machine("conv-tiny"), load_network("conv-tiny"), "forward_forward")
    alone = replace(DIGITS[1], layers=DIGITS[1].layers[-1:])
    with pytest.raises(SpecError, match="two or more"):
        training_step(DIGITS[0], alone, "forward_forward")
