"""Use of the multipliers over whole training steps, from the design's own counters; weights against the model's.

`python -m bench.utilization --machine mnist --network mnist --out DIR`. Noise as data: cycles do not depend on it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from golden.fast import FastModel
from sim.rtl.backend import RtlBackend
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network

__all__ = ["main"]


def main() -> int:
    """Trains both on the same samples, prints and writes `metrics.json`; 1 if a weight differs, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.utilization", description=__doc__)
    parser.add_argument("--machine", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--network", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=3, help="training steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    arguments = parser.parse_args()
    try:
        machine, network = load_machine(arguments.machine), load_network(arguments.network)
        if arguments.samples < 1:
            raise SpecError("--samples", "must be 1 or more", arguments.samples)
        rtl = RtlBackend(network, machine, report=lambda line: print(line, file=sys.stderr))
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = FastModel(network, machine)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, (arguments.samples, network.features)).astype(np.int8)
    labels = rng.integers(0, network.classes, arguments.samples)
    cycles = rtl.train(x, labels).cycles
    model.train(x, labels)
    equal = all(
        np.array_equal(a, b)
        for pair in zip(rtl.parameters(), model.parameters(), strict=True)
        for a, b in zip(*pair, strict=True)
    )
    bound = 2 * network.macs * arguments.samples / (machine.rows * machine.cols)
    metrics = {
        "machine": machine.name,
        "network": network.name,
        "samples": arguments.samples,
        "cycles": cycles,
        "bound_cycles": bound,
        "utilization": bound / cycles,
        "weights_equal": equal,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(
        f"{network.name} on {machine.name}: {cycles / arguments.samples:,.0f} cycles a training step, "
        f"{100 * bound / cycles:.1f} % of the bound {bound / arguments.samples:,.0f}; "
        f"weights {'equal' if equal else 'DIFFERENT'}"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
