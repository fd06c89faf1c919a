"""The writer: maps, pooled maps and maps of latents, each element at its place in its cycle."""

import cocotb
import numpy as np

from golden.maps import max_pool
from hdl.windowed.position_layout import position_layout
from hdl.windowed.writer import Writer
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from sim.benches.windowed_order import Position, walk_order
from spec.machine import Machine

HELD = ("base", "a_pitch", "next_channels", "max_pool", "pool_latent", "is_output")
LATENT_LAG = 3
"""Cycles from a window's last position to its first latent here; the contract does not name any."""


class Bench:
    """Schedules forward passes one after the other and collects what must be written."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        cols = self.machine.cols
        self.size = self.machine.activation_depth * self.machine.rows
        self.layout = position_layout(self.machine.max_side)
        names = ["map_position", "map_tile", "map_channels", "latent", "latent_column", "latent_window", "latent_y"]
        names += ["latent_tile", *HELD, *(f"map_data__{col}" for col in range(cols))]
        noise = [name for name in names if name in context.inputs()]
        self.timeline = Timeline(cycles, context.rng("noise"), noise, ["write_valid"])
        self.rng = context.rng("writer")
        self.t = cycles.now + 1

    def write(self, cycle: int, element: int, values: np.ndarray, inputs: object) -> None:
        """A write must be seen."""
        cycle += Writer.LATENCY
        expected = {"write_valid": 1, "write_element": element % self.size, "write_count": len(values)}
        expected |= {f"write_data__{lane}": int(value) for lane, value in enumerate(values)}
        for port, value in expected.items():
            self.timeline.expect(cycle, port, value, inputs)

    def layer(
        self, size: tuple[int, int], window: tuple[int, int], channels: int, pool: str, is_output: bool
    ) -> None:
        """A forward pass of a layer that makes a map of `size`; the map written has random values and gaps."""
        rng, cols, timeline = self.rng, self.machine.cols, self.timeline
        a = rng.integers(-128, 128, (*size, channels))
        grid = (-(-size[0] // window[0]), -(-size[1] // window[1]))
        latents = rng.integers(-128, 128, (*grid, channels))
        pooled = max_pool(a[None])[0] if pool == "max" else a
        written = {"max": pooled, "none": a, "latent": latents}[pool]
        # Where the map wraps around the memory's end, its addresses do.
        base = int(rng.integers(self.size))
        held = {
            "base": base,
            "a_pitch": written.shape[1] * channels + int(rng.integers(0, 2 * self.machine.rows)),
            "next_channels": channels,
            "max_pool": pool == "max",
            "pool_latent": pool == "latent",
            "is_output": is_output,
        }
        begin = self.t
        often = int(rng.choice([1, 1, 3]))
        free = begin
        place = base + np.arange(written.shape[0])[:, None, None] * held["a_pitch"]
        place = place + np.arange(written.shape[1])[:, None] * channels + np.arange(channels)
        for first in range(0, channels, cols):
            used = min(cols, channels - first)
            j = slice(first, first + used)
            for position in walk_order(size, window, pool == "max"):
                while rng.integers(often):
                    self.t += 1
                if position.window_last:
                    self.t = max(self.t, free)
                    free = self.t + cols
                t = self.t
                inputs = {"held": held, "position": position, "tile": first // cols, "t": t}
                whole = position.block_whole if pool == "max" else True
                if position.block_last and whole and not is_output:
                    self.map(position, first, a, pooled, pool, j)
                    if pool != "latent":
                        side = 2 if pool == "max" else 1
                        at = position.y // side, position.x // side
                        self.write(t, int(place[at][first]), written[at][j], inputs)
                if position.window_last:
                    row = divmod(position.window, grid[1])
                    for col in range(used):
                        cycle = t + LATENT_LAG + col
                        drives = {"latent": int(latents[row][first + col]), "latent_window": position.window}
                        drives |= {"latent_column": col, "latent_y": position.y, "latent_tile": first // cols}
                        timeline.drive(cycle, latent_valid=1, **drives)
                        if pool == "latent" and not is_output:
                            one = latents[row][first + col : first + col + 1]
                            self.write(cycle, int(place[row][first + col]), one, inputs)
                self.t += 1
        self.t = max(self.t, free + LATENT_LAG) + Writer.LATENCY
        for cycle in range(begin, self.t):
            timeline.drive(cycle, **{name: int(value) for name, value in held.items()})

    def map(self, position: Position, first: int, a: np.ndarray, pooled: np.ndarray, pool: str, j: slice) -> None:
        """A vector of activations, or of maxima where the layer max-pools."""
        values = pooled[position.y // 2, position.x // 2, j] if pool == "max" else a[position.y, position.x, j]
        encoded = sum(int(getattr(position, name)) << field.offset for name, field in self.layout)
        drives = {"map_position": encoded, "map_tile": first // self.machine.cols, "map_channels": len(values)}
        drives |= {f"map_data__{col}": int(value) for col, value in enumerate(values)}
        self.timeline.drive(self.t, map_valid=1, **drives)


@cocotb.test()
async def layers(dut):
    """Maps of all kinds, from one pixel on, with tiles that are full and that are not, back to back and with gaps."""
    cycles = await start(dut)
    bench = Bench(cycles)
    rng, cols = context.rng("layers"), bench.machine.cols
    for turn in range(context.parameter("layers")):
        pool = ("none", "max", "latent")[turn % 3]
        low = 2 if pool == "max" else 1
        size = (int(rng.integers(low, 8)), int(rng.integers(low, 8)))
        window = (int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1)))
        if pool == "max":
            window = (window[0] + window[0] % 2, window[1] + window[1] % 2)
        channels = int(rng.choice([1, cols, cols + 1, int(rng.integers(1, 3 * cols))]))
        bench.layer(size, window, channels, pool, is_output=turn % 7 == 6)
        await bench.timeline.run(bench.t)
    await bench.timeline.run()
