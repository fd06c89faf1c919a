"""``python -m hdl.fpga --machine digits --network digits --out DIR``: place and route, a table of the seeds."""

import argparse
import sys
from pathlib import Path

from hdl.fpga.flow import FlowError, place_and_route
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the flow; 0 when every seed meets the machine's clock, 1 when one misses it, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m hdl.fpga", description=__doc__)
    parser.add_argument("--machine", required=True, metavar="NAME|FILE")
    parser.add_argument("--network", required=True, metavar="NAME|FILE")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--jobs", type=int, default=1, help="seeds routed at the same time")
    args = parser.parse_args(arguments)
    try:
        machine, network = load_machine(args.machine), load_network(args.network)
        results = place_and_route(
            machine, network, args.out, args.seeds, args.jobs, lambda line: print(line, flush=True)
        )
    except (SpecError, FlowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = list(results[0].used)
    print(f"\n{'seed':>6} {'Fmax MHz':>9}  " + "  ".join(f"{n:>14}" for n in names))
    for r in results:
        cells = "  ".join(f"{f'{r.used[n]}/{r.available[n]}':>14}" for n in names)
        print(f"{r.seed:>6} {r.fmax_mhz:>9.2f}  {cells}")
    assert machine.device is not None
    goal = machine.device.clock_mhz
    met = all(r.fmax_mhz >= goal for r in results)
    print(f"goal {goal} MHz: {'met by every seed' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
