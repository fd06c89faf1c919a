"""Learning rules side by side on one machine and network: a table, and what it says, the bad news with the good.

The learning signal alone and the whole step stand side by side, because a rule that saves 99 % of a small part saves
little. Energies are taken from several technologies, and a verdict counts only when all of them agree; tables that
share their memories' prices are named, since memory is most of the energy.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from sim.cycle.dense_report import DENSE_NOTES, TRAINED_NOTE, area_notes, details, tax_table
from sim.cycle.model import of_batch, training_step
from sim.cycle.report import step_metrics
from sim.cycle.rows import Row, mean
from sim.cycle.step import LABEL, Step
from sim.cycle.tax import learning_tax
from sim.cycle.text import NAMES, number, sizes, times
from sim.cycle.windowed_report import NOTES, claims, layer_table
from spec.errors import SpecError, check_choice
from spec.machine import Machine
from spec.network import Network
from spec.rules import RULES
from spec.technology import ACTIONS, Technology, load_technology
from spec.yaml_loader import preset_names

if TYPE_CHECKING:
    from sim.area import Area

__all__ = ["Comparison", "compare", "known_technologies", "steps_of"]

FEW = 3
"""Rules whose multiples of LLS have room beside their values."""
WIDTH = 120
"""Columns of a terminal that a table takes, about; with more of them the rules are shared out to several."""


@dataclass(frozen=True)
class Comparison:
    """``metrics`` by rule (see ``sim.cycle.report``); ``rows``: the table; ``energies``: by technology, then rule, the
    whole step's and the learning signal's picojoule; ``same_memories``: groups of technologies that price memory
    accesses alike; ``accuracy``: percent of every seed by rule, where it was measured, ``training`` says how; ``areas``
    by rule, where synthesised; ``left_out``: rules that the machine cannot be built for, each with the reason. A step
    has ``batch`` samples."""

    machine: Machine
    network: Network
    metrics: dict[str, dict]
    rows: tuple[Row, ...]
    energies: dict[str, dict[str, tuple[float, float]]]
    same_memories: tuple[tuple[str, ...], ...]
    accuracy: dict[str, tuple[float, ...]] = field(default_factory=dict)
    training: str = ""
    areas: dict[str, "Area"] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[str, ...]:
        """Those compared."""
        return tuple(self.metrics)

    @property
    def others(self) -> tuple[str, ...]:
        """Rules that learn and are held against LLS; none where LLS is not there."""
        return tuple(rule for rule in self.metrics if RULES[rule].learns and rule != "lls" and "lls" in self.metrics)

    @property
    def batch(self) -> int:
        """Samples of the step."""
        return next(iter(self.metrics.values()))["batch"]

    @property
    def title(self) -> str:
        """The rules in a sentence."""
        *most, last = (NAMES[rule] for rule in self.rules)
        return f"{', '.join(most)} and {last}" if most else last

    @property
    def label(self) -> str:
        """What the figures are, in a sentence without its full stop."""
        return f"{self.title}: {LABEL}"

    @cached_property
    def details(self) -> dict[str, tuple[Row, ...]]:
        """The whole step part by part, by heading; the table's rows have most of that for convolutions."""
        return {} if self.network.windowed else details(self.metrics, self.areas)

    @cached_property
    def tax(self) -> dict[str, dict[str, float]]:
        """Percent over ``inference``, by rule and quantity."""
        return learning_tax(self.metrics, self.areas)

    @property
    def verdict_survives(self) -> dict[str, dict[str, bool]]:
        """By rule, for the whole step and for the signal: do all technologies agree who needs less, LLS or that?"""
        return {
            rule: {
                part: len({found["lls"][index] < found[rule][index] for found in self.energies.values()}) == 1
                for index, part in enumerate(("whole_step", "learning_signal"))
            }
            for rule in self.others
        }

    def where_better(self, rule: str) -> list[Row]:
        """The table's lines in which a rule beats LLS."""
        return [row for row in self.rows if row.beats_lls(rule)]

    def to_csv(self) -> str:
        """Table and parts as CSV: quantity, unit, a column a rule, and each rule's multiple of LLS."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["quantity", "unit", *self.rules, *(f"{rule}_over_lls" for rule in self.others)])
        rows = {row.quantity: row for rows in (self.rows, *self.details.values()) for row in rows}
        for row in rows.values():
            values = [f"{row.values[rule]:.10g}" if rule in row.values else "" for rule in self.rules]
            ratios = [row.ratio(rule) for rule in self.others]
            writer.writerow(
                [row.quantity, row.unit, *values, *("" if ratio is None else f"{ratio:.4f}" for ratio in ratios)]
            )
        return text.getvalue()

    def to_text(self) -> str:
        """The table for a terminal, in parts where it is too wide; with multiples of LLS where rules are few."""
        others = self.others if len(self.rules) <= FEW else ()
        lines = [["", *(NAMES[rule] for rule in self.rules), *(f"{NAMES[rule]}/LLS" for rule in others)]]
        lines += [self._cells(row, others) for row in self.rows]
        table = zip(*lines, strict=True)
        first, *columns = ([cell.rjust(max(map(len, column))) for cell in column] for column in table)
        first = [cell.strip().ljust(len(cell)) for cell in first]
        parts = -(-sum(2 + len(column[0]) for column in columns) // (WIDTH - len(first[0])))
        size = -(-len(columns) // parts)
        return "\n\n".join(
            "\n".join("  ".join(cells) for cells in zip(first, *columns[start : start + size], strict=True))
            for start in range(0, len(columns), size)
        )

    def to_markdown(self) -> str:
        """The report: table, who wins where, learning tax, parts, the technologies, what the figures are."""
        machine, network = self.machine, self.network
        array, few = f"{machine.name} ({machine.rows}x{machine.cols})", len(self.rules) <= FEW
        text = [
            f"# {self.title}: {network.name} ({sizes(network)}) on {array}",
            "",
            f"One training step, batch {self.batch}. {self.label}.",
            *(f"Left out: {NAMES[rule]}. {reason}." for rule, reason in self.left_out.items()),
            "",
            *self._table(self.rows, self.others if few else ()),
            "",
            *([] if few else self._multiples()),
            *self._verdict(),
        ]
        if self.accuracy:
            text += self._accuracies()
        text += tax_table(self.tax, self.areas, network.windowed)
        for title, rows in self.details.items():
            text += [f"## {title}", "", *self._table(rows, ()), ""]
        if network.windowed and {"lls", "bp"} <= self.metrics.keys():
            text += [*claims(self.metrics), "", *layer_table(self.metrics), ""]
        if self.others:
            text += self._technologies()
        technology = next(iter(self.metrics.values()))["technology"]
        text += [
            "## What the figures are",
            "",
            f"- Energy: table `{technology['name']}` ({technology['node']}); leakage: {technology['leakage']}.",
            *(NOTES if network.windowed else DENSE_NOTES),
            *([TRAINED_NOTE] if any(RULES[rule].trains for rule in self.rules) else []),
            *area_notes(self.areas),
        ]
        return "\n".join(text) + "\n"

    def _table(self, rows: Sequence[Row], others: Sequence[str]) -> list[str]:
        """Rows as Markdown, with multiples of LLS for ``others``."""
        names = [*(NAMES[rule] for rule in self.rules), *(f"{NAMES[rule]}/LLS" for rule in others)]
        lines = ["| quantity | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        return lines + ["| " + " | ".join(self._cells(row, others)) + " |" for row in rows]

    def _multiples(self) -> list[str]:
        """A line a rule would be as wide as the table: a table of its own."""
        if not self.others:
            return []
        heads = [f"over {NAMES['lls']}'s", *(NAMES[rule] for rule in self.others)]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * len(self.others)]
        for row in self.rows:
            cells = self._cells(row, self.others)[-len(self.others) :]
            if any(cell != "–" for cell in cells):
                lines.append("| " + " | ".join([row.quantity, *cells]) + " |")
        return [*lines, ""]

    def _cells(self, row: Row, others: Sequence[str]) -> list[str]:
        base = row.values.get("lls", 0)
        return [
            f"{row.quantity} ({row.unit})",
            *(number(row.values[rule]) if rule in row.values else "–" for rule in self.rules),
            *(times(row.values[rule], base) if rule in row.values else "–" for rule in others),
        ]

    def _verdict(self) -> list[str]:
        if not self.others:
            return []
        lines = ["## Where LLS loses", ""]
        for rule in self.others:
            won = self.where_better(rule)
            listed = "; ".join(
                f"{row.quantity} ({number(row.values[rule])} against {number(row.values['lls'])} {row.unit})"
                for row in won
            )
            lines.append(f"- To {NAMES[rule]}: {listed or 'nowhere in this table'}.")
        lines.append("")
        if not self.accuracy:
            lines += ["Costs alone: what each rule learns with them, `--epochs N` measures (test accuracy).", ""]
        return lines

    def _accuracies(self) -> list[str]:
        """Every seed's."""
        lines = ["## Test accuracy", "", f"{self.training}.", "", "| rule | mean (%) | each |", "|---|---:|---|"]
        for rule, found in self.accuracy.items():
            lines.append(f"| {NAMES[rule]} | {mean(found):.2f} | {', '.join(f'{value:.2f}' for value in found)} |")
        return [*lines, ""]

    def _technologies(self) -> list[str]:
        text = ["## Other technologies", "", "Energy over LLS's."]
        for rule, parts in self.verdict_survives.items():
            said = (
                f"{'holds' if holds else 'does **not** hold'} in every table for the {part.replace('_', ' ')}"
                for part, holds in parts.items()
            )
            text.append(f"- {NAMES[rule]}: the verdict {' and '.join(said)}.")
        text += [f"- {' and '.join(names)} price memories alike: one opinion." for names in self.same_memories]
        heads = [f"{part}, {name}" for part in ("whole step", "learning signal") for name in self.energies]
        text += ["", "| rule | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for rule in self.others:
            cells = (times(found[rule][i], found["lls"][i]) for i in (0, 1) for found in self.energies.values())
            text.append("| " + " | ".join([NAMES[rule], *cells]) + " |")
        return [*text, ""]


def known_technologies(*more: str) -> list[Technology]:
    """All presets, and further names or files."""
    found = {}
    for name in (*preset_names("technologies"), *more):
        technology = load_technology(name)
        found.setdefault(technology.name, technology)
    return list(found.values())


def steps_of(
    machine: Machine, network: Network, rules: Sequence[str] | None = None, batch: int | None = None
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps by rule, and the rules that are left out, each with the reason.

    A rule that keeps more than the machine has is left out where ``rules`` names none, but for LLS; otherwise it raises
    SpecError.
    """
    for rule in rules or ():
        check_choice("rules", rule, RULES)
    steps, left_out = {}, {}
    for rule in NAMES if rules is None else dict.fromkeys(rules):
        try:
            steps[rule] = training_step(machine, network, rule, batch=batch)
        except SpecError as error:
            if rule == "lls":
                raise
            if rules is not None:
                raise SpecError(f"rule {rule}", str(error)) from None
            left_out[rule] = str(error)
    return steps, left_out


def compare(
    machine: Machine,
    network: Network,
    technology: Technology,
    others: Sequence[Technology] = (),
    accuracy: Mapping[str, Sequence[float]] | None = None,
    batch: int | None = None,
    *,
    rules: Sequence[str] | None = None,
    areas: Mapping[str, "Area"] | None = None,
    training: str = "",
) -> Comparison:
    """Compares ``rules`` (see :func:`steps_of`); ``others`` are the technologies against which the verdict is held.

    ``batch``: samples of a step, those of the network's recipe if not said otherwise. ``accuracy``: test accuracies in
    percent, one a seed, by rule, and ``training`` how they were reached; ``areas`` by rule. Raises SpecError for a
    network that does not fit.
    """
    steps, left_out = steps_of(machine, network, rules, batch)
    metrics = {rule: step_metrics(step, technology) for rule, step in steps.items()}
    tables = {t.name: t for t in (technology, *others)}
    energies = {
        name: {rule: _energy(step_metrics(step, table)) for rule, step in steps.items()}
        for name, table in tables.items()
    }
    found = {rule: tuple(values) for rule, values in (accuracy or {}).items()}
    network, _ = of_batch(network, batch)
    rows = _rows(metrics, found, areas or {}, network.windowed)
    return Comparison(
        machine, network, metrics, rows, energies, _same_memories(tables), found, training, dict(areas or {}), left_out
    )


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


def _rows(
    metrics: dict[str, dict], accuracy: Mapping[str, Sequence[float]], areas: Mapping[str, "Area"], windowed: bool
) -> tuple[Row, ...]:
    """The table; a windowed network's has rows of its own."""

    def row(quantity: str, unit: str, *path: str, ranked: bool = True) -> Row:
        return Row.of(metrics, quantity, unit, *path, ranked=ranked)

    rows = [
        row("MACs, learning signal", "MACs", "macs_by_phase", "learning_signal"),
        row("MACs, whole step", "MACs", "macs"),
        row("cycles, signal phase", "cycles", "cycles_by_phase", "signal"),
        row("cycles, whole step", "cycles", "cycles"),
        row("utilization", "of 1", "utilization", ranked=False),
        row("energy, learning signal", "pJ", "energy_by_phase_pj", "learning_signal"),
        row("energy, whole step", "pJ", "energy_pj"),
        row("memory, activations", "bytes", "memory_bytes", "activations"),
        row(f"memory, slopes{' and indices' if windowed else ''}", "bytes", "memory_bytes", "slopes"),
        row("memory, latents", "bytes", "memory_bytes", "latents"),
        row("memory, basis or feedback", "bytes", "memory_bytes", "basis table"),
        row("memory, trained scores", "bytes", "memory_bytes", "trained scores"),
        row("memory, deltas", "bytes", "memory_bytes", "deltas"),
        row("memory, whole", "bytes", "peak_bytes"),
    ]
    if not any(RULES[rule].trains for rule in metrics):
        rows = [found for found in rows if found.quantity != "memory, trained scores"]
    first = next(iter(metrics.values()))
    if windowed:
        multiplied = {rule: sum(metric["multiplications_by_phase"].values()) for rule, metric in metrics.items()}
        rows[2:2] = [
            Row("multiplications, whole step", "products", multiplied),
            row("additions within windows", "additions", "window_additions"),
        ]
        for batch in first["memory_by_batch"]:
            whole = {rule: sum(metric["memory_by_batch"][batch].values()) for rule, metric in metrics.items()}
            if batch != str(first["batch"]):
                rows.append(Row(f"memory, whole, batch {batch}", "bytes", whole))
    if first["latency_us"] is not None:
        after = next(index for index, found in enumerate(rows) if found.quantity == "utilization")
        rows.insert(after, row("latency", "us", "latency_us"))
    rows += Row.of_areas(areas, ("LUTs", "flip-flops", "multipliers", "block RAMs"))
    if accuracy:
        means = {rule: mean(found) for rule, found in accuracy.items()}
        rows.append(Row("test accuracy", "%", means, more_is_better=True))
    return tuple(rows)
