"""`entrain demo`: the whole project in one run: train, replay in the Verilog, report."""

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.common import (
    RESULTS,
    CommandError,
    add_common,
    load_specs,
    positive,
    prepare_out,
    write_metrics,
    write_text,
)

if TYPE_CHECKING:
    from sim.cycle.compare import Comparison

__all__ = ["add_arguments", "run"]

SUMMARY = "train digits, replay the training in the Verilog, write Verilog, report and figures"
DESCRIPTION = """\
The whole project in one run of a minute or two:
  1. trains a network on handwritten digits in the bit-exact model of the hardware;
  2. writes the machine as Verilog, compiles it, and trains the Verilog on the first of the same samples: predictions
     and weights must be equal, bit by bit, and the design's cycle counters must agree with the cycle simulator;
  3. compares LLS with the other learning rules that there are machines for, and draws figures.
"""
EPILOG = """\
Leaves in DIR
  report.md         what was done and found
  metrics.json      the same as numbers; its key "units" says what each is
  learning.png      test accuracy by epoch
  verilog/          entrain_core.v, entrain_core.json
  compare/          report.md, comparison.csv, figures
  weights.npz       the final weights, int16 codes: layer0_weight, layer0_bias, ...
  history.csv       a line an epoch

Exit code 1 when test accuracy misses --aim, or the Verilog and the model differ.

Examples
  entrain demo
  entrain demo --replay 2000 --out runs/long-demo
"""
UNITS = {
    "test_accuracy": "percent of the held-out digits that are right after the last epoch",
    "aim": "percent that test_accuracy has to reach",
    "epochs": "epochs in the bit-exact model",
    "samples": "training samples in the bit-exact model",
    "weights_sha256": "SHA-256 of the bit-exact model's final weights",
    "train_seconds": "wall clock of the training in seconds",
    "replayed_samples": "training samples replayed in the compiled Verilog",
    "replay_equal": "whether predictions and all weights of Verilog and model are equal after them",
    "replay_weights_sha256": "SHA-256 of the weights after them, Verilog and model",
    "cycles": "clock cycles of the replay by the design's counters, waiting apart",
    "cycles_by_phase": "of those, by phase, a sample on average",
    "cycles_expected": "clock cycles of the replay by the cycle simulator",
    "cycles_equal": "whether the two agree, phase by phase",
    "utilization": "0 to 1: 2 MACs / (rows x columns x cycles) of a training step",
    "verilog_sha256": "SHA-256 of the Verilog",
    "seconds": "wall clock of the demo",
    "files": "what was written into the folder",
}
MINIMUM_REPLAY = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "demo", "initial weights and sample order")
    parser.add_argument("--epochs", type=positive, default=30, metavar="N", help="epochs of training (default: 30)")
    parser.add_argument(
        "--replay",
        type=positive,
        default=MINIMUM_REPLAY,
        metavar="N",
        help=f"training samples replayed in the Verilog (default: {MINIMUM_REPLAY})",
    )
    parser.add_argument(
        "--aim", type=float, default=97.0, metavar="PERCENT", help="test accuracy to reach (default: 97)"
    )


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    began = time.monotonic()
    from golden.data import load_dataset
    from sim.cli.train import check_rule
    from spec.errors import SpecError
    from spec.program import program_for

    machine, network = load_specs(args)
    check_rule("golden", machine.rule, machine)
    program_for(network, machine)
    dataset = load_dataset(None, network)
    if not 0 <= args.aim <= 100:
        raise SpecError("--aim", "must be a percentage from 0 to 100", args.aim)
    if args.replay > args.epochs * len(dataset.y_train):
        raise SpecError(
            "--replay", f"must be at most the {args.epochs * len(dataset.y_train)} samples trained", args.replay
        )
    folder = prepare_out(args.out)

    def say(line: str) -> None:
        print(line, flush=True)

    array = f"{machine.rows}x{machine.cols} processing elements"
    say(f"Entrain: {_sizes(network)} on {array}, batch {network.recipe.batch}, rule {_rule(machine)}\n")
    say(f"1/3  Training in the bit-exact model: {len(dataset.y_train)} digits, {args.epochs} epochs")
    values = _train(args, machine, network, dataset, folder)
    say(
        f"     {values['test_accuracy']:.2f} % of {len(dataset.y_test)} held-out digits are right, "
        f"after {values['train_seconds']:.1f} s\n"
    )
    say(f"2/3  The same first {args.replay} training samples in the generated Verilog")
    say("     (compiled once for each design, half a minute; later runs find it)")
    values |= _replay(args, machine, network, dataset, folder)
    equal = "equal in every bit" if values["replay_equal"] else "DIFFERENT"
    say(f"     predictions and {network.parameters:,} weights and biases: {equal}")
    agrees = (
        "as the cycle simulator says"
        if values["cycles_equal"]
        else (f"but the cycle simulator says {values['cycles_expected']:,}")
    )
    say(f"     {values['cycles']:,} clock cycles by the design's own counters, {agrees}\n")
    say("3/3  Learning rules side by side\n")
    comparison = _compare(machine, network, folder)
    say("     " + comparison.to_text().replace("\n", "\n     ") + "\n")

    values["utilization"] = _own(machine, comparison)["utilization"]
    values["seconds"] = time.monotonic() - began
    report = write_text(folder / "report.md", _report(args, machine, network, values, comparison))
    written = [path for part in RESULTS["demo"] for path in (folder / part, *(folder / part).glob("*.*"))]
    values["files"] = sorted(str(path.relative_to(folder)) for path in written if path.is_file())
    write_metrics(folder, args, machine, network, values, UNITS)
    say(f"Done in {values['seconds']:.0f} s. Look at")
    for path, what in (
        (report, "what was done and found"),
        (folder / "learning.png", "test accuracy by epoch"),
        (folder / "compare" / "report.md", "learning rules side by side, with figures"),
        (folder / "verilog" / "entrain_core.v", "the machine"),
        (folder / "metrics.json", "all numbers"),
    ):
        say(f"  {str(path):<40} {what}")
    if not (values["replay_equal"] and values["cycles_equal"]):
        raise CommandError("the Verilog and its models differ; see metrics.json")
    if values["test_accuracy"] < args.aim:
        raise CommandError(f"test accuracy {values['test_accuracy']:.2f} % misses the aim of {args.aim:g} %")
    return 0


