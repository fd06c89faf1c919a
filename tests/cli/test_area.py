"""Cells by resource, and what is kept of a synthesis; the tool itself runs in `test_commands`."""

import json
import os
from dataclasses import replace

import pytest

from sim import area
from sim.area import FAMILIES, Area, AreaError, area_of, expected_seconds, family_of
from spec.machine import load_machine
from spec.network import load_network

TINY = load_machine("tiny"), load_network("tiny")
COUNT = {"design": {"num_cells_by_type": {"$scopeinfo": 3, "LUT4": 10, "TRELLIS_FF": 4}}}


@pytest.fixture
def synthesised(monkeypatch):
    """Scripts that were run, by a tool that always counts the same."""
    scripts = []

    def tool(script, work, waiting):
        scripts.append(script)
        assert "module top" in (work / "core.v").read_text()
        (work / "cells.json").write_text(json.dumps(COUNT))
        return 2.0

    monkeypatch.setattr(area, "_synthesise", tool)
    return scripts


def test_cells_by_resource():
    cells = {"LUT4": 100, "CCU2C": 10, "TRELLIS_DPR16X4": 3, "TRELLIS_FF": 50, "PFUMX": 9, "DP16KD": 2}
    found = {"LUTs": 132, "flip-flops": 50, "multipliers": 0, "block RAMs": 2, "carry": 10, "LUT RAM": 3}
    assert Area("ecp5", cells, 1).resources == found
    cells = {"SB_LUT4": 100, "SB_DFF": 1, "SB_DFFESR": 20, "SB_CARRY": 7, "SB_MAC16": 4, "SB_RAM40_4KNW": 2}
    found = {"LUTs": 100, "flip-flops": 21, "multipliers": 4, "block RAMs": 2, "carry": 7}
    assert Area("ice40", cells, 1).resources == found


def test_the_family_is_that_of_the_device():
    assert family_of(load_machine("tiny")) == family_of(load_machine("digits")) == "ecp5"
    assert family_of(load_machine("ice40up5k")) == "ice40"
    assert expected_seconds(load_machine("digits")) > expected_seconds(load_machine("tiny")) > 0


def test_a_design_is_synthesised_once(tmp_path, synthesised):
    first = area_of(*TINY, cache=tmp_path)
    assert first == Area("ecp5", {"LUT4": 10, "TRELLIS_FF": 4}, 2.0)
    assert area_of(replace(TINY[0], name="other"), TINY[1], cache=tmp_path) == first
    assert len(synthesised) == 1 and FAMILIES["ecp5"].synth in synthesised[0]
    # Another design, another family: another synthesis.
    area_of(replace(TINY[0], bias_depth=32), TINY[1], cache=tmp_path)
    found = area_of(replace(TINY[0], device=load_machine("ice40up5k").device), TINY[1], cache=tmp_path)
    assert found.family == "ice40" and len(synthesised) == 3 and FAMILIES["ice40"].synth in synthesised[2]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_kept_and_broken_is_made_again(tmp_path, synthesised):
    area_of(*TINY, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    for text in ("", "{}", '{"cells": 3, "seconds": 1}', '{"cells": {"LUT4": "x"}, "seconds": 1}'):
        kept.write_text(text)
        assert area_of(*TINY, cache=tmp_path).cells["LUT4"] == 10
    assert len(synthesised) == 5 and list(tmp_path.iterdir()) == [kept]


def test_a_tool_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(area, "_synthesise", lambda *given: 1.0)
    with pytest.raises(AreaError, match="left no count of cells"):
        area_of(*TINY, cache=tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(area.sys, "executable", "/nowhere/python")
    with pytest.raises(AreaError, match="not found"):
        area_of(*TINY, cache=tmp_path)
    assert not list(tmp_path.iterdir())
