"""The closed forms against the stepped walk, over many shapes; what they must say of the presets."""

import random
from dataclasses import replace

import pytest

from sim.cycle.counts import COMPONENTS, PURPOSES
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.cycle.step import LayerStep, Step
from sim.cycle.stepped import Walk, WalkedLayer, walk_step
from spec import timing
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import FullyConnected, Network, Recipe, load_network
from spec.rules import RULES
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


def machine_of(rows: int, cols: int, rule: str = "lls", vectors: int = 0) -> Machine:
    """A machine that every network here fits."""
    return Machine(
        name="m", rows=rows, cols=cols, weight_depth=65536, activation_depth=65536,
        max_neurons=65535, max_fan_in=65535, bias_depth=65536, max_layers=16, delta_bits=18,
        fraction_bits=12, result_fifo_depth=4096, rule=rule, vectors=vectors,
    )  # fmt: skip


def network_of(widths: list[int], basis: str = "square") -> Network:
    """Fully connected, from input to classes."""
    layers = tuple(FullyConnected(n) for n in widths[1:])
    return Network("n", (widths[0],), widths[-1], basis, layers, Recipe(6, 5))


WALKED = [*CORNERS, *shapes(25)]


@pytest.mark.parametrize(
    "rule, rows, cols, widths",
    # What trains its scores walks the array as lls does.
    [(name, *found) for name, rule in RULES.items() for found in (WALKED[::4] if rule.trains else WALKED)],
)
def test_closed_forms_equal_the_stepped_walk(rule, rows, cols, widths):
    machine, network = machine_of(rows, cols, rule), network_of(widths)
    for train_hidden in (True, False):
        step = training_step(machine, network, train_hidden=train_hidden)
        check_step(machine, step, walk_step(machine, network, train_hidden))
    check_step(machine, inference_step(machine, network), walk_step(machine, network, labelled=False))


@pytest.mark.parametrize("vectors", [2, 5])
def test_a_matrix_of_fewer_vectors_than_classes(vectors):
    machine, network = machine_of(3, 2, "lls_mxm", vectors=vectors), network_of([7, 9, 4, 5])
    step, square = training_step(machine, network), training_step(machine_of(3, 2, "lls_mxm"), network)
    check_step(machine, step, walk_step(machine, network))
    check_step(machine, inference_step(machine, network), walk_step(machine, network, labelled=False))
    # Two walks over the matrix a layer, one for the scores of an inference.
    assert square.cycles - step.cycles == 3 * 2 * (5 - vectors)
    assert step.signal_macs["scores"] == vectors * 13 and step.signal_macs["parameters"] == 2 * vectors * 5
    assert step.signal_macs["projection"] == 13 + 2 * 5


def check_step(machine: Machine, step: Step, walk: Walk) -> None:
    """What the walk saw of each layer is what the closed form says."""
    assert sum(cycles for *_, cycles in walk.visits) == step.cycles
    for closed, seen in zip(step.layers, walk.layers, strict=True):
        assert closed.cycles == seen.cycles
        for purpose in PURPOSES:
            check_counts(purpose, machine, closed, seen)


