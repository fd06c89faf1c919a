"""The column memory: slopes and signals of a batch as they come, read back word by word, each column in its cycle."""

import cocotb
import numpy as np

from hdl.windowed.column_memory import ColumnMemory
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from spec.machine import Machine


class Bench:
    """Schedules a layer's batch, then reads."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        noise = ["slope", "delta_value", "delta_channel_last", "delta_sample_last", "slope_addr", "signal_addr"]
        self.timeline = Timeline(cycles, context.rng("noise"), [*noise, "signal_channels"])
        self.rng = context.rng("memory")
        self.t = cycles.now + 1

    def pause(self, often: int) -> None:
        """Some cycles without anything."""
        while self.rng.integers(often):
            self.t += 1

    def layer(self, channels: int, positions: int, windows: int, batch: int) -> None:
        """Fill both memories for a batch, sample by sample, and read them in random order, then in update's."""
        rng, machine, timeline = self.rng, self.machine, self.timeline
        cols, largest = machine.cols, machine.max_delta
        tiles = -(-channels // cols)
        slopes = rng.integers(1 << cols, size=(batch, tiles, positions))
        signals = rng.choice([-largest, largest, 0, *rng.integers(-largest, largest, 6)], (batch, channels, windows))
        timeline.drive(self.t, layer_start=1)
        self.t += 1
        often = int(rng.choice([1, 1, 3]))
        for b in range(batch):
            for word in slopes[b].reshape(-1):
                self.pause(often)
                timeline.drive(self.t, slope_valid=1, slope=int(word))
                self.t += 1
            for j, window in np.ndindex(channels, windows):
                self.pause(often)
                last = window == windows - 1
                timeline.drive(
                    self.t, delta_valid=1, delta_value=int(signals[b, j, window]), delta_channel_last=last,
                    delta_sample_last=last and j == channels - 1,
                )  # fmt: skip
                self.t += 1
        # What was written last can be read first.
        self.t += ColumnMemory.WRITE_LATENCY - 1
        last = (batch - 1, tiles - 1, positions - 1, windows - 1)
        self.read(slopes, signals, last)
        for _ in range(60):
            self.read(slopes, signals, tuple(int(rng.integers(size)) for size in (batch, tiles, positions, windows)))
            self.pause(2)
        for jt, b, p in np.ndindex(tiles, batch, positions):
            self.read(slopes, signals, (b, jt, p, p % windows))
        self.t += cols + 1

    def read(self, slopes: np.ndarray, signals: np.ndarray, at: tuple[int, ...]) -> None:
        """Ask for a sample's, tile's and position's slopes and for the signals of a window."""
        b, jt, p, w = at
        cols = self.machine.cols
        _, tiles, positions = slopes.shape
        _, channels, windows = signals.shape
        used = min(cols, channels - jt * cols)
        asked = {"slope_addr": (b * tiles + jt) * positions + p, "signal_addr": (b * tiles + jt) * windows + w}
        self.timeline.drive(self.t, signal_channels=used, **asked)
        step = self.t + 1
        inputs = {"sample": b, "tile": jt, "position": p, "window": w, "shape": signals.shape, **asked}
        for col in range(cols):
            bit = int(slopes[b, jt, p]) >> col & 1
            value = int(signals[b, jt * cols + col, w]) if col < used else 0
            self.timeline.expect(step + col, "neg", bit, inputs, lambda port, col=col: port >> col & 1)
            self.timeline.expect(step + col, f"delta__{col}", value, inputs)
        self.t += 1


@cocotb.test()
async def layers(dut):
    """Layers that fill the memories, and small ones; tiles that end early."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, rng = bench.machine, context.rng("layers")
    cols = machine.cols
    for turn in range(context.parameter("layers")):
        batch = 1 + turn % 3
        tiles = int(rng.integers(1, 4))
        most = machine.signal_depth // (batch * tiles)
        windows = most if turn % 4 == 0 else int(rng.integers(1, min(most, 9) + 1))
        most = machine.slope_depth // (batch * tiles)
        positions = most if turn % 4 == 1 else int(rng.integers(1, min(most, 30) + 1))
        channels = tiles * cols - int(rng.integers(cols))
        bench.layer(channels, positions, windows, batch)
        await bench.timeline.run(bench.t)
    await bench.timeline.run()
