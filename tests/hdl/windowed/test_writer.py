"""hdl.windowed.writer: elements of maps and of latents against the formula, every output in every cycle."""

import random
from dataclasses import dataclass, replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.map_memory import element_bits
from hdl.windowed.writer import Writer
from spec.machine import load_machine

PARAMETERS = ("base", "a_pitch", "next_channels", "max_pool", "pool_latent", "is_output")


def machine(rows, cols, **changes):
    values = {"gradient_bits": 44, "max_side": 20, "max_neurons": 64, "activation_depth": 100}
    return replace(load_machine("tiny"), rows=rows, cols=cols, **{**values, **changes})


@dataclass(frozen=True)
class Layer:
    height: int
    width: int
    wh: int
    ww: int
    next_channels: int
    a_pitch: int
    base: int
    max_pool: bool | int = 0
    pool_latent: bool | int = 0
    is_output: int = 0


class Script:
    """Layers whose vectors and latents come in the order of the walk, and what is to be written when."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.t = 0
        self.parameters, self.maps, self.latents, self.writes = {}, {}, {}, {}

    def code(self):
        return self.rng.choice([-128, 127, self.rng.randint(-128, 127)])

    def write(self, layer, element, values):
        if not layer.is_output:
            self.writes[self.t + Writer.LATENCY] = element % (1 << element_bits(self.m)), values

    def layer(self, layer, gap=lambda: 0):
        """All column tiles, of what is written; `run` adds what is not."""
        cols = self.m.cols
        self.parameters[self.t] = layer
        for tile in range(-(-layer.next_channels // cols)):
            channels = min(cols, layer.next_channels - tile * cols)
            first = layer.base + tile * cols
            if layer.pool_latent:
                self.tile_of_latents(layer, tile, channels, first, gap)
            else:
                self.tile_of_vectors(layer, tile, channels, first, gap)
        self.t += Writer.LATENCY + 1
        self.parameters[self.t] = None

    def tile_of_vectors(self, layer, tile, channels, first, gap):
        half = 1 if layer.max_pool else 0
        for y in range(half, layer.height, 1 + half):
            for x in range(half, layer.width, 1 + half):
                values = [self.code() for _ in range(channels)]
                self.maps[self.t] = y, x, tile, values
                element = first + (y >> half) * layer.a_pitch + (x >> half) * layer.next_channels
                self.write(layer, element, values)
                self.t += 1 + gap()

    def tile_of_latents(self, layer, tile, channels, first, gap):
        grid_width = -(-layer.width // layer.ww)
        for window in range(-(-layer.height // layer.wh) * grid_width):
            wy, wx = divmod(window, grid_width)
            y = min((wy + 1) * layer.wh, layer.height) - 1
            for column in range(channels):
                value = self.code()
                self.latents[self.t] = window, y, tile, column, value
                self.write(layer, first + wy * layer.a_pitch + wx * layer.next_channels + column, [value])
                self.t += 1 + (gap() if column == channels - 1 else 0)

    def run(self):
        m, rng = self.m, self.rng
        dut = Writer(m)

        def put(ctx, **values):
            for name, value in values.items():
                signal = getattr(dut, name)
                ctx.set(signal, rng.getrandbits(len(signal)) if value is None else value)

        async def bench(ctx):
            held = None
            for t in range(self.t + 10):
                held = self.parameters.get(t, held)
                put(ctx, **{name: getattr(held, name) if held else None for name in PARAMETERS})
                # Where latents are written vectors come too, and the other way round.
                idle = held if rng.random() < 0.5 else None
                idle_map = idle is not None and (idle.is_output or idle.pool_latent)
                idle_latent = idle is not None and (idle.is_output or not idle.pool_latent)
                y, x, tile, values = self.maps.get(t, (None, None, None, []))
                put(ctx, map_valid=t in self.maps or idle_map, map_tile=tile, map_channels=len(values) or None)
                for name, value in (("y", y), ("x", x), ("window", None), ("window_last", None)):
                    signal = getattr(dut.map_position, name)
                    ctx.set(signal, rng.getrandbits(len(signal)) if value is None else value)
                for c in range(m.cols):
                    ctx.set(dut.map_data[c], values[c] if c < len(values) else self.code())
                window, y, tile, column, value = self.latents.get(t, (None,) * 5)
                put(ctx, latent_valid=t in self.latents or idle_latent, latent=self.code() if value is None else value,
                    latent_column=column, latent_window=window, latent_y=y, latent_tile=tile)  # fmt: skip

                assert ctx.get(dut.write_valid) == (t in self.writes), t
                if t in self.writes:
                    element, values = self.writes[t]
                    assert ctx.get(dut.write_element) == element, t
                    assert ctx.get(dut.write_count) == len(values), t
                    assert [ctx.get(dut.write_data[i]) for i in range(len(values))] == values, t
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


CORNERS = [
    Layer(1, 1, 1, 1, 1, 0, 0),
    Layer(1, 1, 1, 1, 19, 19, 33),  # fully connected: tiles alone
    Layer(5, 4, 3, 2, 9, 40, 8),
    Layer(5, 5, 2, 2, 10, 23, 16, max_pool=1),  # an odd last row and column
    Layer(20, 20, 20, 20, 2, 41, 8),
    Layer(20, 20, 20, 20, 2, 21, 8, max_pool=1),
    Layer(6, 6, 3, 2, 9, 30, 24, pool_latent=1),
    Layer(6, 6, 2, 6, 9, 9, 24, pool_latent=1),  # a grid one window wide
    Layer(6, 6, 6, 2, 5, 15, 24, pool_latent=1),  # one row of windows
    Layer(7, 5, 3, 2, 17, 60, 8, pool_latent=1),  # cut by the map's edge
    Layer(1, 1, 1, 1, 12, 12, 0, pool_latent=1),
    Layer(4, 4, 1, 1, 3, 13, 8, pool_latent=1),  # a window a position
    Layer(4, 1, 1, 1, 1, 5, 0, pool_latent=1),
    Layer(4, 4, 2, 2, 3, 13, 8, is_output=1),
    Layer(4, 4, 2, 2, 3, 13, 8, is_output=1, pool_latent=1),
]


@pytest.mark.parametrize("rows, cols", [(1, 1), (2, 2), (8, 5), (8, 8)])
def test_layers_without_a_gap(rows, cols):
    """All channels; latents of a window right behind those of the one before it."""
    script = Script(machine(rows, cols), cols)
    for layer in CORNERS:
        script.layer(layer)
    script.run()
    assert len(script.writes) > 500 // cols


@pytest.mark.parametrize("rows, cols", [(2, 1), (4, 3), (8, 8)])
@pytest.mark.parametrize("seed", range(2))
def test_random_layers(rows, cols, seed):
    """With gaps. Bases and pitches of any size: elements are modulo the memory's address."""
    script = Script(machine(rows, cols), seed)
    rng = script.rng
    top = 1 << element_bits(script.m)
    for _ in range(25):
        pool = rng.choice(["none", "max", "latent"])
        layer = Layer(
            height=rng.randint(1, 6), width=rng.randint(1, 6), wh=rng.randint(1, 6), ww=rng.randint(1, 6),
            next_channels=rng.choice([1, 64, rng.randint(1, 24)]), a_pitch=rng.choice([rng.randrange(top), top - 1]),
            base=rng.randrange(top), max_pool=pool == "max", pool_latent=pool == "latent",
        )  # fmt: skip
        script.layer(layer, lambda: rng.choice([0, 0, 1, 5]))
    script.run()


def test_a_side_of_one():
    """Machines for fully connected layers alone: coordinates without a bit."""
    script = Script(machine(2, 2, max_side=1), 1)
    for options in ({}, {"pool_latent": 1}, {"is_output": 1}):
        script.layer(Layer(1, 1, 1, 1, 7, 7, 6, **options))
    script.run()
