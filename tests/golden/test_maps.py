"""Patches, windows and max-pooling against loops over single pixels, for integers and floats."""

import numpy as np
import pytest

from golden.maps import (
    by_channel,
    channel_patches,
    grid_of,
    max_pool,
    output_size,
    patches,
    spread_windows,
    window_labels,
    window_sums,
)

KINDS = [np.int8, np.int64, np.float32, np.float64]
CONVOLUTIONS = [
    # h, w, c, kernel, stride, padding
    (5, 4, 2, (3, 3), 1, 1),
    (5, 4, 2, (3, 3), 2, 1),
    (6, 7, 1, (2, 3), 1, 0),
    (7, 6, 3, (3, 1), 3, 2),
    (4, 4, 1, (4, 4), 1, 0),
    (9, 3, 2, (5, 2), 2, 1),
    (1, 1, 5, (1, 1), 1, 0),
]
WINDOWS = [((4, 6), (2, 3)), ((5, 7), (2, 3)), ((3, 3), (1, 1)), ((5, 4), (5, 4)), ((7, 1), (3, 1))]


def maps(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Whole numbers of both signs, so that sums are exact in every dtype."""
    return np.random.default_rng(7).integers(-9, 10, shape).astype(dtype)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("dtype", KINDS)
def test_patches_are_what_a_position_reads(case: tuple, dtype: type) -> None:
    h, w, c, kernel, stride, padding = case
    x = maps((3, h, w, c), dtype)
    height, width = output_size((h, w), kernel, stride, padding)
    found = patches(x, kernel, stride, padding)
    each = channel_patches(x, kernel, stride, padding)
    assert found.dtype == each.dtype == dtype
    assert found.shape == (3, height * width, kernel[0] * kernel[1] * c)
    assert each.shape == (3, height * width, c, kernel[0] * kernel[1])
    for n, p, t in np.ndindex(found.shape):
        ky, kx, ci = t // (kernel[1] * c), t // c % kernel[1], t % c
        row, column = p // width * stride + ky - padding, p % width * stride + kx - padding
        inside = 0 <= row < h and 0 <= column < w
        expected = x[n, row, column, ci] if inside else 0
        assert found[n, p, t] == expected
        assert each[n, p, ci, ky * kernel[1] + kx] == expected
    # No output position more would fit.
    assert (height - 1) * stride + kernel[0] <= h + 2 * padding < height * stride + kernel[0]
    assert (width - 1) * stride + kernel[1] <= w + 2 * padding < width * stride + kernel[1]


@pytest.mark.parametrize(("size", "window"), WINDOWS)
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_windows_tile_the_map(size: tuple[int, int], window: tuple[int, int], dtype: type) -> None:
    x = maps((2, *size, 3), dtype)
    grid, labels = grid_of(size, window), window_labels(size, window)
    sums = window_sums(x, window)
    assert sums.dtype == dtype
    assert sums.shape == (2, *grid, 3)
    spread = spread_windows(sums, size, window)
    expected = np.zeros_like(sums)
    for y, column in np.ndindex(size):
        label = labels[y * size[1] + column]
        assert label == y // window[0] * grid[1] + column // window[1]
        expected[:, label // grid[1], label % grid[1]] += x[:, y, column]
        assert np.array_equal(spread[:, y, column], sums.reshape(2, -1, 3)[:, label])
    assert np.array_equal(sums, expected)
    assert sorted(set(labels.tolist())) == list(range(grid[0] * grid[1]))


def test_latents_are_numbered_by_channel() -> None:
    x = maps((2, 3, 4, 5), np.int64)
    flat = by_channel(x)
    for n, y, column, j in np.ndindex(x.shape):
        assert flat[n, j * 12 + y * 4 + column] == x[n, y, column, j]


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
@pytest.mark.parametrize("dtype", KINDS)
def test_max_pool_drops_an_odd_border(size: tuple[int, int], dtype: type) -> None:
    x = maps((2, *size, 3), dtype)
    found = max_pool(x)
    assert found.dtype == dtype
    assert found.shape == (2, size[0] // 2, size[1] // 2, 3)
    for n, y, column, j in np.ndindex(found.shape):
        assert found[n, y, column, j] == max(x[n, 2 * y + b, 2 * column + d, j] for b in (0, 1) for d in (0, 1))
