"""``python -m hdl``: the Verilog of a machine."""

from __future__ import annotations

import argparse
import sys

from hdl.generate import generate
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for what the user can put right, after one line that says how."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl",
        description="Write a machine as Verilog, with its address map and a layer program as JSON.",
        epilog="example: python -m hdl --machine digits --network digits --out build/digits",
    )
    parser.add_argument(
        "--machine", required=True, metavar="NAME|FILE", help="the array and its memories"
    )
    parser.add_argument(
        "--network", required=True, metavar="NAME|FILE", help="sets the classes and the basis"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    options = parser.parse_args(arguments)
    try:
        files = generate(
            load_machine(options.machine), load_network(options.network), options.out
        )
    except (SpecError, OSError) as error:
        print(f"python -m hdl: {error}", file=sys.stderr)
        return 2
    for path in (files.verilog, files.description, files.lint):
        print(path)
    if files.replaced:
        print(f"replaced what was there: {files.replaced}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
