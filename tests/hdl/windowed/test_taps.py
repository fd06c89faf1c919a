"""hdl.windowed.taps: every row's element in every step, against loops over the geometry; then a layer's walk
through positions, taps and memory against golden.maps."""

import random
from collections import deque
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from golden.maps import channel_patches, patches
from hdl.windowed.map_memory import MapMemory
from hdl.windowed.positions import Positions
from hdl.windowed.taps import TapReader
from spec.geometry import LayerGeometry
from spec.layout import excess, pitch, rewind_digits, step_digits, steps, words
from spec.machine import Machine

SIDE = 9
ELEMENTS = 1200  # of the memory; not a power of two
SAMPLES = 2

ARRAYS = [(2, 2), (4, 3), (8, 8), (8, 5)]


def machine(rows, cols):
    return Machine(
        name="test", rows=rows, cols=cols, weight_depth=8, activation_depth=ELEMENTS // rows, max_neurons=16,
        max_fan_in=64, bias_depth=8, max_layers=2, delta_bits=18, fraction_bits=12,
        result_fifo_depth=8,
    )  # fmt: skip


def conv(shape, channels, kernel, latent=(1, 1), **options):
    return LayerGeometry(shape, channels, 7, 4, kernel, latent, **options)


CORNERS = [
    conv((1, 1, 1), 3, (1, 1)),  # one tap
    conv((1, 1, 64), 9, (1, 1)),  # fully connected
    conv((1, 1, 13), 9, (1, 1)),
    conv((5, 4, 1), 2, (3, 3), (2, 2), padding=1),  # 9 taps
    conv((5, 5, 3), 9, (3, 3), (2, 2), padding=1, pool="max"),  # 27 taps, odd
    conv((7, 6, 3), 2, (3, 3), (2, 2), stride=2, padding=1),
    conv((1, 1, 1), 1, (5, 5), (3, 3), padding=4),  # a negative excess
    conv((2, 1, 3), 1, (5, 5), padding=3, stride=2),
    conv((9, 9, 1), 2, (5, 5), (3, 3), stride=2),
    conv((4, 9, 2), 2, (1, 5)),
    conv((9, 4, 1), 2, (5, 1), (2, 2), stride=2),  # kw·c = 1: several kernel rows a step
    conv((3, 3, 8), 9, (3, 3), padding=2),
    conv((4, 3, 6), 3, (1, 1), (2, 2)),
    conv((5, 4, 11), 11, (3, 3), padding=1, depthwise=True),
    conv((6, 5, 3), 3, (3, 3), (3, 2), stride=2, padding=1, depthwise=True),
    conv((5, 5, 1), 1, (5, 5), padding=2, depthwise=True),
    conv((3, 2, 9), 9, (1, 1), depthwise=True),
    conv((5, 3, 8), 8, (3, 1), depthwise=True, pool="max"),
]


def random_layer(rng, rows):
    """Any geometry of which two maps fit."""
    while True:
        kernel = rng.randint(1, 5), rng.randint(1, 5)
        shape = rng.randint(1, SIDE), rng.randint(1, SIDE), rng.choice([1, 3, rng.randint(1, 2 * rows + 3)])
        options = {"stride": rng.randint(1, 2), "padding": rng.randrange(min(kernel))}
        if any(s + 2 * options["padding"] < k for s, k in zip(shape, kernel, strict=False)):
            continue
        depthwise = rng.random() < 0.3
        channels = shape[2] if depthwise else rng.randint(1, 9)
        options |= {"latent": (rng.randint(1, 3), rng.randint(1, 3)), "depthwise": depthwise}
        layer = conv(shape, channels, kernel, **options)
        side = max(layer.output[:2])
        if min(layer.output[:2]) > 1 and rng.random() < 0.5:
            layer = replace(layer, pool="max")
        work = layer.positions * steps(layer, rows)
        if side <= SIDE and shape[2] <= 64 and rows * words(layer, rows) < ELEMENTS // SAMPLES and work < 300:
            return layer


class Step(NamedTuple):
    position: int  # y·W + x
    step: int
    first_channel: int  # of the column tile
    sample: int
    advance: bool  # what the sequencer says of it
    rewind: bool
    moves: bool  # another position follows


