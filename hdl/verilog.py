"""Verilog of a component, in which equal blocks share one module.

Amaranth writes a module for every instance. An array of 8x8 PEs would be 85,000 lines, and over a
million with large weight memories, since every memory lists its initial zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import ClockSignal, Instance, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["SharedModules", "make", "to_verilog"]

# Yosys puts a variable into every combinational process, whose one change runs the process once though its inputs rest
# at their initial values. It gives the variable a value where it is declared: in SystemVerilog that is set before any
# process waits, nothing changes, and outputs stay unknown. Set by a non-blocking assignment it changes when all wait,
# in either language.
_START = re.compile(r"^  reg (\\\$auto\$verilog_backend\S+)\s+= 0;$", re.MULTILINE)
_START_LATER = r"  reg \1 ;\n  initial \1 <= 1'b0;"


class SharedModules:
    """The `platform` of an elaboration to Verilog: holds the modules that instances share."""

    def __init__(self, prefix: str):
        """`prefix` begins the name of every shared module."""
        self.prefix = prefix
        self.texts: dict[str, str] = {}
        self._signatures: dict[str, wiring.Signature] = {}

    def instance(
        self, name: str, component: Callable[[], wiring.Component]
    ) -> tuple[Any, Any]:
        """As `make`; `component` is called for the first instance of `name` only."""
        module = f"{self.prefix}_{name}"
        if name not in self.texts:
            first = component()
            self._signatures[name] = first.signature
            self.texts[name] = _convert(first, module, self)
        signature = self._signatures[name]
        ports = signature.create(path=(name,))
        connections: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for path, member, value in signature.flatten(ports):
            direction = "i" if member.flow == In else "o"
            connections[f"{direction}_{'__'.join(map(str, path))}"] = value
        return ports, Instance(module, **connections)


def make(
    platform: object, name: str, component: Callable[[], wiring.Component]
) -> tuple[Any, Any]:
    """One of many equal components: its ports, and what to add to the submodules.

    `name` stands for the component and all its parameters. Elaborated by `to_verilog` all of one
    name share a module; elsewhere, as in simulation, each is a component of its own.
    The components must use the clock domain `sync` and no other.
    """
    if isinstance(platform, SharedModules):
        return platform.instance(name, component)
    element = component()
    return element, element


def to_verilog(component: wiring.Component, name: str = "top") -> str:
    """The component as Verilog with the top module `name`: the same text for equal components.

    Clock and reset are `clk` and `rst` (synchronous, active high). No source locations are in it.
    """
    shared = SharedModules(name)
    top = _convert(component, name, shared)
    return "\n".join([top, *shared.texts.values()])


def _convert(component: wiring.Component, name: str, platform: SharedModules) -> str:
    text = verilog.convert(
        component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True
    )
    return _START.sub(_START_LATER, text)
