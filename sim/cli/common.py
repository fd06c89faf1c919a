"""What the commands share: options, the output folder, `metrics.json`."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
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
    "load_specs",
    "positive",
    "prepare_out",
    "write_metrics",
    "write_text",
]

MAX_SEED = 2**32 - 1


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
        help=f"folder for the results, made if need be (default: runs/{command})",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help=f"0 to {MAX_SEED}: {seed_help} (default: 0)")


def positive(text: str) -> int:
    """An option's integer of 1 or more."""
    return _integer(text, 1, 10**9)


def load_specs(args: argparse.Namespace) -> tuple[Machine, Network]:
    """Machine and network of the options; SpecError for a wrong name, file, key or value."""
    return load_machine(args.machine), load_network(args.network)


def prepare_out(folder: Path) -> Path:
    """Makes the output folder; SpecError when that cannot be, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "exists and is not a folder" if folder.exists() else (error.strerror or str(error))
        raise SpecError("--out", f"must be a folder: {folder} {reason}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SpecError("--out", f"must be writable: {folder}")
    return folder


def write_text(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
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
    return write_text(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


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
