"""A rule's cost over LLS's from the counters of the compiled Verilog, beside the ratios that one counts.

`python -m bench.ratios --machine smallconv --network smallconv-cifar10 --rules bp,dfa --out DIR`. Each ratio with what
it divides:

* signal, MACs by the paper's count: the way back of the rule over the multiplications that class scores and gradients
  are, 2·K·latents, without norm and projection;
* signal, MACs: the same, with all that the learning signal multiplies;
* signal, cycles: those of the phase `signal`, of the counter CYCLES_SIGNAL;
* whole step, MACs; whole step, cycles: forward pass, learning signal, weight gradient; of all counters but CYCLES_WAIT;
* memory: bytes that a step keeps, at batch 1 and 128 (`sim.cycle.memory`: what the program places, padding included).

Counters and weights are those of a batch of noise (`bench.utilization`); cycles do not depend on the data.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.utilization import MINIMUM_SAMPLES, measure, table
from sim.cycle.memory import memory_by_batch
from sim.cycle.model import training_step
from sim.cycle.step import Step
from spec.errors import SpecError, check_choice
from spec.machine import load_machine
from spec.network import load_network
from spec.rules import RULES

__all__ = ["main"]

LEARNING = [name for name, rule in RULES.items() if rule.learns]


def main() -> int:
    """Measures LLS and the rules, prints, writes `metrics.json`; 1 if a weight or cycle differs, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.ratios", description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default="smallconv", help="preset or file (default: %(default)s)")
    parser.add_argument("--network", default="smallconv-cifar10", help="preset or file (default: %(default)s)")
    parser.add_argument("--rules", default="bp", help="beside lls (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="samples an update, in place of the network's recipe's")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    arguments = parser.parse_args()
    try:
        rules = list(dict.fromkeys(["lls", *arguments.rules.split(",")]))
        for rule in rules:
            check_choice("--rules", rule, LEARNING)
        machine, network = load_machine(arguments.machine), load_network(arguments.network)
        if arguments.batch is not None:
            network = replace(network, recipe=replace(network.recipe, batch=arguments.batch))
        batch = network.recipe.batch
        steps = {rule: training_step(machine, network, rule) for rule in rules}
        counted = {}
        for rule in rules:
            # Whole batches: then the counters are a multiple of a step's.
            counted[rule] = measure(machine.built_for(rule), network, -(-MINIMUM_SAMPLES // batch) * batch)
            print(table(counted[rule]), end="\n\n", flush=True)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = {rule: _figures(steps[rule], counted[rule]) for rule in rules}
    lls = figures["lls"]
    for rule in rules[1:]:
        print(f"{rule} over lls, {network.name} on {machine.name}, batch {batch}")
        for name, value in figures[rule].items():
            ratio = f"{value / lls[name]:,.2f}x" if lls[name] else "-"
            print(f"  {name:32}{value:16,.0f}{lls[name]:16,.0f}{ratio:>12}")
    equal = all(
        counted[rule]["weights_equal"] and figures[rule]["whole step, cycles"] == steps[rule].cycles for rule in rules
    )
    print(f"weights and cycles {'equal to' if equal else 'DIFFERENT from'} those of the models")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"batch": batch, "figures": figures, "counters": counted, "equal": equal}
    (arguments.out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if equal else 1


def _figures(step: Step, counted: dict) -> dict[str, float]:
    """A step's: cycles by the counters, the rest counted."""
    steps = counted["samples"] / counted["batch"]
    parts = step.signal_macs
    memory = {batch: sum(found.values()) for batch, found in memory_by_batch(step).items()}
    signal = sum(layer["cycles_by_phase"]["signal"] for layer in counted["layers"])
    return {
        "signal, MACs by the paper's count": sum(n for part, n in parts.items() if part not in ("norm", "projection")),
        "signal, MACs": sum(parts.values()),
        "signal, cycles": signal / steps,
        "whole step, MACs": step.macs,
        "whole step, cycles": counted["cycles"] / steps,
        **{f"memory, bytes at batch {batch}": memory[batch] for batch in (1, 128) if batch in memory},
    }


if __name__ == "__main__":
    sys.exit(main())
