"""Draws the pictures of the documentation from the cycle simulator into a folder.

`.venv/bin/python docs/img/draw.py docs/img` replaces those that are tracked.
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.cycle.compare import Comparison, compare, known_technologies
from sim.cycle.plots import BLUE, DARK, GREEN, RED, draw
from sim.cycle.text import sizes
from spec.machine import load_machine
from spec.network import load_network
from spec.technology import load_technology

TECHNOLOGY = "horowitz-45nm"
RULES = {"lls": "LLS", "bp": "BP"}
PARTS = {"forward": ("forward", BLUE), "signal": ("learning signal", RED), "update": ("weight update", GREEN)}
PURPOSES = {"forward": "forward", "signal": "learning_signal", "update": "weight_gradient"}


def bars(axes: Axes, parts: dict[str, list[float]], totals: list[float], legend: bool) -> None:
    """A bar a rule; a part too small for its figure has it above the bar."""
    for y, total in enumerate(totals):
        at, small = 0.0, 0
        for part, (title, colour) in PARTS.items():
            value = parts[part][y]
            axes.barh(y, value, left=at, color=colour, height=0.55, label=title if legend and not y else None)
            figure = f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
            if value > 0.1 * max(totals):
                axes.annotate(figure, (at + value / 2, y), ha="center", va="center", color="white")
            else:
                place = (at, y - 0.3 - 0.18 * small)
                axes.annotate(f"{title} {figure}", place, ha="center", va="bottom", color=colour, fontsize=9)
                small += 1
            at += value
        axes.annotate(f" {total:,.0f}", (total, y), va="center", fontweight="bold")
    axes.set_xlim(0, max(totals) * 1.16)
    axes.set_ylim(1.5, -1)
    axes.set_yticks(range(len(RULES)), list(RULES.values()) if legend else [""] * len(RULES))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def overview(comparison: Comparison) -> Figure:
    """README's picture: where a training step's cycles go, against the bound, and its energy."""
    machine, network = comparison.machine, comparison.network
    steps = [comparison.metrics[rule] for rule in RULES]
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    cycles = {part: [step["cycles_by_phase"][part] for step in steps] for part in PARTS}
    bars(left, cycles, [step["cycles"] for step in steps], legend=True)
    batch = network.recipe.batch
    bound = 2 * network.macs * batch / machine.pes
    # Beside LLS's bar only: it would cross the figures of the other.
    left.plot([bound, bound], [-0.95, 0.3], color=DARK, linestyle="--", linewidth=1.2)
    text = f"bound {bound:,.0f}: every \nmultiplier, every cycle "
    left.annotate(text, (bound, -0.76), ha="right", va="center", fontsize=8.5)
    rest = [step["cycles_by_phase"]["setup"] + step["cycles_by_phase"]["finish"] for step in steps]
    left.set_xlabel(f"clock cycles (with {rest[0]} and {rest[1]} of setup and finish, too thin to be seen)")
    energy = {part: [step["energy_by_phase_pj"][PURPOSES[part]] / 1e6 for step in steps] for part in PARTS}
    bars(right, energy, [step["energy_pj"] / 1e6 for step in steps], legend=False)
    right.set_xlabel("energy in µJ (45 nm; leakage left out)")
    array = f"{machine.pes} multipliers ({machine.rows}x{machine.cols} array)"
    samples = "one sample" if batch == 1 else f"{batch} samples"
    figure.suptitle(f"A training step of {sizes(network)} on {array}, {samples}", fontsize=12)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("folder", type=Path, help="where they go, made if need be; docs/img replaces the tracked ones")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, machine in (("mnist", "mnist"), ("smallconv-cifar10", "smallconv")):
        network = load_network(name)
        comparison = compare(load_machine(machine), network, load_technology(TECHNOLOGY), known_technologies())
        (folder / name).mkdir(parents=True, exist_ok=True)
        draw(comparison, folder / name)
    overview(comparison).savefig(folder / "overview.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
