"""The core of a machine, whichever of the two datapaths it has."""

from __future__ import annotations

import hdl.dense.core
import hdl.windowed.core
from spec.basis import Basis
from spec.machine import Machine

__all__ = ["Core", "core_for"]

Core = hdl.dense.core.Core | hdl.windowed.core.Core


def core_for(machine: Machine, classes: int, basis: Basis) -> Core:
    """The dense core or, with `gradient_bits`, the windowed one; their ports are the same.

    SpecError for a machine or a basis that does not suit `classes`.
    """
    kind = hdl.windowed.core if machine.windowed else hdl.dense.core
    return kind.Core(machine, classes, basis)