def check_counts(purpose: str, machine: Machine, closed: LayerStep, seen: WalkedLayer) -> None:
    """What the walk saw for a purpose is what the closed form says."""

    def event(name):
        return seen.events.get((purpose, name), 0)

    def count(action, component):
        return closed.counts.total(action, component, purpose)

    part = "transposed weights" if purpose == "signal" else "matrix"
    assert closed.macs[purpose].get(part, 0) == seen.macs.get(purpose, 0)
    multiply = "multiply_8x18" if purpose == "update" else "multiply_8x16"
    assert count(multiply, "multipliers") == event("multiply")
    # On the way back a signal has 12 bits, and a product those of two.
    assert count("multiply_8x8", "multipliers") == (event("multiply") if purpose == "signal" else 0)
    assert count("add_32", "adders") == event("multiply") + event("accumulate")
    assert count(weight_action(machine, "read"), "weight memory") == event("weight_read")
    assert count(weight_action(machine, "write"), "weight memory") == event("weight_write")
    assert count("activation_read", "activation memory") == event("activation_read")
    assert count("activation_write", "activation memory") == event("activation_write")
    assert count("bias_read", "bias unit") == event("bias_read")
    assert count("bias_write", "bias unit") == event("bias_write")
    assert count("activation_read", "delta memory") == 2 * event("delta_read")
    assert count("activation_write", "delta memory") == 2 * event("delta_write")
    if not machine.learning.scores:
        assert count("activation_write", "latent memory") == -(-event("kept_bit") // 8)
    # A parameter of class scores has 24 bits; small memories and large ones have a price each.
    for access in ("read", "write"):
        found = sum(count(f"activation_{access}{size}", "score memory") for size in ("", "_32kb"))
        assert found == 3 * event(f"parameter_{access}")


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
    assert training_step(machine, network, "drtp").signal_macs == {}
    bp = training_step(machine, network, "bp")
    # The first layer needs no transposed pass.
    assert bp.signal_macs == {"transposed weights": 128 * 128 + 128 * 10}
    dfa = training_step(machine, network, "dfa")
    assert dfa.signal_macs == {"feedback": 10 * 256}
    # A product a parameter each way, and one in its own gradient; a trained basis is none that is fixed.
    own = lls.signal_macs
    for rule, number in (("lls_m", 2 * 10), ("lls_mxm", 2 * 10 * 10)):
        trained = dict.fromkeys(("trained scores", "trained gradient", "parameters"), number)
        assert training_step(machine, network, rule).signal_macs == own | trained
    assert training_step(machine, network, "local_classifier").signal_macs == {
        "norm": 256, "projection": 256 + 2 * 10,
        **dict.fromkeys(("trained scores", "trained gradient", "parameters"), 10 * 256),
    }  # fmt: skip
    assert lls.utilization == pytest.approx(2 * forward / 64 / lls.cycles, rel=1e-15)


def test_mnist_reaches_nine_tenths_of_the_bound():
    step = training_step(load_machine("mnist"), load_network("mnist"))
    assert 0.9 <= step.utilization < 1


def test_cycles_of_digits_by_hand():
    # 64-128-128-10 on 8x8: Rt x T tiles of 8x16, 16x16, 16x2; a pass ends R + C and its tail behind its last step.
    machine, network = load_machine("digits"), load_network("digits")
    steps, drain = 8 * 16 + 16 * 16 + 16 * 2, 3 * 16
    cycles = {rule: training_step(machine, network, rule).cycles_by_phase for rule in RULES}
    forward = steps + drain + 3 * timing.FORWARD_TAIL
    plain, setup = timing.PLAIN_SIGNAL_TAIL, timing.SETUP_CYCLES
    back = (15 * 8 + 2) + (15 * 16 + 16) + 2 * timing.BACK_TAIL
    expected = {
        "lls": (3 * setup, 3 * (30 + timing.SIGNAL_TAIL)),
        "drtp": (3 * setup, 30 + plain),
        "dfa": (5 * setup, 30 + plain),
        "bp": (5 * setup, 30 + plain + back),
        "lls_m": (3 * setup, 3 * (30 + timing.SIGNAL_TAIL + timing.score_cycles("factors", 10)[0])),
        "lls_mxm": (3 * setup, 3 * (30 + timing.SIGNAL_TAIL + timing.score_cycles("matrix", 10)[0])),
    }
    expected["local_classifier"] = expected["lls"]
    for rule, (setups, signal) in expected.items():
        update = steps + drain + 3 * timing.update_tail(rule)
        assert cycles[rule] == dict(setup=setups, forward=forward, signal=signal, update=update, finish=1), rule
    walk = 10 + timing.PLAIN_ARGMAX_TAIL
    assert cycles["inference"] == dict(setup=3 * setup, forward=forward, signal=walk, update=0, finish=1)


def test_order_of_the_phases():
    network = network_of([9, 7, 5, 3])

    def order(rule: str, **options: bool) -> str:
        visits = walk_step(machine_of(2, 3, rule), network, **options).visits
        return " ".join(phase[:2] + str(layer) for phase, layer, _ in visits)

    # Setup, forward, signal, update, finish.
    for rule in ("lls", "lls_m", "lls_mxm", "local_classifier"):
        assert order(rule) == "se0 fo0 si0 up0 se1 fo1 si1 up1 se2 fo2 si2 up2 fi2"
    assert order("drtp") == "se0 fo0 up0 se1 fo1 up1 se2 fo2 si2 up2 fi2"
    forward = "se0 fo0 se1 fo1 se2 fo2 si2"
    assert order("dfa") == f"{forward} up2 se1 up1 se0 up0 fi2"
    assert order("bp") == f"{forward} up2 se1 si1 up1 se0 up0 fi2"
    for rule in RULES:
        assert order(rule, labelled=False) == order("inference") == f"{forward} fi2"
        assert order(rule, train_hidden=False) == f"{forward} {'up2 ' * RULES[rule].learns}fi2"


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_the_machines_unless_said_otherwise(rule):
    machine, network = replace(load_machine("digits"), rule=rule), load_network("digits")
    step = training_step(machine, network)
    assert step == training_step(load_machine("digits"), network, rule)
    assert step.rule == step.machine.rule == rule


@pytest.mark.parametrize("rule", RULES)
def test_frozen_layers_have_no_signal_and_no_update(rule):
    step = training_step(load_machine("digits"), load_network("digits"), rule, train_hidden=False)
    for layer in step.layers[:-1]:
        assert layer.cycles["signal"] == layer.cycles["update"] == 0
        assert layer.cycles["setup"] == timing.SETUP_CYCLES
        assert not layer.counts.total("multiply_8x18") and not layer.macs["signal"]
    assert (step.layers[-1].cycles["update"] > 0) == RULES[rule].learns
    assert not step.layers[-1].macs["signal"]
    assert 0 < step.utilization < 1


@pytest.mark.parametrize("rule", RULES)
def test_an_inference_walks_forward_only(rule):
    machine, network = replace(load_machine("digits"), rule=rule), load_network("digits")
    inference, training = inference_step(machine, network), training_step(machine, network)
    assert inference.rule == "inference" and inference.cycles_by_phase["update"] == 0
    assert inference.cycles_by_phase["forward"] == training.cycles_by_phase["forward"]
    assert inference.cycles_by_phase["signal"] > network.classes
    assert (inference.cycles_by_phase == training.cycles_by_phase) == (rule == "inference")


@pytest.mark.parametrize("basis, bits", [("walsh", 0), ("square", 1), ("sine", 8)])
def test_basis_reads_are_entries_times_their_bits(basis, bits):
    step = training_step(machine_of(4, 4), network_of([9, 7, 5], basis))
    reads = {"lls": 2 * 7 * 5, "dfa": 7 * 5, "drtp": 7, "bp": 0, "inference": 0}
    reads |= {"lls_m": reads["lls"], "lls_mxm": reads["lls"], "local_classifier": 0}
    for rule, entries in reads.items():
        counts = training_step(machine_of(4, 4), network_of([9, 7, 5], basis), rule).counts
        assert counts.total("rom_read_bit") == entries * bits
    assert bool(step.counts.total("multiply_8x8", "signal arithmetic") > 7) == (basis == "sine")


def test_refusals():
    digits = load_machine("digits"), load_network("digits")
    with pytest.raises(SpecError, match="rule.*lls, drtp, dfa, bp, inference.*'hebb'"):
        training_step(*digits, "hebb")
    convolutions = load_machine("conv-tiny"), load_network("conv-tiny")
    with pytest.raises(SpecError, match="index_depth.*multiple of rows"):
        training_step(*convolutions, "bp")
    with pytest.raises(SpecError, match="weight_depth"):
        training_step(load_machine("digits"), load_network("mnist"))
    # Two layers' activations would fit, all of them do not.
    deep = machine_of(4, 4), network_of([4, 16, 16, 16, 3])
    deep = replace(deep[0], activation_depth=2 + 2 * 4), deep[1]
    training_step(*deep, "drtp")
    with pytest.raises(SpecError, match="activation_depth"):
        training_step(*deep, "dfa")
