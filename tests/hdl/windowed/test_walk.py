"""hdl.windowed.walk: what every part of the machine is told, in its cycle, against nested loops."""

import random
from collections import defaultdict
from dataclasses import replace
from itertools import product

import pytest
from amaranth.sim import Simulator

from hdl.op import Op
from hdl.windowed.array import WindowArray
from hdl.windowed.walk import PART, Walk
from spec.machine import load_machine

LEAD = 7
SIDE = 20


def machine(rows, cols, **changes):
    values = {
        "rows": rows, "cols": cols, "weight_depth": 512, "activation_depth": 1024, "max_neurons": 64, "max_fan_in": 64,
        "bias_depth": 128, "fraction_bits": 20, "gradient_bits": 44, "max_batch": 5, "max_side": SIDE,
        "slope_depth": 3000, "signal_depth": 2000, "index_depth": 2500,
    }  # fmt: skip
    return replace(load_machine("tiny"), **{**values, **changes})


def layer_of(rng, m, **changes):
    """A layer's fields, as much of them as the walk looks at; under `bp` windows are a pixel, a block, a latent's."""
    sizes = {"height": rng.randint(1, 5), "width": rng.randint(1, 5), "window_height": rng.randint(1, 4),
             "window_width": rng.randint(1, 4), "max_pool": rng.randrange(2)}  # fmt: skip
    if m.learning.transposes:
        latent, pool = rng.choice([(0, 0), (0, 1), (1, 0), (1, 0)])
        sizes |= {"max_pool": pool, "pool_latent": latent}
        if not latent:
            sizes |= {"window_height": 1 + pool, "window_width": 1 + pool}
        if pool:
            sizes |= {"height": 2 * rng.randint(1, 3), "width": 2 * rng.randint(1, 3)}
    layer = {
        **sizes, "depthwise": rng.randrange(2), "steps": rng.randint(1, 3), "col_tiles": rng.randint(1, 3),
        "last_channels": rng.randint(1, m.cols), "x_stride": rng.randint(1, 20),
        "slope_stride": rng.randint(1, 300), "signal_stride": rng.randint(1, 100), "slope_base": rng.randrange(1000),
        "index_base": rng.randrange(1000), "signal_base": rng.randrange(1000),
        "w_base": rng.randrange(100), "b_base": rng.randrange(8), **changes,
    }  # fmt: skip
    order = positions(layer)
    derived = {
        "interval": layer["steps"] + rng.choice([0, 0, 1, 3]), "positions": len(order),
        "windows": 1 + order[-1]["window"],
    }  # fmt: skip
    return {**layer, **derived, **changes}


