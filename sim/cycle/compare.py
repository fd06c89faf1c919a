"""LLS, BP and DFA on one machine and network: a table, and what it says, the bad news with the good.

The learning signal alone and the whole step stand side by side, because a rule that saves 99 % of a small part saves
little. Energies are taken from several technologies, and a verdict counts only when all of them agree; tables that
share their memories' prices are named, since memory is most of the energy.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.cycle.model import LABELS, RULES, of_batch, training_step
from sim.cycle.report import step_metrics
from sim.cycle.text import number, sizes, times
from sim.cycle.windowed_report import NOTES, claims, layer_table
from spec.machine import Machine
from spec.network import Network
from spec.technology import ACTIONS, Technology, load_technology
from spec.yaml_loader import preset_names

__all__ = ["Comparison", "Row", "compare", "known_technologies"]

NAMES = {"lls": "LLS", "bp": "BP", "dfa": "DFA"}
PHASE_TITLES = {
    "forward": "forward",
    "learning_signal": "learning signal",
    "weight_gradient": "weight gradient",
}
DENSE_NOTES = (
    "- Multiplications are those that the arithmetic needs; cycles and energy include padding.",
    "- BP is taken at its best: no `Wᵀδ` for the first layer, its drain hidden behind the update, deltas "
    "made beforehand, sign bits for nothing. Its extra lanes and accumulators are not priced in area.",
    "- DFA's feedback matrix is taken to be of the same kind as the network's basis.",
    "- Memory is what a step keeps, with the padding of its placement.",
)


@dataclass(frozen=True)
class Row:
    """A line of the table: ``values`` by rule, in ``unit``; ``more_is_better`` for accuracy.

    ``ranked``: whether it says who is better. Utilization does not: with equal work it is the cycles once more.
    """

    quantity: str
    unit: str
    values: Mapping[str, float]
    more_is_better: bool = False
    ranked: bool = True

    def ratio(self, rule: str) -> float | None:
        """How many times LLS's value ``rule`` has; None when LLS has nothing."""
        return self.values[rule] / self.values["lls"] if self.values["lls"] else None

    def best(self) -> tuple[str, ...]:
        """The rules with the best value."""
        pick = max if self.more_is_better else min
        best = pick(self.values.values())
        return tuple(rule for rule, value in self.values.items() if value == best)

    def beats_lls(self, rule: str) -> bool:
        """Whether ``rule`` is strictly better than LLS, where the line says so."""
        if not self.ranked:
            return False
        ours, theirs = self.values["lls"], self.values[rule]
        return theirs > ours if self.more_is_better else theirs < ours


