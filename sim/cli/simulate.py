"""`entrain simulate`: cycles, multiplications, energy and memory of one training step."""

import argparse

from sim.cli.common import add_common, add_rule, built_for, load_specs, option, positive, prepare_out, write_metrics
from sim.cycle.forward_forward import RULE as FORWARD_FORWARD
from sim.cycle.text import NAMES

__all__ = ["add_arguments", "add_batch", "run"]

SUMMARY = "cycles, utilization, energy and memory of a training step"
DESCRIPTION = """\
Counts what one training step, of one batch, costs on a machine, by closed forms: networks of any size take no time.
The cycles are those of the RTL of a machine built for the rule, phase by phase; rule inference: nothing is learned.
forward_forward, which no machine is built for, is a model of the same array and says so.
"""
EPILOG = """\
Leaves in DIR
  metrics.json   cycles, cycles_by_phase, macs_by_phase, utilization (0 to 1), energy_pj, peak_bytes, and more: by
                 layer, by component, by memory, memory by batch. Its key "units" says what each figure is and in what
                 unit.

Examples
  entrain simulate --machine mnist --network mnist --out runs/mnist
  entrain simulate --machine mnist --network mnist --rule bp --technology jouppi-7nm --out runs/mnist-bp
  entrain simulate --machine smallconv --network smallconv-cifar10 --batch 1 --out runs/smallconv
  entrain simulate --machine smallconv --network smallconv-cifar10 --rule dfa --out runs/smallconv-dfa
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_common(parser, "simulate", "nothing is random here; kept in metrics.json")
    add_rule(parser, (*NAMES, FORWARD_FORWARD), "learning rule, of a machine built otherwise alike")
    parser.add_argument(
        "--technology",
        default="horowitz-45nm",
        metavar="NAME|FILE",
        help="energy table: preset or YAML file (default: horowitz-45nm)",
    )
    add_batch(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """`--batch`, the samples of a step."""
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="samples of the step (default: those of the network's recipe)"
    )


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    from sim.cycle.model import training_step
    from sim.cycle.report import UNITS, step_metrics
    from spec.technology import load_technology

    machine, network = load_specs(args)
    with option("--technology", "technologies"):
        technology = load_technology(args.technology)
    if args.rule != FORWARD_FORWARD:
        machine = built_for(machine, args.rule or machine.rule)
    step = training_step(machine, network, args.rule, batch=args.batch)
    folder = prepare_out(args.out)
    metrics = step_metrics(step, technology)
    path = write_metrics(folder, args, machine, network, metrics, UNITS)

    phases = ", ".join(f"{phase} {n:,}" for phase, n in metrics["cycles_by_phase"].items())
    macs = ", ".join(f"{p.replace('_', ' ')} {n:,}" for p, n in metrics["macs_by_phase"].items())
    energy = ", ".join(f"{p.replace('_', ' ')} {pj / 1e3:,.2f}" for p, pj in metrics["energy_by_phase_pj"].items())
    memory = ", ".join(f"{p} {n:,}" for p, n in metrics["memory_bytes"].items() if n)
    latency = metrics["latency_us"]
    at = f" = {latency:,.4g} us at {machine.device.clock_mhz:g} MHz" if machine.device else ""
    array = f"{machine.name} ({machine.rows}x{machine.cols})"
    print(f"One training step of {network.name} on {array}, rule {step.rule}, batch {step.batch}")
    print(f"  {metrics['label']}")
    print(f"cycles       {metrics['cycles']:,}{at}  ({phases})")
    if step.batch > 1:
        print(f"             {metrics['cycles'] / step.batch:,.0f} a sample")
    print(f"MACs         {metrics['macs']:,}  ({macs})")
    if step.network.windowed:
        products = metrics["multiplications_by_phase"]
        made = ", ".join(f"{p.replace('_', ' ')} {n:,}" for p, n in products.items())
        print(f"  multiplied {sum(products.values()):,}  ({made}; {step.window_additions:,} additions in windows)")
    print(f"utilization  {metrics['utilization']:.4f} of the multipliers' cycles")
    print(f"energy       {metrics['energy_pj'] / 1e3:,.1f} nJ by {technology.name}  ({energy})")
    print(f"memory       {metrics['peak_bytes']:,} bytes  ({memory})")
    print(f"-> {path}")
    return 0
