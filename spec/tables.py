"""Small tables of the softmax and of the division by the norm: constants of the arithmetic.

Each has 16 entries, sampled in the middle of its interval: entry ``j`` stands for ``(j + 0.5)/16``.
"""

from __future__ import annotations

__all__ = ["EXP", "EXP_FRACTION_BITS", "RCP8", "RCP9"]

EXP_FRACTION_BITS = 12


def _half_up(value: float) -> int:
    """Nearest integer of a positive number, halves up (none of the entries is a half)."""
    return int(value + 0.5)


_POINTS = tuple((j + 0.5) / 16 for j in range(16))

EXP: tuple[int, ...] = tuple(_half_up(2**EXP_FRACTION_BITS * 2.0**-x) for x in _POINTS)
"""``2**-x``, 12 fraction bits: the largest is 4008, so an exponential fits 12 bits."""
RCP9: tuple[int, ...] = tuple(_half_up(512 / (1 + x)) for x in _POINTS)
"""``1/(1 + x)``, 9 fraction bits: the reciprocal of a mantissa by the 4 bits below its leading one."""
RCP8: tuple[int, ...] = tuple(_half_up(256 / (1 + x)) for x in _POINTS)
"""``1/(1 + x)``, 8 fraction bits."""
