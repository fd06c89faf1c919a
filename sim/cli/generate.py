"""`entrain generate`: the machine as Verilog, with what a driver has to know beside it."""

import argparse
import hashlib
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.common import (
    CommandError,
    add_common,
    add_rule,
    built_for,
    load_specs,
    positive,
    prepare_out,
    write_metrics,
    write_text,
)
from sim.cycle.text import NAMES
from spec.errors import SpecError
from spec.machine import Machine
from spec.network import NO_LABEL, Network

if TYPE_CHECKING:
    from golden.data import Dataset
    from golden.train import Backend

__all__ = ["add_arguments", "run", "sha256_of"]

SUMMARY = "write the machine as Verilog"
DESCRIPTION = """\
Writes a machine as Verilog and, beside it, a .json with its parameters, ports, number formats, latencies, memory map
and the layer program that runs the network. The Verilog depends on the machine, its rule among that, and on the
network's classes and basis: the same of these give the same bytes, and a file that is right already is left alone.
docs/using-the-core.md says how to use what is written.
"""
EPILOG = """\
Leaves in DIR
  entrain_core.v       the core; top module entrain_core, clock clk, synchronous reset rst
  entrain_core.json    what a driver has to know
  entrain_core.vlt     what Verilator's lint is to overlook in the .v, each with its reason
  metrics.json         sizes and hashes; its key "units" says what each value is
with --weights
  entrain_load.hex     the bus writes that load program, weights and biases, and what is trained of class scores as
                       training starts from it: a line each, address_data, for $readmemh
with --vectors N
  entrain_samples.hex  beats of N training samples with their labels, then of N test samples without
  entrain_results.hex  the results that the bit-exact model gives for them
  entrain_tb.v         a Verilog test bench that plays all that and compares

Examples
  entrain generate --machine digits --network digits --out runs/verilog
  entrain generate --rule bp --out runs/verilog-bp
  entrain generate --machine my_machine.yaml --network my_network.yaml --out runs/mine
  entrain generate --weights runs/train/weights.npz --vectors 10 --out runs/verilog
"""
UNITS = {
    "verilog": "file name of the Verilog",
    "description": "file name of its description",
    "lint": "file name of the waivers for Verilator's lint",
    "top": "top module",
    "rule": "learning rule that the machine is built for",
    "verilog_sha256": "SHA-256 of the Verilog",
    "verilog_bytes": "bytes of the Verilog",
    "verilog_lines": "lines of the Verilog",
    "modules": "modules in the Verilog",
    "pes": "processing elements, one multiplier each",
    "weight_words_per_pe": "16-bit words of the PE's weight memory",
    "weight_words_used_per_pe": "of those, the ones that the network fills",
    "replaced": "what machine and network the folder described before; null where nothing, or the same",
    "load": "file name of the bus writes that load program, weights, biases and what trained scores start from; null "
    "without --weights",
    "load_writes": "number of those writes; null without --weights",
    "vectors": "training samples, and as many test samples, in the test bench's files; null without --vectors",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "generate", "nothing is random here; kept in metrics.json")
    add_rule(parser, NAMES, "learning rule that the machine is built for")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights.npz of `entrain train`: also writes what loads them"
    )
    parser.add_argument(
        "--vectors", type=positive, metavar="N", help="also a test bench with N samples to train on and N to infer"
    )
    parser.add_argument("--data", metavar="FILE", help="data set of --vectors (default: the embedded digits)")


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    from sim.rtl.host import host_for

    machine, network = load_specs(args)
    machine = built_for(machine, args.rule)
    host = host_for(network, machine)
    for option, value, needed in (("--vectors", args.vectors, "weights"), ("--data", args.data, "vectors")):
        if value is not None and getattr(args, needed) is None:
            raise SpecError(option, f"must come with --{needed}", value)
    model, dataset = None, None
    if args.weights is not None:
        model = _model(machine, network, args.weights)
    if args.vectors is not None:
        dataset = _dataset(args, network)
    folder = prepare_out(args.out)
    try:
        from hdl import testbench
        from hdl.generate import TOP, generate
    except ImportError as error:
        raise CommandError(f"a package that writes Verilog is missing ({error})") from None
    generated = generate(machine, network, folder)
    extra = {}
    if model is not None:
        addresses, data = host.load_writes(model.parameters())
        lines = [f"{a:08x}_{d:08x}\n" for a, d in zip(addresses.tolist(), data.tolist(), strict=True)]
        extra[testbench.LOAD] = "".join(lines)
        if dataset is not None:
            extra |= _vectors(machine, network, model, dataset, int(args.vectors or 0), len(lines))
    files = [write_text(folder / name, text) for name, text in extra.items()]
    text = generated.verilog.read_bytes()
    values = {
        "verilog": generated.verilog.name,
        "description": generated.description.name,
        "lint": generated.lint.name,
        "top": TOP,
        "rule": machine.rule,
        "verilog_sha256": sha256_of(generated.verilog),
        "verilog_bytes": len(text),
        "verilog_lines": text.count(b"\n"),
        "modules": sum(line.startswith(b"module ") for line in text.splitlines()),
        "pes": machine.pes,
        "weight_words_per_pe": machine.weight_depth,
        "weight_words_used_per_pe": host.words,
        "replaced": generated.replaced,
        "load": testbench.LOAD if extra else None,
        "load_writes": len(lines) if extra else None,
        "vectors": args.vectors,
    }
    path = write_metrics(folder, args, machine, network, values, UNITS)
    print(
        f"{machine.name}: {machine.rows}x{machine.cols} PEs, rule {machine.rule}, {values['modules']} modules, "
        f"{values['verilog_lines']:,} lines"
    )
    print(f"sha256 {values['verilog_sha256']}")
    if generated.replaced:
        print(f"replaced what was there: {generated.replaced}")
    written = [generated.verilog, generated.description, generated.lint, *files, path]
    print(f"-> {', '.join(map(str, written))}")
    verilator = shutil.which("verilator") or str(Path(sys.executable).with_name("verilator-cli"))
    lint = [verilator, "--lint-only", "-Wall", "--top-module", TOP, str(generated.lint), str(generated.verilog)]
    print(f"lint: {shlex.join(lint)}")
    return 0


