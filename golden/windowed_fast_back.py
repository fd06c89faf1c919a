"""Backpropagation's part of `golden.windowed_fast`: what `golden.windowed_back` defines, compiled.

A pixel's signal `s` is its gain, 8 or 1, times its window's `d`: 15 bits. A window is what one value that the layer
hands on is made of, so a gain of 0 is all that the smaller ones of a max-pooled block need.

The way back sums `w·s` over channels, a lane a tap, with the products of 16 bits in pairs of `golden.vectors`. Two
changes of form:

- **Lists.** Behind max-pooling three pixels of four have no signal, and others round to 0. So the pairs of channels of
  a position that have any are listed, and only they are multiplied: one vector of weights a pair, no patches.
- **Blocks of 2^16.** Products of 15 and 16 bits fit sums of 32 bits as long as `Σ|s| < 2^16`; a list is cut into
  blocks before it has more. Few positions need a second one. Blocks are added in 64 bits, where their taps read.
"""

from typing import NamedTuple

import numpy as np

from golden.vectors import LANES, PANEL, add_pairs, inner, largest, load, store, zero

__all__ = ["WayBack", "choose", "room_for_way_back", "send_back", "turn_weights"]

TAPS = 4 * LANES
"""Whose sums the kernel keeps in registers, for two pairs of channels at a time."""
BLOCKS = 16
"""That are multiplied together, so that they share the weights of their taps."""
BLOCK_ROOM = (1 << 16) - 1
"""The largest `Σ|s|` of a block: times 2^15 it fits 32 bits."""


class WayBack(NamedTuple):
    """Room for a layer's way back; of any size where nothing goes back."""

    weights: np.ndarray
    """int32 [panel of taps][pair of channels][tap], pairs of s16; depthwise [tap][channel], single ones."""
    signals: np.ndarray
    places: np.ndarray
    """int32: what blocks list: pairs of `s`, and where their weights are in a panel."""
    first: np.ndarray
    corner: np.ndarray
    """int64 (blocks + 1,): where a block's list begins, and the patch of its position in a sample's map."""
    parts: np.ndarray
    """int32 [block][tap]: the sums of blocks."""
    sums: np.ndarray
    """int64: of the map that a layer reads, with its border, `r`."""


