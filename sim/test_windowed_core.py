"""The whole core for convolutions and batches against the bit-exact model, under each learning rule: every weight,
score and cycle compared after every batch."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from golden.fixed import StepResult
from golden.windowed import WindowedModel
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
from sim.benches.streams import PATTERNS
from sim.rtl.backend import RtlBackend
from sim.runner import Design, run_bench, seed
from spec.machine import Machine, load_machine
from spec.network import Network, load_network

TINY = load_machine("conv-tiny")
TWO = windowed_machine(2, 2)
FOUR = windowed_machine(4, 4)
EIGHT = windowed_machine(8, 8, max_fan_in=256, weight_depth=512, activation_depth=512)
COARSE = windowed_machine(2, 2, fraction_bits=12, gradient_bits=34)
"""Few random bits: those of the LFSR are cut, and inputs are not shifted at the array's edge."""
SINGLE = windowed_machine(1, 1, weight_depth=2048)
"""An array without any skew."""

SHAPES = {
    "kernels": {
        "1x1": network((5, 4, 3), conv(5, 1, 2), batch=2),
        "2x2": network((5, 6, 2), conv(3, 2, 2), batch=2),
        "3x1": network((6, 4, 3), conv(4, (3, 1), (2, 1)), batch=2),
        "1x3": network((4, 6, 3), conv(4, (1, 3), (1, 2)), batch=2),
        "4x4": network((6, 6, 1), conv(3, 4, 3, padding=1), batch=2),
        "5x5": network((7, 6, 2), conv(5, 5, 2, padding=2), batch=2),
        "5x2": network((9, 5, 1), conv(5, (5, 2), (2, 3), padding=1), batch=2),
    },
    "strides and paddings": {
        "stride 2": network((7, 8, 2), conv(3, 3, 2, stride=2), batch=2),
        "stride 2, padding 1": network(
            (8, 7, 2), conv(3, 3, 2, stride=2, padding=1), conv(4, 3, 1, stride=2, padding=1), batch=1
        ),
        "stride 2, 1x1": network((6, 5, 3), conv(4, 1, 2, stride=2), batch=2),
        "padding 2": network((4, 3, 1), conv(3, 5, 2, padding=2), conv(3, 3, 2, padding=2), batch=2),
        "more padding than map": network((1, 1, 2), conv(3, 5, 1, padding=4), batch=2),
    },
    "depthwise": {
        "depthwise": network((5, 5, 5), conv(5, 3, 2, padding=1, depthwise=True), conv(7, 1, 2), batch=2),
        "depthwise, stride 2": network(
            (6, 7, 3), conv(3, 3, 2, padding=1, stride=2, depthwise=True), conv(4, 1, 1, pool="latent"), batch=3
        ),
        "depthwise behind a wide one": network(
            (4, 4, 2), conv(9, 1, 2), conv(9, 3, 2, padding=1, depthwise=True, pool="max"), batch=2
        ),
    },
    "pooling": {
        "max, odd": network((7, 5, 2), conv(3, 3, 2, padding=1, pool="max"), conv(3, 2, 1), batch=2),
        "max, windows cut": network((9, 7, 1), conv(3, 3, 3, padding=1, pool="max"), batch=2),
        "max, then 1x1": network((2, 2, 3), conv(4, 1, 1, pool="max"), batch=2),
        "max, then odd max": network(
            (10, 6, 1), conv(3, 1, 4, pool="max"), conv(5, 2, 2, pool="max"), conv(2, (2, 1), 1), batch=2
        ),
        "latent": network((6, 6, 2), conv(4, 3, 2, padding=1, pool="latent"), 5, batch=2),
        "latent, then convolution": network((8, 8, 1), conv(3, 3, 4, padding=1, pool="latent"), conv(4, 3, 2), batch=2),
        "latent 1x1": network((6, 5, 2), conv(6, 3, 1, padding=1, pool="latent"), batch=2),
    },
    "windows": {
        "windows cut": network((7, 8, 1), conv(3, 3, (3, 3), padding=1), batch=2),
        "a window a position": network((4, 3, 2), conv(5, 1, 4), batch=2),
        "last window of one position": network((5, 5, 1), conv(5, 3, 3, padding=1), batch=2),
        "rows of windows": network((6, 4, 1), conv(3, 3, (6, 1), padding=1), batch=2),
        "window of 169": network((13, 13, 1), conv(3, 3, 1, padding=1), batch=2),
        "window of 169, max": network((13, 13, 1), conv(3, 3, 1, padding=1, pool="max"), batch=1),
        "window of 256": network((16, 16, 1), conv(3, 3, 1, padding=1, pool="max"), conv(3, 3, 1), batch=1),
        "windows of 128": network((16, 16, 1), conv(2, 1, (2, 1), pool="latent"), batch=1),
        "window of 192, max": network((12, 16, 1), conv(3, 1, 1, pool="max"), batch=2),
    },
    "layers": {
        "flat map": network((1, 9, 2), conv(3, (1, 3), (1, 3)), batch=2),
        "tall map": network((9, 1, 2), conv(3, (3, 1), (3, 1)), 4, batch=2),
        "one channel": network((4, 4, 1), conv(1, 3, 1), 1, batch=2),
        "three convolutions": network(
            (8, 8, 1), conv(3, 3, 4, padding=1, pool="max"), conv(5, 3, 2, padding=1), conv(4, 3, 2, pool="latent"), 5,
        ),
        "classifier alone": network((3, 3, 2), batch=2),
        "fully connected": network((11,), 7, 5, batch=4),
        "one input": network((1,), 2, batch=3),
        "a visit a tile": network((1, 1, 2), conv(5, 1), 7, batch=1),
        "batch 1": network((6, 6, 1), conv(3, 3, 2, padding=1, pool="max"), 4, batch=1),
        "batch 2": network((6, 6, 1), conv(3, 3, 2, padding=1, pool="max"), 4, batch=2),
        "batch 4": network((6, 6, 1), conv(3, 3, 2, padding=1, pool="max"), 4, batch=4),
    },
    "formats": {
        "fractions": network(
            (5, 5, 1), conv(3, 3, 2, padding=1, activation_fraction=7), conv(3, 3, 2, activation_fraction=0), batch=2
        ),
        "recipe": network(
            (5, 5, 1), conv(3, 3, 2, padding=1), 4,
            batch=2, hidden_rate_shift=-2, output_rate_shift=0, temperature_shift=3, gain_shift=2,
        ),
        "slow recipe": network((5, 5, 1), conv(3, 3, 2), batch=2, hidden_rate_shift=14, output_rate_shift=16),
    },
}  # fmt: skip
"""Networks by what they are about and by name."""
NAMED = {name: replace(net, name=name) for group in SHAPES.values() for name, net in group.items()}
PRESET = load_network("conv-tiny")


