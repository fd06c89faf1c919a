"""A layer in floating point: what it computes from a batch of maps, and how gradients pass back.

A layer reads maps `(N, h, w, c)`, computes `z (N, H, W, C)`, and `f(z)` goes on through its pooling;
the geometry, `spec.geometry.LayerGeometry`, says which pixels meet which weights. A fully connected
layer is a convolution over one pixel. Every function keeps the precision of its arguments: float64
for the reference, float32 to train, where all that is costly is one matrix product a layer.

Windows tile the output map without overlap, and a latent is the sum over a window divided by the power
of two that is nearest to the pixels of a whole one, as the machine divides (`docs/convolutions.md`):
their mean, where there are so many.
"""

import numpy as np

from golden.maps import by_channel, channel_patches, max_pool, patches, spread_windows, window_sums
from spec.geometry import LayerGeometry

__all__ = [
    "SLOPE",
    "gradient_by_additions",
    "input_gradient",
    "latent_gradient",
    "latents_of",
    "leaky_relu",
    "leaky_slope",
    "next_map",
    "next_map_gradient",
    "pre_activation",
    "spread",
    "taps_of",
    "weight_gradient",
    "window_means",
]

SLOPE = 1 / 8
"""Slope of the leaky ReLU for z < 0."""


# Forward.


def taps_of(x: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """What each of the P output pixels reads of the maps `x`: `(N, P, taps)`; depthwise
    `(N, P, C, taps)`.

    `x` in any shape with the layer's inputs in map order, such as `(N, h·w·c)`.
    """
    cut = channel_patches if geometry.depthwise else patches
    maps = x.reshape(len(x), *geometry.input)
    return cut(maps, geometry.kernel, geometry.stride, geometry.padding)


def pre_activation(
    taps: np.ndarray, weight: np.ndarray, bias: np.ndarray, geometry: LayerGeometry
) -> np.ndarray:
    """`z = Σ_t w[j, t] x[p, t] + b[j]`, `(N, H, W, C)`, of what `taps_of` gave."""
    if geometry.depthwise:
        # Both with the channel innermost in memory, as the loops then are vector instructions.
        z = np.einsum("npjt,jt->npj", taps, np.asfortranarray(weight))
    else:
        z = taps.reshape(-1, geometry.taps) @ weight.T
    return (z + bias).reshape(len(taps), *geometry.output)


def leaky_relu(z: np.ndarray, slope: float = SLOPE) -> np.ndarray:
    """`f(z)`: z, or slope·z where z < 0; slope at most 1."""
    return np.maximum(z, slope * z)


def leaky_slope(z: np.ndarray, slope: float = SLOPE) -> np.ndarray:
    """`f'(z)`: 1, or slope where z < 0; slope at most 1."""
    return np.maximum(z >= 0, z.dtype.type(slope))


def window_means(y: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """Each window's sum over the output maps, divided by `2^area_log2`: `(N, gh, gw, C)`."""
    return window_sums(y, geometry.window) / y.dtype.type(1 << geometry.area_log2)


def latents_of(y: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """The windows' means `(N, n)` in the order channel, row, column: what class scores are made of."""
    return by_channel(window_means(y, geometry))


def next_map(y: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """What the next layer reads of the output maps: `geometry.next_input`, for every sample."""
    if geometry.pool == "latent":
        return window_means(y, geometry)
    return max_pool(y) if geometry.pool == "max" else y


# Backward: `gradient` is that of a loss by what the forward function returned.


def weight_gradient(
    delta: np.ndarray, taps: np.ndarray, geometry: LayerGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """`(∂W, ∂b)` of the signals `δ = ∂L/∂z`: `Σ δ[p, j] x[p, t]` and `Σ δ[p, j]`, over samples and
    pixels.
    """
    rows = delta.reshape(-1, geometry.channels)
    if geometry.depthwise:
        weight = np.einsum("npj,npjt->jt", delta.reshape(taps.shape[:3]), taps)
    else:
        weight = rows.T @ taps.reshape(-1, geometry.taps)
    return weight, rows.sum(axis=0)


def gradient_by_additions(
    d: np.ndarray, z: np.ndarray, taps: np.ndarray, geometry: LayerGeometry, slope: float = SLOPE
) -> tuple[np.ndarray, np.ndarray]:
    """The same `(∂W, ∂b)` with one product a window, as the machine forms it; for rules whose signal
    is one `d (N, gh, gw, C)` a window, so that `δ = d f'(z)`.

    The inputs that a weight saw in a window are summed first, each times its pixel's slope, 1 or
    1/8: `A[j, t] = Σ_p f'(z[p, j]) x[p, t]`; then `∂W = Σ_windows d A`.
    """
    samples, channels = len(taps), geometry.channels
    slopes = leaky_slope(z, slope).reshape(samples, -1, channels)
    windows = d.reshape(samples, -1, channels)
    sums = "npj,npjt->njt" if geometry.depthwise else "npj,npt->njt"
    weight, bias = 0.0, 0.0
    for window in range(geometry.windows):
        inside = geometry.window_of == window
        A = np.einsum(sums, slopes[:, inside], taps[:, inside])
        weight += np.einsum("nj,njt->jt", windows[:, window], A)
        bias += np.sum(windows[:, window] * slopes[:, inside].sum(axis=1), axis=0)
    return np.asarray(weight), np.asarray(bias)


def input_gradient(delta: np.ndarray, weight: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """`∂L/∂x (N, h, w, c)` of the signals `δ (N, H, W, C)`: every tap's `δ w`, added up where the tap
    was read.
    """
    (height, width, channels), pad, stride = geometry.input, geometry.padding, geometry.stride
    (kh, kw), (rows, columns, _) = geometry.kernel, geometry.output
    padded = np.zeros((len(delta), height + 2 * pad, width + 2 * pad, channels), delta.dtype)
    taps = weight.reshape(len(weight), kh, kw, -1)
    for ky, kx in np.ndindex(kh, kw):
        read = padded[:, ky : ky + stride * rows : stride, kx : kx + stride * columns : stride]
        read += delta * taps[:, ky, kx, 0] if geometry.depthwise else delta @ taps[:, ky, kx]
    return padded[:, pad : pad + height, pad : pad + width]


def latent_gradient(gradient: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """`d = ∂L/∂y` of a gradient `(N, n)` by the latents: `(N, gh, gw, C)`, as all pixels of a window
    share it.
    """
    by_window = gradient.reshape(len(gradient), geometry.channels, *geometry.grid)
    return by_window.transpose(0, 2, 3, 1) / gradient.dtype.type(1 << geometry.area_log2)


def spread(d: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """A value a window `(N, gh, gw, C)` as the map `(N, H, W, C)` that gives it to every pixel."""
    return spread_windows(d, geometry.output[:2], geometry.window)


def next_map_gradient(gradient: np.ndarray, y: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """`∂L/∂y (N, H, W, C)` of a gradient by `next_map`, in any shape.

    Of pixels that are equally the largest, the first of the block takes all.
    """
    gradient = gradient.reshape(len(y), *geometry.next_input)
    if geometry.pool == "latent":
        return spread(gradient / gradient.dtype.type(1 << geometry.area_log2), geometry)
    if geometry.pool == "none":
        return gradient
    rows, columns = geometry.next_input[:2]
    passed, largest = np.zeros_like(y), max_pool(y)
    free = np.ones(largest.shape, bool)
    for dy, dx in np.ndindex(2, 2):
        block = np.s_[:, dy : 2 * rows : 2, dx : 2 * columns : 2]
        chosen = free & (y[block] == largest)
        passed[block] = gradient * chosen
        free &= ~chosen
    return passed
