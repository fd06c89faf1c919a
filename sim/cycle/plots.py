"""Figures of a comparison, as PNG: bars that carry their own numbers.

One picture, one question: how long, how many multiplications, how much energy, how much memory, and whether the answer
depends on the technology table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sim.cycle.compare import NAMES, PHASE_TITLES, Comparison
from sim.cycle.model import CYCLE_PHASES, RULES
from sim.cycle.text import sizes
from sim.cycle.windowed_report import PARAMETERS

__all__ = ["FIGURES", "draw", "draw_learning"]

matplotlib.use("Agg")

# Okabe and Ito's palette: told apart by readers who see colours differently, and in grey.
BLUE, SKY, GREEN, YELLOW = "#0072b2", "#56b4e9", "#009e73", "#f0e442"
ORANGE, RED, PINK, GREY, DARK = "#e69f00", "#d55e00", "#cc79a7", "#b0b0b0", "#444444"
PHASE_COLOURS = {"setup": GREY, "forward": BLUE, "signal": RED, "update": GREEN, "finish": DARK}
PURPOSE_COLOURS = {"forward": BLUE, "learning_signal": RED, "weight_gradient": GREEN}
MODEL = {"lls": "LLS", "bp": "BP\n(model)", "dfa": "DFA\n(model)"}


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Draws every figure into ``folder`` and returns their paths."""
    paths = []
    for name, figure_of in FIGURES.items():
        figure = figure_of(comparison)
        path = folder / f"{name}.png"
        # No date, no version: equal figures are equal bytes.
        figure.savefig(path, dpi=150, metadata={"Software": None})
        paths.append(path)
    return paths


