"""hdl.windowed.raster: numbers of positions in walk order."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.raster import Raster
from spec.machine import load_machine


def walk(height, width, window_height, window_width):
    """(y, x, first of its window), window by window."""
    for top in range(0, height, window_height):
        for left in range(0, width, window_width):
            for y in range(top, min(top + window_height, height)):
                for x in range(left, min(left + window_width, width)):
                    yield y, x, int((y, x) == (top, left))


@pytest.mark.parametrize("side", [1, 2, 9, 20])
def test_every_position(side):
    """Maps one behind the other, with and without pauses."""
    machine, rng = replace(load_machine("tiny"), gradient_bits=44, max_side=side), random.Random(side)
    dut = Raster(machine)

    async def bench(ctx):
        for _ in range(60):
            height, width, *window = (rng.randint(1, side) for _ in range(4))
            ctx.set(dut.width, width)
            for y, x, first in walk(height, width, *window):
                while rng.randrange(8) == 0:
                    ctx.set(dut.valid, 0)
                    for port in (dut.y, dut.x, dut.window_first):
                        ctx.set(port, rng.randrange(1 << len(port)) if len(port) else 0)
                    await ctx.tick()
                for port, value in ((dut.valid, 1), (dut.y, y), (dut.x, x), (dut.window_first, first)):
                    ctx.set(port, value)
                assert ctx.get(dut.number) == y * width + x, (height, width, window, y, x)
                await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
