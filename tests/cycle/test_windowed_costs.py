"""Energy, memory and the comparison of convolutions and batches, against sums done by hand."""

import csv
import io
import json
from dataclasses import replace

import pytest

from sim.cycle.compare import compare, known_technologies
from sim.cycle.energy import energy_by_component, energy_by_purpose, energy_table
from sim.cycle.memory import MEMORIES, allocated_bytes, memory_by_batch, memory_bytes, peak_bytes
from sim.cycle.model import training_step
from sim.cycle.plots import FIGURES, draw
from sim.cycle.report import UNITS, accesses, step_metrics
from sim.cycle.text import sizes
from sim.cycle.windowed_memory import windowed_memory_bytes
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe, load_network
from spec.rules import RULES
from spec.technology import activation_action, load_technology

HOROWITZ = load_technology("horowitz-45nm")
SMALLCONV = load_machine("smallconv")
CIFAR10 = load_network("smallconv-cifar10")
KEPT = ("activations", "slopes", "latents", "basis table", "deltas")
"""Memory that depends on the rule."""


def bytes_of(rule, batch, network=CIFAR10, machine=SMALLCONV):
    """Memory by purpose, of SmallConv if not said otherwise."""
    return windowed_memory_bytes(network, machine, rule, batch)


def test_memory_of_smallconv_by_hand():
    # A row of an image, 96 elements, is followed by 1 that is not written: 97 % 8 = 9 % 8. The kernels of the others
    # take whole words.
    image = -(-(31 * 97 + 96) // 8) * 8
    maps = [16 * 16 * 32, 8 * 8 * 64, 512, 512]
    bias = 2 * (32 + 64 + 128 + 512 + 16)
    lls = bytes_of("lls", 1)
    assert lls == {
        "weights": 5680 * 64 * 2,
        "biases": bias,
        "input buffers": 2 * image,
        "activations": maps[0] + maps[1],
        "slopes": 32 * 32 * 32 // 8,
        "latents": 512 * (8 + 14) // 8,
        "basis table": 512 * 10 // 8,
        "trained scores": 0,
        "deltas": 32 * 16 * 18 // 8,
    }
    bp = bytes_of("bp", 1)
    assert bp == lls | {
        "activations": sum(maps),
        # A bit and 2 of the place a pooled element; a bit a position of the third layer, and of the others' tiles.
        "slopes": (3 * maps[0] + 3 * maps[1] + 8 * 8 * 128 + 512 + 16) // 8,
        "latents": 0,
        "basis table": 0,
        # Of 12 bits.
        "deltas": (maps[0] + maps[1]) * 12 // 8,
    }
    # Of all hidden layers' 1792 latents, not of one.
    assert bytes_of("lls_m", 1) == lls | {"trained scores": 4 * 10 * 3}
    assert bytes_of("lls_mxm", 1) == lls | {"trained scores": 4 * 100 * 3}
    fewer = bytes_of("lls_mxm", 1, machine=replace(SMALLCONV, vectors=4))
    assert fewer == lls | {"trained scores": 4 * 40 * 3, "basis table": 512 * 4 // 8}
    assert bytes_of("local_classifier", 1) == lls | {"trained scores": 1792 * 10 * 3, "basis table": 0}
    # Of DRTP a latent has two bits, beside its bias's weight.
    assert bytes_of("drtp", 1) == lls | {"latents": 512 * (2 + 14) // 8}
    dfa = bytes_of("dfa", 1)
    assert dfa == lls | {
        "activations": sum(maps),
        # The output layer's two tiles are kept, too; and 10 errors of 10 bits.
        "slopes": (32 * 1024 + 64 * 256 + 128 * 64 + 512 + 16) // 8,
        "latents": 0,
        "deltas": 32 * 16 * 18 // 8 + 13,
    }
    assert bytes_of("inference", 1) == lls | {"slopes": 0, "latents": 0, "basis table": 0, "deltas": 0}


@pytest.mark.parametrize("rule", RULES)
def test_memory_grows_with_the_batch(rule):
    one, many = bytes_of(rule, 1), bytes_of(rule, 128)
    growing = ("input buffers", "activations", "slopes", "deltas")
    for part in one:
        if part == "biases":
            # Sums of 44 bits of the widest layer's gradients.
            assert many[part] == one[part] + 512 * 44 // 8 * (RULES[rule].learns and not RULES[rule].waits)
        elif (rule, part) == ("dfa", "deltas"):
            assert many[part] == 128 * (1152 + 12.5)
        elif part in growing:
            assert many[part] == one[part] * 128, part
        else:
            assert many[part] == one[part], part


def test_the_paper_s_claim_about_memory():
    """Half of what a batch keeps: not of the whole, and not at batch 1, where weights are most."""
    found = {}
    for batch in (1, 16, 128):
        lls, bp = bytes_of("lls", batch), bytes_of("bp", batch)
        ours, theirs = (sum(memory[part] for part in KEPT) for memory in (lls, bp))
        found[batch] = (sum(bp.values()) / sum(lls.values()), theirs / ours)
    assert found[1] == pytest.approx((1.02, 1.91), abs=0.005)
    assert found[16] == pytest.approx((1.28, 2.12), abs=0.005)
    assert found[128] == pytest.approx((1.67, 2.13), abs=0.005)


def test_memory_of_a_step():
    step = training_step(SMALLCONV, CIFAR10)
    by_batch = memory_by_batch(step)
    assert list(by_batch) == [1, 16, 128] and by_batch[16] == memory_bytes(step)
    assert peak_bytes(step) == sum(memory_bytes(step).values())
    assert set(memory_bytes(step)) == set(MEMORIES)
    # The machine has what the step keeps, tables and the host's buffers apart.
    has, keeps = allocated_bytes(SMALLCONV, CIFAR10), memory_bytes(step)
    assert has["activation banks"] >= keeps["input buffers"] + keeps["activations"]
    assert has["weights"] >= keeps["weights"] and has["slopes"] >= keeps["slopes"] and has["signals"] >= keeps["deltas"]
    assert allocated_bytes(SMALLCONV.built_for("dfa"), CIFAR10)["slopes"] == 2 * has["slopes"]
    trained = SMALLCONV.built_for("local_classifier")
    assert allocated_bytes(trained, CIFAR10) == has | {"trained scores": 2048 * 10 * 3}
    bp = training_step(SMALLCONV, CIFAR10, "bp")
    has, keeps = allocated_bytes(bp.machine, CIFAR10), memory_bytes(bp)
    assert has["slopes"] == (65536 + 2 * 24576) * 8 // 8 >= keeps["slopes"]
    assert has["signals"] == 24576 * 8 * 12 // 8 == keeps["deltas"]
    one, plain = SMALLCONV.built_for("inference"), {"weights", "biases", "activation banks"}
    assert set(allocated_bytes(one, CIFAR10)) == plain
    dense, digits = load_machine("digits"), load_network("digits")
    assert set(allocated_bytes(dense, digits)) == plain
    assert list(memory_by_batch(training_step(dense, digits))) == [1]


def test_memory_without_pooling_and_of_one_layer():
    layers = (Convolution(3, (3, 3), (2, 2)), FullyConnected(4))
    network = Network("n", (5, 5, 2), 4, "walsh", layers, Recipe(6, 7))
    machine = load_machine("conv-tiny")
    assert bytes_of("bp", 1, network, machine) == {
        "weights": (2 * 9 + 2 * 14) * 4 * 2, "biases": 2 * (4 + 4), "input buffers": 2 * 50, "activations": 28,
        # Columns are padded to 4.
        "slopes": (9 * 4 + 4) // 8, "latents": 0, "basis table": 0, "trained scores": 0,
        "deltas": (9 * 4 + 4) * 12 // 8,
    }  # fmt: skip
    lls = bytes_of("lls", 1, network, machine)
    # 4 windows.
    assert lls["slopes"] == 9 * 4 // 8 + 1 and lls["deltas"] == 4 * 4 * 18 // 8 and lls["basis table"] == 0
    alone = Network("n", (4,), 3, "square", (FullyConnected(3),), Recipe(6, 7, batch=2))
    assert bytes_of("bp", 2, alone, machine)["deltas"] == 2 * 4 * 12 // 8
    assert bytes_of("lls", 2, alone, machine)["latents"] == 0
    with pytest.raises(SpecError, match="rule"):
        bytes_of("hebb", 1)


def test_energy_of_a_layer_by_hand():
    """One convolution and the output layer, every count of the first written out."""
    layers = (Convolution(3, (3, 3), (2, 2), padding=1, pool="max"), FullyConnected(3))
    network = Network("n", (4, 4, 2), 3, "square", layers, Recipe(6, 7, batch=2))
    machine = load_machine("conv-tiny")
    step = training_step(machine, network)
    counts = step.layers[0].counts
    B, P, T, S, W, n, R, C = 2, 16, 2, 9, 4, 12, 2, 2
    # psum 40 bits: an addition of 32 and one of 16. Accumulators have as many.
    forward, tiles, outputs = B * P * T * S, T * S, B * P * T * C
    pe = 12 + 1 + 18 + 18 + 32 + 35
    expected = {
        ("forward", "multipliers", "multiply_8x16"): forward * R * C,
        ("forward", "adders", "add_32"): forward * (R * C + C),
        ("forward", "adders", "add_16"): forward * (R * C + C) + 2 * outputs,
        ("forward", "weight memory", "weight_read"): forward * R * C,
        ("forward", "activation memory", "activation_read"): forward * R,
        ("forward", "activation memory", "activation_write"): B * (4 * 4 * 2 + 2 * 2 * 3),
        ("forward", "registers", "register_bit"): forward * ((pe + 40) * R * C + 40 * C + 8),
        ("forward", "bias unit", "bias_read"): B * T * C,
        ("forward", "bias unit", "add_32"): outputs,
        ("forward", "bias unit", "add_16"): outputs,
        ("signal", "signal arithmetic", "add_16"): outputs + B * (T * C * W + 2 * 3 * n + n + 3 * 3),
        ("signal", "signal arithmetic", "add_32"): B * (n + 3),
        ("signal", "signal arithmetic", "multiply_8x8"): B * n,
        ("signal", "signal arithmetic", "multiply_8x16"): B * n,
        ("signal", "signal arithmetic", "multiply_16x16"): B * (3 + 3 + 1),
        ("signal", "basis table", "rom_read_bit"): B * 2 * 3 * n,
        ("signal", "latent memory", "activation_read"): B * n,
        ("signal", "latent memory", "activation_write"): B * n,
        ("signal", "column memory", "activation_write"): B * n * 3,
        ("update", "adders", "add_16"): forward * R * C + B * tiles * W * R * C,
        ("update", "adders", "add_32"): B * tiles * W * R * C,
        ("update", "multipliers", "multiply_16x16"): B * tiles * W * R * C,
        ("update", "weight memory", "weight_read"): tiles * R * C,
        ("update", "weight memory", "weight_write"): tiles * R * C,
        ("update", "activation memory", "activation_read"): forward * R,
        ("update", "column memory", "activation_write"): B * T * P,
        ("update", "column memory", "activation_read"): forward + B * tiles * W * C * 3,
        ("update", "registers", "register_bit"): forward * (pe * R * C + 8)
        + (B * tiles * W * 40 + tiles * 16) * R * C,
        ("update", "latent memory", "activation_read"): B * n * 2,
        ("update", "latent memory", "activation_write"): B * n * 2,
        ("update", "bias unit", "register_bit"): 16 * T * C,
        ("update", "bias unit", "multiply_16x16"): B * n,
        ("update", "bias unit", "add_32"): B * n,
        ("update", "bias unit", "add_16"): B * n + outputs,
        # The sum of 40 bits is three words.
        ("update", "bias unit", "bias_read"): 3 + 3 * 3,
        ("update", "bias unit", "bias_write"): 3 + 3 * 3,
    }  # fmt: skip
    assert dict(counts) == expected
    table = energy_table(counts, HOROWITZ)
    assert sum(table.values()) == pytest.approx(sum(n * HOROWITZ.actions[key[2]].pj for key, n in expected.items()))


def test_energy_of_an_inference_by_hand():
    """A PE without window sums has an operand of 8 bits and one of 16, products of 24, partial sums of 25."""
    network = Network("n", (4, 4, 2), 3, "square", (Convolution(3, (3, 3), (2, 2)), FullyConnected(3)), Recipe(6, 7))
    step = training_step(load_machine("conv-tiny"), network, "inference", batch=2)
    B, P, T, S, R, C = 2, 4, 2, 9, 2, 2
    forward, outputs = B * P * T * S, B * P * T * C
    pe = 8 + 16 + 2 * 16 + 24
    assert dict(step.layers[0].counts) == {
        ("forward", "multipliers", "multiply_8x16"): forward * R * C,
        ("forward", "adders", "add_32"): forward * (R * C + C),
        ("forward", "adders", "add_16"): outputs,
        ("forward", "weight memory", "weight_read"): forward * R * C,
        ("forward", "activation memory", "activation_read"): forward * R,
        ("forward", "activation memory", "activation_write"): B * (4 * 4 * 2 + 2 * 2 * 3),
        ("forward", "registers", "register_bit"): forward * ((pe + 25) * R * C + 30 * C + 8),
        ("forward", "bias unit", "bias_read"): B * T * C,
        ("forward", "bias unit", "add_32"): outputs,
    }


def test_a_window_of_one_pixel_multiplies_eight_bits():
    network = Network("n", (9,), 3, "square", (FullyConnected(5), FullyConnected(3)), Recipe(6, 7, batch=2))
    for rule in RULES:
        counts = training_step(load_machine("conv-tiny"), network, rule).counts
        assert (counts.total("multiply_8x18", "multipliers") > 0) == RULES[rule].learns
        assert counts.total("multiply_16x16", "multipliers", "update") == 0


def test_a_large_memory_has_its_own_price():
    for size, action in ((8192, "activation_read"), (8193, "activation_read_32kb")):
        assert activation_action(size, "read") == action
    with pytest.raises(SpecError, match="access"):
        activation_action(1, "erase")
    large = training_step(SMALLCONV, CIFAR10).counts
    assert large.total("activation_read", "activation memory") == 0
    # Signals' banks are small, slopes' and maps' are not.
    assert large.total("activation_read", "column memory", "update") > 0
    assert large.total("activation_read_32kb", "column memory", "update") > 0
    small = training_step(load_machine("conv-tiny"), load_network("conv-tiny")).counts
    assert small.total("activation_read_32kb") == small.total("activation_write_32kb") == 0
    for table in known_technologies():
        prices = table.actions
        for access in ("read", "write"):
            action = prices[f"activation_{access}_32kb"]
            assert action.derived and action.pj * 2 == prices[f"weight_{access}_32kb"].pj
            assert action.pj > prices[f"activation_{access}"].pj


def test_accesses_of_a_batch():
    found = accesses(training_step(SMALLCONV, CIFAR10))
    words = 4 * 4 + 36 * 8 + 72 * 16 + 64 * 64 + 64 * 2
    steps = 4 * 4 * 1024 + 36 * 8 * 256 + 72 * 16 * 64 + 64 * 64 + 64 * 2
    assert found["weight memory"] == {"read": 16 * steps * 64 + words * 64, "write": words * 64}
    assert found["activation memory"]["read"] == 2 * 16 * steps * 8
    assert found["activation memory"]["write"] == 16 * (3072 + 8192 + 4096 + 512 + 512)


@pytest.mark.parametrize("rule", RULES)
def test_every_figure_has_a_unit(rule):
    metrics = step_metrics(training_step(SMALLCONV, CIFAR10, rule), HOROWITZ)
    assert set(metrics) == set(UNITS)
    json.dumps(metrics, allow_nan=False)
    assert metrics["batch"] == 16 and metrics["memory_by_batch"]["16"] == metrics["memory_bytes"]
    assert metrics["energy_pj"] == pytest.approx(sum(metrics["energy_by_phase_pj"].values()), rel=1e-12)
    useful = sum(layer["macs_by_phase"][p] for layer in metrics["layers"] for p in ("forward", "weight_gradient"))
    assert metrics["utilization"] == pytest.approx(useful / 64 / metrics["cycles"], rel=1e-15)
    for layer in metrics["layers"]:
        macs, cycles = layer["macs_by_phase"], sum(layer["cycles_by_phase"].values())
        assert layer["utilization"] == pytest.approx((macs["forward"] + macs["weight_gradient"]) / 64 / cycles)


def test_the_comparison_of_smallconv():
    comparison = compare(SMALLCONV, CIFAR10, HOROWITZ, known_technologies())
    rows = {row.quantity: row for row in comparison.rows}
    assert comparison.batch == 16
    assert rows["MACs, whole step"].ratio("bp") == pytest.approx(1.46, abs=0.005)
    assert rows["multiplications, whole step"].ratio("bp") == pytest.approx(1.59, abs=0.005)
    assert rows["memory, whole"].values["lls"] == comparison.metrics["lls"]["peak_bytes"]
    assert rows["memory, whole, batch 128"].values["bp"] == sum(bytes_of("bp", 128).values())
    assert "memory, whole, batch 16" not in rows
    # The additions that stand for products are LLS's, and its latents and basis are memory that BP has not.
    bp = {row.quantity for row in comparison.where_better("bp")}
    assert bp == {"additions within windows", "memory, latents", "memory, basis or feedback"}
    # Rules with fixed feedback need less for their signals, and DRTP less memory; DFA keeps more.
    cheaper = {
        *(f"{what}, {part}" for what in ("MACs", "energy") for part in ("learning signal", "whole step")),
        *("multiplications, whole step", "cycles, signal phase", "cycles, whole step", "memory, latents"),
    }
    assert {row.quantity for row in comparison.where_better("dfa")} == cheaper
    memory = {"memory, whole", "memory, whole, batch 1", "memory, whole, batch 128"}
    assert {row.quantity for row in comparison.where_better("drtp")} == cheaper | memory
    assert comparison.verdict_survives["bp"] == {"whole_step": True, "learning_signal": True}
    text = comparison.to_markdown()
    for part in (
        "(32x32x3-c32-c64-c128-512-10) on smallconv (8x8)", "batch 16", "Where LLS loses",
        "270.77x the MACs", "245.91x with the norm", "1.46x the MACs",
        "| 128 | 3,772,640 | 3,772,760 | 3,773,840 | 3,825,760 | 3,772,256 | 4,302,752 |",
        "no memory keeps it", "local classifier, DRTP, DFA, BP and inference: closed form",
        "a weight is read once a batch", "| cycles a sample | +101.2 % |", "| 0 | 27 | 32 | 1,024 | 16 |",
    ):  # fmt: skip
        assert part in text, part
    table = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert [row["quantity"] for row in table] == list(rows)
    assert "batch 1\n" not in comparison.to_text()


def test_a_comparison_of_another_batch():
    one = compare(SMALLCONV, CIFAR10, HOROWITZ, batch=1)
    assert one.batch == 1 and one.metrics["bp"]["batch"] == 1
    quantities = [row.quantity for row in one.rows]
    assert "memory, whole, batch 128" in quantities and "memory, whole, batch 1" not in quantities
    digits = compare(load_machine("digits"), load_network("digits"), HOROWITZ)
    assert digits.batch == 1 and not any("multiplications" in row.quantity for row in digits.rows)
    assert "By which count" not in digits.to_markdown()
    # Fully connected layers have batches too, on a machine for them.
    batched = compare(SMALLCONV, load_network("digits"), HOROWITZ, batch=4)
    assert batched.batch == 4 and batched.network.windowed and "By which count" in batched.to_markdown()


def test_titles():
    assert sizes(CIFAR10) == "32x32x3-c32-c64-c128-512-10"
    assert sizes(load_network("digits")) == "64-128-128-10"
    assert sizes(load_network("mobilenet-v1")) == "96x96x3, 28 layers"


def test_a_verdict_that_depends_on_the_technology_is_reported():
    action = HOROWITZ.actions["rom_read_bit"]
    dear = replace(HOROWITZ, name="dear", actions={**HOROWITZ.actions, "rom_read_bit": replace(action, pj=1e6)})
    comparison = compare(SMALLCONV, CIFAR10, HOROWITZ, [dear])
    assert comparison.verdict_survives["bp"] == {"whole_step": False, "learning_signal": False}


def test_energy_is_split_twice_alike():
    table = energy_table(training_step(SMALLCONV, CIFAR10).counts, HOROWITZ)
    assert sum(energy_by_purpose(table).values()) == pytest.approx(sum(energy_by_component(table).values()), rel=1e-12)
    # Weights are read at every position forward, once a batch in the update.
    assert table["forward", "weight memory"] > 100 * table["update", "weight memory"]


@pytest.mark.parametrize("name, batch", [("smallconv-cifar10", None), ("smallconv-mnist", 1)])
def test_figures_are_the_same_bytes_each_time(tmp_path, name, batch):
    comparison = compare(SMALLCONV, load_network(name), HOROWITZ, known_technologies(), batch=batch)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert {path.stem for path in draw(comparison, tmp_path / folder)} == set(FIGURES) - {"area", "accuracy"}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