@dataclass(frozen=True)
class Comparison:
    """``metrics`` by rule (see ``sim.cycle.report``); ``rows``: the table; ``energies``: by technology, then rule, the
    whole step's and the learning signal's picojoule; ``same_memories``: groups of technologies that price memory
    accesses alike; ``accuracy``: percent by rule where it was measured. A step has ``batch`` samples."""

    machine: Machine
    network: Network
    metrics: dict[str, dict]
    rows: tuple[Row, ...]
    energies: dict[str, dict[str, tuple[float, float]]]
    same_memories: tuple[tuple[str, ...], ...]
    accuracy: dict[str, float]

    @property
    def batch(self) -> int:
        """Samples of the step."""
        return self.metrics["lls"]["batch"]

    @property
    def verdict_survives(self) -> dict[str, bool]:
        """For the whole step and for the signal: do all technologies agree who needs less, LLS or BP?"""
        found = {}
        for index, part in enumerate(("whole_step", "learning_signal")):
            wins = {rule["lls"][index] < rule["bp"][index] for rule in self.energies.values()}
            found[part] = len(wins) == 1
        return found

    def where_better(self, rule: str) -> list[Row]:
        """The lines in which a rule beats LLS."""
        return [row for row in self.rows if row.beats_lls(rule)]

    def to_csv(self) -> str:
        """The table as CSV: quantity, unit, a column a rule, and each rule's multiple of LLS."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["quantity", "unit", *RULES, "bp_over_lls", "dfa_over_lls"])
        for row in self.rows:
            ratios = [row.ratio(rule) for rule in ("bp", "dfa")]
            writer.writerow(
                [row.quantity, row.unit]
                + [f"{row.values[rule]:.10g}" for rule in RULES]
                + ["" if ratio is None else f"{ratio:.4f}" for ratio in ratios]
            )
        return text.getvalue()

    def to_text(self) -> str:
        """The table for a terminal."""
        lines = [["", *NAMES.values(), "BP/LLS", "DFA/LLS"]]
        lines += [_cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        return "\n".join(
            line[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
            for line in lines
        )

    def to_markdown(self) -> str:
        """The report: table, who wins where, the technologies, what the figures are."""
        machine, network = self.machine, self.network
        array = f"{machine.name} ({machine.rows}x{machine.cols})"
        labels = "; ".join(f"{NAMES[rule]}: {LABELS[rule]}" for rule in RULES)
        text = [
            f"# LLS, BP and DFA: {network.name} ({sizes(network)}) on {array}",
            "",
            f"One training step, batch {self.batch}. {labels}.",
            "",
            "| quantity | LLS | BP | DFA | BP/LLS | DFA/LLS |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        text += ["| " + " | ".join(_cells(row)) + " |" for row in self.rows]
        text += ["", *self._verdict(), ""]
        if network.windowed:
            text += [*claims(self.metrics), "", *layer_table(self.metrics), ""]
        text += ["## Other technologies", ""]
        text += [
            "Energy of BP over LLS. "
            + "The verdict "
            + " and ".join(
                f"{'holds' if holds else 'does **not** hold'} in every table for the {part.replace('_', ' ')}"
                for part, holds in self.verdict_survives.items()
            )
            + "."
            + "".join(f" {' and '.join(names)} price memories alike: one opinion." for names in self.same_memories),
            "",
            "| technology | whole step, BP/LLS | learning signal, BP/LLS |",
            "|---|---:|---:|",
        ]
        for name, rules in self.energies.items():
            whole, signal = (times(rules["bp"][i], rules["lls"][i]) for i in (0, 1))
            text.append(f"| {name} | {whole} | {signal} |")
        technology = self.metrics["lls"]["technology"]
        text += [
            "",
            "## What the figures are",
            "",
            f"- Energy: table `{technology['name']}` ({technology['node']}); leakage: {technology['leakage']}.",
            *(NOTES if network.windowed else DENSE_NOTES),
        ]
        return "\n".join(text) + "\n"

    def _verdict(self) -> list[str]:
        lines = ["## Where LLS loses", ""]
        for rule in ("bp", "dfa"):
            won = self.where_better(rule)
            listed = "; ".join(
                f"{row.quantity} ({number(row.values[rule])} against {number(row.values['lls'])} {row.unit})"
                for row in won
            )
            lines.append(f"- To {NAMES[rule]}: {listed or 'nowhere in this table'}.")
        if not self.accuracy:
            lines += ["", "Costs alone: what each rule learns with them, `--epochs N` measures (test accuracy, float)."]
        return lines


def known_technologies(*more: str) -> list[Technology]:
    """All presets, and further names or files."""
    found = {}
    for name in (*preset_names("technologies"), *more):
        technology = load_technology(name)
        found.setdefault(technology.name, technology)
    return list(found.values())


def compare(
    machine: Machine,
    network: Network,
    technology: Technology,
    others: Sequence[Technology] = (),
    accuracy: Mapping[str, float] | None = None,
    batch: int | None = None,
) -> Comparison:
    """Compares the rules; ``others`` are the technologies against which the verdict is held.

    ``batch``: samples of a step, those of the network's recipe if not said otherwise. ``accuracy``: test accuracy in
    percent for every rule, when it was measured. Raises SpecError for a network that does not fit.
    """
    steps = {rule: training_step(machine, network, rule, batch=batch) for rule in RULES}
    metrics = {rule: step_metrics(step, technology) for rule, step in steps.items()}
    tables = {t.name: t for t in (technology, *others)}
    energies = {
        name: {rule: _energy(step_metrics(step, table)) for rule, step in steps.items()}
        for name, table in tables.items()
    }
    accuracy = dict(accuracy or {})
    network, _ = of_batch(network, batch)
    rows = _rows(metrics, accuracy, network.windowed)
    return Comparison(machine, network, metrics, rows, energies, _same_memories(tables), accuracy)


def _same_memories(tables: Mapping[str, Technology]) -> tuple[tuple[str, ...], ...]:
    """Groups of technologies, two or more, with the same price of every memory access."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, table in tables.items():
        prices = tuple(table.actions[action].pj for action in ACTIONS if "_read" in action or "_write" in action)
        groups.setdefault(prices, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _energy(metrics: dict) -> tuple[float, float]:
    """Whole step and learning signal."""
    return metrics["energy_pj"], metrics["energy_by_phase_pj"]["learning_signal"]


def _rows(metrics: dict[str, dict], accuracy: dict[str, float], windowed: bool) -> tuple[Row, ...]:
    """The table; a windowed network's has rows of its own."""

    def row(quantity: str, unit: str, *path: str, ranked: bool = True) -> Row:
        values = {}
        for rule, value in metrics.items():
            for key in path:
                value = value[key]
            values[rule] = value
        return Row(quantity, unit, values, ranked=ranked)

    rows = [
        row("MACs, learning signal", "MACs", "macs_by_phase", "learning_signal"),
        row("MACs, whole step", "MACs", "macs"),
        row("cycles, signal phase", "cycles", "cycles_by_phase", "signal"),
        row("cycles, whole step", "cycles", "cycles"),
        row("utilization", "of 1", "utilization", ranked=False),
        row("energy, learning signal", "pJ", "energy_by_phase_pj", "learning_signal"),
        row("energy, whole step", "pJ", "energy_pj"),
        row("memory, activations", "bytes", "memory_bytes", "activations"),
        row("memory, latents", "bytes", "memory_bytes", "latents"),
        row("memory, basis or feedback", "bytes", "memory_bytes", "basis table"),
        row("memory, deltas", "bytes", "memory_bytes", "deltas"),
        row("memory, whole", "bytes", "peak_bytes"),
    ]
    if windowed:
        multiplied = {rule: sum(metric["multiplications_by_phase"].values()) for rule, metric in metrics.items()}
        rows[2:2] = [
            Row("multiplications, whole step", "products", multiplied),
            row("additions within windows", "additions", "window_additions"),
        ]
        kept = next(index for index, found in enumerate(rows) if found.quantity == "memory, latents")
        rows.insert(kept, row("memory, slopes and indices", "bytes", "memory_bytes", "slopes"))
        for batch in metrics["lls"]["memory_by_batch"]:
            whole = {rule: sum(metric["memory_by_batch"][batch].values()) for rule, metric in metrics.items()}
            if batch != str(metrics["lls"]["batch"]):
                rows.append(Row(f"memory, whole, batch {batch}", "bytes", whole))
    if all(metric["latency_us"] is not None for metric in metrics.values()):
        after = next(index for index, found in enumerate(rows) if found.quantity == "utilization")
        rows.insert(after, row("latency", "us", "latency_us"))
    if accuracy:
        rows.append(Row("test accuracy", "%", accuracy, more_is_better=True))
    return tuple(rows)


def _cells(row: Row) -> list[str]:
    return [
        f"{row.quantity} ({row.unit})",
        *(number(row.values[rule]) for rule in RULES),
        *(times(row.values[rule], row.values["lls"]) for rule in ("bp", "dfa")),
    ]
