"""Draws test accuracy by epoch from trainings that `entrain train` left, a figure a network, into a folder.

`.venv/bin/python docs/img/draw_curves.py RUNS docs/img` reads every `metrics.json` in a folder of RUNS and writes
`curves-NETWORK.png`: a line is the mean over seeds, its band reaches from the least to the largest of them.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sim.cycle.plots import BLUE, DARK, GREEN, ORANGE, PINK

Lines = Mapping[tuple[str, str], Mapping[int, list[float]]]
"""Test accuracies of a network after each epoch: `{(backend, rule): {seed: percent}}`."""
LINES = {
    ("float", "bp"): ("BP, float", ORANGE, "-"),
    ("golden", "lls"): ("LLS, integers", BLUE, "-"),
    ("float", "lls"): ("LLS, float", GREEN, "--"),
    ("float", "frozen"): ("frozen, float", DARK, ":"),
    ("float", "dfa"): ("DFA, float", PINK, "-."),
}
TITLES = {
    "smallconv-cifar10": "CIFAR-10 subset, SmallConv",
    "smallconv-kws": "Keywords, SmallConv",
    "smallconv-mnist": "MNIST, SmallConv",
}
LABEL_GAP = 0.052
"""Least distance of two labels, of the axis' height."""


def read(folder: Path) -> Mapping[str, Lines]:
    """The lines of each network. Raises ValueError."""
    found: dict[str, dict[tuple[str, str], dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            metrics = json.loads(path.read_text())
            if metrics["command"] != "train":
                continue
            network, line, seed = metrics["network"], (metrics["backend"], metrics["rule"]), metrics["seed"]
            accuracies = [float(entry["test_accuracy"]) for entry in metrics["history"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: must be that of an `entrain` command ({error!r})") from None
        seeds = found[network][line]
        if seed in seeds:
            raise ValueError(f"{path}: another run has network {network}, {line} and this seed too")
        seeds[seed] = accuracies
    for network, lines in found.items():
        lengths = {len(values) for seeds in lines.values() for values in seeds.values()}
        if len(lengths) > 1:
            raise ValueError(f"{folder}: runs of {network} must have the same number of epochs, got {sorted(lengths)}")
    if not found:
        raise ValueError(f"{folder}: must have folders with metrics.json of `entrain train`")
    return found


def label(axes: Axes, ends: list[tuple[float, str, str]], x: float) -> None:
    """Names and last values beside the lines' ends, `(percent, text, colour)`, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap, places = LABEL_GAP * (high - low), []
    for value, text, colour in sorted(ends):
        places.append([max(value, places[-1][0] + gap) if places else value, value, text, colour])
    # What was pushed up together is moved down by half, so that a group stands around its lines.
    for first in range(len(places)):
        group = [place for place in places[first:] if place[0] - places[first][0] < gap * len(places)]
        excess = np.mean([place[0] - place[1] for place in group])
        floor = places[first - 1][0] + gap if first else low
        for place in group:
            place[0] -= min(excess, max(0.0, places[first][0] - floor))
    # None beside the title.
    highest = high - gap / 2
    for place in reversed(places):
        place[0] = min(place[0], highest)
        highest = place[0] - gap
    for y, value, text, colour in places:
        axes.annotate(
            f"{text} {value:.2f}",
            (x, value),
            xytext=(x * 1.025, y),
            textcoords="data",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if "integers" in text else "normal",
            annotation_clip=False,
        )


def curves(network: str, lines: Lines) -> Figure:
    """The figure of a network."""
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    axes = figure.subplots()
    ends, seeds, epochs, least = [], set(), 0, 100.0
    for key, (name, colour, style) in LINES.items():
        if key not in lines:
            continue
        values = np.array(list(lines[key].values()))
        seeds.add(len(values))
        epochs = values.shape[1]
        at = np.arange(1, epochs + 1)
        mean, least = values.mean(axis=0), min(least, values.min())
        axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.16, linewidth=0)
        axes.plot(at, mean, color=colour, linestyle=style, linewidth=2.4 if key == ("golden", "lls") else 1.8)
        ends.append((mean[-1], name, colour))
    axes.set_xlim(1, epochs)
    # Without the part below all lines, from a round figure.
    axes.set_ylim(bottom=max(0, 10 * ((least - 2) // 10)))
    label(axes, ends, epochs)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test samples recognised (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    count = "-".join(str(number) for number in sorted({min(seeds), max(seeds)}))
    spread = f"mean of {count} seeds; band: least to largest" if count != "1" else "one seed"
    axes.set_title(f"{TITLES.get(network, network)}: test accuracy by epoch ({spread})", fontsize=11.5, loc="left")
    return figure


def main() -> int:
    """Draws a figure a network; 2 for runs that cannot be read."""
    parser = argparse.ArgumentParser(description="Draw test accuracy by epoch.")
    parser.add_argument("runs", type=Path, help="folder whose folders `entrain train` wrote")
    parser.add_argument("folder", type=Path, help="where the figures go; docs/img replaces the tracked ones")
    arguments = parser.parse_args()
    try:
        found = read(arguments.runs)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for network, lines in found.items():
            path = arguments.folder / f"curves-{network}.png"
            curves(network, lines).savefig(path, dpi=130, metadata={"Software": None})
            print(f"written: {path}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
