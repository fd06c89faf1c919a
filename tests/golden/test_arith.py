"""Rounding, saturation, magnitude and random bits, against their definitions in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from golden.arith import msb, random_bits, rnd, sat
from spec.lfsr import PERIOD

CORNERS = [0, 1, -1, 2, -2, 3, -3, 7, -8, 127, -128, 32767, -32768, 2**40 + 1, -(2**40) - 1]


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 7, 9, 24])
def test_rounding_is_half_up(shift: int) -> None:
    half = 1 << max(shift - 1, 0)
    values = [*CORNERS, *(s * half + d for s in range(-5, 6) for d in (-1, 0, 1))]
    expected = [math.floor(Fraction(v, 1 << shift) + Fraction(1, 2)) for v in values]
    assert [rnd(v, shift) for v in values] == expected
    assert rnd(np.array(values), shift).tolist() == expected


@pytest.mark.parametrize("bits", [2, 8, 16, 20])
def test_saturation_keeps_what_fits(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = [*CORNERS, low - 1, low, low + 1, high - 1, high, high + 1]
    expected = [low if v < low else high if v > high else v for v in values]
    assert [sat(v, bits) for v in values] == expected
    assert sat(np.array(values), bits).tolist() == expected


def test_msb_is_the_floor_of_the_logarithm() -> None:
    assert msb(0) == 0
    for top in range(40):
        assert msb(1 << top) == msb((1 << top + 1) - 1) == top


@pytest.mark.parametrize("bits", [1, 10, 12, 16])
def test_random_bits_are_the_top_of_a_stepped_register(bits: int) -> None:
    state, expected = 1, []
    for _ in range(PERIOD):
        expected.append(state >> (16 - bits))
        carry = state & 1
        state >>= 1
        if carry:
            state ^= 0xB400
    assert state == 1
    steps = np.arange(PERIOD)
    assert random_bits(steps, bits).tolist() == expected
    assert np.array_equal(random_bits(steps + 3 * PERIOD, bits), random_bits(steps, bits))
