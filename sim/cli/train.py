"""`entrain train`: trains a network on a backend: float, the bit-exact model, or the compiled Verilog."""

import argparse
import csv
import io
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from golden.rules import RULES as FLOAT_RULES
from sim.cli.common import (
    PREVIOUS,
    CommandError,
    Interrupted,
    add_common,
    add_rule,
    built_for,
    invoked,
    load_specs,
    open_out,
    positive,
    take_out,
    write_metrics,
    write_text,
)
from sim.cycle.text import NAMES
from spec.errors import SpecError
from spec.machine import Machine
from spec.network import Network
from spec.rules import RULES

if TYPE_CHECKING:
    from golden.data import Dataset
    from golden.train import Backend, TrainResult
    from sim.rtl.backend import RtlBackend

__all__ = ["BACKENDS", "add_arguments", "check_rule", "history_csv", "make_backend", "make_rtl", "run"]

SUMMARY = "train in float, in the bit-exact model or on the compiled Verilog"
HARDWARE = (*(name for name in NAMES if RULES[name].learns), "frozen")
BACKENDS = {"float": FLOAT_RULES, "golden": HARDWARE, "rtl": HARDWARE}
"""The rules of each backend."""
DESCRIPTION = f"""\
Trains a network, an update a sample (or a batch, where the network's recipe has one). Backends:
  float    floating point; the machine plays no part, but for its rule where there is no --rule
  golden   the bit-exact integer model of the hardware, compiled
  rtl      the generated Verilog, compiled by Verilator. Ends with the weights of golden, bit by bit, and counts clock
           cycles with the design's own counters
Rules:
  golden, rtl  {", ".join(HARDWARE)}
  float        {", ".join(FLOAT_RULES)}
--rule builds the machine for that rule; without it the machine's own counts (key `rule` of its file). lls is local;
lls_m and lls_mxm are lls whose class scores a trained vector or matrix mixes, local_classifier trains the classifier on
each layer itself; drtp is direct random target projection, dfa direct feedback alignment, bp backpropagation; frozen
hidden layers stay random: the control that learning happens. In float alone: forward_forward tells right from wrong
labels.
"""
EPILOG = """\
Data: --data takes
  digits      the embedded digits (the default): 1,437 for training, 360 for test
  FILE.npz    of numpy.savez, keys x_train, y_train, x_test, y_test as Keras has them; or x and y, of which the first
              4/5 are for training. Images: uint8, 0 (black) to 255, of shape (images, pixels...); or int8 codes for a
              network with `input: signed`. Labels: integers from 0, one an image.
              Floats of 0 to 1 become that by (x * 255).round().astype("uint8").
  FOLDER      of the four IDX files train-images-idx3-ubyte, ... (also gzipped), or one of the four
--samples N and --test-samples N take the first N of the training set and of the test set, and leave the rest alone:
for trainings on rtl, which works on some ten images a second where golden works on thousands. What they leave is the
whole data set of that run: a network with `input: standardized` takes its means from it.

Leaves in DIR
  metrics.json    test_accuracy (percent), weights_sha256 (equal for golden and rtl), samples, cycles (rtl), ...; its
                  key "units" says what each value is
  weights.npz     layer0_weight, layer0_bias, ...: int16 codes (golden, rtl) or floats; what is trained of class scores
                  is no part of a network that infers, and is in checkpoint.npz alone
  average.npz     the same form, with --average: the mean of the weights after each of the last N epochs, codes rounded
                  half up. metrics.json has its test accuracy and SHA-256 too; weights.npz stays the last epoch's
  history.csv     a line an epoch
  checkpoint.npz  saved after every epoch, every 30 s, and on Ctrl-C. --resume goes on from it, to the same bits as
                  without the interruption. Without --resume the training in DIR is moved to DIR/previous-1 (-2, ...).
                  The sum behind --average is in it: go on with the same --average and --epochs, or train N epochs or
                  more in addition, from the last epoch's weights, for the mean of the new last N.

Designs that rtl has compiled are kept, some megabytes each, in ~/.cache/entrain or the folder that the environment
variable ENTRAIN_CACHE names; it can be removed at any time.

Examples
  entrain train --backend golden --epochs 20 --out runs/golden
  entrain train --backend rtl --epochs 20 --out runs/rtl         (the same weights_sha256)
  entrain train --backend rtl --epochs 20 --out runs/rtl --resume
  entrain train --machine mnist --network mnist-128 --data mnist.npz --epochs 8 --out runs/mnist
  entrain train --machine smallconv --network smallconv-cifar10 --data cifar10.npz --epochs 20 --average 5
                --out runs/cifar        (there the mean recognises 1 to 2 % more of the test set)
  entrain train --machine conv-small --network conv-small --data mnist.npz --backend rtl --epochs 4 --samples 500
                --test-samples 100 --out runs/conv-rtl        (in the Verilog: 25 million cycles, some minutes)
  entrain train --rule bp --epochs 20 --out runs/bp             (backpropagation, in the integers of its hardware)
  entrain train --rule lls_mxm --epochs 20 --out runs/mxm       (a matrix on each layer's class scores learns too)
  entrain train --machine smallconv --network smallconv-mnist --data mnist.npz --rule dfa --epochs 5 --out runs/dfa
  entrain train --backend float --rule bp --epochs 20 --out runs/bp-float
"""
UNITS = {
    "backend": "float, golden or rtl",
    "rule": "the learning rule, or frozen",
    "data": "name or path of the data set, and what of it",
    "epochs": "epochs trained, those before a --resume included",
    "samples": "training samples seen, those before a --resume included",
    "test_accuracy": "percent of the test set that is right after the last epoch",
    "best_test_accuracy": "percent, the best of the epochs",
    "train_accuracy": "percent of the last epoch's training samples that were right before their own update",
    "weights_sha256": "SHA-256 over weights and biases after the last epoch; equal for golden and rtl",
    "average_epochs": "epochs at the end whose weights have their mean in average.npz (--average; else null)",
    "average_test_accuracy": "percent of the test set that is right with these mean weights (--average; else null)",
    "average_weights_sha256": "SHA-256 over these mean weights; equal for golden and rtl (--average; else null)",
    "cycles": "clock cycles of the training samples by the design's counters (rtl; else null)",
    "cycles_per_sample": "clock cycles of one sample (rtl; else null)",
    "seconds": "wall clock of this run's training in seconds",
    "samples_per_second": "training samples a second of this run's wall clock, tests included",
    "history": "per epoch: accuracies in percent, SHA-256 of the weights, cycles",
    "files": "what was written into the folder",
}
CHECKPOINT, AVERAGE = "checkpoint.npz", "average.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "train", "initial weights and sample order")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="golden", help="what computes (default: golden)")
    add_rule(parser, tuple(dict.fromkeys((*HARDWARE, *FLOAT_RULES))), "learning rule")
    parser.add_argument("--epochs", type=positive, default=10, metavar="N", help="epochs in all (default: 10)")
    parser.add_argument(
        "--average",
        type=positive,
        metavar="N",
        help="also test the mean of the weights after each of the last N epochs, and keep it in DIR/average.npz",
    )
    parser.add_argument("--data", metavar="FILE", help=".npz, IDX files or digits; see below (default: digits)")
    parser.add_argument("--samples", type=positive, metavar="N", help="train on the first N samples (default: all)")
    parser.add_argument("--test-samples", type=positive, metavar="N", help="test on the first N samples (default: all)")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/checkpoint.npz")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    machine, network = load_specs(args)
    rule = args.rule or machine.rule
    check_rule(args.backend, rule, machine)
    if args.average is not None and args.average > args.epochs:
        raise SpecError("--average", f"must be at most --epochs, {args.epochs}", args.average)
    if args.backend != "float":
        from spec.program import program_for

        machine, train_hidden = trained_machine(machine, rule)
        program_for(network, machine, train_hidden)

    from golden.data import load_dataset

    dataset = _first(load_dataset(args.data, network), args.samples, args.test_samples)
    checkpoint = args.out / CHECKPOINT
    before = _samples_saved(args, rule, machine, network, checkpoint, dataset)
    folder = open_out(args.out)

    from golden.checkpoint import save_weights
    from golden.train import Progress, TrainingInterrupted, train_epochs

    progress = Progress(quiet=args.quiet)
    again = f"{invoked()} {shlex.join(argv if args.resume else [*argv, '--resume'])}"
    backend = make_backend(args.backend, rule, machine, network, args.seed, progress.line)
    take_out(folder, same=args.resume)
    try:
        result = train_epochs(backend, dataset, args.epochs, args.seed, checkpoint, progress, average=args.average)
    except TrainingInterrupted as stop:
        raise Interrupted(f"{stop}; go on with: {again}") from None
    except KeyboardInterrupt:
        saved = f"go on from what {checkpoint} holds with: {again}" if checkpoint.exists() else "nothing was saved"
        raise Interrupted(f"interrupted; {saved}") from None
    save_weights(folder / "weights.npz", backend.parameters())
    average = result.average
    if average is not None:
        save_weights(folder / AVERAGE, average.parameters)
    write_text(folder / "history.csv", history_csv(result))
    values = {
        "backend": args.backend,
        "rule": rule,
        "data": dataset.name,
        "epochs": len(result.history),
        "samples": result.samples,
        "test_accuracy": result.test_accuracy,
        "best_test_accuracy": max(entry.test_accuracy for entry in result.history),
        "train_accuracy": result.history[-1].train_accuracy,
        "weights_sha256": result.weights_sha256,
        "average_epochs": None if average is None else average.epochs,
        "average_test_accuracy": None if average is None else average.test_accuracy,
        "average_weights_sha256": None if average is None else average.weights_sha256,
        "cycles": result.cycles,
        "cycles_per_sample": None if result.cycles is None else result.cycles / result.samples,
        "seconds": result.seconds,
        "samples_per_second": (result.samples - before) / result.seconds,
        "history": [vars(entry) for entry in result.history],
        "files": ["weights.npz", *([] if average is None else [AVERAGE]), "history.csv", CHECKPOINT],
    }
    path = write_metrics(folder, args, machine, network, values, UNITS)
    print(f"test accuracy   {result.test_accuracy:.2f} %  ({dataset.name}, {args.backend}, {rule})")
    print(f"samples         {result.samples:,} in {len(result.history)} epochs")
    if result.cycles is not None:
        print(f"cycles          {result.cycles:,}  ({result.cycles / result.samples:,.1f} a sample)")
    print(f"weights_sha256  {result.weights_sha256}")
    if average is not None:
        print(f"mean weights    {average.test_accuracy:.2f} %  (last {average.epochs} epochs; {folder / AVERAGE})")
    print(f"-> {folder / 'weights.npz'}, {folder / 'history.csv'}, {path}")
    return 0