def run(case: str, machine: Machine, *networks: Network, **parameters) -> None:
    """Runs one case of the core's bench on networks of equal classes and basis."""
    design = Design("windowed_core", machine, networks[0].classes, networks[0].basis)
    run_bench(design, "bench_windowed_core", case=case, networks=networks, **parameters)


@pytest.mark.parametrize("stalls", PATTERNS)
def test_tiny_trains(stalls):
    run("trains", TINY, PRESET, batches=8, stalls=stalls)


@pytest.mark.parametrize("group", SHAPES)
def test_shapes(group):
    run("trains", TWO, *(NAMED[name] for name in SHAPES[group]), batches=4, weight_scale=6000)


@pytest.mark.parametrize("machine", [NARROW, FOUR, COARSE], ids=["narrow-4x2", "4x4", "coarse-2x2"])
def test_shapes_elsewhere(machine):
    names = ("5x5", "depthwise", "max, odd", "three convolutions", "windows of 128", "batch 4", "recipe")
    run("trains", machine, *map(NAMED.__getitem__, names), batches=4, weight_scale=6000, stalls="random")


def test_single_pe():
    names = ("3x1", "latent", "max, windows cut", "fully connected")
    run("trains", SINGLE, *map(NAMED.__getitem__, names), batches=4, weight_scale=6000)


@pytest.mark.parametrize("stalls", [*PATTERNS, "slow"])
def test_tiny_pipelined(stalls):
    run("pipelined", TINY, PRESET, batches=12, stalls=stalls, weight_scale=4000)


@pytest.mark.parametrize("stalls", ["none", "slow"])
def test_tiny_pipelined_and_frozen(stalls):
    run("pipelined", TINY, PRESET, batches=12, stalls=stalls, train_hidden=False, weight_scale=4000)


def test_frozen():
    run("trains", TWO, NAMED["three convolutions"], NAMED["fully connected"], batches=4, train_hidden=False)


