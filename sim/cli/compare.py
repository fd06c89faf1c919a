"""`entrain compare`: learning rules side by side on one machine, as table, CSV and figures."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.common import (
    MAX_SEED,
    CommandError,
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
from sim.cli.train import make_backend
from sim.cycle.text import NAMES
from spec.errors import SpecError
from spec.rules import RULES

if TYPE_CHECKING:
    from golden.data import Dataset
    from sim.area import Area
    from sim.cycle.compare import Comparison
    from spec.machine import Machine
    from spec.network import Network

__all__ = ["add_arguments", "run"]

SUMMARY = "learning rules side by side: cycles, energy, memory, area, accuracy, and the tax on inference"
DESCRIPTION = f"""\
Puts a training step of every rule that has hardware side by side ({", ".join(NAMES)}),
each on the machine built for it, otherwise alike: cycles, multiplications, energy, memory; the learning signal alone
and the whole step; where LLS loses; what learning costs beyond inference; whether the verdict survives another
technology table. --area synthesises each core and counts its cells, --epochs trains each rule.
"""
EPILOG = """\
Leaves in DIR
  report.md         the table, where LLS loses, learning tax, all parts, other technologies, what the figures are
  comparison.csv    a line a quantity: value of each rule, and its multiple of LLS's
  cycles.png macs.png energy.png memory.png technologies.png; as far as measured, tax.png area.png accuracy.png
  metrics.json      per rule everything that `entrain simulate` says; its key "units" says what is what
  training-RULE-SEED.npz only after Ctrl-C in --epochs: the same command goes on from there

What --area has synthesised is kept in ~/.cache/entrain or the folder that the environment variable ENTRAIN_CACHE
names. It takes seconds a rule (2x2) to minutes (8x8), once for each design; after Ctrl-C the same command goes on.

Examples
  entrain compare --machine mnist --network mnist --out runs/compare
  entrain compare --epochs 20 --seeds 3 --area --out runs/compare-digits     everything, some ten minutes
  entrain compare --rules lls,bp --out runs/compare-two
  entrain compare --machine smallconv --network smallconv-cifar10 --batch 1 --out runs/compare-smallconv
