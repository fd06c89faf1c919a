"""The learning tax: what a machine that learns costs beyond the same machine without learning, in percent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.area import Area

__all__ = ["SPOON", "Published", "learning_tax"]


@dataclass(frozen=True)
class Published:
    """A chip's tax as it was published: percent of silicon area and of power."""

    name: str
    what: str
    area: float
    power: float
    source: str


SPOON = Published(
    "SPOON",
    "DRTP, 28 nm chip",
    11.8,
    16.8,
    "C. Frenkel, J.-D. Legat, D. Bol, A 28-nm Convolutional Neuromorphic Processor Enabling Online Learning with "
    "Spike-Based Retinas, ISCAS 2020, arXiv:2005.06318",
)


def learning_tax(metrics: Mapping[str, Mapping], areas: Mapping[str, "Area"]) -> dict[str, dict[str, float]]:
    """Percent over ``inference`` by rule, then quantity; nothing where ``inference`` is not among the rules.

    ``cycles`` and ``energy`` are those of a sample; ``power`` is energy a cycle, ``memory`` what a sample keeps. The
    resources of an area are there for rules that have one, but for those of which ``inference`` takes none.
    """
    if "inference" not in metrics:
        return {}
    base = _quantities(metrics["inference"], areas.get("inference"))
    tax = {}
    for rule, values in metrics.items():
        if rule != "inference":
            found = _quantities(values, areas.get(rule))
            tax[rule] = {name: 100 * (value / base[name] - 1) for name, value in found.items() if base.get(name)}
    return tax


def _quantities(metrics: Mapping, area: "Area | None") -> dict[str, float]:
    """What is compared."""
    found: dict[str, float] = {
        "cycles": metrics["cycles"],
        "energy": metrics["energy_pj"],
        "power": metrics["energy_pj"] / metrics["cycles"],
        "memory": metrics["peak_bytes"],
    }
    if area is not None:
        found.update(area.resources)
    return found