def _first(dataset: "Dataset", samples: int | None, test_samples: int | None) -> "Dataset":
    """A data set of the first so many samples of each split; None: of all. SpecError where there are fewer."""
    for option, number, has in (
        ("--samples", samples, len(dataset.y_train)),
        ("--test-samples", test_samples, len(dataset.y_test)),
    ):
        if number is not None and number > has:
            raise SpecError(option, f"must be at most {has}, the samples of {dataset.name}", number)
    if samples is None and test_samples is None:
        return dataset
    train, test = samples or len(dataset.y_train), test_samples or len(dataset.y_test)
    return replace(
        dataset,
        name=f"{dataset.name}, {train:,} samples to train on and {test:,} to test",
        raw_train=dataset.raw_train[:train],
        y_train=dataset.y_train[:train],
        raw_test=dataset.raw_test[:test],
        y_test=dataset.y_test[:test],
    )


def _samples_saved(
    args: argparse.Namespace,
    rule: str,
    machine: Machine,
    network: Network,
    checkpoint: Path,
    dataset: "Dataset",
) -> int:
    """Samples that `--resume` goes on from, 0 without it.

    SpecError for a checkpoint that is missing, of another run, further than `--epochs`, or without the sum that
    `--average` needs: it is found out here, before the Verilog is compiled.
    """
    if not args.resume:
        return 0
    if not checkpoint.exists():
        aside = [path.parent for path in args.out.glob(f"{PREVIOUS}*/{CHECKPOINT}")]
        hint = f" ({max(aside, key=lambda path: path.stat().st_mtime)} has one)" if aside else ""
        raise SpecError("--resume", f"needs {checkpoint}, which does not exist{hint}")
    from golden.checkpoint import load_checkpoint
    from golden.train import check_average

    if args.backend == "float":
        identity = make_backend("float", rule, machine, network, args.seed).identity()
    else:
        from golden.fixed import integer_identity

        identity = integer_identity(network, machine, rule != "frozen")
    identity = {**identity, "seed": str(args.seed), "data": dataset.sha256}
    progress = load_checkpoint(checkpoint, identity, {"data": dataset.name}).progress
    epoch, sample = progress.get("epoch"), progress.get("sample")
    if not isinstance(epoch, int) or not isinstance(sample, int):
        raise SpecError(str(checkpoint), "must be a checkpoint of entrain (it has no progress)")
    if (epoch, sample) > (args.epochs, 0):
        raise SpecError("--epochs", f"must reach what {checkpoint} has, {epoch} epochs, or more", args.epochs)
    if args.average is not None:
        check_average(checkpoint, progress, args.epochs, args.average)
    return epoch * len(dataset.y_train) + sample


