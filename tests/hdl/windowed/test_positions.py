"""hdl.windowed.positions: the order of positions and their flags, against sorted lists."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.windowed.positions import Positions
from spec.geometry import LayerGeometry

SIDE = 12
FLAGS = ("block_first", "block_last", "window_first", "window_last", "last")


def walk(height, width, wh, ww, pool):
    """What is visible at each position; `block_whole` where a block ends."""
    side = 2 if pool else 1
    where = {}
    for y in range(height):
        for x in range(width):
            window = y // wh * -(-width // ww) + x // ww
            where[y, x] = window, (y % wh // side, x % ww // side)
    order = sorted(where, key=lambda p: (*where[p], p))
    found = []
    for index, (y, x) in enumerate(order):
        window, _ = where[y, x]
        before = where[order[index - 1]] if index else (None, None)
        after = where[order[index + 1]] if index + 1 < len(order) else (None, None)
        seen = {
            "y": y, "x": x, "window": window, "block_first": before != where[y, x],
            "block_last": after != where[y, x], "window_first": before[0] != window,
            "window_last": after[0] != window, "last": index + 1 == len(order),
        }
        if seen["block_last"]:
            seen["block_whole"] = list(where.values()).count(where[y, x]) == side**2
        found.append(seen)
    return found


def check(cases, seed, gaps):
    """Each case a while, from one into the next, with idle cycles where `gaps`."""
    dut, rng = Positions(SIDE), random.Random(seed)

    async def bench(ctx):
        async def cycle(case, step, expected):
            ctx.set(dut.step, step)
            got = {name: ctx.get(getattr(dut, name)) for name in expected}
            assert got == expected, (case, expected)
            await ctx.tick()

        for case in cases:
            expected = walk(*case)
            ctx.set(dut.start, 1)
            ctx.set(dut.step, rng.randrange(2))
            for name, value in zip(
                ("height", "width", "window_height", "window_width", "pool"), case, strict=True
            ):
                ctx.set(getattr(dut, name), value)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for name in ("height", "width", "window_height", "window_width"):
                ctx.set(getattr(dut, name), rng.randrange(SIDE))
            # Twice round, and a part.
            for index in range(2 * len(expected) + rng.randrange(len(expected))):
                now = expected[index % len(expected)]
                while gaps and rng.random() < 0.3:
                    await cycle(case, 0, now)
                await cycle(case, 1, now)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


CORNERS = [
    (1, 1, 1, 1, 0), (1, 1, 1, 1, 1), (1, 7, 1, 3, 1), (7, 1, 3, 1, 1), (2, 2, 2, 2, 1),
    (12, 12, 12, 12, 0), (12, 12, 12, 12, 1), (5, 4, 1, 1, 0), (6, 6, 2, 2, 1), (7, 9, 4, 4, 1),
    (7, 9, 4, 4, 0), (9, 7, 3, 5, 1), (3, 3, 12, 12, 1), (5, 5, 5, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("gaps", (False, True))
def test_corners(gaps):
    """Windows of one position, of the whole map, larger than it; blocks cut by map and window."""
    check(CORNERS, 1, gaps)


@pytest.mark.parametrize("seed", range(2))
def test_random_maps(seed):
    rng = random.Random(seed)
    check([(*(rng.randint(1, 9) for _ in range(4)), rng.randrange(2)) for _ in range(25)], seed, True)


def test_windows_are_those_of_the_geometry():
    """Its numbers, and with max-pooling no block across two windows."""
    for pool in ("none", "max"):
        layer = LayerGeometry((11, 9, 1), 1, 7, 4, (3, 3), (4, 3), padding=1, pool=pool)
        expected = walk(*layer.output[:2], *layer.window, pool == "max")
        for seen in expected:
            assert seen["window"] == layer.window_of[seen["y"] * layer.output[1] + seen["x"]]
        whole = sum(seen.get("block_whole", 0) for seen in expected)
        assert whole == layer.next_input[0] * layer.next_input[1]
