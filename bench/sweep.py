"""Random networks on the compiled Verilog: weights, trained scores, predictions, and the cycles of every phase of every
layer, against the model and the cycle simulator.

`python -m bench.sweep --networks 100 --out DIR` draws layers, shapes, strides, paddings, batches and rates at random,
for arrays from 1x1 to 8x8 and every learning rule, beyond what the tests hold. Each network is drawn from the seed and
its own number alone, so that one line of `sweep.csv` is enough to see it again (`--first NUMBER --networks 1`).
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from golden.fast import FastModel
from golden.windowed_fast import FastWindowedModel
from sim.benches.networks import random_network, windowed_machine
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.cycle.step import Step
from sim.rtl.backend import RtlBackend
from spec.errors import SpecError, check_choice
from spec.machine import Machine
from spec.network import FullyConnected, Network, Recipe
from spec.rules import RULES
from spec.scores import TRAINED_FRAC
from spec.timing import Phase

__all__ = ["main"]

RATED = [name for name, rule in RULES.items() if rule.learns and name != "lls"]
"""Rules whose rate a recipe may name."""
SHAPES = ((1, 1), (2, 2), (2, 4), (4, 2), (3, 5), (4, 4), (8, 8))
"""Arrays of the dense datapath."""
WINDOWED_SHAPES = ((1, 1), (2, 2), (4, 2), (4, 4), (8, 8))
CLASSES_OF_BASIS = {"square": 10, "walsh": 4, "sine": 3}
BATCHES = 3
"""Updates, or samples at batch 1, that a network is trained for; the last batch is not filled."""
SPREAD = 1 << TRAINED_FRAC
"""How far trained scores are from those that training starts from, before it does."""
Design = tuple[Machine, int, str]


def main() -> int:
    """Draws, runs, compares; 1 if anything differed, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--networks", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from (default: %(default)s)")
    parser.add_argument("--rules", default=",".join(RULES), help="of the machines (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for sweep.csv")
    arguments = parser.parse_args()
    try:
        for name in ("networks", "first", "seed"):
            if getattr(arguments, name) < 0:
                raise SpecError(f"--{name}", "must be 0 or more", getattr(arguments, name))
        rules = tuple(arguments.rules.split(","))
        for rule in rules:
            check_choice("--rules", rule, RULES)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers = range(arguments.first, arguments.first + arguments.networks)
    try:
        return sweep(numbers, arguments.seed, list(designs(rules)), arguments.out / "sweep.csv")
    except KeyboardInterrupt:
        print(f"interrupted; {arguments.out / 'sweep.csv'} has what was compared", file=sys.stderr)
        return 130


def designs(rules: tuple[str, ...]) -> Iterator[Design]:
    """The machines, each with classes and basis: one compiled design each."""
    bases = list(CLASSES_OF_BASIS.items())
    for shapes, machine_of in ((SHAPES, _dense_machine), (WINDOWED_SHAPES, _windowed_machine)):
        for number, (rows, cols) in enumerate(shapes):
            basis, classes = bases[number % len(bases)]
            for rule in rules:
                # Of use to lls_mxm alone: fewer vectors than classes in every other design.
                yield replace(machine_of(rows, cols, rule), vectors=2 * (number % 2)), classes, basis


def sweep(numbers: range, seed: int, among: list[Design], path: Path) -> int:
    """A network a number, a line of the file each; 1 if anything differed."""
    different, start = 0, time.monotonic()
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["number", "machine", "rule", "network", "samples", "difference"])
        for done, number in enumerate(numbers):
            machine, classes, basis = among[number % len(among)]
            rng = np.random.default_rng([seed, number])
            draw = random_network if machine.windowed else _random_dense
            network = draw(rng, machine, classes, basis)
            samples = max(1, BATCHES * network.recipe.batch - 1)
            found = difference(machine, network, samples, rng)
            lines.writerow([number, machine.name, machine.rule, _layers(network), samples, found])
            file.flush()
            different += bool(found)
            if found:
                print(f"\nnetwork {number} on {machine.name}, {machine.rule}: {found}")
            left = (time.monotonic() - start) / (done + 1) * (len(numbers) - done - 1)
            print(f"\r{done + 1}/{len(numbers)} networks, {different} differ, {left:.0f} s left ", end="", flush=True)
    print()
    return int(different > 0)


