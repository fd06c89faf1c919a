"""Where the elements of a map are in the activation memory, and how rows count through a kernel's taps.

Element ``e`` of the memory is in bank ``e % rows``, word ``e // rows``. Pixel ``(y, x)`` of a map
begins at ``base + y·pitch + x·channels`` (``docs/convolutions.md``, section 6). ``rows`` is the
array's, a power of two.
"""

from __future__ import annotations

from typing import NamedTuple

from spec.geometry import LayerGeometry

__all__ = [
    "Digits",
    "digits",
    "excess",
    "pitch",
    "rewind_digits",
    "step_digits",
    "steps",
    "words",
    "written_pitch",
]


class Digits(NamedTuple):
    """A number of taps as ``(ky·kw + kx)·c + ci``; ``ky`` is negative where the number is."""

    ky: int
    kx: int
    ci: int


def pitch(layer: LayerGeometry, rows: int) -> int:
    """Elements from a row of the map that ``layer`` reads to the next.

    The least that holds a row and equals ``kw·c`` modulo ``rows``: then tap ``t`` is in bank
    ``(e + t) % rows`` for every ``t``, where ``e`` is tap 0's element, whichever row ``t`` is in.
    """
    _, width, channels = layer.input
    return width * channels + (layer.kernel[1] - width) * channels % rows


def excess(layer: LayerGeometry, rows: int) -> int:
    """Words by which a row of the kernel begins later than the taps before it end; can be negative."""
    return (pitch(layer, rows) - layer.kernel[1] * layer.input[2]) // rows


def written_pitch(shape: tuple[int, int, int], layer: LayerGeometry, rows: int) -> int:
    """The pitch with which a map of ``shape`` is written for ``layer``.

    A fully connected layer reads it as one pixel, so its rows must join.
    """
    return pitch(layer, rows) if shape == layer.input else shape[1] * shape[2]


def words(layer: LayerGeometry, rows: int) -> int:
    """Words of a bank that the map takes, from a base in bank 0."""
    height, width, channels = layer.input
    return -(-((height - 1) * pitch(layer, rows) + width * channels) // rows)


def steps(layer: LayerGeometry, rows: int) -> int:
    """Steps of the array a position: ``rows`` taps each; depthwise one tap of many channels."""
    return layer.taps if layer.depthwise else -(-layer.taps // rows)


def digits(layer: LayerGeometry, taps: int) -> Digits:
    """``taps`` in digits: ``0 <= kx < kw``, ``0 <= ci < c`` (depthwise ``c = 1``)."""
    kernel_row, ci = divmod(taps, 1 if layer.depthwise else layer.input[2])
    ky, kx = divmod(kernel_row, layer.kernel[1])
    return Digits(ky, kx, ci)


def step_digits(layer: LayerGeometry, rows: int) -> Digits:
    """What a step adds to a row's tap."""
    return digits(layer, 1 if layer.depthwise else rows)


def rewind_digits(layer: LayerGeometry, rows: int) -> Digits:
    """What takes a row from its tap of the last step back to that of the first."""
    return digits(layer, (1 - steps(layer, rows)) * (1 if layer.depthwise else rows))
