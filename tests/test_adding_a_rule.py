"""The worked example of docs/adding-a-rule.md: its file runs, alone, and changes nothing where it is not loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from golden.fast import FastModel
from golden.signals import HIDDEN_DELTAS
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.rules import RULES, Rule, add, part

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "lls_free.py"


def test_the_example_trains_to_the_same_bits_and_cycles():
    """In a process of its own, as it registers a rule. It asserts equality itself."""
    found = subprocess.run([sys.executable, EXAMPLE], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    *checks, lls, free = found.stdout.splitlines()
    assert len(checks) == 2
    for line in checks:
        assert line.startswith("lls_free: 60 samples, weights and ") and "equal" in line
    percent = [float(line.split(": ")[1].split(" %")[0]) for line in (lls, free)]
    assert min(percent) > 80 and percent[0] != percent[1]
    assert "276 MACs" in lls and "20 MACs" in free


def test_the_page_names_the_file_and_its_tables():
    page, text = (ROOT / "docs" / "adding-a-rule.md").read_text(), EXAMPLE.read_text()
    assert "examples/lls_free.py" in page
    for table in ("HIDDEN_DELTAS", "SIGNAL_UNITS", "LOCAL_COSTS"):
        assert table in page and f"{table}[RULE.name]" in text
    for name, rule in RULES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{rule.error}` |")]
        assert f"`{name}`" in row


def test_parts_are_found_by_name_then_by_kind():
    assert part({"own": 1, "lls_m": 2}, RULES["lls_m"]) == 2
    assert part({"own": 1, "lls_m": 2}, RULES["lls"]) == 1
    with pytest.raises(SpecError, match="rule.*name of its own.*'lls'"):
        add(Rule("lls", "again", "own"))


def test_compiled_models_refuse_a_signal_that_they_do_not_have(monkeypatch):
    monkeypatch.setitem(RULES, "other", Rule("other", "another", "own"))
    monkeypatch.setitem(HIDDEN_DELTAS, "other", HIDDEN_DELTAS["own"])
    with pytest.raises(SpecError, match="rule.*compiled form.*'other'"):
        FastModel(load_network("digits"), load_machine("digits").built_for("other"))
