"""`entrain compare`: LLS beside backpropagation and DFA, as table, CSV and figures."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.common import (
    Interrupted,
    add_common,
    invoked,
    load_specs,
    option,
    positive,
    prepare_out,
    write_metrics,
    write_text,
)
from sim.cli.simulate import add_batch

if TYPE_CHECKING:
    from golden.data import Dataset
    from spec.network import Network

__all__ = ["add_arguments", "run"]

SUMMARY = "LLS beside backpropagation (BP) and direct feedback alignment (DFA)"
DESCRIPTION = """\
Puts a training step of LLS, BP and DFA on the same machine side by side: cycles, multiplications, energy, memory; the
learning signal alone and the whole step; where LLS loses; and whether the verdict survives another technology
table. BP and DFA are models without hardware, BP at its best.
"""
EPILOG = """\
Leaves in DIR
  report.md         the table, where LLS loses, other technologies, what the figures are
  comparison.csv    a line a quantity: value of each rule, and its multiple of LLS's
  cycles.png macs.png energy.png memory.png technologies.png
  metrics.json      per rule everything that `entrain simulate` says; its key "units" says what is what
  training-RULE.npz only after Ctrl-C in --epochs: the same command goes on from there

Examples
  entrain compare --machine mnist --network mnist --out runs/compare
  entrain compare --epochs 20 --out runs/compare-digits         also trains each rule in float: test accuracy
  entrain compare --machine smallconv --network smallconv-cifar10 --batch 1 --out runs/compare-smallconv
"""
UNITS = {
    "technology": "the energy table of the figures",
    "rules": "per rule: cycles, MACs, picojoule, bytes of one training step; see step_units",
    "step_units": "what the values under rules are",
    "bp_over_lls": "multiple of LLS's value that BP has, by quantity; null where LLS has none",
    "dfa_over_lls": "multiple of LLS's value that DFA has, by quantity; null where LLS has none",
    "bp_better": "quantities in which BP beats LLS",
    "dfa_better": "quantities in which DFA beats LLS",
    "energy_pj_by_technology": "picojoule of [whole step, learning signal] by technology and rule",
    "verdict_survives": "whether every technology agrees who needs less energy, LLS or BP",
    "test_accuracy": "percent of the test set by rule, float, after --epochs; empty without --epochs",
    "files": "what was written into the folder",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "compare", "initial weights and sample order of --epochs")
    parser.add_argument(
        "--technology",
        default="horowitz-45nm",
        metavar="NAME|FILE",
        help="energy table of the figures (default: horowitz-45nm); the verdict is held against all presets",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="also train every rule in floating point for N epochs and compare test accuracy",
    )
    parser.add_argument("--data", metavar="FILE", help="data set of --epochs (default: the embedded digits)")
    add_batch(parser)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    from sim.cycle.compare import compare, known_technologies
    from sim.cycle.model import LABELS, training_step
    from sim.cycle.report import UNITS as STEP_UNITS
    from spec.errors import SpecError
    from spec.technology import load_technology

    machine, network = load_specs(args)
    with option("--technology", "technologies"):
        technology = load_technology(args.technology)
    if args.data is not None and args.epochs is None:
        raise SpecError("--data", "must come with --epochs, which trains on it", args.data)
    training_step(machine, network, batch=args.batch)  # what does not fit is refused here
    dataset = None
    if args.epochs is not None:
        from golden.data import load_dataset

        dataset = load_dataset(args.data, network)
    folder = prepare_out(args.out)
    checkpoints = {rule: folder / f"training-{rule}.npz" for rule in ("lls", "bp", "dfa")}
    accuracy = {}
    if dataset is not None:
        try:
            accuracy = _train(args, network, dataset, checkpoints)
        except KeyboardInterrupt as stop:
            said = str(stop) or "interrupted"
            raise Interrupted(f"{said}; go on with: {invoked()} {shlex.join(argv)}") from None
    comparison = compare(machine, network, technology, known_technologies(args.technology), accuracy, args.batch)

    from sim.cycle.plots import draw

    files = [
        write_text(folder / "report.md", comparison.to_markdown()),
        write_text(folder / "comparison.csv", comparison.to_csv()),
        *draw(comparison, folder),
    ]
    values = {
        "technology": technology.name,
        "rules": comparison.metrics,
        "step_units": STEP_UNITS,
        "bp_over_lls": {row.quantity: row.ratio("bp") for row in comparison.rows},
        "dfa_over_lls": {row.quantity: row.ratio("dfa") for row in comparison.rows},
        "bp_better": [row.quantity for row in comparison.where_better("bp")],
        "dfa_better": [row.quantity for row in comparison.where_better("dfa")],
        "energy_pj_by_technology": comparison.energies,
        "verdict_survives": comparison.verdict_survives,
        "test_accuracy": comparison.accuracy,
        "files": [path.name for path in files],
    }
    path = write_metrics(folder, args, machine, network, values, UNITS)
    for checkpoint in checkpoints.values():
        checkpoint.unlink(missing_ok=True)
    array = f"{machine.name} ({machine.rows}x{machine.cols})"
    print(f"One training step of {network.name} on {array}, batch {comparison.batch}")
    print(f"LLS: {LABELS['lls']}; BP and DFA: {LABELS['bp']}.\n")
    print(comparison.to_text())
    for rule, better in (("BP", values["bp_better"]), ("DFA", values["dfa_better"])):
        print(f"\n{rule} beats LLS in: {'; '.join(better) or 'nothing here'}")
    holds = all(comparison.verdict_survives.values())
    print(f"\nLLS against BP in energy: {'the same' if holds else 'NOT the same'} verdict by every technology table")
    for names in comparison.same_memories:
        print(f"({' and '.join(names)} price memories alike)")
    print(f"-> {folder / 'report.md'}, {folder / 'comparison.csv'}, figures beside them, {path}")
    return 0


def _train(
    args: argparse.Namespace, network: "Network", dataset: "Dataset", checkpoints: dict[str, Path]
) -> dict[str, float]:
    """Trains each rule in float, from its checkpoint if there is one: test accuracy in percent by rule."""
    from golden.float_model import FloatBackend
    from golden.train import Progress, train_epochs

    accuracy = {}
    for rule, checkpoint in checkpoints.items():
        backend, progress = FloatBackend(network, rule, args.seed), Progress(name=f"float {rule}")
        result = train_epochs(backend, dataset, args.epochs, args.seed, checkpoint, progress)
        accuracy[rule] = result.test_accuracy
    return accuracy