@pytest.mark.parametrize("case", ["bad_packets", "scores_off", "phases", "identity", "memories", "watched"])
def test_tiny_protocol(case):
    run(case, TINY, PRESET, batches=4, stalls="random")


def test_a_ring_of_fewer_slots():
    """As many as a batch has samples: the next one loads only when these are released. Or more, but no multiple:
    batches begin anywhere in the ring."""
    for batch, slots in ((1, 1), (2, 2), (2, 3), (4, 4), (4, 7)):
        net = network((5, 3, 2), conv(3, 3, 1, padding=1), batch=batch)
        run("pipelined", TINY, net, batches=16, stalls="random", slots=slots)


@pytest.mark.parametrize("steps", [(1, 2), (65534, 65533), (1000, 40000)], ids=str)
def test_tiny_resumes(steps):
    run("resumes", TINY, PRESET, batches=2, update_steps=steps[0], bias_steps=steps[1])


@pytest.mark.parametrize("stalls", PATTERNS)
@pytest.mark.parametrize("machine", [TWO, NARROW, FOUR], ids=lambda machine: machine.name)
def test_random_networks(machine, stalls):
    number = PATTERNS.index(stalls)
    rng = np.random.default_rng([seed(), number, machine.pes])
    run(
        "trains" if number % 2 else "pipelined", machine,
        *(random_network(rng, machine, 3, "square") for _ in range(4)),
        batches=4, weight_scale=(0, 2000, 8000, 0)[number], stalls=stalls, train_hidden=number != 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "basis", "stalls", "layers", "batch"),
    [
        (FOUR, "walsh", "random", (conv(6, 3, 2, padding=1, pool="max"), conv(5, 3, 2, padding=1), 9), 4),
        (EIGHT, "square", "none", (conv(8, 3, 4, padding=1, pool="max"), conv(16, 3, 2, padding=1), 20), 2),
        (EIGHT, "square", "bursts", (conv(13, 3, 2, padding=1, pool="latent"), 10), 1),
        (EIGHT, "square", "every_other", (conv(9, 3, 4), conv(9, 3, 2, padding=1, depthwise=True), conv(7, 1, 2)), 4),
    ],
    ids=["4x4", "8x8", "8x8-latent", "8x8-depthwise"],
)
def test_digits_train(machine, basis, stalls, layers, batch):
    net = network((8, 8, 1), *layers, classes=10, basis=basis, batch=batch)
    run("trains", machine, net, batches=4, stalls=stalls)


def test_digits_pipelined():
    net = network((8, 8, 1), conv(8, 3, 4, padding=1, pool="max"), conv(12, 3, 2, padding=1), 20, classes=10, batch=4)
    run("pipelined", EIGHT, net, batches=10, stalls="bursts")


# The other rules: a design each. Those that train their scores have one kind of test each, as designs take long to
# compile: `local_classifier` here, `lls_m` below, `lls_mxm` in sim/test_core.py.

BENCHED = [rule for rule in RULE_DESIGNS if rule != "lls_m"]


def on_basis(rule: str, *names: str) -> list[Network]:
    """Networks with the basis that the rule's design has; those of backpropagation are its own."""
    machine, classes, basis = RULE_DESIGNS[rule]
    if machine.learning.transposes:
        found = back_networks(machine.rows, classes)
        return [found[BACK_INSTEAD.get(name, name)] for name in names]
    return [replace(NAMED[name], basis=basis) for name in names]


BACK_INSTEAD = {"three convolutions": "max behind max", "batch 4": "depthwise, stride 2"}
"""Of networks whose kernels it cannot read."""


@pytest.mark.parametrize("rule", BENCHED)
def test_rule_trains(rule):
    machine, *_ = RULE_DESIGNS[rule]
    names = ("depthwise", "max, odd", "three convolutions", "a visit a tile")
    run("trains", machine, *on_basis(rule, *names), batches=4, weight_scale=9000, lowest=True, stalls="random")


@pytest.mark.parametrize("rule", ["drtp", "dfa", "bp", "local_classifier"])
def test_rule_frozen(rule):
    machine, *_ = RULE_DESIGNS[rule]
    run("trains", machine, *on_basis(rule, "three convolutions", "fully connected"), batches=4, train_hidden=False)


@pytest.mark.parametrize("rule", BENCHED)
def test_rule_pipelined(rule):
    """With as many slots as a batch has samples: they are free when the first layer is done with."""
    machine, *_ = RULE_DESIGNS[rule]
    nets = [
        replace(net, recipe=replace(net.recipe, batch=4)) for net in on_basis(rule, "batch 4", "three convolutions")
    ]
    run("pipelined", machine, *nets, batches=12, stalls="slow", weight_scale=4000, slots=4)