"""
UNITS = {
    "technology": "the energy table of the figures",
    "rules": "per rule: cycles, MACs, picojoule, bytes of one training step; see step_units",
    "step_units": "what the values under rules are",
    "left_out": "rules that the machine cannot be built for, each with the reason",
    "over_lls": "by rule: multiple of LLS's value that it has, by quantity; null where either has none",
    "better_than_lls": "by rule: quantities in which it beats LLS",
    "learning_tax": "by rule: percent over inference, by quantity: cycles, energy, memory of a sample, power (energy a "
    "cycle), and with --area cells by resource; empty where inference is not compared",
    "published_tax": "a chip's published tax: percent of silicon area and of power, and the source",
    "area": "by rule, after --area: FPGA family, and cells by resource and by type of cell after synthesis",
    "energy_pj_by_technology": "picojoule of [whole step, learning signal] by technology and rule",
    "verdict_survives": "by rule: whether every technology agrees who needs less energy, LLS or it",
    "training": "how the test accuracies were reached; null without --epochs",
    "test_accuracy": "percent of the test set by rule, mean of the seeds, after --epochs; empty without --epochs",
    "test_accuracy_by_seed": "by rule: percent of the test set from each seed",
    "files": "what was written into the folder",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "compare", "initial weights and sample order of --epochs")
    parser.add_argument(
        "--rules",
        type=_rules,
        metavar="A,B,...",
        help=f"rules to compare, of {', '.join(NAMES)} (default: all that the machine has room for)",
    )
    parser.add_argument(
        "--technology",
        default="horowitz-45nm",
        metavar="NAME|FILE",
        help="energy table of the figures (default: horowitz-45nm); the verdict is held against all presets",
    )
    parser.add_argument(
        "--area",
        action="store_true",
        help="also synthesise each rule's core for the machine's FPGA family (ECP5 if it names no device)",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="also train every rule for N epochs in the bit-exact model of the hardware, and compare test accuracy",
    )
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="train from N seeds, --seed and those after it (default: 1)"
    )
    parser.add_argument("--data", metavar="FILE", help="data set of --epochs (default: the embedded digits)")
    add_batch(parser)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    from sim.cycle.compare import compare, known_technologies, steps_of
    from spec.technology import load_technology

    machine, network = load_specs(args)
    with option("--technology", "technologies"):
        technology = load_technology(args.technology)
    for name, value in (("--data", args.data), ("--seeds", args.seeds)):
        if value is not None and args.epochs is None:
            raise SpecError(name, "must come with --epochs, which trains", value)
    seeds = range(args.seed, args.seed + (args.seeds or 1))
    if seeds[-1] > MAX_SEED:
        raise SpecError("--seeds", f"must end with seed {MAX_SEED} or before", args.seeds)
    steps, _ = steps_of(machine, network, args.rules, args.batch)  # what does not fit is refused here
    dataset = None
    if args.epochs is not None:
        from golden.data import load_dataset

        dataset = load_dataset(args.data, network)
    which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {args.seed}"
    folder = prepare_out(args.out)
    trained = {
        (rule, seed): folder / f"training-{rule}-{seed}.npz" for rule in steps if RULES[rule].learns for seed in seeds
    }
    areas, accuracy, training = {}, {}, ""
    try:
        if args.area:
            areas = _areas(machine, network, list(steps))
        if dataset is not None:
            accuracy = _train(args, machine, network, dataset, trained)
            training = f"{dataset.name}, epochs: {args.epochs}, integers, the bit-exact model of the hardware, {which}"
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted"
        raise Interrupted(f"{said}; go on with: {invoked()} {shlex.join(argv)}") from None
    comparison = compare(
        machine,
        network,
        technology,
        known_technologies(args.technology),
        accuracy,
        args.batch,
        rules=args.rules,
        areas=areas,
        training=training,
    )
    path = _write(args, comparison, folder)
    for checkpoint in trained.values():
        checkpoint.unlink(missing_ok=True)
    _say(comparison)
    print(f"-> {folder / 'report.md'}, {folder / 'comparison.csv'}, figures beside them, {path}")
    return 0


def _rules(text: str) -> tuple[str, ...]:
    """The option's rules, without doubles."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in RULES:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(NAMES)}, got {name!r}")
    return names


