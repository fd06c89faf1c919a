"""Maps of a convolutional layer: patches, windows, max-pooling, in NumPy.

A map is stored height, width, channel, and the functions take a batch of them, `(N, h, w, c)`. They
only move and add numbers, so they serve integers and floats alike and keep the dtype they are
given; sums of narrow integers are the caller's to widen first.

A window is a rectangle of `(wh, ww)` positions; windows tile a map of `(H, W)` positions as a grid
of `(gh, gw) = (ceil(H/wh), ceil(W/ww))` from its upper left corner, the last ones of a row or
column being cut off by the border. Windows are numbered row by row, `wy·gw + wx`, and positions
likewise, `y·W + x`.
"""

import numpy as np

__all__ = [
    "by_channel",
    "channel_patches",
    "grid_of",
    "max_pool",
    "output_size",
    "patches",
    "spread_windows",
    "window_labels",
    "window_sums",
]

POOL = 2
"""The height, width and stride of a max-pooling block."""


def output_size(size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
    """`(H, W)` of a convolution over a map of `size` `(h, w)`."""
    height, width = (
        (length + 2 * padding - taps) // stride + 1 for length, taps in zip(size, kernel, strict=True)
    )
    return height, width


def patches(maps: np.ndarray, kernel: tuple[int, int], stride: int = 1, padding: int = 0) -> np.ndarray:
    """What each position of the output reads: `(N, H·W, kh·kw·c)`, taps in the order ky, kx, channel.

    `maps (N, h, w, c)`, zero outside. A convolution is `patches(…) @ weight.T` with `weight
    (channels, kh·kw·c)`.
    """
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(maps, border) if padding else maps
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))[:, ::stride, ::stride]
    samples, height, width, channels = seen.shape[:4]
    ordered = seen.transpose(0, 1, 2, 4, 5, 3)
    return ordered.reshape(samples, height * width, kernel[0] * kernel[1] * channels)


def channel_patches(maps: np.ndarray, kernel: tuple[int, int], stride: int = 1, padding: int = 0) -> np.ndarray:
    """The same a channel, for a depthwise convolution: `(N, H·W, c, kh·kw)`, taps in the order ky, kx."""
    seen = patches(maps, kernel, stride, padding)
    return seen.reshape(*seen.shape[:2], kernel[0] * kernel[1], maps.shape[3]).swapaxes(2, 3)


def grid_of(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The grid `(gh, gw)` of windows that tile a map of `size` `(H, W)`."""
    rows, columns = (-(-length // span) for length, span in zip(size, window, strict=True))
    return rows, columns


def window_labels(size: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Which window each position of a map of `size` `(H, W)` is in: int64 `(H·W,)`."""
    rows, columns = (np.arange(length) // span for length, span in zip(size, window, strict=True))
    return (rows[:, None] * grid_of(size, window)[1] + columns).reshape(-1)


def window_sums(maps: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The sum over each window: `(N, gh, gw, c)` of `maps (N, H, W, c)`."""
    (samples, height, width, channels), (wh, ww) = maps.shape, window
    gh, gw = grid_of((height, width), window)
    rest = gh * wh - height, gw * ww - width
    whole = np.pad(maps, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0))) if any(rest) else maps
    rows = whole.reshape(samples, gh, wh, gw * ww * channels).sum(axis=2, dtype=maps.dtype)
    return rows.reshape(samples, gh, gw, ww, channels).sum(axis=3, dtype=maps.dtype)


def spread_windows(values: np.ndarray, size: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Each position's value of its window: `(N, H, W, c)` of `values (N, gh, gw, c)`.

    The transpose of `window_sums`: it takes a gradient of the sums to one of the map.
    """
    tall = values.repeat(window[0], axis=1)[:, : size[0]]
    return tall.repeat(window[1], axis=2)[:, :, : size[1]]


def by_channel(maps: np.ndarray) -> np.ndarray:
    """Maps flattened in the order channel, row, column, as latents are numbered: `(N, c·H·W)`."""
    return np.ascontiguousarray(maps.transpose(0, 3, 1, 2)).reshape(len(maps), -1)


def max_pool(maps: np.ndarray) -> np.ndarray:
    """The largest of each 2x2 block: `(N, H//2, W//2, c)`; an odd last row or column is dropped."""
    rows, columns = maps.shape[1] // POOL, maps.shape[2] // POOL
    cut = maps[:, : rows * POOL, : columns * POOL]
    tall = np.maximum(cut[:, ::POOL], cut[:, 1::POOL])
    return np.maximum(tall[:, :, ::POOL], tall[:, :, 1::POOL])
