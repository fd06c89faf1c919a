"""hdl.windowed.back_sums: totals of row tiles in, signals of the layer before out, against its map's order."""

import random
from dataclasses import dataclass, replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.back_sums import BackSums
from spec.machine import load_machine
from tests.hdl.arithmetic import clip, rnd

LATENCY = 2
BELOW = ("in_channels", "below_base", "below_windows", "below_channels", "below_stride", "depthwise")


def machine(rows, cols, **changes):
    values = {"rule": "bp", "rows": rows, "cols": cols, "gradient_bits": 64, "signal_depth": 1 << 12, **changes}
    return replace(load_machine("conv-tiny"), **values)


@dataclass(frozen=True)
class Layer:
    """The map that it reads, ``(height, width, channels)``, and how."""

    read: tuple[int, int, int]
    depthwise: bool = False
    flat: bool = False
    base: int = 0

    def fields(self, m):
        height, width, channels = self.read
        windows = height * width
        return {
            "in_channels": windows * channels if self.flat else channels, "below_base": self.base,
            "below_windows": windows, "below_channels": channels, "depthwise": self.depthwise,
            "below_stride": -(-channels // m.cols) * windows,
        }  # fmt: skip

    def rows(self, m, samples):
        """Of each row that leaves the array the bank and the word of its signal, or nothing."""
        height, width, channels = self.read
        tiles = -(-channels // m.cols)
        for b in range(samples):
            positions = [(y * width + x, i) for y in range(height) for x in range(width) for i in range(channels)]
            # What the layer sees as channels of each of its positions.
            length = len(positions) if self.flat else channels
            seen = [positions[n : n + length] for n in range(0, len(positions), length)]
            used = m.cols if self.depthwise else m.rows
            for position in seen:
                for first in range(0, len(position), used):
                    tile = position[first : first + used]
                    for window, channel in tile:
                        word = self.base + (b * tiles + channel // m.cols) * height * width + window
                        yield channel % m.cols, word
                    yield from [None] * (m.rows - len(tile))


def totals(m, rng):
    """Totals (-r): ends of the range, of the clip, ties, and any."""
    top = (1 << (m.back_sum_bits - 1)) - 1
    near = (rng.choice([0, 1, 2046, 2047, 2048, rng.randrange(2049)]) << 17) + rng.choice([0, 1 << 16, -(1 << 16)])
    near = rng.choice([-1, 1]) * near + rng.randint(-1, 1)
    return rng.choice([-top, top, 0, near, near, near, rng.randint(-top, top), rng.randint(-(1 << 28), 1 << 28)])


def run(m, layers, rng, gap):
    """Way back after way back; `gap`: cycles between rows."""
    dut, made = BackSums(m), 0

    async def bench(ctx):
        nonlocal made
        for layer, samples in layers:
            values = layer.fields(m)
            for name, _ in dut.layer.shape():
                port = dut.layer[name]
                ctx.set(port, values[name] % (1 << len(port)) if name in BELOW else rng.randrange(2))
            ctx.set(dut.start, 1)
            ctx.set(dut.back_valid, 0)
            await ctx.tick()
            ctx.set(dut.start, 0)
            rows = [(row, totals(m, rng)) for row in layer.rows(m, samples)]
            coming = []  # what each cycle shows
            for row, total in rows:
                for _ in range(gap()):
                    coming.append((None, None))
                coming.append((row, total))
            coming += [(None, None)] * LATENCY
            for cycle in range(len(coming)):
                _, total = coming[cycle]
                ctx.set(dut.back_valid, total is not None)
                ctx.set(dut.back_data, totals(m, rng) if total is None else total)
                row, total = coming[cycle - LATENCY] if cycle >= LATENCY else (None, None)
                assert ctx.get(dut.signal_valid) == (row is not None), (layer, samples, cycle)
                if row is not None and total is not None:
                    got = ctx.get(dut.signal_bank), ctx.get(dut.signal_word), ctx.get(dut.signal_value)
                    assert got == (*row, clip(rnd(-total, 17), 2047)), (layer, samples, cycle, total)
                    made += 1
                await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return made


def layer_of(rng, m):
    kind = rng.choice(["map", "map", "depthwise", "flat"])
    channels = rng.choice([1, m.cols, m.rows, rng.randint(1, 3 * m.rows)])
    read = rng.randint(1, 4), rng.randint(1, 4), channels
    return Layer(read, kind == "depthwise", kind == "flat", rng.randrange(500))


@pytest.mark.parametrize("rows, cols", [(1, 1), (2, 2), (4, 3), (8, 8), (8, 2), (16, 5)])
def test_random_layers(rows, cols):
    m, rng = machine(rows, cols), random.Random(rows + cols)
    run(m, [(layer_of(rng, m), rng.randint(1, 3)) for _ in range(60)], rng, lambda: 0)
    made = run(m, [(layer_of(rng, m), rng.randint(1, 3)) for _ in range(40)], rng, lambda: rng.choice([0, 0, 1, 5]))
    assert made > 500


def test_a_memory_of_one_sample():
    """Its stride is the memory's depth, and so none that the descriptor's field holds."""
    m, rng = machine(2, 2, signal_depth=32), random.Random(3)
    assert run(m, [(Layer((4, 4, 3), depthwise), 1) for depthwise in (False, True)], rng, lambda: 0) == 96


def test_rounding():
    """Each total near a tie or an end of the clip, and the ends of the range."""
    m, rng = machine(1, 1), random.Random(4)
    assert run(m, [(Layer((12, 12, 7)), 4) for _ in range(2)], rng, lambda: 0) == 8064
    assert BackSums.LATENCY == LATENCY