def walk(layer):
    """The output's positions in walk order."""
    side = 2 if layer.pool == "max" else 1
    (wh, ww), width = layer.window, layer.output[1]
    order = sorted(
        (int(layer.window_of[p]), p // width % wh // side, p % width % ww // side, p)
        for p in range(layer.positions)
    )
    return [p for *_, p in order]


def forward(layer, rows, cols):
    """Column tiles, positions, steps; a sample."""
    last = steps(layer, rows) - 1
    for jt, p, s in product(range(0, layer.channels, cols), walk(layer), range(last + 1)):
        yield Step(p, s, jt, 0, True, s == last, s == last)


def update(layer, rows, cols):
    """Column tiles, steps, samples, positions."""
    last, order = steps(layer, rows) - 1, walk(layer)
    for jt, s, b in product(range(0, layer.channels, cols), range(last + 1), range(SAMPLES)):
        for p in order:
            yield Step(p, s, jt, b, b == SAMPLES - 1 and p == order[-1], s == last, True)


def stored_at(layer, rows, cols, step):
    """For each row the element it must get, from the map's first, or None."""
    height, width, c = layer.input
    found = []
    taps = list(product(range(layer.kernel[0]), range(layer.kernel[1]), range(1 if layer.depthwise else c)))
    for r in range(rows):
        t = step.step if layer.depthwise else step.step * rows + r
        if t >= len(taps) or (layer.depthwise and not r < min(cols, c - step.first_channel)):
            found.append(None)
            continue
        ky, kx, ci = taps[t]
        ci += step.first_channel + r if layer.depthwise else 0
        y = step.position // layer.output[1] * layer.stride - layer.padding + ky
        x = step.position % layer.output[1] * layer.stride - layer.padding + kx
        inside = 0 <= y < height and 0 <= x < width
        found.append(y * pitch(layer, rows) + x * c + ci if inside else None)
    return found


async def prepare(ctx, taps, layer, rng):
    """Sets a layer's parameters and waits for `ready`; noise on the steps' ports meanwhile."""
    rows = taps.machine.rows
    for name, value in {
        "kernel_height": layer.kernel[0], "kernel_width": layer.kernel[1], "channels": layer.input[2],
        "stride": layer.stride, "padding": layer.padding, "input_height": layer.input[0],
        "input_width": layer.input[1], "pitch": pitch(layer, rows), "depthwise": layer.depthwise,
        "excess": excess(layer, rows) % (1 << len(taps.excess)),
    }.items():  # fmt: skip
        ctx.set(getattr(taps, name), value)
    for port, amount in (
        (taps.step_digits, step_digits(layer, rows)), (taps.rewind_digits, rewind_digits(layer, rows))
    ):  # fmt: skip
        ctx.set(port, amount._replace(ky=amount.ky % (1 << len(port.ky)))._asdict())
    ctx.set(taps.prepare, 1)
    await ctx.tick()
    ctx.set(taps.prepare, 0)
    waited = 1
    while not ctx.get(taps.ready):
        idle(ctx, taps, rng)
        await ctx.tick()
        waited += 1
    assert waited <= rows


def idle(ctx, taps, rng):
    """No step, and noise on what goes with one."""
    ctx.set(taps.step_valid, 0)
    for name in ("base", "tile_channels", "advance", "rewind"):
        port = getattr(taps, name)
        ctx.set(port, rng.randrange(1 << len(port)))


def ask(ctx, taps, layer, step, base):
    """A step, but for its position."""
    ctx.set(taps.step_valid, 1)
    ctx.set(taps.base, base + step.first_channel * layer.depthwise)
    ctx.set(taps.tile_channels, min(taps.machine.cols, layer.channels - step.first_channel))
    ctx.set(taps.advance, step.advance)
    ctx.set(taps.rewind, step.rewind)


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def check_addresses(rows, cols, layers, seed, gaps):
    dut, rng = TapReader(machine(rows, cols), SIDE), random.Random(seed)

    async def bench(ctx):
        for layer in layers:
            await prepare(ctx, dut, layer, rng)
            free = ELEMENTS - rows * words(layer, rows)
            bases = [rng.choice([0, rng.randint(0, free), free]) for _ in range(SAMPLES)]
            todo = deque(step for order in (forward, update, forward) for step in order(layer, rows, cols))
            due: deque[tuple[Step, int] | None] = deque([None] * dut.LATENCY)
            while todo or any(due):
                if todo and not (gaps and rng.random() < 0.3):
                    step = todo.popleft()
                    ask(ctx, dut, layer, step, bases[step.sample])
                    ctx.set(dut.y, step.position // layer.output[1])
                    ctx.set(dut.x, step.position % layer.output[1])
                    due.append((step, bases[step.sample]))
                else:
                    idle(ctx, dut, rng)
                    due.append(None)
                asked = due.popleft()
                expected = stored_at(layer, rows, cols, asked[0]) if asked else [None] * rows
                mask, rotation = ctx.get(dut.mask), ctx.get(dut.rotation)
                for r, place in enumerate(expected):
                    assert mask >> r & 1 == (place is not None), (layer, asked, r)
                    if asked and place is not None:
                        bank = (rotation + r) % rows
                        got = ctx.get(dut.read_addr[bank]) * rows + bank
                        assert got == asked[1] + place, (layer, asked, r)
                await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("rows, cols", ARRAYS)
def test_addresses_of_the_corner_cases(rows, cols):
    check_addresses(rows, cols, CORNERS, 1, False)


@pytest.mark.parametrize("rows, cols", [(2, 2), (4, 4), (8, 8)])
def test_addresses_of_random_layers(rows, cols):
    rng = random.Random(rows)
    check_addresses(rows, cols, [random_layer(rng, rows) for _ in range(40)], 2, True)


class Reading(wiring.Component):
    """The three together."""

    def __init__(self, m):
        super().__init__({})
        self.positions, self.taps, self.memory = Positions(SIDE), TapReader(m, SIDE), MapMemory(m)

    def elaborate(self, platform):
        m = Module()
        m.submodules.positions = positions = self.positions
        m.submodules.taps = taps = self.taps
        m.submodules.memory = memory = self.memory
        m.d.comb += [
            taps.y.eq(positions.y),
            taps.x.eq(positions.x),
            memory.rotation.eq(taps.rotation),
            memory.mask.eq(taps.mask),
            *(port.eq(addr) for port, addr in zip(memory.read_addr, taps.read_addr, strict=True)),
        ]
        return m


def rows_of_steps(layer, rows, cols, maps):
    """`[sample, position, column tile, step, row]`: what `golden.maps` says each row must get."""
    count, arguments = steps(layer, rows), (maps, layer.kernel, layer.stride, layer.padding)
    tiles = -(-layer.channels // cols)
    if layer.depthwise:
        seen = channel_patches(*arguments)  # sample, position, channel, tap
        seen = np.pad(seen, ((0, 0), (0, 0), (0, tiles * cols - layer.channels), (0, 0)))
        seen = seen.reshape(*seen.shape[:2], tiles, cols, count).swapaxes(3, 4)
        return np.pad(seen, ((0, 0),) * 4 + ((0, rows - cols),))
    seen = patches(*arguments)  # sample, position, tap
    seen = np.pad(seen, ((0, 0), (0, 0), (0, count * rows - layer.taps)))
    return seen.reshape(*seen.shape[:2], 1, count, rows).repeat(tiles, axis=2)


async def write_map(ctx, memory, pixels, base, row_pitch, cols):
    """By vectors of at most C channels; elements between rows are left as they are."""
    for (y, x), _ in np.ndenumerate(pixels[:, :, 0]):
        for first in range(0, pixels.shape[2], cols):
            vector = pixels[y, x, first : first + cols].tolist()
            ctx.set(memory.write_valid, 1)
            ctx.set(memory.write_element, base + y * row_pitch + x * pixels.shape[2] + first)
            ctx.set(memory.write_count, len(vector))
            for lane, value in enumerate(vector):
                ctx.set(memory.write_data[lane], value)
            await ctx.tick()
    ctx.set(memory.write_valid, 0)
    await ctx.tick()


@pytest.mark.parametrize("rows, cols", ARRAYS)
def test_a_layers_walk_reads_its_patches(rows, cols):
    """Maps written under the pitch, among noise; both loop orders; each act in its cycle."""
    dut, rng = Reading(machine(rows, cols)), random.Random(rows)
    positions, taps, memory = dut.positions, dut.taps, dut.memory
    latency = TapReader.LATENCY + MapMemory.LATENCY
    layers = CORNERS + [random_layer(rng, rows) for _ in range(3)]

    async def bench(ctx):
        noise = np.array([rng.randint(1, 127) for _ in range(ELEMENTS)])
        await write_map(ctx, memory, noise.reshape(1, 1, -1), 0, 0, cols)
        for layer in layers:
            maps = np.array([rng.randint(-128, 127) for _ in range(SAMPLES * np.prod(layer.input))])
            maps = maps.reshape(SAMPLES, *layer.input)
            half = ELEMENTS // SAMPLES
            bases = [b * half + rng.randrange(half - rows * words(layer, rows)) for b in range(SAMPLES)]
            for base, pixels in zip(bases, maps, strict=True):
                await write_map(ctx, memory, pixels, base, pitch(layer, rows), cols)
            expected = rows_of_steps(layer, rows, cols, maps)
            await prepare(ctx, taps, layer, rng)
            for order in (forward, update):
                todo = list(order(layer, rows, cols))
                for name, value in zip(
                    ("height", "width", "window_height", "window_width", "pool"),
                    (*layer.output[:2], *layer.window, layer.pool == "max"),
                    strict=True,
                ):
                    ctx.set(getattr(positions, name), value)
                ctx.set(positions.start, 1)
                await ctx.tick()
                ctx.set(positions.start, 0)
                for t in range(len(todo) + latency + rows):
                    if t < len(todo):
                        ask(ctx, taps, layer, todo[t], bases[todo[t].sample])
                        ctx.set(positions.step, todo[t].moves)
                    else:
                        idle(ctx, taps, rng)
                    for r in range(rows):
                        asked, value = t - latency - r, 0
                        if 0 <= asked < len(todo):
                            step = todo[asked]
                            value = expected[step.sample, step.position, step.first_channel // cols, step.step, r]
                        assert ctx.get(memory.act[r]) == value, (layer, t, r)
                    await ctx.tick()

    simulate(dut, bench)
