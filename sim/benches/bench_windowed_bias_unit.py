"""The banks of biases: forward reads, sums of a batch's signals, padding, advances and host access, against the golden
model."""

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from golden.fixed import bias_random, moved
from golden.windowed import gradient
from hdl.windowed.bias_unit import BiasUnit
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from spec.machine import WEIGHT_BITS, Machine

SLOPE = 8
"""What a position without slope adds to a window's weight; one with slope adds 1."""
MAX_WINDOW = 1024
SHIFT_HELD = 2
"""Cycles after a sample's last signal in which the shift is still its own."""
HIGHEST = (1 << (WEIGHT_BITS - 1)) - 1


class Bench:
    """Schedules forward passes, updates and the host one after another; keeps the biases, and counts LFSR steps."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        data = [f"delta_{name}" for name in ("value", "weight", "channel_last", "sample_last")]
        noise = ["read_addr", "b_base", "pad_count", "host_addr", "host_data", "bias_shift", *data]
        noise += ["sample_first", "sample_last"]
        self.timeline = Timeline(cycles, context.rng("noise"), noise)
        self.rng = context.rng("bias")
        self.t = cycles.now + 1
        self.bias = np.zeros((self.machine.bias_bank_depth, self.machine.cols), dtype=np.int64)
        self.steps = 0

    def host(self, word: int, col: int, value: int | None) -> None:
        """Write a bias, or read and check it if `value` is None; sometimes a write is read at once."""
        address = word << self.machine.col_bits | col
        if value is not None:
            self.timeline.drive(self.t, host_valid=1, host_write=1, host_addr=address, host_data=value)
            self.bias[word, col] = value
        else:
            self.timeline.drive(self.t, host_valid=1, host_addr=address)
            self.timeline.expect(self.t + 1, "host_q", int(self.bias[word, col]), (word, col))
        self.t += 1

    def host_read_all(self) -> None:
        """Every word, in random order."""
        self.t += 1
        for number in self.rng.permutation(self.bias.size):
            self.host(*divmod(int(number), self.machine.cols), None)
        self.t += 1

    def forward(self, count: int) -> None:
        """Words, often one a cycle; column c's bias is there c cycles later than column 0's."""
        for _ in range(count):
            word = int(self.rng.integers(len(self.bias)))
            self.timeline.drive(self.t, read_addr=word)
            for col, value in enumerate(self.bias[word]):
                cycle = self.t + BiasUnit.LATENCY + col
                self.timeline.expect(cycle, f"bias__{col}", int(value), (word, col))
            self.t += int(self.rng.choice([1, 1, 1, 4]))
        self.t += BiasUnit.LATENCY + self.machine.cols

    def update(self, base: int, channels: int, windows: int, batch: int, corner: bool) -> None:
        """A layer's update from a batch: `windows` signals a channel and sample."""
        machine, rng = self.machine, self.rng
        cols = machine.cols
        tiles = -(-channels // cols)
        shift = int(rng.integers(0, 12))
        area = int(rng.choice([1, 2, 30, MAX_WINDOW]))
        # As large as the accumulator holds, as docs/convolutions.md, section 3, says.
        room = (1 << (machine.psum_bits - 1)) - (1 << (WEIGHT_BITS - 1 + machine.fraction_bits))
        while (batch * windows * area * SLOPE * 127) << shift > room:
            area, shift = max(1, area // 2), max(0, shift - 1)
        left = min((room // ((batch * windows * area * SLOPE * 127) << shift)).bit_length() - 1, machine.delta_bits - 8)
        d = rng.integers(-127, 128, (batch, windows, channels))
        weight = rng.integers(area, SLOPE * area + 1, d.shape)
        if corner:
            d[:], weight[:] = rng.choice([-127, 127], channels), SLOPE * area
        else:
            d >>= rng.integers(0, 8, d.shape)
            left = int(rng.integers(0, left + 1))
        # `gradient` takes the sums of inputs, those of a bias being its weight times 1.0.
        change = sum(gradient(weight[b, :, :, None] << shift, d[b], left)[:, 0] for b in range(batch))
        random = bias_random(machine, channels, self.steps)
        row, col = base + np.arange(channels) // cols, np.arange(channels) % cols
        self.bias[row, col] = moved(self.bias[row, col], np.asarray(change), random, machine.fraction_bits)
        padding = tiles * cols - channels
        self.steps += channels + padding

        self.timeline.drive(self.t, layer_start=1, b_base=base)
        self.t += 1 + int(rng.choice([0, 0, 3]))
        often = int(rng.choice([1, 1, 2]))
        padded = self.t
        for sample in range(batch):
            begin = self.t
            for j in range(channels):
                for window in range(windows):
                    while rng.integers(often):
                        self.t += 1
                    self.timeline.drive(
                        self.t, delta_valid=1, delta_value=-int(d[sample, window, j]) << left,
                        delta_weight=int(weight[sample, window, j]), delta_channel_last=window == windows - 1,
                        delta_sample_last=window == windows - 1 and j == channels - 1,
                        sample_first=sample == 0, sample_last=sample == batch - 1,
                    )  # fmt: skip
                    self.t += 1
            last = self.t - 1
            for cycle in range(begin, last + SHIFT_HELD + 1):
                self.timeline.drive(cycle, bias_shift=shift)
            if sample == 0 and (padding or rng.integers(2)):
                at = last + 1 + int(rng.choice([0, 0, 2]))
                self.timeline.drive(at, pad=1, pad_count=padding)
                padded = at + padding + 1
            self.t = max(self.t, last + BiasUnit.WRITE_LATENCY + int(rng.choice([0, 0, 5])))
        # The next layer's channels must not meet the padding.
        self.t = max(self.t, padded)

    def advance(self, count: int) -> None:
        """Step the LFSR alone, often in a row."""
        for _ in range(count):
            self.timeline.drive(self.t, advance=1)
            self.timeline.expect(self.t, "stepped", 1, "advance", lambda port: port & 1)
            self.t += int(self.rng.choice([1, 1, 3]))
        self.steps += count


@cocotb.test()
async def streams(dut):
    """Every use of the unit in turn, with one channel or as many as there is room for, batches of 1 to 3."""
    cycles = await start(dut)
    bench = Bench(cycles)
    rng = bench.rng
    stepped = 0

    async def count() -> None:
        nonlocal stepped
        while True:
            await FallingEdge(dut.clk)
            stepped += int(dut.stepped.value)

    counter = cocotb.start_soon(count())
    depth, cols = bench.bias.shape
    for word, col in np.ndindex(depth, cols):
        bench.host(word, col, int(rng.choice([-HIGHEST - 1, HIGHEST, 0, -1, int(rng.integers(HIGHEST))])))
    bench.host_read_all()
    for turn in range(context.parameter("layers")):
        bench.forward(int(rng.integers(1, 8)))
        base = int(rng.integers(depth))
        most = (depth - base) * cols
        channels = [1, most, int(rng.integers(1, most + 1)), min(cols + 1, most)][turn % 4]
        windows = int(rng.choice([1, 2, 5])) if channels < 40 else 1
        bench.update(base, channels, windows, 1 + turn % 3, corner=turn % 5 == 1)
        if turn % 3 == 0:
            bench.advance(int(rng.integers(1, 50)))
        if turn % 4 == 0:
            bench.host_read_all()
            bench.host(int(rng.integers(depth)), int(rng.integers(cols)), int(rng.integers(-HIGHEST, HIGHEST)))
            bench.t += 1
        bench.forward(3)
        await bench.timeline.run(bench.t)
        assert stepped == bench.steps, f"stepped: {stepped} steps of the LFSR, golden {bench.steps}"
    bench.host_read_all()
    await bench.timeline.run()
    counter.cancel()