def difference(machine: Machine, network: Network, samples: int, rng: np.random.Generator) -> str:
    """What differs first between the Verilog and its two models; empty if nothing does."""
    x = rng.integers(-128 if network.input == "signed" else 0, 128, (samples, network.features)).astype(np.int8)
    labels = rng.integers(0, network.classes, samples)
    seed, frozen = int(rng.integers(1000)), bool(rng.integers(8) == 0)
    model = (FastWindowedModel if network.windowed else FastModel)(network, machine, seed, train_hidden=not frozen)
    rtl = RtlBackend(network, machine, seed, train_hidden=not frozen)
    scores = [codes + rng.integers(-SPREAD, SPREAD, codes.shape) for codes in model.trained_scores()]
    for backend in (rtl, model):
        backend.load_trained_scores(scores)
    before = rtl.trace().astype(np.int64)
    if machine.learning.learns:
        ours, theirs = (backend.train(x, labels).predictions for backend in (rtl, model))
        expected = _cycles(machine, network, samples, frozen)
    else:
        ours, theirs = (backend.predict(x) for backend in (rtl, model))
        expected = _cycles_of([(samples, inference_step(machine, network))])
    spent = rtl.trace().astype(np.int64) - before
    if not np.array_equal(ours, theirs):
        return "predictions" + " in training" * machine.learning.learns
    pairs = zip(rtl.parameters(), model.parameters(), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        for part, a, b in zip(("weight", "bias"), ours, theirs, strict=True):
            if not np.array_equal(a, b):
                return f"layer {number}, {part}: {int(np.sum(a != b))} of {a.size} codes"
    for number, (a, b) in enumerate(zip(rtl.trained_scores(), model.trained_scores(), strict=True)):
        if not np.array_equal(a, b):
            return f"layer {number}, trained scores: {int(np.sum(a != b))} of {a.size} codes"
    for phase in CYCLE_PHASES:
        measured = spent[Phase[phase.upper()], : len(network.shapes)]
        if phase != "finish" and not np.array_equal(measured, expected[phase]):
            return f"cycles of {phase}, a layer: {measured.tolist()}, not {expected[phase].tolist()}"
    if not np.array_equal(rtl.predict(x), model.predict(x)):
        return "predictions"
    return ""


def _cycles(machine: Machine, network: Network, samples: int, frozen: bool) -> dict[str, np.ndarray]:
    """By phase, a number a layer: of whole batches, and of one that is not filled."""
    whole, rest = divmod(samples, network.recipe.batch)
    return _cycles_of(
        [
            (times, training_step(machine, network, train_hidden=not frozen, batch=size))
            for times, size in ((whole, network.recipe.batch), (1, rest))
            if times and size
        ]
    )


def _cycles_of(steps: list[tuple[int, Step]]) -> dict[str, np.ndarray]:
    """By phase, a number a layer, of steps that are done so many times."""
    return {
        phase: np.sum([[times * layer.cycles[phase] for layer in step.layers] for times, step in steps], axis=0)
        for phase in CYCLE_PHASES
    }


def _dense_machine(rows: int, cols: int, rule: str) -> Machine:
    """Room for every network that `_random_dense` draws."""
    return Machine(
        name=f"d{rows}x{cols}", rows=rows, cols=cols, weight_depth=4096, activation_depth=256, max_neurons=64,
        max_fan_in=64, bias_depth=256, max_layers=4, delta_bits=18, fraction_bits=12, result_fifo_depth=64, rule=rule,
    )  # fmt: skip


def _windowed_machine(rows: int, cols: int, rule: str) -> Machine:
    """Room for many networks that `random_network` draws; it draws again where there is too little."""
    return windowed_machine(rows, cols, rule=rule)


def _random_dense(rng: np.random.Generator, machine: Machine, classes: int, basis: str) -> Network:
    """One to four fully connected layers, often as wide as the array or a little more."""
    near = [machine.rows, machine.cols, machine.rows + 1, 2 * machine.cols - 1]
    layers = int(rng.integers(0, machine.max_layers))
    widths = [int(rng.choice(near) if rng.random() < 0.3 else rng.integers(1, 33)) for _ in range(layers)]
    recipe = Recipe(
        hidden_rate_shift=int(rng.integers(2, 9)),
        output_rate_shift=int(rng.integers(2, 9)),
        temperature_shift=int(rng.integers(0, 3)),
        rate_shifts=((machine.rule, int(rng.integers(0, 10))),) if machine.rule in RATED else (),
    )
    made = tuple(FullyConnected(width) for width in (*widths, classes))
    return Network("random", (int(rng.integers(1, 41)),), classes, basis, made, recipe)


def _layers(network: Network) -> str:
    """In one cell: the input's shape, each layer, the batch."""
    layers = ", ".join(repr(layer) for layer in network.layers)
    return f"{network.input_shape}, {layers}, batch {network.recipe.batch}"


if __name__ == "__main__":
    raise SystemExit(main())