def _areas(machine: "Machine", network: "Network", rules: Sequence[str]) -> dict[str, "Area"]:
    """Synthesises the core of each rule, and says how far that is."""
    from sim.area import FAMILIES, AreaError, area_of, expected_seconds, family_of

    live, known, measured = sys.stderr.isatty(), expected_seconds(machine), 0
    family, found = FAMILIES[family_of(machine)].title, {}

    def waiting(seconds: float) -> None:
        if live:
            print(f"\r{name}: {seconds:.0f} s of about {known:.0f} s ", end="", file=sys.stderr, flush=True)

    for number, rule in enumerate(rules, 1):
        name = f"area of {rule} ({number} of {len(rules)})"
        left = known * (len(rules) - number + 1)
        if not live and not measured:
            said = f"synthesis for {family}, about {left:.0f} s in all, less what is kept"
            print(f"{name}: {said}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            area = area_of(machine.built_for(rule), network, waiting)
        except AreaError as error:
            raise CommandError(f"{name}: {error}") from None
        took = time.monotonic() - began
        if took > 0.5 * area.seconds:
            # It was not kept from before: the others will take as long.
            known, measured = (known * measured + took) / (measured + 1), measured + 1
        counts = ", ".join(f"{number:,} {resource}" for resource, number in list(area.resources.items())[:4])
        to_go = f"; about {known * (len(rules) - number):.0f} s to go" if number < len(rules) else ""
        print(f"{chr(13) if live else ''}{name}: {counts} ({took:.0f} s{to_go})", file=sys.stderr, flush=True)
        found[rule] = area
    return found


def _train(
    args: argparse.Namespace,
    machine: "Machine",
    network: "Network",
    dataset: "Dataset",
    checkpoints: dict[tuple[str, int], Path],
) -> dict[str, list[float]]:
    """Trains each rule from each seed, from its checkpoint if there is one: test accuracies in percent by rule."""
    from golden.train import Progress, train_epochs

    accuracy: dict[str, list[float]] = {}
    for (rule, seed), checkpoint in checkpoints.items():
        backend = make_backend("golden", rule, machine, network, seed)
        progress = Progress(name=f"golden {rule}" + (f", seed {seed}" if args.seeds else ""))
        result = train_epochs(backend, dataset, args.epochs, seed, checkpoint, progress)
        accuracy.setdefault(rule, []).append(result.test_accuracy)
    return accuracy


def _write(args: argparse.Namespace, comparison: "Comparison", folder: Path) -> Path:
    """Report, table, figures and metrics."""
    from sim.cycle.plots import draw
    from sim.cycle.report import UNITS as STEP_UNITS
    from sim.cycle.tax import SPOON

    files = [
        write_text(folder / "report.md", comparison.to_markdown()),
        write_text(folder / "comparison.csv", comparison.to_csv()),
        *draw(comparison, folder),
    ]
    others, rows = comparison.others, comparison.rows
    (accuracies,) = [row.values for row in rows if row.quantity == "test accuracy"] or [{}]
    areas = comparison.areas.items()
    values = {
        "technology": next(iter(comparison.metrics.values()))["technology"]["name"],
        "rules": comparison.metrics,
        "step_units": STEP_UNITS,
        "left_out": comparison.left_out,
        "over_lls": {rule: {row.quantity: row.ratio(rule) for row in rows} for rule in others},
        "better_than_lls": {rule: [row.quantity for row in comparison.where_better(rule)] for rule in others},
        "learning_tax": comparison.tax,
        "published_tax": {SPOON.name: {"area": SPOON.area, "power": SPOON.power, "source": SPOON.source}},
        "area": {r: {"family": a.family, "resources": a.resources, "cells": a.cells} for r, a in areas},
        "energy_pj_by_technology": comparison.energies,
        "verdict_survives": comparison.verdict_survives,
        "training": comparison.training or None,
        "test_accuracy": accuracies,
        "test_accuracy_by_seed": comparison.accuracy,
        "files": [path.name for path in files],
    }
    return write_metrics(folder, args, comparison.machine, comparison.network, values, UNITS)


def _say(comparison: "Comparison") -> None:
    """The table, and what it says, for a terminal."""
    from sim.cycle.tax import SPOON

    machine = comparison.machine
    array = f"{machine.name} ({machine.rows}x{machine.cols})"
    print(f"One training step of {comparison.network.name} on {array}, batch {comparison.batch}")
    print(f"{comparison.label}.\n")
    for rule, reason in comparison.left_out.items():
        print(f"{NAMES[rule]} is left out: {reason}\n")
    print(comparison.to_text())
    for rule in comparison.others:
        better = "; ".join(row.quantity for row in comparison.where_better(rule))
        print(f"\n{NAMES[rule]} beats LLS in: {better or 'nothing here'}")
    if comparison.tax:
        print("\nLearning tax, percent over inference")
        names = [n for n in ("cycles", "energy", "power", "LUTs", "flip-flops", "multipliers", "block RAMs")]
        width = max(len(name) for name in (*(NAMES[rule] for rule in comparison.tax), SPOON.name))
        for rule, found in comparison.tax.items():
            print(f"  {NAMES[rule]:<{width}} " + ", ".join(f"{n} {found[n]:+.1f}" for n in names if n in found))
        published = f"power {SPOON.power:+.1f}, silicon area {SPOON.area:+.1f} ({SPOON.what}, as published)"
        print(f"  {SPOON.name:<{width}} {published}")
    if comparison.others:
        verdicts = comparison.verdict_survives
        torn = [NAMES[rule] for rule, parts in verdicts.items() if not all(parts.values())]
        said = f"NOT the same verdict against {' and '.join(torn)}" if torn else "the same verdict"
        print(f"\nLLS against the others in energy: {said} by every technology table")
        for alike in comparison.same_memories:
            print(f"({' and '.join(alike)} price memories alike)")