@pytest.mark.parametrize("rule", BENCHED)
def test_rule_protocol(rule):
    machine, *_ = RULE_DESIGNS[rule]
    learning = machine.learning
    cases = "phases+identity+watched" + "+resumes" * learning.learns + "+memories" * bool(learning.trains)
    (net,) = on_basis(rule, "max, odd")
    run(cases, machine, net, batches=4, weight_scale=4000, update_steps=1000, bias_steps=40000)


# The same without Python in the cycle loop: many networks on a design, batches one after the other.

RULE_NETWORKS = (
    "stride 2, padding 1", "depthwise", "max, odd", "latent, then convolution", "windows cut", "window of 192, max",
    "three convolutions", "fully connected", "one input", "a visit a tile", "fractions", "recipe", "classifier alone",
)  # fmt: skip
"""What keeps maps, slope bits and signals of every kind, in batches of 1 to 4."""
BACKEND_DESIGNS = [
    *[(TWO, 3, "square"), (NARROW, 4, "walsh"), (FOUR, 10, "sine"), (COARSE, 2, "sine")],
    *(design for rule, design in RULE_DESIGNS.items() if rule != "local_classifier"),
    *BACK_DESIGNS,
]


@pytest.mark.parametrize("design", BACKEND_DESIGNS, ids=lambda d: "-".join((d[0].rule, d[0].name, d[2])))
def test_backend_equals_the_model(design):
    """Scores, predictions and weights of networks over several batches; weights are wide in every other one."""
    machine, classes, basis = design
    rng = np.random.default_rng([seed(), machine.pes, machine.fraction_bits])
    named = [replace(NAMED[name], basis=basis) for name in RULE_NETWORKS if machine.rule not in ("lls", "bp")]
    if machine.rule == "bp":
        named = list(back_networks(machine.rows, classes).values())
    drawn = (random_network(rng, machine, classes, basis) for _ in range(12))
    for number, net in enumerate(chain(named, drawn)):
        golden = WindowedModel(net, machine, number, train_hidden=number != 3)
        rtl = RtlBackend(net, machine, number, train_hidden=number != 3)
        if number % 2:
            codes = [(normal(rng, channels, taps), normal(rng, channels)) for taps, channels in net.shapes]
            for weight, bias in codes:
                # A slope of 1/8 needs the most negative sums to saturate.
                weight[-1], bias[-1] = -32768, -32768
            scores = [np.clip(c + rng.normal(0, 1 << 20, c.shape), *CODES).astype(int) for c in golden.trained_scores()]
            for model in (golden, rtl):
                model.load_parameters(codes)
                model.load_trained_scores(scores)
        samples = 3 * net.recipe.batch + number % net.recipe.batch
        x = rng.integers(-128, 128, (samples, net.features)).astype(np.int8)
        labels = rng.integers(0, classes, samples)
        assert steps_of(rtl.run(x, labels)) == steps_of(golden.run(x, labels)), net
        assert steps_of(rtl.run(x, None)) == steps_of(golden.run(x, None)), net
        if machine.learning.learns:
            assert np.array_equal(rtl.train(x, labels).predictions, golden.train(x, labels).predictions), net
        assert np.array_equal(rtl.predict(x), golden.predict(x)), net
        np.testing.assert_equal(rtl.state_dict(), golden.state_dict(), str(net))
        # The state of the model goes on in a fresh design.
        rtl = RtlBackend(net, machine, 0, train_hidden=number != 3)
        rtl.load_state_dict(golden.state_dict())
        assert steps_of([rtl.step(x[0], int(labels[0]))]) == steps_of([golden.step(x[0], int(labels[0]))]), net
        np.testing.assert_equal(rtl.state_dict(), golden.state_dict(), str(net))


CODES = -(1 << 23), (1 << 23) - 1
"""Ends of a trained parameter's range."""


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Codes wide enough that much saturates, int16."""
    return np.clip(rng.normal(0, 6000, shape), -32768, 32767).astype(np.int16)


def steps_of(steps: list[StepResult]) -> list:
    """Predictions and class scores, for `==`."""
    return [
        (step.prediction, [None if scores is None else scores.tolist() for scores in step.scores]) for step in steps
    ]
