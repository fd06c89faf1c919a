"""What the commands share: options, the output folder, `metrics.json`.

A results folder belongs to one run, which `run.json` names. The same command with the same arguments replaces its
results there; whatever else is there is set aside first, in `previous-1`, `previous-2`, and so on. A training is set
aside too, unless `--resume` goes on from it. So nothing that a run has reported as saved is ever overwritten.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import Network, load_network

__all__ = [
    "CommandError",
    "Interrupted",
    "Parser",
    "add_common",
    "add_rule",
    "at_work",
    "built_for",
    "invoked",
    "load_specs",
    "open_out",
    "option",
    "positive",
    "prepare_out",
    "take_out",
    "write_metrics",
    "write_text",
]

MAX_SEED = 2**32 - 1
METRICS, RUN, PREVIOUS = "metrics.json", "run.json", "previous-"
TRAINING_FILES = ("weights.npz", "history.csv", "checkpoint.npz")
COMPARISON_FILES = (
    *("report.md", "comparison.csv", "cycles.png", "macs.png", "energy.png", "memory.png", "technologies.png"),
    *("tax.png", "area.png", "accuracy.png", "training-*.npz"),
)
RESULTS = {
    "generate": (
        *("entrain_core.v", "entrain_core.json", "entrain_core.vlt"),
        *("entrain_load.hex", "entrain_samples.hex", "entrain_results.hex", "entrain_tb.v"),
    ),
    "train": (*TRAINING_FILES, "average.npz", "checkpoint.previous.npz"),
    "simulate": (),
    "compare": COMPARISON_FILES,
    "demo": (*TRAINING_FILES, "report.md", "learning.png", "verilog", "compare"),
}
"""What a command may leave in its folder, finished or not, beside `metrics.json` and `run.json`; `*` is any text."""
UNCOMPARED = ("command", "out", "quiet", "resume")
"""Arguments that do not make another run."""


class CommandError(RuntimeError):
    """The work was begun and did not succeed; exit code 1."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what is saved and how to go on. Exit code 130."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        print(f"{self.prog}: error: {' '.join(message.split())} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def add_common(parser: argparse.ArgumentParser, command: str, seed_help: str) -> None:
    """`--machine --network --out --seed`, which every command has."""
    parser.add_argument(
        "--machine", default="digits", metavar="NAME|FILE", help="preset or YAML file (default: digits)"
    )
    parser.add_argument(
        "--network", default="digits", metavar="NAME|FILE", help="preset or YAML file (default: digits)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / command,
        metavar="DIR",
        help=f"folder for the results, made if need be (default: runs/{command}); its run.json says whose they are, "
        "and what another run left there is moved to DIR/previous-1, -2, ... first",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help=f"0 to {MAX_SEED}: {seed_help} (default: 0)")


def add_rule(parser: argparse.ArgumentParser, choices: Collection[str], text: str) -> None:
    """`--rule`; None means the machine's own."""
    parser.add_argument(
        "--rule", choices=tuple(choices), metavar="RULE", help=f"{text}: {', '.join(choices)} (default: the machine's)"
    )


def built_for(machine: Machine, rule: str | None) -> Machine:
    """The machine, built for the rule of `--rule`, or its own without that; SpecError where that cannot be."""
    if rule is None or rule == machine.rule:
        return machine
    try:
        return machine.built_for(rule)
    except SpecError as error:
        key = "--rule" if error.key == "rule" else f"--rule {rule}: machine {machine.name}: {error.key}"
        raise SpecError(key, error.rule, error.got) from None


def positive(text: str) -> int:
    """An option's integer of 1 or more."""
    return _integer(text, 1, 10**9)


def load_specs(args: argparse.Namespace) -> tuple[Machine, Network]:
    """Machine and network of the options; SpecError for a wrong name, file, key or value."""
    with option("--machine", "machines"):
        machine = load_machine(args.machine)
    with option("--network", "networks"):
        return machine, load_network(args.network)


@contextmanager
def option(name: str, kind: str) -> Iterator[None]:
    """Lets the refusal of a preset's name (`kind`: what the presets are) name the option."""
    try:
        yield
    except SpecError as error:
        if error.key != kind or error.file:
            raise
        raise SpecError(name, error.rule, error.got) from None


def invoked() -> str:
    """How a shell in this folder calls the program that is running, as it was called: `.venv/bin/entrain`."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{_shortest(Path(sys.executable))} -m sim.cli"
    return _shortest(program) if program.name == "entrain" else "entrain"


def _shortest(program: Path) -> str:
    """A program's name if the shell finds it by that, else its path, relative below the working folder."""
    program = program.absolute()  # links stay: .venv/bin/python is one
    found = shutil.which(program.name)
    if found and Path(found).absolute() == program:
        return program.name
    with suppress(ValueError):
        below = program.relative_to(Path.cwd())
        return shlex.quote(str(below) if len(below.parts) > 1 else f"./{below}")
    return shlex.quote(str(program))


# The results folder. The command at work and its lock are the process's: there is one of each.

_args: argparse.Namespace | None = None
_lock: int | None = None


@contextmanager
def at_work(args: argparse.Namespace) -> Iterator[None]:
    """Says whose folder `prepare_out` makes, and frees that folder at the end."""
    global _args, _lock
    _args = args
    try:
        yield
    finally:
        if _lock is not None:
            os.close(_lock)
        _args = _lock = None


def prepare_out(folder: Path) -> Path:
    """Makes the output folder and makes it this run's: `open_out`, then `take_out`."""
    take_out(open_out(folder))
    return folder


def open_out(folder: Path) -> Path:
    """Makes the output folder and locks it for this run; what is in there stays.

    SpecError when that cannot be, when nothing can be written there, or when another run is at work there.
    """
    global _lock
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "exists and is not a folder" if folder.exists() else (error.strerror or str(error))
        raise SpecError("--out", f"must be a folder: {folder} {reason}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SpecError("--out", f"must be writable: {folder}")
    _lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SpecError("--out", f"must be another folder: an entrain is at work in {folder}") from None
    except OSError:
        pass  # a file system without locks
    return folder


def take_out(folder: Path, same: bool | None = None) -> None:
    """Makes the folder this run's: what another run left there is set aside, and a line says so.

    `same`: whether what is there belongs to this run; None: whether `run.json` has this command and these arguments.
    """
    assert _args is not None
    values = {key: value for key, value in vars(_args).items() if key not in UNCOMPARED}
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    mine = {"command": _args.command, "arguments": values}
    was = _owner(folder)
    if not (was == mine if same is None else same):
        _set_aside(folder, was.get("command"), _args.command)
    write_text(folder / RUN, json.dumps(mine, indent=2, ensure_ascii=False) + "\n")


def _owner(folder: Path) -> dict[str, Any]:
    """The run that a folder belongs to: its command and arguments, as far as they are known."""
    for name in (RUN, METRICS):
        with suppress(OSError, ValueError):
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("command") in RESULTS:
                return {key: found.get(key) for key in ("command", "arguments")}
    return {}


def _set_aside(folder: Path, was: str | None, now: str) -> None:
    """Moves the results of the command that was here, and all that the one now here would overwrite."""
    left = (METRICS, *RESULTS[now], *RESULTS.get(was or "", ()))
    names = {name for name in os.listdir(folder) if any(fnmatch(name, pattern) for pattern in left)}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        # Only names in this very folder: a file of results is not to be trusted with more.
        files = json.loads((folder / METRICS).read_text(encoding="utf-8"))["files"]
        names |= {name for name in map(str, files) if Path(name).name == name}
    found = sorted(name for name in names if name not in ("", "..") and os.path.lexists(folder / name))
    if not found:
        return
    numbers = (path.name.removeprefix(PREVIOUS) for path in folder.glob(f"{PREVIOUS}*"))
    number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
    aside = folder / f"{PREVIOUS}{number}"
    aside.mkdir()
    for name in (*found, RUN):
        with suppress(FileNotFoundError):
            os.rename(folder / name, aside / name)
    what = f"what entrain {was} left there" if was else "files with names of results"
    hint = f" (--resume --out {aside} goes on from it)" if was == "train" and "checkpoint.npz" in found else ""
    print(f"{folder}: {what} is now in {aside}{hint}", file=sys.stderr)


def write_text(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_metrics(
    folder: Path,
    args: argparse.Namespace,
    machine: Machine,
    network: Network,
    values: Mapping[str, Any],
    units: Mapping[str, str],
) -> Path:
    """Writes `metrics.json`: the command and what it was given, its values, and under `units` what each value is."""
    missing = values.keys() - units.keys()
    assert not missing, f"no unit says what these are: {missing}"
    head = {
        "command": args.command,
        "machine": machine.name,
        "network": network.name,
        "seed": args.seed,
    }
    metrics = {**head, **values, "units": {key: units[key] for key in values}}
    return write_text(folder / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def _seed(text: str) -> int:
    return _integer(text, 0, MAX_SEED)


def _integer(text: str, low: int, high: int) -> int:
    try:
        value = int(text, 10)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be an integer from {low} to {high}, got {text!r}")
    return value