def positions(layer):
    """The map's positions in walk order, with their marks."""
    side = 2 if layer["max_pool"] else 1
    wh, ww = layer["window_height"], layer["window_width"]
    grid_width = -(-layer["width"] // ww)
    places = []
    for y, x in product(range(layer["height"]), range(layer["width"])):
        window = y // wh * grid_width + x // ww
        places.append((window, y % wh // side, x % ww // side, y, x))
    places.sort()
    found = []
    for n, (window, *block, y, x) in enumerate(places):
        before = places[n - 1] if n else (None,) * 3
        after = places[n + 1] if n + 1 < len(places) else (None,) * 3
        found.append(
            {
                "y": y, "x": x, "window": window,
                "block_first": [window, *block] != list(before[:3]),
                "block_last": [window, *block] != list(after[:3]),
                "block_size": sum(place[:3] == (window, *block) for place in places),
                "window_first": window != before[0], "window_last": window != after[0],
            }
        )  # fmt: skip
    return found


class Expected:
    """Values by cycle of each group of outputs."""

    def __init__(self):
        self.taps, self.memories, self.steps, self.biases, self.positions = ({} for _ in range(5))
        self.finishing = None

    def step(self, u, layer, m, step, column, base, position, advance, rewind):
        used = layer["last_channels"] if column == layer["col_tiles"] - 1 else m.cols
        first_channel = column * m.cols if layer["depthwise"] else 0
        self.taps[u] = {
            "y": position["y"], "x": position["x"], "base": base * m.rows + first_channel,
            "tile_channels": used, "advance": advance, "rewind": rewind,
        }  # fmt: skip
        self.steps[u + LEAD] = {
            "addr": layer["w_base"] + column * layer["steps"] + step, "diagonal": layer["depthwise"]
        }  # fmt: skip
        self.finishing = u
        return used


def forward(m, layer, x_first):
    """Cycles count from the first step's read cycle."""
    expected, u = Expected(), 0
    for column in range(layer["col_tiles"]):
        for position in positions(layer):
            for s in range(layer["steps"]):
                last = s == layer["steps"] - 1
                used = expected.step(u + s, layer, m, s, column, x_first, position, 1, last)
                expected.steps[u + s + LEAD] |= {"op": Op.FORWARD, "first": s == 0, "last": last}
            v = u + layer["steps"] - 1 + LEAD + m.rows + 5
            expected.biases[v - 1] = layer["b_base"] + column
            expected.positions[v] = {**position, "tile": column, "channels": used}
            u += layer["interval"]
    return expected


def update(m, layer, x_first, samples, x_wrap):
    expected, u, order = Expected(), 0, positions(layer)
    parts, waits = parts_of(order), m.learning.waits
    due = 0  # cycle from which the next column tile may begin
    for column, s in product(range(layer["col_tiles"]), range(layer["steps"])):
        if s == 0 and waits:
            u = max(u, due)
            due = u + m.cols
        for b, (p, position) in product(range(samples), enumerate(order)):
            base = x_first + b * layer["x_stride"]
            if 0 < x_wrap <= b:
                base = (b - x_wrap) * layer["x_stride"]
            ends = b == samples - 1 and p == len(order) - 1
            used = expected.step(u, layer, m, s, column, base, position, ends, s == layer["steps"] - 1)
            part_first, part_last = parts[p]
            flags = {"op": Op.UPDATE, "window_first": part_first, "window_last": part_last}
            flags |= {"opens": s == 0} if waits else {}
            if part_last:
                first_part = b == 0 and not any(last for _, last in parts[:p])
                flags |= {"first": first_part, "last": ends}
            expected.steps[u + LEAD] |= flags
            window = b * layer["signal_stride"] + column * layer["windows"] + position["window"]
            slope, slopes, base = p, len(order), waits * layer["slope_base"]
            if m.learning.transposes:
                slope, slopes = position["window"], layer["windows"]
                if layer["pool_latent"]:
                    slope, slopes = position["y"] * layer["width"] + position["x"], len(order)
            found = {
                "slope_addr": b * layer["slope_stride"] + column * slopes + slope + base,
                "signal_addr": window,
                "signal_channels": used,
            }  # fmt: skip
            if m.learning.transposes:
                found |= {
                    "signal_addr": window + layer["signal_base"], "index_addr": window + layer["index_base"],
                    "place": 2 * (position["y"] % 2) + position["x"] % 2,
                }  # fmt: skip
            expected.memories[u + LEAD - 1 - m.learning.transposes] = found
            u += 1
    return expected


def parts_of(order):
    """(first, last) of the parts, of 128 positions at most, in which windows are applied."""
    found, length = [], 0
    for position in order:
        length = 1 if position["window_first"] or length == PART else length + 1
        found.append((length == 1, position["window_last"] or length == PART))
    return found


async def check(ctx, dut, rng, layer, start, expected):
    """A walk, from `start` until everything is quiet for a while."""
    m = dut.machine
    for name, port in ((name, dut.layer[name]) for name, _ in dut.layer.shape()):
        width = len(port.as_value() if hasattr(port, "as_value") else port)
        ctx.set(port, layer[name] if name in layer else rng.randrange(1 << min(width, 5)))
    start = {name: value for name, value in start.items() if name in dut.signature.members}
    for name, value in start.items():
        ctx.set(getattr(dut, name), value)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    end = max([*expected.steps, *expected.positions]) + m.rows + 8
    for u in range(end):
        for name in start:
            ctx.set(getattr(dut, name), rng.randrange(1 << len(getattr(dut, name))))
        where = (layer, start, u)
        assert ctx.get(dut.finishing) == (u == expected.finishing), where
        assert ctx.get(dut.tap_step_valid) == (u in expected.taps), where
        assert ctx.get(dut.step_valid) == (u in expected.steps), where
        assert ctx.get(dut.position_valid) == (u in expected.positions), where
        for name, value in expected.taps.get(u, {}).items():
            assert ctx.get(getattr(dut, f"tap_{name}")) == value, (name, *where)
        for name, value in expected.memories.get(u, {}).items():
            port = getattr(dut, name)
            assert ctx.get(port) == value % (1 << len(port)), (name, *where)
        for name, value in expected.steps.get(u, {}).items():
            if name == "diagonal" and not m.learning.learns:
                continue
            got = ctx.get(getattr(dut, f"step_{name}"))
            assert got == (value % m.weight_depth if name == "addr" else value), (name, *where)
        if u in expected.biases:
            assert ctx.get(dut.bias_addr) == expected.biases[u], where
        if u in expected.positions:
            wanted = dict(expected.positions[u])
            assert ctx.get(dut.position_tile) == wanted.pop("tile"), where
            assert ctx.get(dut.position_channels) == wanted.pop("channels"), where
            size = wanted.pop("block_size")
            got = ctx.get(dut.position)
            for name, value in wanted.items():
                assert getattr(got, name) == value, (name, *where)
            if wanted["block_last"]:
                assert got.block_whole == (size == (4 if layer["max_pool"] else 1)), where
        await ctx.tick()


def run(m, cases, seed):
    """Each layer as the sequencer walks it: samples forward, one by one, then the update."""
    dut, rng = Walk(m), random.Random(seed)

    async def bench(ctx):
        for layer, samples, x_first, x_wrap in cases:
            for _ in range(min(samples, 2)):
                first = rng.randrange(200)
                start = {"update": 0, "samples": rng.randint(1, 5), "x_first": first, "x_wrap": rng.randrange(4)}
                await check(ctx, dut, rng, layer, start, forward(m, layer, first))
            if not m.learning.learns:
                continue
            start = {"update": 1, "samples": samples, "x_first": x_first, "x_wrap": x_wrap}
            await check(ctx, dut, rng, layer, start, update(m, layer, x_first, samples, x_wrap))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


ARRAYS = [(1, 1), (2, 2), (4, 3), (8, 8)]


@pytest.mark.parametrize("rule", ["lls", "dfa", "bp", "inference"])
@pytest.mark.parametrize("rows, cols", ARRAYS)
def test_random_layers(rows, cols, rule):
    m, rng = machine(rows, cols, rule=rule), random.Random(rows)
    cases = [
        (layer_of(rng, m), rng.randint(1, 5), rng.randrange(200), rng.choice([0, 0, 1, 2, 4, 5])) for _ in range(25)
    ]  # fmt: skip
    run(m, cases, rows)


ONE = {"height": 1, "width": 1, "window_height": 1, "window_width": 1}


@pytest.mark.parametrize("rule", ["lls", "dfa", "inference"])
@pytest.mark.parametrize("rows, cols", ARRAYS[:3])
def test_corners(rows, cols, rule):
    """One position, one step, one tile: each loop alone, and all of them of one round."""
    m, rng = machine(rows, cols, rule=rule), random.Random(rows)
    cases = []
    for steps, col_tiles, samples in product((1, 3), (1, 4), (1, 5)):
        for depthwise, x_wrap in product((0, 1), (0, 1, 3)):
            one = layer_of(rng, m, **ONE, steps=steps, col_tiles=col_tiles, depthwise=depthwise)
            cases.append((one, samples, 100, x_wrap))
    for windows in ({"window_height": 1, "window_width": 1}, {"window_height": 4, "window_width": 5}):
        for max_pool in (0, 1):
            layer = layer_of(rng, m, height=4, width=5, **windows, steps=1, col_tiles=2, max_pool=max_pool)
            cases.append((layer, 2, 7, 1))
    run(m, cases, cols)


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9])
def test_column_tiles_apart(steps):
    """Where the rule waits, of one position each: never less than C cycles, and none more than need be."""
    m, rng = machine(8, 8, rule="dfa"), random.Random(steps)
    one = layer_of(rng, m, **ONE, steps=steps, col_tiles=3)
    run(m, [(one, samples, 100, 0) for samples in (1, 2, 4, 5, 1)], 3)
    opening = [u for u, step in update(m, one, 0, 1, 0).steps.items() if step["opens"]]
    assert [b - a for a, b in zip(opening, opening[1:], strict=False)] == [max(steps, 8)] * 2


@pytest.mark.parametrize("height, width", [(16, 8), (16, 16), (13, 11), (20, 20), (1, 20)])
def test_windows_of_many_positions_come_in_parts(height, width):
    """Of exactly 128 positions, of more, and cut ones behind whole ones."""
    m, rng = machine(2, 2), random.Random(height)
    whole = layer_of(rng, m, height=height, width=width, window_height=height, window_width=width, steps=2, col_tiles=2)
    cut = {**whole, "window_height": min(height, 13), "window_width": min(width, 11)}
    cut["windows"] = 1 + positions(cut)[-1]["window"]
    run(m, [(whole, 2, 3, 0), (cut, 1, 3, 0)], width)


def test_pixels_of_latents_are_numbered_row_by_row():
    """Under `bp`, of windows of every size: whole and cut, of a row, of a column, of the map."""
    m, rng = machine(2, 2, rule="bp"), random.Random(5)
    cases = []
    for window_height, window_width in product((1, 2, 3, 5), (1, 2, 3, 7)):
        windows = {"window_height": window_height, "window_width": window_width}
        sizes = {"height": 5, "width": 7, **windows, "max_pool": 0, "pool_latent": 1}
        cases.append((layer_of(rng, m, **sizes, steps=2, col_tiles=2), rng.randint(1, 2), 3, 0))
    run(m, cases, 5)


def test_machines_of_one_sample():
    m, rng = machine(2, 2, max_batch=1), random.Random(3)
    run(m, [(layer_of(rng, m), 1, rng.randrange(100), rng.choice([0, 1])) for _ in range(8)], 3)


def test_no_address_is_read_before_it_is_written():
    """An update's tiles are as long as they may be short, and no two have one address."""
    m, rng = machine(4, 4), random.Random(4)
    for _ in range(200):
        layer = layer_of(rng, m)
        tiles = defaultdict(list)
        for cycle, step in update(m, layer, 0, rng.randint(1, 3), 0).steps.items():
            tiles[step["addr"]].append(cycle)
        assert len(tiles) == layer["steps"] * layer["col_tiles"]
        assert all(max(cycles) - min(cycles) == len(cycles) - 1 for cycles in tiles.values())
    assert Walk.LEAD == LEAD and WindowArray.LATENCY == 5