def draw_learning(accuracies: Sequence[float], title: str, aim: float, path: Path) -> None:
    """Test accuracy in percent by epoch, from 1, and the aim."""
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(accuracies) + 1)
    axes.plot(epochs, accuracies, color=BLUE, marker="o", markersize=4, linewidth=1.8, clip_on=False, zorder=3)
    axes.axhline(aim, color=RED, linewidth=1.2, linestyle="--")
    axes.annotate(f"aim {aim:g} %", (1, aim), xytext=(0, 4), textcoords="offset points",
                  va="bottom", color=RED, fontsize=9)  # fmt: skip
    axes.annotate(f"{accuracies[-1]:.2f} %", (len(accuracies), accuracies[-1]), xytext=(6, 0),
                  textcoords="offset points", va="center", fontweight="bold", color=BLUE,
                  annotation_clip=False)  # fmt: skip
    axes.set_title(title, fontsize=12.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)")
    low = min(*accuracies, aim)
    axes.set_ylim(max(0, low - 0.15 * (100 - low)), 100.4)
    # To the last epoch and no further; the last figure stands outside.
    axes.set_xlim(0.5, len(accuracies) + 0.5 * (len(accuracies) == 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _cycles(comparison: Comparison) -> Figure:
    figure, (axes,) = _figure(comparison, "Clock cycles of a training step", 1)
    parts = {phase: [comparison.metrics[rule]["cycles_by_phase"][phase] for rule in RULES] for phase in CYCLE_PHASES}
    _stack(axes, parts, PHASE_COLOURS, "cycles", {"signal": "learning signal"}, callout="signal")
    return figure


def _macs(comparison: Comparison) -> Figure:
    windowed = comparison.network.windowed
    what = "MACs" if windowed else "Multiplications (MACs)"
    title = f"{what} of a training step" + (", and what is multiplied" if windowed else "")
    figure, (left, right, *more) = _figure(comparison, title, 3 if windowed else 2)
    macs = {rule: comparison.metrics[rule]["macs_by_phase"] for rule in RULES}
    signal = {"learning_signal": [macs[rule]["learning_signal"] for rule in RULES]}
    _stack(left, signal, PURPOSE_COLOURS, "MACs", {}, legend=False)
    left.set_title("learning signal alone", fontsize=11)
    whole = {part: [macs[rule][part] for rule in RULES] for part in PURPOSE_COLOURS}
    _stack(right, whole, PURPOSE_COLOURS, "MACs", PHASE_TITLES, callout="learning_signal")
    right.set_title("whole step", fontsize=11)
    for axes in more:
        made = {rule: comparison.metrics[rule]["multiplications_by_phase"] for rule in RULES}
        parts = {part: [made[rule][part] for rule in RULES] for part in PURPOSE_COLOURS}
        _stack(axes, parts, PURPOSE_COLOURS, "products", PHASE_TITLES, legend=False)
        axes.set_title("whole step, multiplied: a window's sum once", fontsize=11)
        axes.set_xlim(right.get_xlim())
        axes.set_yticklabels([])
    return figure


def _energy(comparison: Comparison) -> Figure:
    technology = comparison.metrics["lls"]["technology"]
    title = f"Energy of a training step ({technology['name']})"
    figure, (left, right) = _figure(comparison, title, 2)
    most = max(metrics["energy_pj"] for metrics in comparison.metrics.values())
    unit, scale = ("nJ", 1e3) if most < 1e9 else ("µJ", 1e6)
    phases = {rule: comparison.metrics[rule]["energy_by_phase_pj"] for rule in RULES}
    parts = {part: [phases[rule][part] / scale for rule in RULES] for part in PURPOSE_COLOURS}
    _stack(left, parts, PURPOSE_COLOURS, unit, PHASE_TITLES, callout="learning_signal")
    left.set_title("by what it is for", fontsize=11)
    components = {rule: comparison.metrics[rule]["energy_by_component_pj"] for rule in RULES}
    parts = {}
    for name, group in COMPONENT_GROUPS.items():
        parts[name] = [sum(components[rule][c] for c in group) / scale for rule in RULES]
    titles = {OTHER_DATA: "maps, slopes, signals"} if comparison.network.windowed else {}
    _stack(right, parts, COMPONENT_COLOURS, unit, titles)
    right.set_title("by component", fontsize=11)
    return figure


OTHER_DATA = "activations, biases, deltas"
COMPONENT_GROUPS = {
    "weight memory": ("weight memory",),
    "multipliers": ("multipliers",),
    "adders": ("adders",),
    "registers": ("registers",),
    OTHER_DATA: ("activation memory", "column memory", "bias unit", "delta memory"),
    "signal unit and basis": ("signal arithmetic", "latent memory", "basis table"),
}
COMPONENT_COLOURS = dict(zip(COMPONENT_GROUPS, (BLUE, ORANGE, YELLOW, GREY, GREEN, RED), strict=True))
MEMORY_COLOURS = {
    "weights": BLUE,
    "biases": SKY,
    "input buffers": GREY,
    "activations": GREEN,
    "slopes": YELLOW,
    "latents": ORANGE,
    "basis table": RED,
    "deltas": PINK,
}


def _memory(comparison: Comparison) -> Figure:
    if comparison.network.windowed:
        return _memory_by_batch(comparison)
    figure, (left, right) = _figure(comparison, "Memory that a training step keeps", 2)
    memory = {rule: comparison.metrics[rule]["memory_bytes"] for rule in RULES}
    parts = {part: [memory[rule].get(part, 0) for rule in RULES] for part in MEMORY_COLOURS}
    weights = {
        "weights": [a + b for a, b in zip(parts["weights"], parts["biases"], strict=True)],
        "all else": [sum(parts[p][i] for p in parts if p not in ("weights", "biases")) for i in range(3)],
    }
    _stack(left, weights, {"weights": BLUE, "all else": DARK}, "bytes", {"weights": "weights, biases"})
    left.set_title("everything", fontsize=11)
    rest = {part: values for part, values in parts.items() if part not in ("weights", "biases")}
    titles = {"basis table": "basis / feedback table"}
    _stack(right, rest, MEMORY_COLOURS, "bytes", titles)
    right.set_title("without weights and biases", fontsize=11)
    return figure


def _memory_by_batch(comparison: Comparison) -> Figure:
    """A panel a batch: a rule's memory grows with it, the weights do not."""
    by_batch = {rule: comparison.metrics[rule]["memory_by_batch"] for rule in RULES}
    batches = list(by_batch["lls"])
    figure, panels = _figure(comparison, "Memory that a training step keeps", len(batches), batch=False)
    titles = {"slopes": "slopes, indices", "basis table": "basis / feedback table", "deltas": "signals (deltas)"}
    colours = {"weights, biases": BLUE}
    colours |= {part: colour for part, colour in MEMORY_COLOURS.items() if part not in PARAMETERS}
    for axes, batch in zip(panels, batches, strict=True):
        memory = {rule: by_batch[rule][batch] for rule in RULES}
        parts = {"weights, biases": [sum(memory[rule][part] for part in PARAMETERS) for rule in RULES]}
        parts |= {part: [memory[rule][part] for rule in RULES] for part in MEMORY_COLOURS if part not in PARAMETERS}
        _stack(axes, parts, colours, "bytes", titles, legend=False)
        axes.set_title(f"batch {batch}", fontsize=11)
        if axes is not panels[0]:
            axes.set_yticklabels([])
    handles = [Patch(color=colour, label=titles.get(part, part)) for part, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _technologies(comparison: Comparison) -> Figure:
    figure, panels = _figure(comparison, "Energy of BP over LLS, by technology table", 2)
    names = list(comparison.energies)
    for index, (axes, title) in enumerate(zip(panels, ("learning signal alone", "whole step"), strict=True)):
        part = 1 - index
        ratios = []
        for name in names:
            rules = comparison.energies[name]
            ratios.append(rules["bp"][part] / rules["lls"][part] if rules["lls"][part] else 0.0)
        colours = [RED if ratio < 1 else GREEN for ratio in ratios]
        axes.barh(names, ratios, color=colours, height=0.55)
        axes.axvline(1, color=DARK, linewidth=1.2)
        axes.annotate(" equal", (1, -0.6), ha="left", va="center", fontsize=9, color=DARK)
        for y, ratio in enumerate(ratios):
            axes.annotate(f" {_figures(ratio)}x", (max(ratio, 1), y), va="center", fontsize=10)
        axes.set_xlim(0, max(*ratios, 1) * 1.2)
        axes.set_ylim(len(names) - 0.4, -0.75)
        axes.set_xlabel("BP / LLS (right of 1, green: LLS needs less)")
        axes.set_title(title, fontsize=11)
        if index:
            axes.set_yticklabels([])
        _plain(axes)
    return figure


FIGURES: dict[str, Callable[[Comparison], Figure]] = {
    "cycles": _cycles,
    "macs": _macs,
    "energy": _energy,
    "memory": _memory,
    "technologies": _technologies,
}
"""What is drawn, by file name."""


def _figure(comparison: Comparison, title: str, panels: int, batch: bool = True) -> tuple[Figure, list[Axes]]:
    machine, network = comparison.machine, comparison.network
    figure = Figure(figsize=(5.4 * panels + 1.4, 3.9), layout="constrained")
    what = f"{sizes(network)} on {machine.rows}x{machine.cols} PEs" + (f", batch {comparison.batch}" if batch else "")
    figure.suptitle(f"{title}\n{what}", fontsize=12.5)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes)


def _stack(
    axes: Axes,
    parts: dict[str, list],
    colours: Mapping[str, str],
    unit: str,
    titles: dict[str, str],
    legend: bool = True,
    callout: str = "",
) -> None:
    """Horizontal stacked bars, a bar a rule, its total at the end, a part's share inside where there is room.

    ``callout``: the part whose share stands above the bar where there is none. Parts that are too thin to be seen in
    any bar are not in the legend but named below the axis.
    """
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    left = [0.0] * len(totals)
    limit = max(totals) or 1
    thin = {part: values for part, values in parts.items() if 0 < max(values) < 0.004 * limit}
    for part, values in parts.items():
        if not any(values):
            continue
        axes.barh(
            range(len(totals)), values, left=left, color=colours[part], height=0.62,
            label=None if part in thin else titles.get(part, part), edgecolor="white",
            linewidth=0.6 if max(values) > 0.05 * limit else 0,
        )  # fmt: skip
        for y, value in enumerate(values):
            # A tenth of the axis holds eight characters.
            if len(parts) > 1 and value > max(0.1, 0.0125 * len(_short(value))) * limit:
                dark = colours[part] in (YELLOW, SKY, GREY, ORANGE, PINK)
                axes.annotate(
                    _short(value), (left[y] + value / 2, y), ha="center", va="center", fontsize=9,
                    color="black" if dark else "white",
                )  # fmt: skip
            elif part == callout and value:
                axes.annotate(
                    f"{titles.get(part, part)} {_short(value)}", (left[y] + value / 2, y - 0.34), ha="center",
                    va="bottom", fontsize=9, color=colours[part],
                )  # fmt: skip
        left = [a + b for a, b in zip(left, values, strict=True)]
    for y, total in enumerate(totals):
        axes.annotate(f" {_short(total)}", (total, y), va="center", fontsize=10, fontweight="bold")
    axes.set_yticks(range(len(totals)), [MODEL[rule] for rule in NAMES])
    axes.set_ylim(len(totals) - 0.55, -0.65)
    axes.set_xlim(0, limit * 1.2)
    unseen = "; ".join(f"{titles.get(part, part)}, at most {_short(max(values))}" for part, values in thin.items())
    axes.set_xlabel(f"{unit} (too thin to be seen: {unseen})" if thin else unit, fontsize=9 if thin else 10)
    axes.xaxis.set_major_formatter(_tick)
    _plain(axes)
    if legend:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=9,
            handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _plain(axes: Axes) -> None:
    """Only the lines that say something."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def _short(value: float) -> str:
    """Exact where that is readable, else three figures and a letter."""
    for scale, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= max(scale, 1e7):
            return f"{_figures(value / scale)}{letter}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else _figures(value)


def _figures(value: float) -> str:
    """Three figures, zeros at the end kept."""
    return f"{value:.{max(0, 2 - int(math.log10(abs(value))))}f}" if abs(value) >= 1 else f"{value:.2g}"


def _tick(value: float, _: object) -> str:
    """A number on an axis: no more figures than it needs."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