def check_rule(backend: str, rule: str, machine: Machine) -> None:
    """Refuses a rule that a backend does not have on a machine."""
    rules = BACKENDS[backend]
    if rule in rules:
        return
    if rule == machine.rule and not machine.learning.learns:
        raise SpecError("--rule", f"must name a rule that learns: machine {machine.name} is built for inference only")
    others = [name for name in BACKENDS if rule in BACKENDS[name]]
    hint = f" (--backend {others[0]} has {rule})" if others else ""
    raise SpecError("--rule", f"must be {' or '.join(rules)} for --backend {backend}{hint}", rule)


def trained_machine(machine: Machine, rule: str) -> tuple[Machine, bool]:
    """The machine that trains by a rule of :data:`HARDWARE`, and whether its hidden layers learn."""
    return built_for(machine, "lls" if rule == "frozen" else rule), rule != "frozen"


def make_backend(
    name: str, rule: str, machine: Machine, network: Network, seed: int, report: Callable[[str], None] | None = None
) -> "Backend":
    """The backend of that name with its initial weights, of the machine built for the rule.

    Raises CommandError when the Verilog cannot be compiled.
    """
    if name == "float":
        from golden.float_model import FloatBackend

        return FloatBackend(network, rule, seed)
    machine, train_hidden = trained_machine(machine, rule)
    if name == "rtl":
        return make_rtl(machine, network, seed, train_hidden, report)
    if network.windowed:
        from golden.windowed_fast import FastWindowedModel

        return FastWindowedModel(network, machine, seed, train_hidden=train_hidden)
    from golden.fast import FastModel

    return FastModel(network, machine, seed, train_hidden=train_hidden)


def make_rtl(
    machine: Machine,
    network: Network,
    seed: int,
    train_hidden: bool = True,
    report: Callable[[str], None] | None = None,
) -> "RtlBackend":
    """The compiled Verilog with its initial weights. Raises CommandError when it cannot be compiled."""
    from sim.rtl.backend import RtlBackend, RtlError
    from sim.rtl.library import CompileError

    try:
        return RtlBackend(network, machine, seed, train_hidden, report=report)
    except (CompileError, RtlError) as error:
        raise CommandError(str(error)) from None


def history_csv(result: "TrainResult") -> str:
    """A line an epoch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", "train_accuracy_percent", "test_accuracy_percent", "cycles", "weights_sha256"])
    for entry in result.history:
        cycles = "" if entry.cycles is None else entry.cycles
        accuracies = (f"{entry.train_accuracy:.4f}", f"{entry.test_accuracy:.4f}")
        writer.writerow([entry.epoch, *accuracies, cycles, entry.weights_sha256])
    return text.getvalue()
