"""Wires between blocks whose ports depend on the learning rule."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import ValueLike
from amaranth.lib import wiring

__all__ = ["feed", "link"]


def feed(unit: wiring.Component, **sources: ValueLike) -> list[Any]:
    """Assigns `sources` to the ports of their names, those that the unit has: rules need different ones."""
    return [getattr(unit, name).eq(sources[name]) for name in unit.signature.members if name in sources]


def link(unit: wiring.Component, source: wiring.Component, *names: str) -> list[Any]:
    """Assigns to the ports `names` of `unit` those of `source`, where both have them."""
    shared = set(unit.signature.members) & set(source.signature.members)
    return [getattr(unit, name).eq(getattr(source, name)) for name in names if name in shared]