def _train(args, machine, network, dataset, folder: Path) -> dict:
    """Trains the bit-exact model; leaves weights, history, the figure."""
    from golden.checkpoint import save_weights
    from golden.train import train_epochs
    from sim.cli.train import history_csv, make_backend
    from sim.cycle.plots import draw_learning

    backend = make_backend("golden", machine.rule, machine, network, args.seed)
    result = train_epochs(backend, dataset, args.epochs, args.seed)
    save_weights(folder / "weights.npz", backend.parameters())
    write_text(folder / "history.csv", history_csv(result))
    accuracies = [entry.test_accuracy for entry in result.history]
    draw_learning(accuracies, f"{network.name}, bit-exact model, {_rule(machine)}", args.aim, folder / "learning.png")
    return {
        "test_accuracy": result.test_accuracy,
        "aim": args.aim,
        "epochs": len(result.history),
        "samples": result.samples,
        "weights_sha256": result.weights_sha256,
        "train_seconds": result.seconds,
    }


def _replay(args, machine, network, dataset, folder: Path) -> dict:
    """Trains Verilog and model on the same first samples and compares everything."""
    import numpy as np

    from golden.checkpoint import weights_sha256
    from golden.train import epoch_order
    from hdl.generate import generate
    from sim.cli.generate import sha256_of
    from sim.cli.train import make_backend, make_rtl
    from sim.rtl.backend import RtlError
    from spec.timing import Phase

    generated = generate(machine, network, folder / "verilog")
    rtl = make_rtl(machine, network, args.seed)
    model = make_backend("golden", machine.rule, machine, network, args.seed)
    orders = [epoch_order(args.seed, epoch, len(dataset.y_train)) for epoch in range(args.epochs)]
    order = np.concatenate(orders)[: args.replay]
    x, labels = dataset.x_train[order], dataset.y_train[order]
    try:
        before = rtl.cycles_by_phase()
        seen, expected = rtl.train(x, labels), model.train(x, labels)
        phases = {p.name.lower(): n - before[p] for p, n in rtl.cycles_by_phase().items() if p != Phase.WAIT}
        weights, digest = rtl.parameters(), weights_sha256(model.parameters())
    except RtlError as error:
        raise CommandError(str(error)) from None
    wanted = _cycles(machine, network, args.replay)
    same = np.array_equal(seen.predictions, expected.predictions) and weights_sha256(weights) == digest
    return {
        "replayed_samples": args.replay,
        "replay_equal": bool(same),
        "replay_weights_sha256": digest,
        "cycles": seen.cycles,
        "cycles_by_phase": {p: n / args.replay for p, n in phases.items()},
        "cycles_expected": sum(wanted.values()),
        "cycles_equal": phases == wanted,
        "verilog_sha256": sha256_of(generated.verilog),
    }


