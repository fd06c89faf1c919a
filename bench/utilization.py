"""Use of the multipliers over whole training steps, layer by layer, from the design's own ports and counters; weights
against the model's.

`python -m bench.utilization --machine mnist --network mnist --out DIR`. Noise as data: cycles do not depend on it. The
bound is one cycle for R·C multiplications, of which a weight takes two a position, forward and in its gradient.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from golden.fast import FastModel
from golden.windowed_fast import FastWindowedModel
from sim.rtl.backend import RtlBackend
from spec.errors import SpecError, check_choice
from spec.machine import Machine, load_machine
from spec.network import Network, load_network
from spec.rules import RULES
from spec.timing import Phase

__all__ = ["main", "measure", "table"]

PHASES = (Phase.SETUP, Phase.FORWARD, Phase.SIGNAL, Phase.UPDATE)
"""Those that a layer has; `finish` belongs to the step."""
MINIMUM_SAMPLES = 3


def main() -> int:
    """Trains both on the same samples, prints and writes `metrics.json`; 1 if a weight differs, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.utilization", description=__doc__)
    parser.add_argument("--machine", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--network", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--rule", help="that the machine is built for (default: its own)")
    parser.add_argument("--batch", type=int, help="samples an update, in place of the network's recipe's")
    parser.add_argument("--samples", type=int, help=f"training samples (default: a batch, {MINIMUM_SAMPLES} or more)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    arguments = parser.parse_args()
    try:
        machine, network = load_machine(arguments.machine), load_network(arguments.network)
        if arguments.rule is not None:
            check_choice("--rule", arguments.rule, [name for name, rule in RULES.items() if rule.learns])
            machine = machine.built_for(arguments.rule)
        if arguments.batch is not None:
            network = replace(network, recipe=replace(network.recipe, batch=arguments.batch))
        batch = network.recipe.batch
        samples = -(-MINIMUM_SAMPLES // batch) * batch if arguments.samples is None else arguments.samples
        if samples < 1:
            raise SpecError("--samples", "must be 1 or more", samples)
        metrics = measure(machine, network, samples)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(metrics))
    return 0 if metrics["weights_equal"] else 1


def measure(machine: Machine, network: Network, samples: int) -> dict:
    """Trains Verilog and model on so many samples. Cycles are those of all samples together."""
    rtl = RtlBackend(network, machine, report=lambda line: print(line, file=sys.stderr))
    model = (FastWindowedModel if network.windowed else FastModel)(network, machine)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, (samples, network.features)).astype(np.int8)
    labels = rng.integers(0, network.classes, samples)
    before, began = rtl.trace().astype(np.int64), time.monotonic()
    cycles = rtl.train(x, labels).cycles or 0
    seconds, spent = time.monotonic() - began, rtl.trace().astype(np.int64) - before
    model.train(x, labels)
    pairs = zip(rtl.parameters(), model.parameters(), strict=True)
    equal = all(np.array_equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    layers = []
    for number, geometry in enumerate(network.geometry):
        by_phase = {phase.name.lower(): int(spent[phase, number]) for phase in PHASES}
        bound = 2 * geometry.macs * samples / machine.pes
        layers.append(
            {
                "layer": number,
                "taps": geometry.taps,
                "channels": geometry.channels,
                "positions": geometry.positions,
                "cycles_by_phase": by_phase,
                "cycles": sum(by_phase.values()),
                "bound_cycles": bound,
                "utilization": bound / sum(by_phase.values()),
            }
        )
    finish = int(spent[Phase.FINISH].sum())
    assert cycles == finish + sum(layer["cycles"] for layer in layers), "counters and ports differ"
    bound = 2 * network.macs * samples / machine.pes
    return {
        "machine": machine.name,
        "rule": machine.rule,
        "network": network.name,
        "samples": samples,
        "batch": network.recipe.batch,
        "cycles": cycles,
        "bound_cycles": bound,
        "utilization": bound / cycles,
        "finish_cycles": finish,
        "layers": layers,
        "weights_equal": equal,
        "simulated_cycles_per_second": int(spent.sum()) / seconds,
    }


def table(metrics: dict) -> str:
    """The figures, a sample each."""
    samples, names = metrics["samples"], [phase.name.lower() for phase in PHASES]
    lines = [
        "layer   taps  channels  positions" + "".join(f"{name:>10}" for name in names) + "    cycles     bound       %"
    ]
    for layer in metrics["layers"]:
        sizes = f"{layer['layer']:5}{layer['taps']:7}{layer['channels']:10}{layer['positions']:11}"
        phases = "".join(f"{layer['cycles_by_phase'][name] / samples:10,.0f}" for name in names)
        total = f"{layer['cycles'] / samples:10,.0f}{layer['bound_cycles'] / samples:10,.0f}"
        lines.append(f"{sizes}{phases}{total}{100 * layer['utilization']:8.1f}")
    lines.append(
        f"{metrics['network']} on {metrics['machine']}, rule {metrics['rule']}, batch {metrics['batch']}: "
        f"{metrics['cycles'] / samples:,.0f} cycles a training sample, "
        f"{100 * metrics['utilization']:.1f} % of the bound "
        f"{metrics['bound_cycles'] / samples:,.0f}; weights {'equal' if metrics['weights_equal'] else 'DIFFERENT'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
