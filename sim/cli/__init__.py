"""The command `entrain`: generate, train, simulate, compare, demo.

Exit codes: 0 done, 1 something was done and is not as it should be (a tool failed, the demo missed its aim), 2 refused
before any work (a wrong option, file, key, value, shape or label), 130 interrupted. Every refusal is one line on
standard error that names what is wrong.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from spec.errors import SpecError

# Everything else is imported in `main`, where Ctrl-C is one line too.

__all__ = ["main"]

COMMANDS = ("demo", "train", "simulate", "compare", "generate")
"""Modules of this package."""

DESCRIPTION = """\
Entrain generates a machine that trains neural networks where it stands, with a local learning rule (LLS): every
layer learns from its own output and the label, so nothing travels back through the network. The rule is a parameter:
machines for LLS with trained class scores, DRTP, DFA, backpropagation and inference alone come from the same generator.
"""

EPILOG = """\
Start here:
  entrain demo                                  trains, replays in the Verilog, reports (a minute or two)
  entrain train --backend golden --epochs 10    trains in the bit-exact model of the hardware
  entrain train --backend rtl --epochs 1        the same on the compiled Verilog, to the same weights
  entrain simulate --machine mnist --network mnist     cycles, energy and memory of a training step
  entrain compare --machine mnist --network mnist      LLS beside seven other rules
  entrain generate --machine digits --network digits   Verilog with its parameters and memory map

Machines:     {machines}
Networks:     {networks}
Technologies: {technologies}
Each may also be a YAML file of your own. `entrain COMMAND --help` says what a command reads and leaves.

Results: a folder belongs to one run, which its run.json names. The same command with the same arguments replaces its
results. Anything else that was there is moved to DIR/previous-1 (-2, ...) first; so is a training, unless --resume
goes on from it. Nothing else is overwritten.
Exit codes: 0 done, 1 failed, 2 refused before any work, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code; never raises for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character gets another one in its place.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        with _interrupts_heard():
            return _run(argv)
    except KeyboardInterrupt:
        return _say("entrain: interrupted before it began", 130)


def _run(argv: list[str]) -> int:
    """`main`, but for Ctrl-C before the command is known."""
    from importlib import import_module

    from sim.cli.common import CommandError, Interrupted, at_work
    from spec.errors import SpecError

    modules = {name: import_module(f"sim.cli.{name}") for name in COMMANDS}
    try:
        args = _parser(modules).parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    name = f"entrain {args.command}"
    try:
        with at_work(args):
            code = modules[args.command].run(args, argv)
        sys.stdout.flush()
        return code
    except SpecError as error:
        return _say(f"{name}: error: {error}{_hint(error, args)}", 2)
    except CommandError as error:
        return _say(f"{name}: failed: {error}", 1)
    except Interrupted as stop:
        return _say(f"{name}: {stop}", 130)
    except KeyboardInterrupt:
        return _say(f"{name}: interrupted before its results were written; run it again", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no complaint, also not when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}: failed: {where}{error.strerror or error}", 1)


@contextmanager
def _interrupts_heard() -> Iterator[None]:
    """Sends a Ctrl-C again that fell into a callback (an import has many), where Python would print and forget it."""
    before = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            import signal
            import threading

            main_thread = threading.main_thread().ident or 0
            threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _hint(error: "SpecError", args: "argparse.Namespace") -> str:
    """The preset machines that would do, where the error is that the network does not fit its machine; else nothing."""
    from sim.cli.common import load_specs
    from spec.errors import SpecError
    from spec.program import fitting_presets, program_for

    try:
        machine, network = load_specs(args)
    except SpecError:
        return ""
    if machine.windowed != network.windowed:
        return ""  # the refusal names a preset itself
    try:
        program_for(network, machine)
        return ""
    except SpecError as why:
        if str(why) != str(error):
            return ""
    fitting = [f"--machine {name}" for name in fitting_presets(network)]
    return f"; it fits {', '.join(fitting)}" if fitting else ""


def _parser(modules: dict[str, Any]) -> "argparse.ArgumentParser":
    import argparse

    from sim.cli.common import Parser
    from spec.yaml_loader import preset_names

    presets = {kind: ", ".join(preset_names(kind)) for kind in ("machines", "networks", "technologies")}
    parser = Parser(
        prog="entrain",
        description=DESCRIPTION,
        epilog=EPILOG.format(**presets),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in modules.items():
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
