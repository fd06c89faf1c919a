"""Backpropagation through convolutions against its definition, pixel by pixel and tap by tap."""

import random

import numpy as np
import pytest

from golden.windowed_back import back_signals, back_sums, pixel_gradient, pixel_signals, window_signals
from spec.geometry import LayerGeometry


def geometry(rng: random.Random) -> LayerGeometry:
    """Any layer that is small enough for loops."""
    while True:
        kernel = rng.randint(1, 4), rng.randint(1, 4)
        channels, depthwise = rng.randint(1, 4), rng.random() < 0.3
        try:
            return LayerGeometry(
                input=(rng.randint(1, 7), rng.randint(1, 7), channels),
                channels=channels if depthwise else rng.randint(1, 4),
                in_frac=4,
                act_frac=4,
                kernel=kernel,
                latent=(rng.randint(1, 3), rng.randint(1, 3)),
                stride=rng.randint(1, 2),
                padding=rng.randint(0, min(kernel) - 1),
                pool=rng.choice(("none", "max", "latent")),
                depthwise=depthwise,
            )
        except ValueError:
            continue


def reads(layer: LayerGeometry) -> list[tuple[int, int, int, int, int, int]]:
    """`(p, channel or -1 for all, tap, y, x, input channel)` of each tap that a position reads inside the map."""
    (height, width, channels), (kh, kw) = layer.input, layer.kernel
    found = []
    for p in range(layer.positions):
        oy, ox = divmod(p, layer.output[1])
        for ky in range(kh):
            for kx in range(kw):
                y, x = oy * layer.stride + ky - layer.padding, ox * layer.stride + kx - layer.padding
                if 0 <= y < height and 0 <= x < width:
                    for ci in range(channels):
                        tap = ky * kw + kx if layer.depthwise else (ky * kw + kx) * channels + ci
                        found.append((p, ci if layer.depthwise else -1, tap, y, x, ci))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_by_definition(seed: int) -> None:
    rng, random_codes = random.Random(seed), np.random.RandomState(seed)
    layer = geometry(rng)
    height, width, channels = layer.output
    grid = layer.next_input
    a = random_codes.randint(-3, 4, layer.output)
    neg = random_codes.randint(0, 2, (layer.positions, channels)).astype(bool)
    d = random_codes.randint(-2047, 2048, grid)
    weight = random_codes.randint(-(1 << 15), 1 << 15, (channels, layer.taps))

    s = pixel_signals(window_signals(d, a, layer), neg)
    for p in range(layer.positions):
        y, x = divmod(p, width)
        for j in range(channels):
            if layer.pool == "max":
                by, bx = y // 2, x // 2
                block = [(2 * by + dy, 2 * bx + dx) for dy in (0, 1) for dx in (0, 1)]
                whole = block[-1][0] < height and block[-1][1] < width
                expected = d[by, bx, j] if whole and max(block, key=lambda at: a[*at, j]) == (y, x) else 0
            elif layer.pool == "latent":
                expected = d[y // layer.window[0], x // layer.window[1], j]
            else:
                expected = d[y, x, j]
            assert s[p, j] == expected * (1 if neg[p, j] else 8)

    sums, change = np.zeros(layer.input, dtype=np.int64), np.zeros(weight.shape, dtype=np.int64)
    x_map = random_codes.randint(-128, 128, layer.input)
    taps = np.zeros((layer.positions, channels, layer.taps), dtype=np.int64)
    for p, only, tap, y, x, ci in reads(layer):
        for j in range(channels) if only < 0 else (only,):
            sums[y, x, ci] += weight[j, tap] * s[p, j]
            change[j, tap] -= x_map[y, x, ci] * s[p, j] << 3
            taps[p, j, tap] = x_map[y, x, ci]
    assert np.array_equal(back_sums(s, weight, layer), sums)
    assert np.array_equal(pixel_gradient(s, taps if layer.depthwise else taps[:, 0], 3), change)


def test_rounding() -> None:
    """Half up, 17 bits; symmetric bounds."""
    sums = np.array([0, (1 << 16) - 1, 1 << 16, -(1 << 16), -(1 << 16) - 1, 2047 << 17, 2049 << 17, -(2049 << 17)])
    assert back_signals(sums).tolist() == [0, 0, 1, 0, -1, 2047, 2047, -2047]
