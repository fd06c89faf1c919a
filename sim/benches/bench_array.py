"""The array against the golden model's matrix products and updates, and the cycles of docs/architecture.md; with the
way back of ``bp``, those of docs/rules.md."""

import cocotb
import numpy as np

from golden.fixed import update_weights, weight_random
from hdl.dense.array import Array
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from spec.machine import Machine
from spec.timing import tile_interval

FORWARD, UPDATE, HOST_READ, HOST_WRITE = range(4)
SIGNAL_MAX = 2047
"""Of a signal on its way back, 12 bits."""
HOST_HOLD = 6
"""Cycles beyond R + C from a host step until its lanes may change."""


class Bench:
    """Schedules host accesses, forward passes and updates of the array in the order of the
    contract."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        noise = ["step_addr", "delta", *(f"act__{row}" for row in range(self.machine.rows))]
        pulses = ["delta_pop", "result_valid"]
        if self.machine.learning.transposes:
            noise += [f"back_delta__{col}" for col in range(self.machine.cols)]
            pulses.append("back_valid")
        self.timeline = Timeline(cycles, context.rng("noise"), noise, pulses)
        self.rng = context.rng("host")
        self.t = cycles.now + 2
        self.update_steps = 0

    def result(self, cycle: int, value: int, inputs: object) -> None:
        """A result must be seen."""
        self.timeline.expect(cycle, "result_valid", 1, inputs)
        self.timeline.expect(cycle, "result_data", value, inputs)

    def gap(self) -> None:
        """Wait until nothing is in flight."""
        self.t += self.machine.rows + self.machine.cols + HOST_HOLD

    def host(self, op: int, row: int, col: int, addr: int, data: int) -> int:
        """One host access; returns the cycle of its result."""
        lanes = {}
        if self.machine.row_bits:
            lanes["host_row"] = row
        if self.machine.col_bits:
            lanes["host_col"] = col
        t = self.t
        self.timeline.drive(t, step_valid=1, step_op=op, step_addr=addr, step_first=1, step_last=1)
        self.gap()
        for cycle in range(t, self.t):
            self.timeline.drive(cycle, host_data=data, **lanes)
        return t + self.machine.rows + col + Array.LATENCY

    async def write(self, weight: np.ndarray, base: int) -> None:
        """Write ``weight (n_out, n_in)`` through the host's lanes."""
        for (j, i), value in np.ndenumerate(weight):
            self.host(HOST_WRITE, *self.place(weight, j, i, base), int(value))
        await self.timeline.run(self.t)

    async def read(self, weight: np.ndarray, base: int) -> None:
        """Read every weight back and compare."""
        fraction = self.machine.fraction_bits
        for (j, i), value in np.ndenumerate(weight):
            row, col, addr = self.place(weight, j, i, base)
            cycle = self.host(HOST_READ, row, col, addr, int(self.rng.integers(1 << 15)))
            inputs = {"weight": (j, i), "PE": (row, col), "word": addr}
            self.timeline.expect(cycle, "result_valid", 1, inputs)
            # The product, 1, is in the sum and must not reach the word, whatever the random bits.
            self.timeline.expect(cycle, "result_data", int(value), inputs, lambda code: code >> fraction)
        await self.timeline.run(self.t)

    def advance(self, steps: int) -> None:
        """Update steps that step the LFSRs and must leave every weight as it is."""
        for number in range(steps):
            addr = number % self.machine.weight_depth
            self.timeline.drive(self.t, step_valid=1, step_op=UPDATE, step_addr=addr, step_last=1)
            for row in range(self.machine.rows):
                self.timeline.drive(self.t + row + 1, **{f"act__{row}": 0})
            self.t += 1
        self.update_steps += steps
        self.gap()

    def place(self, weight: np.ndarray, j: int, i: int, base: int) -> tuple[int, int, int]:
        """Row, column and address of ``weight[j, i]``."""
        rows, cols = self.machine.rows, self.machine.cols
        row_tiles = -(-weight.shape[1] // rows)
        return i % rows, j % cols, base + j // cols * row_tiles + i // rows

    def walk(self, op: int, weight: np.ndarray, base: int, x: np.ndarray, deltas: np.ndarray) -> None:
        """The steps of a phase. Padding rows carry 0, padding columns the delta 0."""
        rows, cols = self.machine.rows, self.machine.cols
        n_out, n_in = weight.shape
        row_tiles, col_tiles = -(-n_in // rows), -(-n_out // cols)
        padded = np.zeros(row_tiles * rows, dtype=np.int64)
        padded[:n_in] = x
        signals = np.zeros(col_tiles * cols, dtype=np.int64)
        signals[:n_out] = deltas
        sums = weight.astype(np.int64) @ x
        timeline = self.timeline
        for jt in range(col_tiles):
            for it in range(row_tiles):
                t = self.t + it
                timeline.drive(
                    t,
                    step_valid=1,
                    step_op=op,
                    step_addr=base + jt * row_tiles + it,
                    step_first=it == 0,
                    step_last=it == row_tiles - 1,
                )
                for row in range(rows):
                    timeline.drive(t + row + 1, **{f"act__{row}": int(padded[it * rows + row])})
            for col in range(cols):
                j = jt * cols + col
                if op == UPDATE:
                    timeline.expect(self.t + col, "delta_pop", 1, j)
                    timeline.drive(self.t + col, delta=int(signals[j]))
                else:
                    cycle = self.t + row_tiles - 1 + rows + col + Array.LATENCY
                    timeline.expect(cycle, "result_valid", 1, j)
                    if j < n_out:
                        timeline.expect(cycle, "result_data", int(sums[j]), {"neuron": j, "x": x.tolist()})
            self.t += tile_interval(row_tiles, cols)

    def back(self, weight: np.ndarray, base: int, signals: np.ndarray) -> None:
        """The BACK steps of ``signals @ weight``, a row tile's one behind the other. Padding columns carry 0."""
        rows, cols = self.machine.rows, self.machine.cols
        n_out, n_in = weight.shape
        row_tiles, col_tiles = -(-n_in // rows), -(-n_out // cols)
        padded = np.zeros(col_tiles * cols, dtype=np.int64)
        padded[:n_out] = signals
        sums = signals @ weight.astype(np.int64)
        timeline = self.timeline
        for it in range(row_tiles):
            for jt in range(col_tiles):
                t = self.t + jt
                timeline.drive(
                    t,
                    step_valid=1,
                    step_op=FORWARD,
                    step_back=1,
                    step_addr=base + jt * row_tiles + it,
                    step_first=jt == 0,
                    step_last=jt == col_tiles - 1,
                )
                for col in range(cols):
                    timeline.drive(t + col + 1, **{f"back_delta__{col}": int(padded[jt * cols + col])})
            for row in range(rows):
                i = it * rows + row
                cycle = self.t + col_tiles - 1 + row + cols + Array.LATENCY
                timeline.expect(cycle, "back_valid", 1, i)
                if i < n_in:
                    timeline.expect(cycle, "back_data", int(sums[i]), {"input": i, "signals": signals.tolist()})
            self.t += max(col_tiles, rows)


@cocotb.test()
async def layers(dut):
    """Write two layers, run forward, update, advance, forward again …, and read every weight
    back."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine = bench.machine
    rng = context.rng("layers")
    rows, cols = machine.rows, machine.cols
    # Sizes that the array divides, that it does not, smaller than it, and with Rt above C.
    shapes = [(2 * cols, 2 * rows), (cols + 1, (cols + 2) * rows - 1), (1, 1)]
    weights, bases, base = [], [], 0
    for shape in shapes:
        weight = rng.integers(-32768, 32768, shape).astype(np.int16)
        weight.flat[0] = -32768
        weight.flat[-1] = 32767
        weights.append(weight)
        bases.append(base)
        base += -(-shape[0] // cols) * -(-shape[1] // rows)
    assert base <= machine.weight_depth
    for weight, base in zip(weights, bases, strict=True):
        await bench.write(weight, base)
    for weight, base in zip(weights, bases, strict=True):
        await bench.read(weight, base)

    for turn in range(3):
        for number, base in enumerate(bases):
            weight = weights[number]
            n_out, n_in = weight.shape
            x = rng.integers(-128, 128, n_in)
            deltas = rng.integers(-machine.max_delta, machine.max_delta + 1, n_out) >> int(rng.integers(0, 10))
            if turn == 0:
                x[:], deltas[0] = -128, -machine.max_delta
            bench.walk(FORWARD, weight, base, x, deltas)
            if machine.learning.transposes:
                # Steps of both directions follow each other without a gap, and an update follows at once.
                signals = rng.integers(-SIGNAL_MAX, SIGNAL_MAX + 1, n_out)
                if turn == 0:
                    signals[:] = -SIGNAL_MAX
                bench.back(weight, base, signals)
                bench.walk(FORWARD, weight, base, x, deltas)
                bench.back(weight, base, signals >> int(rng.integers(0, 11)))
            else:
                bench.gap()
            bench.walk(UPDATE, weight, base, x, deltas)
            bench.gap()
            random = weight_random(machine, n_in, n_out, bench.update_steps)
            bench.update_steps += -(-n_in // rows) * -(-n_out // cols)
            weights[number] = update_weights(weight, deltas, x, random, machine.fraction_bits)
            await bench.timeline.run(bench.t)
        bench.advance(int(rng.integers(1, 3 * machine.weight_depth)))
    for weight, base in zip(weights, bases, strict=True):
        await bench.read(weight, base)
    await bench.timeline.run()
