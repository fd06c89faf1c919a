"""Maps, windows and counts of layers, by hand and against their definitions."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from spec.errors import SpecError
from spec.geometry import LayerGeometry
from spec.network import Convolution, FullyConnected, Network, Recipe, load_network

Layers = tuple[Convolution | FullyConnected, ...]


def network(shape: tuple[int, ...], *layers: Convolution | FullyConnected, classes: int = 3) -> Network:
    """The layers and an output layer."""
    return Network("n", shape, classes, "square", (*layers, FullyConnected(classes)), Recipe(6, 7))


def first(shape: tuple[int, ...], layer: Convolution | FullyConnected) -> LayerGeometry:
    """The geometry of a layer that reads the input."""
    return network(shape, layer).geometry[0]


def test_odd_map_that_is_pooled() -> None:
    """5x4, windows made even: 4x2, the lower ones of a single row."""
    layer = first((5, 4, 2), Convolution(3, (3, 3), (2, 2), padding=1, pool="max"))
    assert (layer.input, layer.output, layer.next_input) == ((5, 4, 2), (5, 4, 3), (2, 2, 3))
    assert (layer.taps, layer.channels, layer.positions) == (18, 3, 20)
    assert (layer.weights, layer.macs) == (54, 1080)
    assert (layer.window, layer.grid, layer.windows, layer.latents) == ((4, 2), (2, 2), 4, 12)
    assert layer.latent_shift == 3 - 2
    assert layer.window_of.reshape(5, 4).tolist() == [*[[0, 0, 1, 1]] * 4, [2, 2, 3, 3]]
    assert layer.window_of.dtype == "int64" and not layer.window_of.flags.writeable


def test_stride_padding_and_a_kernel_that_is_no_square() -> None:
    """7x5 under 3x2 by 2: rows at -1, 1, 3, 5, columns at -1, 1, 3."""
    layer = first((7, 5, 3), Convolution(2, (3, 2), (3, 3), stride=2, padding=1, pool="latent"))
    assert (layer.output, layer.taps, layer.macs) == ((4, 3, 2), 18, 12 * 36)
    assert (layer.window, layer.grid, layer.next_input) == ((2, 1), (2, 3), (2, 3, 2))
    assert layer.window_of.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_depthwise() -> None:
    """A channel reads one channel."""
    convolution = Convolution(4, (3, 3), (1, 1), stride=2, padding=1, depthwise=True)
    layer = first((6, 6, 4), convolution)
    assert (layer.output, layer.taps, layer.weights, layer.macs) == ((3, 3, 4), 9, 36, 324)
    assert (layer.window, layer.latents, layer.latent_shift) == ((3, 3), 4, 1)


def test_keywords() -> None:
    """A map of 49x10, which no grid asked for divides; its last layer hands on its latents."""
    one, two, three, four, five = load_network("smallconv-kws").geometry
    assert (one.output, one.window, one.grid, one.latents) == ((49, 10, 32), (14, 4), (4, 3), 384)
    assert (two.input, two.window, two.grid) == ((24, 5, 32), (12, 4), (2, 2))
    assert (three.input, three.window, three.grid) == ((12, 2, 64), (6, 1), (2, 2))
    assert (four.input, five.input) == ((1, 1, 512), (1, 1, 512))
    assert [layer.latent_shift for layer in (one, two, three, four)] == [4, 4, 1, 0]
    assert [layer.in_frac for layer in (one, two, three, four, five)] == [7, 5, 4, 6, 4]


def test_fully_connected_layer_reads_a_map_flat() -> None:
    """Of any shape; it is a convolution over one pixel."""
    for shape in ((40,), (8, 5), (4, 5, 2)):
        layer = first(shape, FullyConnected(6))
        assert (layer.input, layer.kernel, layer.output) == ((1, 1, 40), (1, 1), (1, 1, 6))
        assert (layer.windows, layer.latents, layer.window_of.tolist()) == (1, 6, [0])
        assert (layer.in_frac, layer.act_frac, layer.latent_shift) == (7, 4, 0)
    second = network((5, 4), Convolution(3, (3, 3), (2, 2), padding=1, pool="max")).geometry[1]
    assert second.input == (1, 1, 2 * 2 * 3)


@pytest.mark.parametrize(
    ("size", "shift", "extra"), [((1, 1), 0, 0), ((1, 2), 0, 1), ((2, 2), 0, 2), ((3, 3), 1, 2), ((7, 7), 4, 2)]
)
def test_scale_of_latents(size: tuple[int, int], shift: int, extra: int) -> None:
    """A latent has up to two fraction bits more than what it is the mean of."""
    net = network(size, Convolution(2, (1, 1), (1, 1), pool="latent", activation_fraction=5))
    assert (net.geometry[0].latent_shift, net.geometry[1].in_frac) == (shift, 5 + extra)


def test_area_of_a_window_as_a_power_of_two() -> None:
    """In integers, as rounding the logarithm."""
    for size in range(1, 2000):
        assert LayerGeometry((1, size, 1), 1, 7, 4).area_log2 == round(math.log2(size))


def test_windows_tile_the_map() -> None:
    """Each position once, no window empty, no more than asked; a pooled block lies in one."""
    rng = random.Random(1)
    for _ in range(300):
        height, width = rng.randint(2, 20), rng.randint(2, 20)
        asked = (rng.randint(1, 8), rng.randint(1, 8))
        pool = rng.choice(("none", "max", "latent"))
        layer = first((height, width), Convolution(2, (1, 1), asked, pool=pool))
        windows = layer.window_of.reshape(height, width)
        counts = Counter(windows.ravel().tolist())
        assert sorted(counts) == list(range(layer.windows))
        assert all(grid <= most for grid, most in zip(layer.grid, asked, strict=True))
        for y in range(height):
            for x in range(width):
                row, column = y // layer.window[0], x // layer.window[1]
                assert windows[y, x] == row * layer.grid[1] + column
        assert counts[0] == min(height, layer.window[0]) * min(width, layer.window[1])
        if pool == "max":
            for y in range(0, height - 1, 2):
                for x in range(0, width - 1, 2):
                    assert len(set(windows[y : y + 2, x : x + 2].ravel().tolist())) == 1
        elif all(size % grid == 0 for size, grid in zip((height, width), asked, strict=True)):
            assert layer.grid == asked and set(counts.values()) == {math.prod(layer.window)}


@pytest.mark.parametrize(
    ("shape", "layers", "message"),
    [
        (
            (4, 4, 1),
            (Convolution(2, (5, 5), (1, 1)),),
            "layers[0].kernel: must fit into the map it reads, 4x4 with 0 of padding, got (5, 5)",
        ),
        (
            (4, 4, 1),
            (Convolution(2, (3, 3), (1, 1), pool="max"), Convolution(2, (2, 2), (1, 1))),
            "layers[1].kernel: must fit into the map it reads, 1x1 with 0 of padding, got (2, 2)",
        ),
        (
            (4, 3, 1),
            (Convolution(2, (3, 3), (1, 1), pool="max"),),
            "layers[0].pool: must not be max where the map is smaller than 2x2, got (2, 1)",
        ),
        (
            (4, 4, 3),
            (Convolution(2, (3, 3), (1, 1), depthwise=True),),
            "layers[0].channels: must be those read, 3, if depthwise, got 2",
        ),
        ((256, 256, 1), (), "layers[0].taps: must not exceed 65535, got 65536"),
        ((256, 256, 1), (Convolution(1, (1, 1), (1, 1)),), "layers[0].positions: must not exceed 65535, got 65536"),
        ((16, 16, 1), (Convolution(256, (1, 1), (16, 16)),), "layers[0].latents: must not exceed 65535, got 65536"),
        (
            (4,),
            (Convolution(2, (1, 1), (1, 1)),),
            "input_shape: must have a height and a width before a convolution, got (4,)",
        ),
    ],
)
def test_maps_refused(shape: tuple[int, ...], layers: Layers, message: str) -> None:
    """A map that is too small, too large, or of other channels."""
    with pytest.raises(SpecError) as caught:
        network(shape, *layers)
    assert str(caught.value) == message


def test_largest_maps() -> None:
    """One less than what is refused."""
    assert first((255, 257, 1), Convolution(1, (1, 1), (1, 1), pool="max")).positions == 65535
    assert first((15, 17, 1), Convolution(257, (1, 1), (15, 17), pool="latent")).latents == 65535


def test_layers_made_in_python_are_checked() -> None:
    """Types that YAML cannot give."""
    for wrong in ({"kernel": [3, 3]}, {"kernel": (3, 3, 3)}, {"latent": 2}, {"depthwise": 1}, {"padding": 1.0}):
        with pytest.raises(SpecError) as caught:
            Convolution(**{"channels": 1, "kernel": (3, 3), "latent": (1, 1), **wrong})
        assert caught.value.key == next(iter(wrong))
    with pytest.raises(SpecError, match=r"^layers\[0\]: must be a layer, got 3$"):
        replace(network((4, 4)), layers=(3, FullyConnected(3)))


def test_windowed() -> None:
    """Which arithmetic a network has."""
    plain = network((4, 4, 2), FullyConnected(5))
    assert not plain.windowed
    assert replace(plain, recipe=replace(plain.recipe, batch=2)).windowed
    assert network((4, 4, 2), Convolution(2, (3, 3), (1, 1))).windowed
    assert not load_network("mnist").windowed


def test_counts_by_hand() -> None:
    """SmallConv on CIFAR-10, layer by layer."""
    net = load_network("smallconv-cifar10")
    shapes = ((27, 32), (288, 64), (576, 128), (512, 512), (512, 10))
    assert net.shapes == shapes
    assert net.macs == 32 * 32 * 27 * 32 + 16 * 16 * 288 * 64 + 8 * 8 * 576 * 128 + 512 * 512 + 512 * 10
    assert net.parameters == sum(taps * channels + channels for taps, channels in shapes)
    assert net.features == 3072


def test_counts_of_the_paper() -> None:
    """Millions of multiplications, forward and of the learning signal (``2 K latents``), counted from
    the networks of the paper on LLS (arXiv 2405.15868), also for its other data sets.
    """
    vgg8, mobilenet = load_network("vgg8"), load_network("mobilenet-v1")
    cifar100 = replace(vgg8, classes=100, layers=(*vgg8.layers[:-1], FullyConnected(100)))
    wake_words = replace(vgg8, input_shape=(128, 128, 3), classes=2, layers=(*vgg8.layers[:-1], FullyConnected(2)))
    # There, depthwise convolutions are padded by their stride, and images are 128x128.
    padded = (
        replace(layer, padding=layer.stride) if isinstance(layer, Convolution) and layer.depthwise else layer
        for layer in mobilenet.layers
    )
    for net, forward, signal in (
        (load_network("smallconv-cifar10"), 10.59, 0.0358),
        (load_network("smallconv-mnist"), 7.72, 0.0358),
        (vgg8, 722.9, 0.205),
        (cifar100, 723.0, 2.05),
        (wake_words, 11534, 0.041),
        (replace(mobilenet, input_shape=(128, 128, 3), layers=tuple(padded)), 278.6, None),
    ):
        assert net.macs / 1e6 == pytest.approx(forward, rel=5e-4)
        latents = sum(layer.latents for layer in net.geometry[:-1])
        assert signal is None or 2 * net.classes * latents / 1e6 == pytest.approx(signal, rel=2e-3)


def test_counts_of_mobilenets() -> None:
    """At 96x96, a whole and a quarter of the channels: 104 and 7.5 million, as those networks are known."""
    assert load_network("mobilenet-v1").macs == 104_276_480
    assert load_network("mobilenet-v1-025").macs == 7_489_664
