"""What reads a map, as one design: positions, tap reader and map memory, joined as the walk joins them."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.windowed.map_memory import MapMemory
from hdl.windowed.positions import Positions
from hdl.windowed.taps import TapReader
from spec.machine import Machine

__all__ = ["Reader"]

DIGITS = ("ky", "kx", "ci")
SHARED = ("y", "x")
"""The position: from one block to the next, and an output for the bench."""


class Reader(wiring.Component):
    """Ports are those of the three blocks under their names, but for three: ``next_position`` is the positions'
    ``step``; ``step_ky, step_kx, step_ci`` and ``rewind_ky, …`` are the fields of the tap reader's digits."""

    def __init__(self, machine: Machine, max_side: int):
        self._positions = Positions(max_side)
        self._taps = TapReader(machine, max_side)
        self._memory = MapMemory(machine)
        inside = {*SHARED, "read_addr", "rotation", "mask", "step", "step_digits", "rewind_digits"}
        ports: dict[str, Any] = {"next_position": In(1)}
        for block in (self._positions, self._taps, self._memory):
            ports |= {name: member for name, member in block.signature.members.items() if name not in inside}
        for name in DIGITS:
            ports |= {f"{what}_{name}": In(self._taps.digits[name].shape) for what in ("step", "rewind")}
        ports |= {name: Out(self._positions.signature.members[name].shape) for name in SHARED}
        super().__init__(ports)

    def elaborate(self, platform) -> Module:
        m = Module()
        positions, taps, memory = self._positions, self._taps, self._memory
        m.submodules.positions, m.submodules.taps, m.submodules.memory = positions, taps, memory
        for block in (positions, taps, memory):
            for name, member in block.signature.members.items():
                if name in self.signature.members and name not in SHARED:
                    outer, inner = getattr(self, name), getattr(block, name)
                    pairs = zip(outer, inner, strict=True) if member.dimensions else [(outer, inner)]
                    m.d.comb += [a.eq(b) if member.flow == Out else b.eq(a) for a, b in pairs]
        m.d.comb += positions.step.eq(self.next_position)
        for name in SHARED:
            value = getattr(positions, name)
            m.d.comb += [getattr(self, name).eq(value), getattr(taps, name).eq(value)]
        for name in DIGITS:
            m.d.comb += taps.step_digits[name].eq(getattr(self, f"step_{name}"))
            m.d.comb += taps.rewind_digits[name].eq(getattr(self, f"rewind_{name}"))
        m.d.comb += [inner.eq(outer) for inner, outer in zip(memory.read_addr, taps.read_addr, strict=True)]
        m.d.comb += [memory.rotation.eq(taps.rotation), memory.mask.eq(taps.mask)]
        return m