def _cycles(machine, network, samples: int) -> dict[str, int]:
    """Cycles by phase of so many samples in batches, of which the last may be shorter, by the cycle simulator."""
    from collections import Counter

    from sim.cycle.model import training_step

    batches, rest = divmod(samples, network.recipe.batch)
    total: Counter[str] = Counter()
    for times, batch in ((batches, network.recipe.batch), (1, rest)):
        if times and batch:
            cycles = training_step(machine, network, batch=batch).cycles_by_phase
            total.update({phase: times * number for phase, number in cycles.items()})
    return dict(total)


def _sizes(network) -> str:
    """A network in a word: its sizes, or its name where it has convolutions."""
    if network.features != network.shapes[0][0]:
        return network.name
    return "-".join(str(n) for n in (network.features, *(n for _, n in network.shapes)))


def _rule(machine) -> str:
    """The machine's rule as reports call it."""
    from sim.cycle.text import NAMES

    return NAMES[machine.rule]


def _own(machine, comparison: "Comparison") -> dict:
    """The metrics of a step under the machine's own rule."""
    return comparison.metrics[machine.rule]


def _compare(machine, network, folder: Path) -> "Comparison":
    """The comparison's table and figures."""
    from sim.cycle.compare import compare, known_technologies
    from sim.cycle.plots import draw
    from spec.technology import load_technology

    comparison = compare(machine, network, load_technology("horowitz-45nm"), known_technologies())
    below = folder / "compare"
    below.mkdir(exist_ok=True)
    write_text(below / "report.md", comparison.to_markdown())
    write_text(below / "comparison.csv", comparison.to_csv())
    draw(comparison, below)
    return comparison


def _report(args, machine, network, values: dict, comparison: "Comparison") -> str:
    """The demo's report."""
    sizes = _sizes(network)
    yes = {True: "yes", False: "**no**"}
    phases = ", ".join(f"{phase} {n:g}" for phase, n in values["cycles_by_phase"].items())
    at = ""
    if machine.device:
        at = f"; at {machine.device.clock_mhz:g} MHz {_own(machine, comparison)['latency_us']:.3g} µs a sample"
    options = {key: getattr(args, key) for key in ("machine", "network", "seed", "epochs", "replay")}
    command = shlex.join(["entrain", "demo", *(f"--{key}={value}" for key, value in options.items())])
    return f"""\
# Demo: {network.name} ({sizes}) on {machine.name} ({machine.rows}x{machine.cols})

`{command}`

## Learning

{values["samples"]:,} training samples of scikit-learn's digits, {values["epochs"]} epochs, batch
{network.recipe.batch}, integers only, rule {_rule(machine)}: **{values["test_accuracy"]:.2f} %** of the held-out digits
are right (aim: {args.aim:g} %). Training took {values["train_seconds"]:.1f} s.

![test accuracy by epoch](learning.png)

## The same in Verilog

| | |
|---|---|
| training samples replayed in the compiled Verilog | {values["replayed_samples"]:,} |
| predictions and weights equal to the model, bit by bit | {yes[values["replay_equal"]]} |
| clock cycles, by the design's counters | {values["cycles"]:,} |
| equal to the cycle simulator, phase by phase | {yes[values["cycles_equal"]]} |
| cycles of one sample | {phases}{at} |
| multipliers in use over a step | {100 * values["utilization"]:.1f} % |
| SHA-256 of the weights after the replay | `{values["replay_weights_sha256"]}` |
| SHA-256 of the Verilog (`verilog/entrain_core.v`) | `{values["verilog_sha256"]}` |

## Rules side by side

{comparison.label}. All of it: [compare/report.md](compare/report.md).

![cycles](compare/cycles.png)
![energy](compare/energy.png)
"""
