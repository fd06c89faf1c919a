"""A line of a comparison's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sim.area import Area

__all__ = ["Row", "mean"]


@dataclass(frozen=True)
class Row:
    """``values`` by rule, in ``unit``, of the rules that have one; ``more_is_better`` for accuracy.

    ``ranked``: whether it says who is better. Utilization does not: with equal work it is the cycles once more.
    """

    quantity: str
    unit: str
    values: Mapping[str, float]
    more_is_better: bool = False
    ranked: bool = True

    @classmethod
    def of(cls, metrics: Mapping[str, Mapping], quantity: str, unit: str, *path: str, ranked: bool = True) -> Self:
        """The values that ``path`` leads to in the metrics of each rule."""
        values = {}
        for rule, value in metrics.items():
            for key in path:
                value = value[key]
            values[rule] = value
        return cls(quantity, unit, values, ranked=ranked)

    @classmethod
    def of_areas(cls, areas: Mapping[str, "Area"], resources: Sequence[str]) -> list[Self]:
        """A line a resource, as far as the family has it."""
        return [
            cls(f"area, {name}", "cells", {rule: area.resources[name] for rule, area in areas.items()})
            for name in resources
            if areas and all(name in area.resources for area in areas.values())
        ]

    def ratio(self, rule: str) -> float | None:
        """How many times LLS's value ``rule`` has; None when either has nothing."""
        base = self.values.get("lls")
        return self.values[rule] / base if base and rule in self.values else None

    def beats_lls(self, rule: str) -> bool:
        """Whether ``rule`` is strictly better than LLS, where the line says so."""
        if not self.ranked or not {rule, "lls"} <= self.values.keys():
            return False
        ours, theirs = self.values["lls"], self.values[rule]
        return theirs > ours if self.more_is_better else theirs < ours


def mean(values: Sequence[float]) -> float:
    """Of one or more."""
    return sum(values) / len(values)
