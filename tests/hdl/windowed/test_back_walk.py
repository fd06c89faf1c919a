"""hdl.windowed.back_walk: every step of the way back through random layers, against loops over their geometry."""

import random
from dataclasses import replace
from itertools import product

import pytest
from amaranth.sim import Simulator

from hdl.windowed.back_memory import BackMemory
from hdl.windowed.back_walk import BackWalk
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe
from spec.windowed_program import compile_windowed
from spec.windowed_timing import BACK_TAIL, back_cycles

LEAD = 12
DEPTHS = {
    "weight_depth": 4096, "activation_depth": 8192, "bias_depth": 256, "slope_depth": 1 << 15, "signal_depth": 1 << 13,
    "index_depth": 3000, "max_neurons": 2048, "max_fan_in": 512, "gradient_bits": 64, "result_fifo_depth": 128,
}  # fmt: skip


def machine(rows, cols, **changes):
    values = {"rule": "bp", "rows": rows, "cols": cols, **DEPTHS, **changes}
    return replace(load_machine("conv-tiny"), **values)


def network(layers, shape, batch=1):
    """Behind these convolutions come a hidden and an output layer."""
    layers = (*layers, FullyConnected(3), FullyConnected(2))
    recipe = Recipe(hidden_rate_shift=4, output_rate_shift=4, batch=batch)
    return Network("random", shape, 2, "square", layers, recipe)


def random_network(rng, m):
    """Three convolutions of every kind, on a machine's rows of channels."""
    channels, layers = rng.choice([1, m.rows, 2 * m.rows]), []
    shape = (rng.randint(1, 9), rng.randint(1, 9), channels)
    for _ in range(3):
        kernel = rng.randint(1, 5), rng.randint(1, 5)
        if rng.randrange(4) == 0:
            kernel = 1, 1
        depthwise = rng.randrange(3) == 0
        channels = channels if depthwise else m.rows * rng.randint(1, 2) - rng.choice([0, 0, rng.randrange(m.rows)])
        layers.append(
            Convolution(
                channels=channels, kernel=kernel, latent=(rng.randint(1, 4), rng.randint(1, 4)),
                stride=rng.randint(1, 2), padding=rng.randrange(min(kernel)), depthwise=depthwise,
                pool=rng.choice(["none", "max", "max", "latent"]),
            )
        )  # fmt: skip
    return network(layers, shape, rng.randint(1, 3))


