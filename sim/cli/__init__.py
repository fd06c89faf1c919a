"""The command `entrain`: generate, train, simulate, compare, demo.

Exit codes: 0 done, 1 something was done and is not as it should be (a tool failed, the demo missed its aim), 2 refused
before any work (a wrong option, file, key, value, shape or label), 130 interrupted. Every refusal is one line on
standard error that names what is wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from sim.cli import compare, demo, generate, simulate, train
from sim.cli.common import CommandError, Interrupted, Parser
from spec.errors import SpecError
from spec.yaml_loader import preset_names

__all__ = ["main"]

COMMANDS = {
    "demo": demo,
    "train": train,
    "simulate": simulate,
    "compare": compare,
    "generate": generate,
}

DESCRIPTION = """\
Entrain generates a machine that trains neural networks where it stands, with a local learning rule (LLS): every
layer learns from its own output and the label, so nothing travels back through the network.
"""

EPILOG = """\
Start here:
  entrain demo                                  trains, replays in the Verilog, reports (a minute or two)
  entrain train --backend golden --epochs 10    trains in the bit-exact model of the hardware
  entrain train --backend rtl --epochs 1        the same on the compiled Verilog, to the same weights
  entrain simulate --machine mnist --network mnist     cycles, energy and memory of a training step
  entrain compare --machine mnist --network mnist      LLS beside backpropagation and DFA
  entrain generate --machine digits --network digits   Verilog with its parameters and memory map

Machines:     {machines}
Networks:     {networks}
Technologies: {technologies}
Each may also be a YAML file of your own. `entrain COMMAND --help` says what a command reads and leaves.
Exit codes: 0 done, 1 failed, 2 refused before any work, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code; never raises for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    name = f"entrain {args.command}"
    try:
        code = COMMANDS[args.command].run(args, argv)
        sys.stdout.flush()
        return code
    except SpecError as error:
        return _say(f"{name}: error: {error}", 2)
    except CommandError as error:
        return _say(f"{name}: failed: {error}", 1)
    except Interrupted as stop:
        return _say(f"{name}: {stop}", 130)
    except KeyboardInterrupt:
        return _say(f"{name}: interrupted before its results were written; run it again to begin anew", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no complaint, also not when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}: failed: {where}{error.strerror or error}", 1)


def _parser() -> argparse.ArgumentParser:
    presets = {kind: ", ".join(preset_names(kind)) for kind in ("machines", "networks", "technologies")}
    parser = Parser(
        prog="entrain",
        description=DESCRIPTION,
        epilog=EPILOG.format(**presets),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return parser


def _say(line: str, code: int) -> int:
    """One line on standard error, whatever the text was; and the exit code."""
    print(" ".join(line.split()), file=sys.stderr)
    return code
