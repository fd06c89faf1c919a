"""Energy of a step: its actions times a technology's energy an action, in picojoule."""

from collections.abc import Mapping

from sim.cycle.counts import COMPONENTS, PURPOSES, Counts
from spec.technology import Technology

__all__ = ["energy_by_component", "energy_by_purpose", "energy_pj", "energy_table"]


def energy_table(counts: Counts, technology: Technology) -> dict[tuple[str, str], float]:
    """Picojoule by ``(purpose, component)``; every pair is there, also the empty ones."""
    table = {(purpose, component): 0.0 for purpose in PURPOSES for component in COMPONENTS}
    for (purpose, component, action), number in counts:
        table[purpose, component] += number * technology.actions[action].pj
    return table


def energy_by_purpose(table: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Picojoule by what the work is for."""
    return {p: sum(pj for (purpose, _), pj in table.items() if purpose == p) for p in PURPOSES}


def energy_by_component(table: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Picojoule by where it is spent."""
    return {c: sum(pj for (_, part), pj in table.items() if part == c) for c in COMPONENTS}


def energy_pj(counts: Counts, technology: Technology) -> float:
    """Picojoule in all."""
    return sum(energy_table(counts, technology).values())
