"""Backpropagation in the integers of networks with convolutions: `docs/rules.md`, section 6.

A layer has one signal for each value that it hands on: for a pixel, for the largest of a 2x2 block, or
for the latent of a window. Its pixels' signals are that one, times the slope, 8 or 1; a block's three
smaller ones have none. From them follow the layer's gradient and, through its weights, the signals of
the layer before it.

Arrays are int64 codes. `P` is the number of positions of a layer's output map `(H, W, N)`; what it
hands on is a map `(gh, gw, N)`, `geometry.next_input`, but for a fully connected reader's shape.
Signals `d`: 12 bits, 11 fraction bits and more the more windows' pixels shared one behind them.
"""

import numpy as np

from golden.arith import rnd
from golden.maps import POOL, spread_windows
from golden.signals import BACK_MAX, SLOPE_SHIFT
from spec.geometry import LayerGeometry
from spec.machine import WEIGHT_FRAC

__all__ = ["back_signals", "back_sums", "pixel_gradient", "pixel_signals", "window_signals"]


def window_signals(d: np.ndarray, a: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """Each pixel's part of `d (gh, gw, N)` before its slope, `(P, N)`.

    `a (H, W, N)` the layer's activations: where it max-pools, a block's first largest has all.
    """
    height, width, channels = geometry.output
    if geometry.pool == "latent":
        spread = spread_windows(d[None], (height, width), geometry.window)[0]
    elif geometry.pool == "max":
        spread = np.zeros(a.shape, dtype=np.int64)
        rows, columns, _ = d.shape
        block = a[: POOL * rows, : POOL * columns].reshape(rows, POOL, columns, POOL, channels)
        # Of equal ones the first in walk order: argmax finds the lowest index, and rows come first.
        flat = block.transpose(0, 2, 4, 1, 3).reshape(rows, columns, channels, POOL * POOL)
        chosen = np.arange(POOL * POOL) == flat.argmax(axis=-1)[..., None]
        parts = (chosen * d[..., None]).reshape(rows, columns, channels, POOL, POOL)
        spread[: POOL * rows, : POOL * columns] = parts.transpose(0, 3, 1, 4, 2).reshape(
            POOL * rows, POOL * columns, channels
        )
    else:
        spread = d
    return spread.reshape(-1, channels)


def pixel_signals(spread: np.ndarray, neg: np.ndarray) -> np.ndarray:
    """`s (P, N)`: `spread` from `window_signals`, 8-fold where `neg (P, N)` does not say that the slope is 1/8."""
    return np.where(neg, spread, spread << SLOPE_SHIFT)


def back_sums(s: np.ndarray, weight: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """`r (h, w, c)`: what each value that the layer read is asked to change, over all that read it; exact.

    `s (P, N)`, `weight (N, taps)` before its update.
    """
    (height, width, channels), (rows, columns), stride = geometry.input, geometry.kernel, geometry.stride
    border, (down, across, _) = geometry.padding, geometry.output
    if geometry.depthwise:
        parts = s[:, :, None] * weight.astype(np.int64)
        parts = parts.transpose(0, 2, 1)
    else:
        # In float64, for which processors have fast routines. Exact: 2^29 a product, 2^16 of them at most.
        parts = (s.astype(np.float64) @ weight.astype(np.float64)).astype(np.int64)
    parts = parts.reshape(down, across, rows, columns, channels)
    padded = np.zeros((height + 2 * border, width + 2 * border, channels), dtype=np.int64)
    for ky in range(rows):
        for kx in range(columns):
            padded[ky : ky + stride * down : stride, kx : kx + stride * across : stride] += parts[:, :, ky, kx]
    return padded[border : border + height, border : border + width]


def back_signals(sums: np.ndarray) -> np.ndarray:
    """`d` of the layer before, of `sums` from `back_sums`, of their shape: -2047…2047."""
    return np.clip(rnd(sums, WEIGHT_FRAC + SLOPE_SHIFT), -BACK_MAX, BACK_MAX)


def pixel_gradient(s: np.ndarray, x: np.ndarray, left: int) -> np.ndarray:
    """A sample's part of `D`, `(N, taps)`: `-s (P, N)`, shifted, times `x (P, taps)` or, depthwise, `(P, N, taps)`."""
    if x.ndim == 3:
        return -np.einsum("pj,pjt->jt", s, x) << left
    return -(s.T.astype(np.float64) @ x.astype(np.float64)).astype(np.int64) << left