def room_for_way_back(layers: np.ndarray) -> WayBack:
    """For any of the layers, `golden.windowed_fast.LAYER` `(L,)`, or none."""
    if len(layers) == 0:
        layers = np.zeros(1, dtype=layers.dtype)
    spans = -(-layers["taps"] // TAPS) * TAPS
    pairs = -(-layers["channels"] // 2)
    weights = np.where(layers["depthwise"], layers["taps"] * layers["padded"], spans * pairs)
    # An odd list has one entry more.
    entries = BLOCKS * (int(pairs.max()) + 1)
    return WayBack(
        weights=np.zeros(int(weights.max()), dtype=np.int32),
        signals=np.zeros(entries, dtype=np.int32),
        places=np.zeros(entries, dtype=np.int32),
        first=np.zeros(BLOCKS + 1, dtype=np.int64),
        corner=np.zeros(BLOCKS + 1, dtype=np.int64),
        parts=np.zeros(int(BLOCKS * spans.max()), dtype=np.int32),
        sums=np.zeros(int(layers["map_size"].max()), dtype=np.int64),
    )


# What max-pooling takes.


@inner
def _keep(m, a, gain, best, taken):
    """Drops the gains of 16 channels' pixel unless it is the best and none is taken; returns which are taken now."""
    # 0 - 1 is negative, and no other difference less 1 is.
    equal = ((best - load(m.a, a)) - 1) >> 31
    store(m.gain, gain, load(m.gain, gain) & equal & (taken ^ -1))
    return taken | equal


@inner
def choose(layer, m, sample):
    """Sets the gains of pixels to 0 that are not the first largest of a 2x2 block, where the layer max-pools."""
    right, below = layer.padded, layer.width * layer.padded
    a = sample * layer.positions * layer.padded
    gain = layer.gain_base + a
    for y in range(layer.height):
        for x in range(layer.width):
            at = (y * layer.width + x) * layer.padded
            if y >= layer.height // 2 * 2 or x >= layer.width // 2 * 2:
                m.gain[gain + at : gain + at + layer.padded] = 0
            elif y % 2 == 0 and x % 2 == 0:
                for j in range(at, at + layer.padded, LANES):
                    upper = largest(load(m.a, a + j), load(m.a, a + j + right))
                    lower = largest(load(m.a, a + j + below), load(m.a, a + j + below + right))
                    best, taken = largest(upper, lower), zero()
                    for pixel in (j, j + right, j + below, j + below + right):
                        taken = _keep(m, a + pixel, gain + pixel, best, taken)


# The way back.


@inner
def turn_weights(layer, m):
    """Makes `weights` of a layer's."""
    weights = m.way.weights
    if layer.depthwise:
        for t in range(layer.taps):
            for j in range(layer.padded):
                pair = m.weights[layer.weight_base + (j // PANEL * layer.pairs + t // 2) * PANEL + j % PANEL]
                weights[t * layer.padded + j] = np.int16(pair >> 16 if t % 2 else pair)
        return
    couples = (layer.channels + 1) // 2
    for panel in range(layer.panels):
        first = panel * PANEL // 2
        for k in range(layer.pairs):
            source = np.uint64(layer.weight_base + (panel * layer.pairs + k) * PANEL)
            target = np.uint64((2 * k // TAPS * couples + first) * TAPS + 2 * k % TAPS)
            for _ in range(min(couples - first, PANEL // 2)):
                low, high = m.weights[source], m.weights[source + np.uint64(1)]
                weights[target] = (low & 0xFFFF) | (high << 16)
                weights[target + np.uint64(1)] = ((low >> 16) & 0xFFFF) | (high & -0x10000)
                source += np.uint64(2)
                target += np.uint64(TAPS)


@inner
def _multiply_list(way, weights, first, last, out):
    """A panel of taps of a block: the sums of its list's entries, an even number of them."""
    one, two, three = np.uint64(LANES), np.uint64(2 * LANES), np.uint64(3 * LANES)
    a0, a1, a2, a3, b0, b1, b2, b3 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
    entry = np.uint64(first)
    for _ in range((last - first) // 2):
        s, at = way.signals[entry], np.uint64(weights + way.places[entry])
        a0, a1 = add_pairs(a0, load(way.weights, at), s), add_pairs(a1, load(way.weights, at + one), s)
        a2, a3 = add_pairs(a2, load(way.weights, at + two), s), add_pairs(a3, load(way.weights, at + three), s)
        entry += np.uint64(1)
        s, at = way.signals[entry], np.uint64(weights + way.places[entry])
        b0, b1 = add_pairs(b0, load(way.weights, at), s), add_pairs(b1, load(way.weights, at + one), s)
        b2, b3 = add_pairs(b2, load(way.weights, at + two), s), add_pairs(b3, load(way.weights, at + three), s)
        entry += np.uint64(1)
    store(way.parts, out, a0 + b0)
    store(way.parts, out + one, a1 + b1)
    store(way.parts, out + two, a2 + b2)
    store(way.parts, out + three, a3 + b3)


@inner
def _add_blocks(layer, way, blocks):
    """Multiplies blocks, and adds them to the sums of the elements that their taps read."""
    panels, size = (layer.taps + TAPS - 1) // TAPS, (layer.channels + 1) // 2 * TAPS
    for panel in range(panels):
        for block in range(blocks):
            out = np.uint64((block * panels + panel) * TAPS)
            _multiply_list(way, panel * size, way.first[block], way.first[block + 1], out)
    length = np.uint64(layer.kernel_width * layer.channels_in)
    for block in range(blocks):
        source, target = np.uint64(block * panels * TAPS), np.uint64(way.corner[block])
        for _ in range(layer.kernel_height):
            for i in range(length):
                way.sums[target + i] += way.parts[source + i]
            source += length
            target += np.uint64(layer.row_size)


@inner
def _end_block(layer, way, block, entry):
    """Ends a block's list, unless it is empty, and works on all blocks if they are as many as there may be; returns the
    next block and entry.
    """
    if entry == way.first[block]:
        return block, entry
    if (entry - way.first[block]) % 2 == 1:
        way.signals[entry], way.places[entry] = 0, 0
        entry += 1
    block += 1
    way.first[block] = entry
    if block == BLOCKS:
        _add_blocks(layer, way, block)
        block = entry = 0
    return block, entry


@inner
def _add_signals(layer, m, sample):
    """`r`, from the signals of all positions."""
    way = m.way
    block = entry = 0
    way.first[0] = 0
    for position in range(layer.positions):
        y, x = position // layer.width, position % layer.width
        corner = layer.stride * (y * layer.row_size + x * layer.channels_in)
        gain = np.uint64(layer.gain_base + (sample * layer.positions + position) * layer.padded)
        window = sample * layer.windows + m.windows[layer.window_base + position]
        d = np.uint64(layer.delta_base + window * layer.padded)
        way.corner[block], filled = corner, 0
        for couple in range((layer.channels + 1) // 2):
            low = np.int32(m.gain[gain]) * np.int32(m.delta[d])
            high = np.int32(m.gain[gain + np.uint64(1)]) * np.int32(m.delta[d + np.uint64(1)])
            gain += np.uint64(2)
            d += np.uint64(2)
            size = abs(low) + abs(high)
            if size == 0:
                continue
            if filled + size > BLOCK_ROOM:
                block, entry = _end_block(layer, way, block, entry)
                way.corner[block], filled = corner, 0
            way.signals[entry], way.places[entry] = (low & 0xFFFF) | (high << 16), couple * TAPS
            filled += size
            entry += 1
        block, entry = _end_block(layer, way, block, entry)
    _add_blocks(layer, way, block)


@inner
def _add_depthwise_signals(layer, m, sample):
    """The same of a depthwise layer."""
    way = m.way
    for position in range(layer.positions):
        y, x = position // layer.width, position % layer.width
        corner = layer.stride * (y * layer.row_size + x * layer.channels_in)
        gain = layer.gain_base + (sample * layer.positions + position) * layer.padded
        window = sample * layer.windows + m.windows[layer.window_base + position]
        d = layer.delta_base + window * layer.padded
        for t in range(layer.taps):
            ky, kx = t // layer.kernel_width, t % layer.kernel_width
            target = np.uint64(corner + ky * layer.row_size + kx * layer.channels_in)
            weight = np.uint64(t * layer.padded)
            for j in range(np.uint64(layer.channels)):
                s = np.int32(m.gain[np.uint64(gain) + j]) * np.int32(m.delta[np.uint64(d) + j])
                way.sums[target + j] += np.int64(way.weights[weight + j]) * s


@inner
def send_back(layer, below, m, sample):
    """A sample's signals of the layer `below`, from those of `layer`, whose weights are turned."""
    sums = m.way.sums
    sums[: layer.map_size] = 0
    if layer.depthwise:
        _add_depthwise_signals(layer, m, sample)
    else:
        _add_signals(layer, m, sample)
    for y in range(below.grid_height):
        for x in range(below.grid_width):
            source = below.next_start - layer.map_base + y * below.next_row_size + x * below.channels
            window = sample * below.windows + y * below.grid_width + x
            target = below.delta_base + window * below.padded
            for j in range(below.channels):
                m.delta[target + j] = min(max((sums[source + j] + (1 << 16)) >> 17, -2047), 2047)
            m.delta[target + below.channels : target + below.padded] = 0
