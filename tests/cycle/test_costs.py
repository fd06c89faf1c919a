"""Energy, memory and the comparison, against sums done by hand."""

import json
from dataclasses import replace

import pytest

from hdl.dense.delta import DeltaQueue
from sim.cycle.compare import compare, known_technologies
from sim.cycle.counts import COMPONENTS, PURPOSES, Counts, array_registers
from sim.cycle.energy import energy_by_component, energy_by_purpose, energy_pj, energy_table
from sim.cycle.memory import allocated_bytes, delta_queue_depth, memory_bytes, peak_bytes
from sim.cycle.model import inference_step, training_step
from sim.cycle.plots import FIGURES, draw, draw_learning
from sim.cycle.report import UNITS, accesses, step_metrics
from sim.cycle.rows import Row
from spec.machine import load_machine
from spec.network import FullyConnected, load_network
from spec.rules import RULES
from spec.technology import load_technology

HOROWITZ = load_technology("horowitz-45nm")


def step_of(name: str, rule: str = "lls", machine: str | None = None):
    """A training step of two presets."""
    return training_step(load_machine(machine or name), load_network(name), rule)


def test_energy_is_counts_times_prices():
    counts = Counts()
    counts.add("forward", "multipliers", "multiply_8x16", 1000)
    counts.add("signal", "basis table", "rom_read_bit", 64)
    counts.add("update", "weight memory", "weight_write", 3)
    table = energy_table(counts, HOROWITZ)
    price = {name: action.pj for name, action in HOROWITZ.actions.items()}
    assert table["forward", "multipliers"] == 1000 * price["multiply_8x16"]
    assert energy_by_purpose(table)["signal"] == 64 * price["rom_read_bit"]
    assert energy_by_component(table)["weight memory"] == 3 * price["weight_write"]
    assert set(table) == {(p, c) for p in PURPOSES for c in COMPONENTS}
    assert energy_pj(counts, HOROWITZ) == pytest.approx(sum(table.values()), rel=1e-15)


def test_doubling_a_price_doubles_its_part():
    counts = step_of("digits").counts
    action = HOROWITZ.actions["weight_read"]
    dearer = replace(HOROWITZ, actions={**HOROWITZ.actions, "weight_read": replace(action, pj=2 * action.pj)})
    more = energy_pj(counts, dearer) - energy_pj(counts, HOROWITZ)
    assert more == pytest.approx(counts.total("weight_read") * action.pj, rel=1e-9)


@pytest.mark.parametrize(
    "rule, bits",
    # Narrow and wide operand, two weights, product, psum.
    [("lls", 8 + 18 + 32 + 26 + 29), ("bp", 16 + 18 + 32 + 28 + 31), ("inference", 8 + 16 + 32 + 24 + 27)],
)
def test_registers_of_a_step_by_hand(rule, bits):
    machine = replace(load_machine("digits"), rule=rule)
    assert array_registers(machine, "forward", 10, 3).total("register_bit") == 10 * (64 * bits + 3)
    assert array_registers(machine, "update", 10, 3).total("register_bit") == 10 * (64 * (bits + 16) + 3)


def test_a_large_weight_memory_has_its_own_price():
    assert step_of("digits").counts.total("weight_read_32kb") == 0
    counts = step_of("mnist").counts
    assert counts.total("weight_read") == 0 and counts.total("weight_read_32kb") > 0


