"""Figures of a comparison, as PNG: bars that carry their own numbers.

One picture, one question: how long, how many multiplications, how much energy, how much memory, whether the answer
depends on the technology table, what learning costs beyond inference, how large the cores are, what is learned for
the energy.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sim.cycle.compare import Comparison
from sim.cycle.dense_report import PURPOSE_TITLES
from sim.cycle.model import CYCLE_PHASES
from sim.cycle.rows import mean
from sim.cycle.tax import SPOON
from sim.cycle.text import NAMES, sizes
from sim.cycle.windowed_report import PARAMETERS
from spec.rules import RULES

__all__ = ["FIGURES", "draw", "draw_learning"]

matplotlib.use("Agg")

# Okabe and Ito's palette: told apart by readers who see colours differently, and in grey. Blue, red and green are the
# phases everywhere; what is not a phase has another colour.
BLUE, SKY, GREEN, YELLOW = "#0072b2", "#56b4e9", "#009e73", "#f0e442"
ORANGE, RED, PINK, GREY, DARK = "#e69f00", "#d55e00", "#cc79a7", "#b0b0b0", "#444444"
PURPLE, LAVENDER, BROWN, SAND, TEAL = "#5e3c99", "#b2abd2", "#7f3b08", "#d8c7a3", "#80cdc1"
LIGHT = (YELLOW, SKY, GREY, ORANGE, PINK, LAVENDER, SAND, TEAL)
"""Colours that black is written on."""
LEVEL = 0.01
"""Energies that differ by less are drawn as level: the tables' prices are not that firm."""
PHASE_COLOURS = {"setup": GREY, "forward": BLUE, "signal": RED, "update": GREEN, "finish": DARK}
PURPOSE_COLOURS = {"forward": BLUE, "learning_signal": RED, "weight_gradient": GREEN}
MEMORY_COLOURS = {
    "weights": PURPLE,
    "biases": LAVENDER,
    "input buffers": SAND,
    "activations": SKY,
    "slopes": YELLOW,
    "latents": ORANGE,
    "basis table": PINK,
    "trained scores": TEAL,
    "deltas": BROWN,
}
OTHER_DATA = "activations, biases, deltas"
COMPONENT_GROUPS = {
    "weight memory": ("weight memory",),
    "multipliers": ("multipliers",),
    "adders": ("adders",),
    "registers": ("registers",),
    OTHER_DATA: ("activation memory", "column memory", "bias unit", "delta memory"),
    "signal unit and basis": ("signal arithmetic", "latent memory", "basis table", "score memory"),
}
COMPONENT_COLOURS = dict(zip(COMPONENT_GROUPS, (PURPLE, BROWN, TEAL, SAND, SKY, PINK), strict=True))
ALL_ELSE = "all else"


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Draws every figure that the comparison has the numbers for into ``folder`` and returns their paths."""
    paths = []
    for name, figure_of in FIGURES.items():
        figure = figure_of(comparison)
        if figure is not None:
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
    cycles = _parts(comparison, "cycles_by_phase", CYCLE_PHASES)
    _stack(axes, comparison.rules, cycles, PHASE_COLOURS, "cycles", {"signal": "learning signal"}, callout="signal")
    return figure


def _macs(comparison: Comparison) -> Figure:
    rules, windowed = comparison.rules, comparison.network.windowed
    what = "MACs" if windowed else "Multiplications (MACs)"
    title = f"{what} of a training step" + (", and what is multiplied" if windowed else "")
    figure, (left, right, *more) = _figure(comparison, title, 3 if windowed else 2)
    macs = _parts(comparison, "macs_by_phase", PURPOSE_COLOURS)
    signal = {"learning_signal": macs["learning_signal"]}
    _stack(left, rules, signal, PURPOSE_COLOURS, "MACs", {}, legend=False)
    left.set_title("learning signal alone", fontsize=11)
    _stack(right, rules, macs, PURPOSE_COLOURS, "MACs", PURPOSE_TITLES, callout="learning_signal")
    right.set_title("whole step", fontsize=11)
    for axes in more:
        made = _parts(comparison, "multiplications_by_phase", PURPOSE_COLOURS)
        most = max(metrics["macs"] for metrics in comparison.metrics.values())
        _stack(axes, rules, made, PURPOSE_COLOURS, "products", PURPOSE_TITLES, legend=False, most=most)
        axes.set_title("whole step, multiplied: a window's sum once", fontsize=11)
        axes.set_yticklabels([])
    return figure


def _energy(comparison: Comparison) -> Figure:
    rules = comparison.rules
    technology = comparison.metrics[rules[0]]["technology"]
    title = f"Energy of a training step ({technology['name']})"
    figure, (left, right, rest) = _figure(comparison, title, 3)
    unit, scale = _energy_unit(comparison)
    parts = _parts(comparison, "energy_by_phase_pj", PURPOSE_COLOURS, scale)
    _stack(left, rules, parts, PURPOSE_COLOURS, unit, PURPOSE_TITLES, callout="learning_signal")
    left.set_title("by what it is for", fontsize=11)
    parts = {}
    for name, group in COMPONENT_GROUPS.items():
        found = _parts(comparison, "energy_by_component_pj", group, scale)
        parts[name] = [sum(values) for values in zip(*found.values(), strict=True)]
    titles = {OTHER_DATA: "maps, slopes, signals"} if comparison.network.windowed else {}
    _stack(right, rules, parts, COMPONENT_COLOURS, unit, titles)
    right.set_title("by component", fontsize=11)
    del parts["weight memory"]
    _stack(rest, rules, parts, COMPONENT_COLOURS, unit, titles, legend=False)
    rest.set_title("by component, without weight memory", fontsize=11)
    return figure


def _memory(comparison: Comparison) -> Figure:
    if comparison.network.windowed:
        return _memory_by_batch(comparison)
    figure, (left, right) = _figure(comparison, "Memory that a training step keeps", 2)
    rest = _parts(comparison, "memory_bytes", MEMORY_COLOURS)
    weights = [a + b for a, b in zip(rest.pop("weights"), rest.pop("biases"), strict=True)]
    parts = {"weights": weights, ALL_ELSE: [sum(values) for values in zip(*rest.values(), strict=True)]}
    colours = {"weights": PURPLE, ALL_ELSE: DARK}
    _stack(left, comparison.rules, parts, colours, "bytes", {"weights": "weights, biases"})
    left.set_title("everything", fontsize=11)
    _stack(right, comparison.rules, rest, MEMORY_COLOURS, "bytes", {"basis table": "basis / feedback table"})
    right.set_title("without weights and biases", fontsize=11)
    return figure


def _memory_by_batch(comparison: Comparison) -> Figure:
    """A panel a batch: a rule's memory grows with it, the weights do not."""
    rules = comparison.rules
    by_batch = {rule: comparison.metrics[rule]["memory_by_batch"] for rule in rules}
    batches = list(by_batch[rules[0]])
    figure, panels = _figure(comparison, "Memory that a training step keeps", len(batches), batch=False)
    titles = {"slopes": "slopes, indices", "basis table": "basis / feedback table", "deltas": "signals (deltas)"}
    colours = {"weights, biases": PURPLE}
    colours |= {part: colour for part, colour in MEMORY_COLOURS.items() if part not in PARAMETERS}
    for axes, batch in zip(panels, batches, strict=True):
        memory = {rule: by_batch[rule][batch] for rule in rules}
        parts = {"weights, biases": [sum(memory[rule][part] for part in PARAMETERS) for rule in rules]}
        parts |= {part: [memory[rule][part] for rule in rules] for part in MEMORY_COLOURS if part not in PARAMETERS}
        _stack(axes, rules, parts, colours, "bytes", titles, legend=False)
        axes.set_title(f"batch {batch}", fontsize=11)
        if axes is not panels[0]:
            axes.set_yticklabels([])
    handles = [Patch(color=colour, label=titles.get(part, part)) for part, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _technologies(comparison: Comparison) -> Figure | None:
    """A group a technology table, in it a bar a rule: energy as a multiple of LLS's."""
    others = comparison.others
    if not others:
        return None
    figure, panels = _figure(comparison, "Energy as a multiple of LLS's, by technology table", 2)
    names = list(comparison.energies)
    for index, (axes, title) in enumerate(zip(panels, ("learning signal alone", "whole step"), strict=True)):
        part, ratios = 1 - index, []
        for name in names:
            rules = comparison.energies[name]
            ratios += [rules[rule][part] / rules["lls"][part] if rules["lls"][part] else 0.0 for rule in others]
        places = [g * (len(others) + 0.7) + i for g in range(len(names)) for i in range(len(others))]
        colours = [GREY if abs(ratio - 1) < LEVEL else ORANGE if ratio < 1 else PURPLE for ratio in ratios]
        axes.barh(places, ratios, color=colours, height=0.75)
        axes.axvline(1, color=DARK, linewidth=1.2)
        axes.annotate("LLS ", (1, -0.95), ha="right", va="center", fontsize=9, color=DARK)
        for y, ratio, rule in zip(places, ratios, others * len(names), strict=True):
            axes.annotate(f" {NAMES[rule]} {_ratio(ratio)}x", (max(ratio, 1), y), va="center", fontsize=9.5)
        groups = [g * (len(others) + 0.7) + (len(others) - 1) / 2 for g in range(len(names))]
        axes.set_yticks(groups, names)
        axes.set_xlim(0, max(*ratios, 1) * 1.3)
        axes.set_ylim(places[-1] + 0.7, -1.4)
        axes.set_xlabel("energy over LLS's")
        axes.set_title(title, fontsize=11)
        if index:
            axes.set_yticklabels([])
        _plain(axes)
    kinds = {PURPLE: "LLS needs less", ORANGE: "LLS needs more", GREY: f"level, within {LEVEL:.0%}"}
    handles = [Patch(color=colour, label=label) for colour, label in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _tax(comparison: Comparison) -> Figure | None:
    """A panel a quantity, in it a bar a rule: percent over inference, at one scale in a row."""
    tax = comparison.tax
    if not tax:
        return None
    titles = {"cycles": "cycles a sample", "energy": "energy a sample", "power": "power: energy a cycle"}
    resources = {name: f"area: {name}" for name in ("LUTs", "flip-flops", "multipliers", "block RAMs")}
    resources = {name: title for name, title in resources.items() if any(name in found for found in tax.values())}
    published = {"power": (SPOON.power, "power"), "LUTs": (SPOON.area, "silicon area")}
    rows = [names for names in (titles, resources) if names]
    figure, panels = _grid(comparison, "Learning tax: what learning costs beyond inference", rows)
    for names in rows:
        most = max(found.get(name, 0.0) for found in tax.values() for name in names)
        for name, title in names.items():
            bars = [(NAMES[rule], found.get(name, 0.0), PURPLE) for rule, found in tax.items()]
            if name in published:
                value, what = published[name]
                bars.append((f"{SPOON.name}, {what}\n(published)", value, GREY))
            labels = [f"{value:+.1f} %" for _, value, _ in bars]
            _bars(panels[name], bars, labels, "percent more than inference", max(most, SPOON.power))
            panels[name].set_title(title, fontsize=11)
    return figure


def _area(comparison: Comparison) -> Figure | None:
    """A panel a resource, in it a bar a rule: as a multiple of inference, or cells where that has none."""
    areas = comparison.areas
    if not areas:
        return None
    found = {rule: area.resources for rule, area in areas.items()}
    names = [name for name in next(iter(found.values())) if any(resources[name] for resources in found.values())]
    base = {name: number for name, number in found.get("inference", {}).items() if number}
    # One scale for all but LUT RAM, of which a core has so little that any memory is a multiple.
    scaled = [name for name in base if name != "LUT RAM"]
    most = max([resources[name] / base[name] for resources in found.values() for name in scaled], default=1.0)
    title = f"Area of the core, cells of {next(iter(areas.values())).title} after synthesis"
    figure, panels = _grid(comparison, title, [names[:3], names[3:]])
    for name in names:
        axes, one = panels[name], base.get(name, 1)
        bars = [
            (NAMES[rule], resources[name] / one, PURPLE if RULES[rule].learns else GREY)
            for rule, resources in found.items()
        ]
        labels = [f"{resources[name]:,}" for resources in found.values()]
        if name in base:
            labels = [f"{value:.2f}x  {label}" for (_, value, _), label in zip(bars, labels, strict=True)]
            _bars(axes, bars, labels, "multiple of inference", most if name in scaled else 0.0)
        else:
            _bars(axes, bars, labels, "cells")
        axes.set_title(name, fontsize=11)
    return figure


def _accuracy(comparison: Comparison) -> Figure | None:
    """A point a rule, its seeds small above each other: what is learned for the energy of a step."""
    accuracy = comparison.accuracy
    if not accuracy:
        return None
    unit, scale = _energy_unit(comparison)
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    figure.suptitle(_title(comparison, "Test accuracy against energy of a training step"), fontsize=12.5)
    axes = figure.subplots()
    points = {rule: (comparison.metrics[rule]["energy_pj"] / scale, mean(found)) for rule, found in accuracy.items()}
    colours = dict(zip(NAMES, (PURPLE, LAVENDER, PINK, TEAL, ORANGE, SKY, BROWN, GREY), strict=True))
    for rule, (energy, percent) in points.items():
        each = accuracy[rule]
        axes.plot([energy] * len(each), each, "o", color=colours[rule], markersize=4, alpha=0.5, linestyle="none")
        axes.plot(energy, percent, "o", color=colours[rule], markersize=10)
    energies, means = zip(*points.values(), strict=True)
    widest = (max(energies) - min(energies)) or 0.1 * max(energies)
    axes.set_xlim(min(energies) - 0.15 * widest, max(energies) + 0.55 * widest)
    seen = [value for found in accuracy.values() for value in found]
    low, high = min(seen), max(seen)
    pad = 0.12 * ((high - low) or 1)
    axes.set_ylim(max(0.0, low - pad), high + pad)
    # Rules may need almost the same energy and learn as much: names are kept a line apart, right of all points near.
    bottom, top = axes.get_ylim()
    line, place, near = 0.062 * (top - bottom), math.inf, 0.2 * widest
    for rule in sorted(points, key=lambda rule: points[rule][1], reverse=True):
        energy, percent = points[rule]
        place = min(percent, place - line)
        beside = max(other for other, _ in points.values() if other <= energy + near)
        axes.annotate(
            f"{NAMES[rule]}  {percent:.2f} %, {_short(energy)} {unit}", (energy, percent),
            xytext=(beside + 0.05 * widest, place), va="center", fontsize=10, color=DARK,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkB": 6},
        )  # fmt: skip
    seeds = len(next(iter(accuracy.values())))
    axes.set_xlabel(f"energy of a training step ({unit})")
    axes.set_ylabel("test accuracy (%)" + (f", mean of {seeds} seeds; small: each" if seeds > 1 else ""))
    axes.set_yticks([tick for tick in axes.get_yticks() if low - pad <= tick <= min(100.0, high + pad)])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "cycles": _cycles,
    "macs": _macs,
    "energy": _energy,
    "memory": _memory,
    "technologies": _technologies,
    "tax": _tax,
    "area": _area,
    "accuracy": _accuracy,
}
"""What may be drawn, by file name; None where the comparison lacks the numbers."""


def _title(comparison: Comparison, title: str, batch: bool = True) -> str:
    """With network, array and batch below it."""
    machine, network = comparison.machine, comparison.network
    what = f"{sizes(network)} on {machine.rows}x{machine.cols} PEs" + (f", batch {comparison.batch}" if batch else "")
    return f"{title}\n{what}"


def _figure(comparison: Comparison, title: str, panels: int, batch: bool = True) -> tuple[Figure, list[Axes]]:
    """Panels beside each other, as high as the rules need."""
    figure = Figure(figsize=(5.4 * panels + 1.4, _height(len(comparison.rules))), layout="constrained")
    figure.suptitle(_title(comparison, title, batch), fontsize=12.5)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _height(rules: int) -> float:
    """Of a figure with a bar a rule, in inches."""
    return 2.4 + 0.5 * max(3, rules)


def _grid(comparison: Comparison, title: str, rows: Sequence[Iterable[str]]) -> tuple[Figure, dict[str, Axes]]:
    """Rows of panels, by name."""
    names = [list(row) for row in rows]
    columns = max(map(len, names))
    height = 1.1 + len(names) * (0.9 + 0.42 * (len(comparison.rules) + 0.5))
    figure = Figure(figsize=(4.2 * columns, height), layout="constrained")
    figure.suptitle(_title(comparison, title), fontsize=12.5)
    panels = {}
    for row, places in zip(names, figure.subplots(len(names), columns, squeeze=False), strict=True):
        panels |= dict(zip(row, places, strict=False))
        for unused in places[len(row) :]:
            unused.set_visible(False)
    return figure, panels


def _parts(comparison: Comparison, key: str, names: Sequence[str] | Mapping, scale: float = 1) -> dict[str, list]:
    """A list of all rules' values by part."""
    metrics = comparison.metrics.values()
    return {name: [found[key][name] / scale if scale != 1 else found[key][name] for found in metrics] for name in names}


def _energy_unit(comparison: Comparison) -> tuple[str, float]:
    """In which the largest energy is readable, and its picojoule."""
    most = max(metrics["energy_pj"] for metrics in comparison.metrics.values())
    return ("nJ", 1e3) if most < 1e9 else ("µJ", 1e6)


def _stack(
    axes: Axes,
    rules: Sequence[str],
    parts: dict[str, list],
    colours: Mapping[str, str],
    unit: str,
    titles: Mapping[str, str],
    legend: bool = True,
    callout: str = "",
    most: float = 0,
) -> None:
    """Horizontal stacked bars, a bar a rule, its total at the end, a part's share inside where there is room.

    ``callout``: the part whose share stands above the bar where there is none; inference finds the largest score there.
    Parts that have no room for a figure in any bar have theirs below the axis, and are in the legend if they can be
    seen. The axis has room for ``most``.
    """
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    left = [0.0] * len(totals)
    limit = max(most, *totals) or 1
    unwritten = {part: values for part, values in parts.items() if any(values) and part != callout}
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
            # The axis holds some 55 characters.
            if len(parts) > 1 and value > 0.018 * len(_short(value)) * limit:
                unwritten.pop(part, None)
                axes.annotate(
                    _short(value), (left[y] + value / 2, y), ha="center", va="center", fontsize=8.5,
                    color="black" if colours[part] in LIGHT else "white",
                )  # fmt: skip
            elif part == callout and value:
                what = titles.get(part, part) if RULES[rules[y]].learns else "largest score"
                axes.annotate(
                    f"{what} {_short(value)}", (left[y] + value / 2, y - 0.34), ha="center",
                    va="bottom", fontsize=9, color=colours[part],
                )  # fmt: skip
        left = [a + b for a, b in zip(left, values, strict=True)]
    for y, total in enumerate(totals):
        axes.annotate(f" {_short(total)}", (total, y), va="center", fontsize=10, fontweight="bold")
    axes.set_yticks(range(len(totals)), [NAMES[rule] for rule in rules])
    axes.set_ylim(len(totals) - 0.55, -0.65)
    axes.set_xlim(0, limit * 1.2)
    if len(parts) > 1 and unwritten:
        figures = (f"{titles.get(part, part)} {_span(values)}" for part, values in unwritten.items())
        unit = textwrap.fill(f"{unit} (not written in the bars: {'; '.join(figures)})", 84)
    axes.set_xlabel(unit, fontsize=9)
    axes.xaxis.set_major_formatter(_tick)
    _plain(axes)
    if legend:
        below = -1.08 / _height(len(rules))
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, below), ncols=4 if len(parts) < 6 else 3, frameon=False,
            fontsize=9, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _bars(
    axes: Axes, bars: Sequence[tuple[str, float, str]], labels: Sequence[str], unit: str, most: float = 0.0
) -> None:
    """Horizontal bars (name, value, colour), each with its label at the end; the axis has room for ``most``."""
    names, values, colours = zip(*bars, strict=True)
    axes.barh(range(len(bars)), values, color=colours, height=0.62)
    for y, (value, label) in enumerate(zip(values, labels, strict=True)):
        axes.annotate(f" {label}", (max(value, 0), y), va="center", fontsize=9.5, fontweight="bold")
    axes.set_yticks(range(len(bars)), names, fontsize=9.5)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(min(0, *values), (max(most, *values) or 1) * 1.5)
    axes.set_xlabel(unit, fontsize=9)
    axes.xaxis.set_major_formatter(_tick)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    _plain(axes)


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


def _span(values: Sequence[float]) -> str:
    """The least and the largest of those that are not 0."""
    low, high = (_short(pick(value for value in values if value)) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _ratio(value: float) -> str:
    """Three figures or more, so that what is just below 1 is seen to be."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _tick(value: float, _: object) -> str:
    """A number on an axis: no more figures than it needs."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
