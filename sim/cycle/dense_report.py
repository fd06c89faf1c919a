"""What a comparison says of fully connected layers at batch 1 beyond its table: part by part, and the learning tax."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sim.cycle.counts import COMPONENTS
from sim.cycle.memory import MEMORIES
from sim.cycle.rows import Row
from sim.cycle.step import CYCLE_PHASES
from sim.cycle.tax import SPOON
from sim.cycle.text import NAMES

if TYPE_CHECKING:
    from sim.area import Area

__all__ = ["DENSE_NOTES", "PURPOSE_TITLES", "TRAINED_NOTE", "area_notes", "details", "tax_table"]

PURPOSE_TITLES = {
    "forward": "forward",
    "learning_signal": "learning signal",
    "weight_gradient": "weight gradient",
}
DENSE_NOTES = (
    "- Multiplications are those that the arithmetic needs; cycles and energy include padding.",
    "- Each rule is that of a machine built for it, memories and array as the others'. Backpropagated signals have "
    "12 bits, all others 8.",
    "- DFA's feedback, and DRTP's, is the network's basis.",
    "- Memory is what a step keeps, with the padding of its placement.",
)
TRAINED_NOTE = (
    "- Trained parameters of class scores have 24 bits. All that is done with them counts as learning signal: products "
    "for scores and errors, their own gradient and change."
)
UPDATES = {
    False: "more than twice the energy",
    True: "little more energy where positions are many: a weight is read once a batch and written, not once a position",
}
"""What an update's walk costs."""
TAX_UNITS = {
    "cycles": "cycles a sample",
    "energy": "energy a sample",
    "power": "power: energy a cycle",
    "memory": "memory that a sample keeps",
}


def details(metrics: Mapping[str, Mapping], areas: Mapping[str, "Area"]) -> dict[str, tuple[Row, ...]]:
    """Rows by heading; parts that no rule has are left out."""

    def rows(title: str, unit: str, key: str, names: Mapping[str, str], whole: Row) -> tuple[Row, ...]:
        found = [Row.of(metrics, f"{title}, {name}", unit, key, part) for part, name in names.items()]
        return (*(row for row in found if any(row.values.values())), whole)

    energy = Row.of(metrics, "energy, whole step", "pJ", "energy_pj")
    phases = {phase: "signal phase" if phase == "signal" else phase for phase in CYCLE_PHASES}
    memories = {name: "basis or feedback" if name == "basis table" else name for name in MEMORIES}
    whole_macs = Row.of(metrics, "MACs, whole step", "MACs", "macs")
    sections = {
        "Cycles by phase": rows(
            "cycles", "cycles", "cycles_by_phase", phases, Row.of(metrics, "cycles, whole step", "cycles", "cycles")
        ),
        "Multiplications by purpose": rows("MACs", "MACs", "macs_by_phase", PURPOSE_TITLES, whole_macs),
        "Energy by purpose": rows("energy", "pJ", "energy_by_phase_pj", PURPOSE_TITLES, energy),
        "Energy by component": rows(
            "energy", "pJ", "energy_by_component_pj", {name: name for name in COMPONENTS}, energy
        ),
        "Memory by purpose": rows(
            "memory", "bytes", "memory_bytes", memories, Row.of(metrics, "memory, whole", "bytes", "peak_bytes")
        ),
    }
    if areas:
        names = next(iter(areas.values())).resources
        sections["Area by resource"] = tuple(Row.of_areas(areas, tuple(names)))
    return sections


def tax_table(tax: Mapping[str, Mapping[str, float]], areas: Mapping[str, "Area"], windowed: bool) -> list[str]:
    """The learning tax, lines of Markdown; none without one. ``windowed``: of convolutions and batches."""
    if not tax:
        return []
    quantities = list(dict.fromkeys(name for found in tax.values() for name in found))
    lines = [
        "## Learning tax",
        "",
        "What a machine that learns costs beyond the same machine built for inference only.",
        "",
        "| over inference | " + " | ".join(NAMES[rule] for rule in tax) + f" | {SPOON.name} ({SPOON.what}) |",
        "|---|" + "---:|" * (len(tax) + 1),
    ]
    published = {"power": f"{SPOON.power:+.1f} %", "LUTs": f"{SPOON.area:+.1f} % of silicon"}
    for name in quantities:
        cells = (f"{found[name]:+.1f} %" if name in found else "–" for found in tax.values())
        said = published.get(name, "")
        lines.append("| " + " | ".join([TAX_UNITS.get(name, f"area: {name}"), *cells, said]) + " |")
    if not areas:
        blank = " | ".join("" for _ in tax)
        lines.append(f"| area (`--area` synthesises) | {blank} | {published['LUTs']} |")
    return [
        *lines,
        "",
        f"{SPOON.name}: {SPOON.source}. Its figures are of the area and the power of a chip with another network and "
        "array, ours of cells of an FPGA and of counted actions: the same question, not the same measure. An update "
        f"walks the array once more, so a sample takes twice the cycles under every rule, and {UPDATES[windowed]}. "
        "Power is to be read with the cycles: a signal that takes longer spreads the same energy.",
        "",
    ]


def area_notes(areas: Mapping[str, "Area"]) -> list[str]:
    """What the area's figures are."""
    if not areas:
        return []
    area = next(iter(areas.values()))
    return [f"- Area: cells of the core after synthesis for {area.title}, before placement; LUTs are {area.luts_from}."]