def test_memory_of_digits_by_hand():
    # 64-128-128-10 on 8x8: 8*16 + 16*16 + 16*2 tiles of 64 weights of 2 bytes.
    memory = memory_bytes(step_of("digits"))
    assert memory == {
        "weights": (128 + 256 + 32) * 64 * 2,
        "biases": 2 * (128 + 128 + 10),
        "input buffers": 2 * 64,
        "activations": 128 + 128,
        "slopes": 0,
        "latents": 128 * 9 // 8,
        "basis table": 128 * 10 // 8,
        "trained scores": 0,
        "deltas": 32 * 18 // 8,
    }
    assert peak_bytes(step_of("digits")) == sum(memory.values())
    plain = {**memory, "latents": 0}
    assert memory_bytes(step_of("digits", "drtp")) == {**plain, "slopes": 2 * 128 // 8}
    assert memory_bytes(step_of("digits", "dfa")) == {**plain, "slopes": 2 * 256 // 8}
    # Signals of 12 bits: 10 and 128 take turns in a half, 128 have the other; 10 take 16 words of 8 banks.
    kept = memory["deltas"] + (128 + 128) * 12 // 8
    bp = {**plain, "slopes": 256 // 8, "basis table": 0, "deltas": kept}
    assert memory_bytes(step_of("digits", "bp")) == bp
    assert memory_bytes(step_of("digits", "lls_m")) == {**memory, "trained scores": 2 * 10 * 3}
    assert memory_bytes(step_of("digits", "lls_mxm")) == {**memory, "trained scores": 2 * 10 * 10 * 3}
    trained = {"basis table": 0, "trained scores": 256 * 10 * 3}
    assert memory_bytes(step_of("digits", "local_classifier")) == memory | trained
    one = step_of("digits", "inference")
    assert memory_bytes(one) == {**plain, "basis table": 0, "deltas": 0}
    assert memory_bytes(inference_step(load_machine("digits"), load_network("digits"))) == memory_bytes(one)


def test_rules_that_wait_keep_all_activations():
    machine = replace(load_machine("mnist"), max_layers=8)
    network = replace(load_network("digits"), layers=tuple(FullyConnected(n) for n in (20, 40, 30, 10)))
    for rule in RULES:
        found = memory_bytes(training_step(machine, network, rule))
        kept = 24 + 40 + 32 if RULES[rule].waits else 40 + 32
        assert found["activations"] == kept
        assert found["slopes"] == {"drtp": 2 * 5, "dfa": 23, "bp": 12}.get(rule, 0)
    bp, dfa = (memory_bytes(training_step(machine, network, rule))["deltas"] for rule in ("bp", "dfa"))
    assert bp - dfa == (40 + 32) * 12 // 8  # behind each other 24 and 32, 40 and 16 of 8 banks


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("cols", [1, 4, 5, 8, 12, 13, 32])
def test_the_queue_is_as_deep_as_the_hardware_has_it(cols):
    machine = replace(load_machine("digits"), cols=cols)
    assert delta_queue_depth(machine) == DeltaQueue(machine, 20).depth


def test_trained_scores_of_fewer_vectors_than_classes():
    """The basis has as many rows as the matrix."""
    machine, network = replace(load_machine("digits"), vectors=4), load_network("digits")
    memory = memory_bytes(training_step(machine, network, "lls_mxm"))
    assert memory["basis table"] == 128 * 4 // 8 and memory["trained scores"] == 2 * 4 * 10 * 3
    # Of as many layers as the machine has room for.
    allocated = {"lls_m": 8 * 10 * 3, "lls_mxm": 8 * 4 * 10 * 3, "local_classifier": 1024 * 10 * 3}
    for rule in RULES:
        found = allocated_bytes(machine.built_for(rule), network)
        assert found.get("trained scores") == allocated.get(rule)


@pytest.mark.parametrize(
    "rule, products, additions, parameters, size",
    [
        ("lls_m", {"multiply_16x16": 2 * 20, "multiply_8x18": 20}, 20, 20, ""),
        ("lls_mxm", {"multiply_16x16": 2 * 200, "multiply_8x18": 200}, 3 * 200, 200, ""),
        # No sums over signs; latents and errors take as many products. Its memory is priced as one of 32 KB.
        (
            "local_classifier", dict.fromkeys(("multiply_8x16", "multiply_16x16", "multiply_8x8"), 2560),
            3 * 2560, 2560, "_32kb",
        ),
    ],
)  # fmt: skip
def test_actions_of_trained_scores_by_hand(rule, products, additions, parameters, size):
    """What each adds to LLS."""
    ours, plain = (step_of("digits", name).counts for name in (rule, "lls"))
    more = {key: number - dict(plain).get(key, 0) for key, number in ours}
    fixed = 0 if rule == "local_classifier" else 2 * 256 * 10
    expected = {("signal", "signal arithmetic", action): number for action, number in products.items()}
    expected |= {
        ("signal", "signal arithmetic", "add_32"): additions,
        ("signal", "signal arithmetic", "add_16"): fixed - 2 * 256 * 10,
        ("signal", "score memory", f"activation_read{size}"): 2 * 3 * parameters,
        ("signal", "score memory", f"activation_write{size}"): 3 * parameters,
    }
    assert {key: number for key, number in more.items() if number} == {k: n for k, n in expected.items() if n}
    assert ours.total("rom_read_bit") == fixed


def test_walsh_needs_no_table():
    assert memory_bytes(step_of("ice40up5k"))["basis table"] == 0


def test_accesses_by_memory():
    step = step_of("digits")
    found = accesses(step)
    steps = 128 + 256 + 32
    assert found["weight memory"] == {"read": 2 * steps * 64, "write": steps * 64}
    assert found["activation memory"] == {"read": 2 * steps * 8, "write": 64 + 128 + 128}
    assert found["latent memory"] == {"read": 256, "write": 256}
    assert found["bias unit"]["write"] == 128 + 128 + 10


@pytest.mark.parametrize("rule", RULES)
def test_every_figure_has_a_unit(rule):
    metrics = step_metrics(step_of("digits", rule), HOROWITZ)
    assert set(metrics) == set(UNITS)
    json.dumps(metrics, allow_nan=False)
    assert metrics["energy_pj"] == pytest.approx(sum(metrics["energy_by_phase_pj"].values()), rel=1e-12)


def test_rows_say_who_is_better():
    less = Row("q", "u", {"lls": 2, "bp": 1, "dfa": 2})
    assert less.beats_lls("bp") and not less.beats_lls("dfa") and less.ratio("bp") == 0.5
    more = Row("q", "u", {"lls": 2, "bp": 1, "dfa": 3}, more_is_better=True)
    assert not more.beats_lls("bp") and more.beats_lls("dfa")
    assert Row("q", "u", {"lls": 0, "bp": 1, "dfa": 0}).ratio("bp") is None
    told = Row("q", "u", {"lls": 2, "bp": 1, "dfa": 3}, ranked=False)
    assert not told.beats_lls("bp") and not told.beats_lls("dfa")


def test_utilization_is_one_measure_for_all_rules_and_ranks_none():
    comparison = compare(load_machine("mnist"), load_network("mnist"), HOROWITZ)
    macs = load_network("mnist").macs
    for rule, metrics in comparison.metrics.items():
        passes = 2 if RULES[rule].learns else 1
        assert metrics["utilization"] == pytest.approx(passes * macs / 64 / metrics["cycles"], rel=1e-15)
    better = {row.quantity for rule in comparison.others for row in comparison.where_better(rule)}
    assert "utilization" in {row.quantity for row in comparison.rows} and "utilization" not in better


def test_technologies_that_share_their_memories_are_named():
    machine, network = load_machine("digits"), load_network("digits")
    presets = compare(machine, network, HOROWITZ, known_technologies())
    assert [set(names) for names in presets.same_memories] == [{"horowitz-45nm", "aladdin-40nm"}]
    assert "horowitz-45nm and aladdin-40nm price memories alike" in presets.to_markdown()
    action = HOROWITZ.actions["rom_read_bit"]
    other = replace(HOROWITZ, name="o", actions={**HOROWITZ.actions, "rom_read_bit": replace(action, pj=1)})
    assert compare(machine, network, HOROWITZ, [other]).same_memories == ()
    assert "alike" not in compare(machine, network, HOROWITZ, [other]).to_markdown()


def test_a_verdict_that_depends_on_the_technology_is_reported():
    # Where the basis table is dear beyond measure, LLS loses; the report has to notice.
    action = HOROWITZ.actions["rom_read_bit"]
    dear = replace(HOROWITZ, name="dear", actions={**HOROWITZ.actions, "rom_read_bit": replace(action, pj=1e5)})
    machine, network = load_machine("digits"), load_network("digits")
    comparison = compare(machine, network, HOROWITZ, [dear])
    assert comparison.verdict_survives["bp"] == {"whole_step": False, "learning_signal": False}
    assert "does **not** hold" in comparison.to_markdown()
    presets = compare(machine, network, HOROWITZ, known_technologies())
    assert len(presets.energies) >= 3 and presets.verdict_survives["bp"]["learning_signal"]


def test_figures_are_the_same_bytes_each_time(tmp_path):
    comparison = compare(load_machine("digits"), load_network("digits"), HOROWITZ, known_technologies())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = draw(comparison, tmp_path / name)
        draw_learning([50, 90, 97.5], "t", 97, tmp_path / name / "learning.png")
        assert {path.stem for path in paths} == set(FIGURES) - {"area", "accuracy"}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