def steps_of(m, geometry, descriptor, samples):
    """By cycle, from the first step's cycle t on: what the walk has to say; and how many cycles it takes."""
    height, width, channels = geometry.output
    (kh, kw), stride, padding = geometry.kernel, geometry.stride, geometry.padding
    read = geometry.input[2]
    tiles = -(-channels // m.cols)
    if geometry.pool == "max":
        side, (height, width) = (2, 2), (height // 2 * 2, width // 2 * 2)
        grid = height // 2, width // 2
    elif geometry.pool == "latent":
        side, grid = geometry.window, geometry.grid
    else:
        side, grid = (1, 1), (height, width)
    windows = grid[0] * grid[1]
    kept = windows if geometry.pool == "max" else height * width  # slope bits
    expected, t = {}, 0
    places = product(range(samples), range(geometry.input[0]), range(geometry.input[1]))
    for b, qy, qx in places:
        down, across = ([k for k in range(n) if (q + padding - k) % stride == 0] for q, n in ((qy, kh), (qx, kw)))
        taps = list(product(down or [None], across or [None]))
        for it in range(tiles if geometry.depthwise else -(-read // m.rows)):
            columns = [it] if geometry.depthwise else range(tiles)
            steps = list(product(taps, columns))
            for n, ((ky, kx), jt) in enumerate(steps):
                used = min(m.cols, channels - jt * m.cols)
                step = {"first": int(n == 0), "last": int(n == len(steps) - 1), "channels": used}
                inside = False
                if ky is not None and kx is not None:
                    word = jt * geometry.taps + ky * kw + kx
                    if not geometry.depthwise:
                        word = jt * -(-geometry.taps // m.rows) + (ky * kw + kx) * read // m.rows + it
                    step["addr"] = descriptor.w_base + word
                    y, x = (qy + padding - ky) // stride, (qx + padding - kx) // stride
                    inside = 0 <= y < height and 0 <= x < width
                if inside:
                    window = y // side[0] * grid[1] + x // side[1]
                    tile = b * tiles + jt
                    slope = window if geometry.pool == "max" else y * width + x
                    step["slope"] = descriptor.slope_base + tile * kept + slope
                    step["signal"] = descriptor.signal_base + tile * windows + window
                    step["index"] = descriptor.index_base + tile * windows + window
                    step["place"] = 2 * (y % 2) + x % 2
                length = max(len(steps), m.rows)
                expected[t + (length - 1 if step["last"] else n)] = step
            t += length
    return expected, t


async def check(ctx, dut, rng, m, geometry, descriptor, samples):
    """A walk, from `start` until everything is quiet for a while."""
    expected, length = steps_of(m, geometry, descriptor, samples)
    assert length + BACK_TAIL == back_cycles(descriptor, m, samples)
    for name, _ in dut.layer.shape():
        value = getattr(descriptor, name)
        bits = len(dut.layer[name])
        ctx.set(dut.layer[name], value if value < 0 else value % (1 << bits))
    ctx.set(dut.samples, samples)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    seen = 0
    first = LEAD + BackMemory.LATENCY  # cycle t of the first step, `start` being 0
    for cycle in range(1, first + length + 8):
        ctx.set(dut.samples, rng.randrange(1 << len(dut.samples)))
        where = (geometry, samples, cycle)
        step = expected.get(cycle - first)
        assert ctx.get(dut.step_valid) == (step is not None), where
        assert ctx.get(dut.finishing) == (cycle == BACK_TAIL + length), where
        if step:
            assert ctx.get(dut.step_first) == step["first"] and ctx.get(dut.step_last) == step["last"], where
            if "addr" in step:
                assert ctx.get(dut.step_addr) == step["addr"], (step, *where)
            seen += 1
        step = expected.get(cycle - first + BackMemory.LATENCY, {})
        assert ctx.get(dut.outside) == ("signal" not in step), (step, *where)
        if step:
            assert ctx.get(dut.channels) == step["channels"], (step, *where)
        for name in step.keys() & {"slope", "signal", "index"}:
            if name != "index" or geometry.pool == "max":
                assert ctx.get(getattr(dut, f"{name}_addr")) == step[name], (name, step, *where)
        if "place" in step and geometry.pool == "max":
            assert ctx.get(dut.place) == step["place"], (step, *where)
        await ctx.tick()
    assert seen == len(expected)


def run(m, networks, rng):
    """The way back through all layers that have one, without a pause; returns their geometry."""
    dut = BackWalk(m)
    walked = []

    async def bench(ctx):
        await ctx.tick().repeat(3)
        for net in networks:
            program = compile_windowed(net, m)
            for geometry, descriptor in reversed(list(zip(net.geometry, program.layers, strict=True))[1:]):
                samples = rng.randint(1, net.recipe.batch)
                await check(ctx, dut, rng, m, geometry, descriptor, samples)
                walked.append(geometry)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return walked


def fitting(rng, m, count):
    """So many random networks that the machine takes."""
    found = []
    while len(found) < count:
        try:
            net = random_network(rng, m)
            compile_windowed(net, m)
        except SpecError:
            continue
        found.append(net)
    return found


@pytest.mark.parametrize("rows, cols, count", [(1, 1, 50), (2, 2, 50), (4, 3, 50), (8, 8, 50)])
def test_random_networks(rows, cols, count):
    m, rng = machine(rows, cols), random.Random(rows)
    walked = run(m, fitting(rng, m, count), rng)
    assert {(g.pool, g.depthwise, g.stride) for g in walked} >= set(
        product(("none", "max", "latent"), (False, True), (1, 2))
    )


KERNELS = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (1, 4), (5, 2)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("depthwise", [False, True])
def test_every_kernel(kernel, depthwise):
    """With each stride, padding and pool, over maps as small as they may be and some larger."""
    m, rng, nets = machine(2, 2), random.Random(1), []
    cases = product((1, 2), range(min(kernel)), ("none", "max", "latent"), (0, 2))
    for stride, padding, pool, more in cases:
        least = stride if pool == "max" else 0
        side = [max(1, k - 2 * padding) + least + more for k in kernel]
        layer = Convolution(4, kernel, (2, 3), stride, padding, pool, depthwise)
        try:
            nets.append(network([Convolution(4, (1, 1), (1, 1)), layer], (*side, 2)))
        except SpecError:
            assert more == 0
    assert len(run(m, nets, rng)) == 3 * len(nets)


@pytest.mark.parametrize("pool", ["none", "max", "latent"])
def test_a_map_read_flat(pool):
    """A fully connected layer behind a map: one position, as many row tiles as the map fills."""
    m, rng = machine(4, 2), random.Random(2)
    layer = Convolution(3, (2, 2), (3, 2), padding=1, pool=pool)
    run(m, [network([layer], (7, 6, 3), 4)], rng)


def test_latency():
    assert BackWalk.LEAD == LEAD == BACK_TAIL + 1 - BackMemory.LATENCY