def _model(machine: Machine, network: Network, path: Path) -> "Backend":
    """The bit-exact model with the weights of a file; SpecError when they are not this network's codes."""
    from golden.checkpoint import load_weights
    from golden.fixed import FixedModel
    from golden.windowed import WindowedModel

    model = WindowedModel(network, machine) if network.windowed else FixedModel(network, machine)
    parameters = load_weights(path, network.shapes)
    try:
        model.load_parameters(parameters)
    except SpecError as error:
        raise SpecError(error.key, error.rule, error.got, file=str(path)) from None
    return model


def _dataset(args: argparse.Namespace, network: Network) -> "Dataset":
    """The data of the vectors; SpecError when it has too few samples."""
    from golden.data import load_dataset

    dataset = load_dataset(args.data, network)
    has = min(len(dataset.y_train), len(dataset.y_test))
    if args.vectors > has:
        raise SpecError("--vectors", f"must be at most {has}, the samples of the smaller split", args.vectors)
    return dataset


def _vectors(
    machine: Machine, network: Network, model: "Backend", dataset: "Dataset", number: int, writes: int
) -> dict[str, str]:
    """The test bench and its files; the model sees the same samples, and its weights move.

    The first sample without a label closes the last batch, if that is short, for the model as for the core.
    """
    from hdl import testbench
    from hdl.generate import TOP
    from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT, SUMMARY_LAYOUT

    x, labels = dataset.x_train[:number], dataset.y_train[:number]
    # A machine that does not learn infers a sample with a label too.
    first = model.train(x, labels).predictions if machine.learning.learns else model.predict(x)
    predictions = [*first, *model.predict(dataset.x_test[:number])]
    beats, results = [], []
    for pixels, label, prediction in zip(
        (*x, *dataset.x_test[:number]), (*map(int, labels), *[NO_LABEL] * number), predictions, strict=True
    ):
        beats += [SAMPLE_LAYOUT.const({"data": int(pixel) & 255, "last": 0}).as_bits() for pixel in pixels]
        beats.append(SAMPLE_LAYOUT.const({"data": label, "last": 1}).as_bits())
        summary = SUMMARY_LAYOUT.const({"prediction": int(prediction), "label": label}).as_bits()
        results.append(RESULT_LAYOUT.const({"data": summary, "last": 1}).as_bits())
    return {
        testbench.SAMPLES: testbench.hex_lines(beats, SAMPLE_LAYOUT.size),
        testbench.RESULTS: testbench.hex_lines(results, RESULT_LAYOUT.size),
        testbench.BENCH: testbench.testbench(machine, TOP, writes, len(beats), len(results)),
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
