"""`entrain generate`: the machine as Verilog, with what a driver has to know beside it."""

import argparse
import hashlib
from pathlib import Path

from sim.cli.common import CommandError, add_common, load_specs, prepare_out, write_metrics

__all__ = ["add_arguments", "run", "sha256_of"]

SUMMARY = "write the machine as Verilog"
DESCRIPTION = """\
Writes a machine as Verilog and, beside it, a .json with its parameters, ports, number formats, latencies, memory map
and the layer program that runs the network. The same machine gives the same bytes; a file that is right already
is left alone.
"""
EPILOG = """\
Leaves in DIR
  entrain_core.v      the core; top module entrain_core, clock clk, synchronous reset rst
  entrain_core.json   what a driver has to know
  metrics.json        sizes and hashes; its key "units" says what each value is

Examples
  entrain generate --machine digits --network digits --out runs/verilog
  entrain generate --machine my_machine.yaml --network my_network.yaml --out runs/mine
"""
UNITS = {
    "verilog": "file name of the Verilog",
    "description": "file name of its description",
    "top": "top module",
    "verilog_sha256": "SHA-256 of the Verilog",
    "verilog_bytes": "bytes of the Verilog",
    "verilog_lines": "lines of the Verilog",
    "modules": "modules in the Verilog",
    "pes": "processing elements, one multiplier each",
    "weight_words_per_pe": "16-bit words of the PE's weight memory",
    "weight_words_used_per_pe": "of those, the ones that the network fills",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "generate", "nothing is random here; kept in metrics.json")


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    from spec.program import compile_program

    machine, network = load_specs(args)
    program = compile_program(network, machine)
    folder = prepare_out(args.out)
    try:
        from hdl.generate import TOP, generate
    except ImportError as error:
        raise CommandError(f"a package that writes Verilog is missing ({error})") from None
    generated = generate(machine, network, folder)
    data = generated.verilog.read_bytes()
    values = {
        "verilog": generated.verilog.name,
        "description": generated.description.name,
        "top": TOP,
        "verilog_sha256": sha256_of(generated.verilog),
        "verilog_bytes": len(data),
        "verilog_lines": data.count(b"\n"),
        "modules": sum(line.startswith(b"module ") for line in data.splitlines()),
        "pes": machine.pes,
        "weight_words_per_pe": machine.weight_depth,
        "weight_words_used_per_pe": sum(layer.steps for layer in program.layers),
    }
    path = write_metrics(folder, args, machine, network, values, UNITS)
    print(
        f"{machine.name}: {machine.rows}x{machine.cols} PEs, {values['modules']} modules, "
        f"{values['verilog_lines']:,} lines"
    )
    print(f"sha256 {values['verilog_sha256']}")
    print(f"-> {generated.verilog}, {generated.description}, {path}")
    return 0


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
