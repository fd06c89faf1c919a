"""The lanes behind the array: activations, slopes, maxima, latents and scores of random layers, each in its cycle."""

from collections import defaultdict

import cocotb
import numpy as np

from golden.arith import rnd, sat
from golden.fixed import hidden_activation, output_score
from golden.maps import max_pool, window_sums
from golden.windowed import gradient_sums
from hdl.windowed.columns import Columns
from hdl.windowed.position_layout import position_layout
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from sim.benches.windowed_order import Position, walk_order
from spec.machine import ACT_BITS, SCORE_BITS, WEIGHT_BITS, Machine

BLOCKS = ("block_first", "block_last", "block_whole")
PARAMETERS = ("in_frac", "act_shift", "latent_shift", "is_output", "max_pool")


class Bench:
    """Schedules the totals of layers one after the other."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        cols = self.machine.cols
        self.layout = position_layout(self.machine.max_side)
        noise = ["position", "position_tile", "position_channels", *PARAMETERS]
        noise += [f"{name}__{col}" for name in ("result_data", "bias") for col in range(cols)]
        self.timeline = Timeline(cycles, context.rng("noise"), noise, ["slope_valid", "map_valid", "latent_valid"])
        self.rng = context.rng("columns")
        self.t = cycles.now + 1
        self.valid: dict[int, int] = defaultdict(int)

    def encoded(self, position: Position, pool: bool) -> int:
        """A position as the port carries it; without pooling nobody looks at the blocks."""
        code = sum(int(getattr(position, name)) << field.offset for name, field in self.layout)
        if not pool:
            for name in BLOCKS:
                code ^= int(self.rng.integers(2)) << self.layout[name].offset
        return code

    def totals(self, shape: tuple[int, ...], shift: int, bits: int, slope: int) -> np.ndarray:
        """Pre-activations around the rounding ties and the ends of `bits` bits; others of every size."""
        rng = self.rng
        code = rng.choice([-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, -1, 1, 2, -2], shape)
        near = (2 * code + rng.integers(-1, 2, shape) << shift) // 2 + rng.integers(-1, 2, shape)
        near = np.where(near < 0, (near << slope) + rng.integers(0, 1 << slope, shape), near)
        largest = (self.machine.max_fan_in << 22) - 1
        far = rng.integers(-largest, largest, shape) >> rng.integers(0, 28, shape)
        extreme = rng.choice([-largest - 1, largest], shape)
        kind = rng.integers(6, size=shape)
        return np.clip(np.where(kind < 3, near, np.where(kind < 5, far, extreme)), -largest - 1, largest)

    def layer(
        self, size: tuple[int, int], window: tuple[int, int], channels: int, pool: bool, is_output: bool, mean: bool
    ) -> None:
        """One layer's forward pass; `mean`: the latents are means, not mostly saturated sums."""
        rng, cols = self.rng, self.machine.cols
        tiles = -(-channels // cols)
        in_frac = int(rng.integers(0, 8))
        area = window[0] * window[1]
        act_shift = int(rng.choice([1, 9, 12, 14, 17, 31])) if rng.integers(2) else int(rng.integers(1, 26))
        chosen = {
            "in_frac": in_frac,
            # In a large window activations must reach the ends of their range, for its sum to do so.
            "act_shift": act_shift if area < 64 else 14,
            "latent_shift": (area - 1).bit_length() if mean else int(rng.integers(0, 3)),
            "is_output": is_output,
            "max_pool": pool,
        }
        shift = chosen["act_shift"]
        shape = (size[0] * size[1], channels)
        low, high = -(1 << (WEIGHT_BITS - 1)), (1 << (WEIGHT_BITS - 1)) - 1
        bias = rng.integers(low, high + 1, channels)
        if rng.integers(2):
            bias = rng.choice([low, high, 0], channels)
        total = self.totals(shape, shift, SCORE_BITS if is_output else ACT_BITS, 0 if is_output else 3)
        if rng.integers(2):  # the ties are those of z
            largest = self.machine.max_fan_in << 22
            total = np.clip(total - (bias << in_frac), -largest, largest)
        if mean:  # a channel whose every position is at one end
            total[:, 0] = rng.choice([-(self.machine.max_fan_in << 22), self.machine.max_fan_in << 22])
        z = total + (bias << in_frac)
        score = output_score(z, shift)
        a, neg = hidden_activation(z, shift)
        if is_output:
            neg[:] = False
        whole = a.reshape(1, *size, channels)
        latents = sat(rnd(window_sums(whole, window)[0], chosen["latent_shift"]), ACT_BITS)
        order = walk_order(size, window, pool)
        window_of = np.empty(shape[0], dtype=np.int64)
        for position in order:
            window_of[position.y * size[1] + position.x] = position.window
        weights = gradient_sums(np.ones((shape[0], 1), dtype=np.int64), neg, window_of)[:, :, 0]
        pooled = max_pool(whole)[0] if pool else whole[0]

        begin = self.t
        pauses = bool(rng.integers(2))
        free = begin  # no window may end earlier
        last_output = begin
        for jt in range(tiles):
            used = min(cols, channels - jt * cols)
            for position in order:
                if pauses and rng.integers(3) == 0:
                    self.t += int(rng.integers(1, 2 * cols))
                if position.window_last or is_output:
                    self.t = max(self.t, free)
                    free = self.t + cols
                number = position.y * size[1] + position.x
                j = slice(jt * cols, jt * cols + used)
                inputs = {"layer": chosen, "size": size, "window": window, "tile": jt, "position": position}
                inputs |= {"t": self.t, "z": z[number, j].tolist()}
                encoded = self.encoded(position, pool)
                self.position(encoded, jt, used, total[number, j], bias[j])
                self.slopes(neg[number, j], inputs)
                if not is_output and (position.block_whole if pool else True) and position.block_last:
                    side = 2 if pool else 1
                    self.map(encoded, jt, pooled[position.y // side, position.x // side, j], inputs)
                if position.window_last or is_output:
                    row = divmod(position.window, -(-size[1] // window[1]))
                    found = latents[row][j], weights[position.window, j], score[number, j]
                    self.latents(position, jt, *found, is_output, inputs)
                last_output = self.t + cols + Columns.LATENT_LATENCY
                self.t += 1
        self.t = last_output
        for cycle in range(begin, last_output):
            self.timeline.drive(cycle, **{name: int(value) for name, value in chosen.items()})

    def position(self, encoded: int, jt: int, used: int, totals: np.ndarray, biases: np.ndarray) -> None:
        """A position's totals and biases, a cycle later in each further column; columns not in use carry noise."""
        self.timeline.drive(self.t, position=encoded, position_channels=used, position_tile=jt)
        for col in range(self.machine.cols):
            self.valid[self.t + col] |= 1 << col
            if col < used:
                data = {f"result_data__{col}": int(totals[col]), f"bias__{col}": int(biases[col])}
                self.timeline.drive(self.t + col, **data)

    def slopes(self, neg: np.ndarray, inputs: object) -> None:
        """The slope bits of the columns in use."""
        cycle = self.t + self.machine.cols - 1 + Columns.SLOPE_LATENCY
        used = (1 << len(neg)) - 1
        code = sum(int(bit) << col for col, bit in enumerate(neg))
        self.timeline.expect(cycle, "slope_valid", 1, inputs)
        self.timeline.expect(cycle, "slope", code, inputs, lambda port: port & used)

    def map(self, encoded: int, jt: int, values: np.ndarray, inputs: object) -> None:
        """The vector of activations, or of maxima."""
        cycle = self.t + self.machine.cols - 1 + Columns.MAP_LATENCY
        expected = {"map_valid": 1, "map_position": encoded, "map_tile": jt, "map_channels": len(values)}
        expected |= {f"map_data__{col}": int(value) for col, value in enumerate(values)}
        for port, value in expected.items():
            self.timeline.expect(cycle, port, value, inputs)

    def latents(
        self, position: Position, jt: int, values: np.ndarray, weights: np.ndarray, scores: np.ndarray,
        is_output: bool, inputs: object,
    ) -> None:
        """The latents of a window, or the scores of the output layer, column by column."""
        for col in range(len(values)):
            expected = {
                "latent_valid": 1,
                "latent_weight": 8 if is_output else int(weights[col]),
                "latent_column": col,
                "latent_window": position.window,
                "latent_y": position.y,
                "latent_tile": jt,
            }
            expected |= {"score": int(scores[col])} if is_output else {"latent": int(values[col])}
            for port, value in expected.items():
                self.timeline.expect(self.t + col + Columns.LATENT_LATENCY, port, value, inputs)

    async def run(self) -> None:
        """What was scheduled."""
        for cycle, mask in self.valid.items():
            self.timeline.drive(cycle, result_valid=mask)
        self.valid.clear()
        await self.timeline.run(self.t)


@cocotb.test()
async def layers(dut):
    """Hidden and output layers, with and without pooling, windows of 1 to 1024 positions."""
    cycles = await start(dut)
    bench = Bench(cycles)
    rng, machine = context.rng("layers"), bench.machine
    for turn in range(context.parameter("layers")):
        is_output = turn % 5 == 4
        pool = not is_output and bool(turn % 2)
        if is_output:
            size, window = (1, 1), (1, 1)
        elif turn == 0:
            size, window = (32, 32), (32, 32)
        else:
            low = 2 if pool else 1
            size = (int(rng.integers(low, 9)), int(rng.integers(low, 9)))
            window = (int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1)))
            if pool:
                window = (window[0] + window[0] % 2, window[1] + window[1] % 2)
        channels = machine.cols if turn == 0 else int(rng.integers(1, 3 * machine.cols))
        bench.layer(size, window, channels, pool, is_output, mean=turn % 3 != 1)
        await bench.run()
    await bench.timeline.run()
