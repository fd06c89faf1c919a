"""spec.layout: one bank a tap in every step, and digits that count, against plain loops over taps."""

from __future__ import annotations

from itertools import product

import pytest

from spec.geometry import LayerGeometry
from spec.layout import Digits, digits, excess, pitch, rewind_digits, step_digits, steps, words, written_pitch


def layers(channels: tuple[int, ...] = (1, 2, 3, 7, 8, 12)) -> list[LayerGeometry]:
    """Kernels of all shapes over maps as small as padding lets them be."""
    found = []
    sides = (1, 2, 3, 5)
    for kh, kw, width, c in product(sides, sides, (1, 2, 5, 8), channels):
        kernel = kh, kw
        padding = min(kernel) - 1
        if width + 2 * padding >= max(kernel):
            shape = (width, width, c)
            found.append(LayerGeometry(shape, c, 7, 4, kernel, padding=padding))
            found.append(LayerGeometry(shape, c, 7, 4, kernel, padding=padding, depthwise=True))
    return found


def taps(layer: LayerGeometry) -> list[Digits]:
    """All taps in their order."""
    c = 1 if layer.depthwise else layer.input[2]
    return [Digits(*tap) for tap in product(range(layer.kernel[0]), range(layer.kernel[1]), range(c))]


@pytest.mark.parametrize("rows", (1, 2, 4, 8, 32))
def test_kernel_rows_join_without_a_seam(rows: int) -> None:
    """Tap t lies t elements, and whole words, behind tap 0; the pitch is the least such."""
    for layer in layers():
        p, (_, width, c) = pitch(layer, rows), layer.input
        assert width * c <= p < width * c + rows
        for t, (ky, kx, ci) in enumerate(taps(layer)):
            t *= c if layer.depthwise else 1
            assert ky * p + kx * c + ci == t + ky * rows * excess(layer, rows)


def test_pitch_by_hand() -> None:
    """27 taps of a 32x32 map of 3 channels on 8 rows; 1x1 needs no more than the row."""
    layer = LayerGeometry((32, 32, 3), 32, 7, 4, (3, 3), padding=1)
    assert (pitch(layer, 8), excess(layer, 8), words(layer, 8), steps(layer, 8)) == (97, 11, 388, 4)
    assert pitch(LayerGeometry((5, 5, 8), 8, 7, 4), 8) == 40
    assert excess(LayerGeometry((1, 1, 1), 8, 7, 4, (5, 5), padding=4), 2) == -2


@pytest.mark.parametrize("rows", (2, 8))
def test_words_hold_the_last_pixel_and_no_word_more(rows: int) -> None:
    for layer in layers():
        height, width, c = layer.input
        last = (height - 1) * pitch(layer, rows) + (width - 1) * c + c - 1
        assert words(layer, rows) == last // rows + 1


@pytest.mark.parametrize("rows", (1, 2, 4, 8, 32))
def test_digits_count_through_the_steps_and_back(rows: int) -> None:
    for layer in layers():
        order, c = taps(layer), 1 if layer.depthwise else layer.input[2]
        kw, once = layer.kernel[1], 1 if layer.depthwise else rows
        assert [digits(layer, t) for t in range(len(order))] == order
        assert step_digits(layer, rows) == digits(layer, once)
        assert (steps(layer, rows) - 1) * once < len(order) <= steps(layer, rows) * once
        ky, kx, ci = rewind_digits(layer, rows)
        assert 0 <= kx < kw and 0 <= ci < c
        assert (ky * kw + kx) * c + ci == -(steps(layer, rows) - 1) * once


def test_a_fully_connected_layer_reads_a_map_without_gaps() -> None:
    flat = LayerGeometry((1, 1, 45), 10, 7, 4)
    kernel = LayerGeometry((3, 5, 3), 10, 7, 4, (3, 3))
    assert written_pitch((3, 5, 3), flat, 8) == 15
    assert written_pitch((3, 5, 3), kernel, 8) == pitch(kernel, 8) == 17
