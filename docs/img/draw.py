"""Draws the pictures of the documentation from the cycle simulator: `python docs/img/draw.py` (in the environment)."""

from pathlib import Path

from matplotlib.figure import Figure

from sim.cycle.compare import compare
from sim.cycle.plots import BLUE, DARK, GREEN, GREY, RED, draw
from spec.machine import load_machine
from spec.network import load_network
from spec.technology import load_technology

FOLDER = Path(__file__).parent
TECHNOLOGY = "horowitz-45nm"
RULES = {"lls": "LLS", "bp": "BP (model)"}
PARTS = {"forward": ("forward", BLUE), "signal": ("learning signal", RED), "update": ("weight update", GREEN)}


def overview() -> None:
    """README's picture: a training step's cycles against the bound, and its learning signal's energy."""
    machine, network = load_machine("mnist"), load_network("mnist")
    metrics = compare(machine, network, load_technology(TECHNOLOGY)).metrics
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for y, rule in enumerate(RULES):
        at = 0
        cycles = metrics[rule]["cycles_by_phase"]
        for phase, (title, colour) in PARTS.items():
            left.barh(y, cycles[phase], left=at, color=colour, height=0.55, label=title if not y else None)
            if cycles[phase] > 2000:
                middle = (at + cycles[phase] / 2, y)
                left.annotate(f"{cycles[phase]:,}", middle, ha="center", va="center", color="white")
            at += cycles[phase]
        left.barh(y, sum(cycles.values()) - at, left=at, color=GREY, height=0.55, label=None if y else "setup, finish")
        left.annotate(f" {sum(cycles.values()):,}", (sum(cycles.values()), y), va="center", fontweight="bold")
    bound = 2 * network.macs / (machine.rows * machine.cols)
    left.axvline(bound, color=DARK, linestyle="--", linewidth=1.2)
    text = f"bound {bound:,.0f}: every\nmultiplier, every cycle "
    left.annotate(text, (bound, -0.62), ha="right", va="center", fontsize=8.5)
    left.set_title("A training step: clock cycles\n784-512-512-10, 8x8 multipliers, one sample", fontsize=11)
    left.set_xlim(0, 30000)
    left.set_ylim(1.5, -0.9)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, fontsize=9)
    energies = [metrics[rule]["energy_by_phase_pj"]["learning_signal"] / 1e3 for rule in RULES]
    right.barh(range(len(RULES)), energies, color=RED, height=0.55)
    for y, energy in enumerate(energies):
        right.annotate(f" {energy:,.1f} nJ", (energy, y), va="center", fontweight="bold")
    whole = [metrics[rule]["energy_pj"] / 1e3 for rule in RULES]
    right.set_title(
        "Energy of the learning signal alone (45 nm)\n"
        f"the whole step: LLS {whole[0]:,.0f} nJ, BP {whole[1]:,.0f} nJ", fontsize=11,
    )  # fmt: skip
    right.set_xlim(0, max(energies) * 1.3)
    right.set_ylim(1.5, -0.9)
    for axes in (left, right):
        axes.set_yticks(range(len(RULES)), list(RULES.values()) if axes is left else [""] * len(RULES))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.savefig(FOLDER / "overview.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    overview()
    draw(compare(load_machine("mnist"), load_network("mnist"), load_technology(TECHNOLOGY)), FOLDER)
