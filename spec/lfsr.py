"""The pseudo-random sequence of stochastic rounding.

A 16-bit Galois LFSR, shifting right, taps ``0xB400``: x^16 + x^14 + x^13 + x^11 + 1, whose period
is 65535. Every generator of a machine walks this one sequence from its own starting point.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spec.errors import check_int
from spec.machine import Machine

__all__ = ["PERIOD", "SEQUENCE", "STATE_BITS", "TAPS", "offset"]

STATE_BITS = 16
TAPS = 0xB400
PERIOD = (1 << STATE_BITS) - 1


def _sequence() -> npt.NDArray[np.uint16]:
    states = np.empty(PERIOD, dtype=np.uint16)
    state = 1
    for index in range(PERIOD):
        states[index] = state
        state = (state >> 1) ^ (TAPS if state & 1 else 0)
    states.flags.writeable = False
    return states


SEQUENCE = _sequence()
"""uint16[65535], read-only: ``SEQUENCE[i]`` is the state ``i`` steps after the state 1."""


def offset(machine: Machine, number: int) -> int:
    """Steps after the state 1 at which LFSR ``number`` of the machine starts.

    ``number`` is ``r * cols + c`` for PE(r, c) and ``rows * cols`` for the bias unit. The starting
    points divide the period evenly.
    """
    check_int("number", number, 0, machine.lfsrs - 1)
    return number * (PERIOD // machine.lfsrs)
