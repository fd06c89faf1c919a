"""The arithmetic that every unit of the machine shares: rounding, saturation, random bits.

Everything works on int64, in which no intermediate value of a legal machine overflows, and takes
Python integers as well as arrays.
"""

from typing import TypeVar

import numpy as np

from spec.lfsr import PERIOD, SEQUENCE, STATE_BITS

__all__ = ["msb", "random_bits", "rnd", "sat"]

Code = TypeVar("Code", int, np.ndarray)


def rnd(value: Code, shift: int) -> Code:
    """`value / 2^shift`, rounded half up; `shift >= 0`."""
    return (value + (1 << (shift - 1))) >> shift if shift > 0 else value


def sat(value: Code, bits: int) -> Code:
    """`value`, limited to what `bits` bits hold in two's complement."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if isinstance(value, np.ndarray):
        return np.clip(value, low, high)
    return min(max(value, low), high)


def msb(value: int) -> int:
    """The position of the highest set bit of `value >= 0`; 0 for 0 as for 1."""
    return max(int(value).bit_length() - 1, 0)


def random_bits(steps: np.ndarray, bits: int) -> np.ndarray:
    """The top `bits` bits of an LFSR `steps` steps after the state 1: int64, `0 … 2^bits - 1`.

    Of more than 16 bits, those below the LFSR's 16 are 0. `steps` int64 of any shape.
    """
    states = SEQUENCE[steps % PERIOD].astype(np.int64)
    return states >> (STATE_BITS - bits) if bits <= STATE_BITS else states << (bits - STATE_BITS)
