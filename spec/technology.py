"""A technology: what an action costs in energy, each figure with unit, source and note."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from spec.errors import SpecError, check_choice, check_number, check_text, located
from spec.machine import WEIGHT_BITS, Machine
from spec.yaml_loader import check_keys, find_file, load_yaml

__all__ = ["ACTIONS", "Action", "Technology", "activation_action", "load_technology", "weight_action"]

_SMALL_MEMORY_BYTES = 8192

ACTIONS: dict[str, str] = {
    "multiply_8x16": "an 8-bit activation times a 16-bit weight",
    "multiply_8x18": "an 8-bit activation times a shifted learning signal of up to 18 bits",
    "multiply_8x8": "two 8-bit numbers: squares of the norm, entries of a sine basis",
    "multiply_16x16": "two numbers of up to 20 bits: errors, scores, reciprocals",
    "add_32": "an addition of up to 32 bits: partial sums, accumulators, weights with random bits",
    "add_16": "an addition of up to 20 bits: class scores, projection",
    "register_bit": "one flip-flop written",
    "weight_read": "16 bits read from a PE's weight memory of at most 8 KB",
    "weight_write": "16 bits written to a PE's weight memory of at most 8 KB",
    "weight_read_32kb": "16 bits read from a PE's weight memory above 8 KB (priced at 32 KB)",
    "weight_write_32kb": "16 bits written to a PE's weight memory above 8 KB (priced at 32 KB)",
    "activation_read": "8 bits read from an activation bank or the latent memory",
    "activation_write": "8 bits written to an activation bank or the latent memory",
    "activation_read_32kb": "8 bits read from an activation bank or slope memory above 8 KB (priced at 32 KB)",
    "activation_write_32kb": "8 bits written to an activation bank or slope memory above 8 KB (priced at 32 KB)",
    "bias_read": "16 bits read from the bias memory",
    "bias_write": "16 bits written to the bias memory",
    "rom_read_bit": "one bit read from the basis table",
    "dram_64": "64 bits moved to or from external memory",
}
"""Every action that a technology has to price, and what one of it is."""


@dataclass(frozen=True)
class Action:
    """The energy of one action: ``pj`` picojoule, a ``unit`` that says what one is, its source."""

    pj: float
    unit: str
    source: str
    note: str

    @property
    def derived(self) -> bool:
        """Whether the figure was scaled from another one; ``note`` says how."""
        return self.note.startswith("derived")

    def __post_init__(self) -> None:
        check_number("pj", self.pj, 0, 1e6)
        check_text("unit", self.unit)
        check_text("source", self.source)
        check_text("note", self.note)


@dataclass(frozen=True)
class Technology:
    """An energy table; ``leakage`` says in words what is left out or how it is modelled."""

    name: str
    node: str
    leakage: str
    actions: Mapping[str, Action]

    def __post_init__(self) -> None:
        check_text("name", self.name)
        check_text("node", self.node)
        check_text("leakage", self.leakage)
        for key, action in self.actions.items():
            check_choice("actions", key, ACTIONS)
            if not isinstance(action, Action):
                raise SpecError(f"actions.{key}", "must be an action", action)
        for key in ACTIONS:
            if key not in self.actions:
                raise SpecError(f"actions.{key}", "is missing")
        object.__setattr__(self, "actions", MappingProxyType(dict(self.actions)))


def weight_action(machine: Machine, access: str) -> str:
    """The action of a ``read`` or ``write`` of the machine's weight memories, by their size."""
    check_choice("access", access, ("read", "write"))
    small = machine.weight_depth * WEIGHT_BITS // 8 <= _SMALL_MEMORY_BYTES
    return f"weight_{access}" if small else f"weight_{access}_32kb"


def activation_action(size: int, access: str) -> str:
    """The action of a ``read`` or ``write`` of 8 bits of a memory of ``size`` bytes."""
    check_choice("access", access, ("read", "write"))
    return f"activation_{access}" if size <= _SMALL_MEMORY_BYTES else f"activation_{access}_32kb"


def load_technology(name_or_path: str | os.PathLike[str]) -> Technology:
    """Reads a preset (``horowitz-45nm``, ``jouppi-7nm``, ``aladdin-40nm``) or a YAML file."""
    path = find_file("technologies", name_or_path)
    values = load_yaml(path)
    with located(file=str(path)):
        check_keys(values, ("name", "node", "leakage", "actions"))
        with located(path="actions"):
            rows = check_keys(values["actions"], ACTIONS)
            actions = {}
            for key, row in rows.items():
                with located(path=key):
                    check_keys(row, ("pj", "unit", "source", "note"))
                    actions[key] = Action(**row)
        return Technology(values["name"], values["node"], values["leakage"], actions)
