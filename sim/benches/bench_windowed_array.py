"""The array that sums gradients over windows: forward sums, batches of updates and host access, against the golden
model."""

from collections import defaultdict
from dataclasses import dataclass

import cocotb
import numpy as np

from golden.fixed import moved, weight_random
from golden.windowed import depthwise_random, gradient, gradient_sums, pre_activation
from hdl.windowed.array import WindowArray
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from spec.lfsr import STATE_BITS
from spec.machine import Machine

FORWARD, UPDATE, HOST_READ, HOST_WRITE = range(4)
HOST_HOLD = 6
"""Cycles beyond R + C from a host step until its lanes may change."""
WINDOW, COARSE_WINDOW, COARSE = 128, 8, 4
"""Positions of a window, and of one whose inputs are shifted left by `COARSE`."""


@dataclass
class Layer:
    """A layer's weights `(N, taps)` and where they are; depthwise channel `j` in PE(j % C, j % C)."""

    weight: np.ndarray
    base: int
    depthwise: bool
    machine: Machine

    @property
    def steps(self) -> int:
        """Steps a position."""
        taps = self.weight.shape[1]
        return taps if self.depthwise else -(-taps // self.machine.rows)

    @property
    def tiles(self) -> int:
        """Column tiles."""
        return -(-len(self.weight) // self.machine.cols)

    def place(self, j: int, t: int) -> tuple[int, int, int]:
        """Row, column and word of a weight."""
        rows, cols = self.machine.rows, self.machine.cols
        row, step = (j % cols, t) if self.depthwise else (t % rows, t // rows)
        return row, j % cols, self.base + j // cols * self.steps + step

    def acts(self, x: np.ndarray, jt: int, step: int) -> np.ndarray:
        """What each row gets in a step of position `x` `(taps,)` (depthwise `(N, taps)`): 0 where it has no tap."""
        rows, cols = self.machine.rows, self.machine.cols
        found = x[jt * cols : (jt + 1) * cols, step] if self.depthwise else x[step * rows : (step + 1) * rows]
        return np.pad(found, (0, rows - len(found)))


class Bench:
    """Schedules steps in the order of the contract; `memory` is what every word of every PE must hold."""

    def __init__(self, cycles: Cycles):
        machine: Machine = context.design().machine
        self.machine = machine
        self.ports = set(context.inputs())
        lanes = [f"act__{row}" for row in range(machine.rows)] + [f"delta__{col}" for col in range(machine.cols)]
        flags = [f"step_{name}" for name in ("op", "addr", "first", "last", "window_first", "window_last", "diagonal")]
        host = [name for name in ("host_row", "host_col", "host_data") if name in self.ports]
        noise = [*lanes, *flags, *host, "neg"]
        self.timeline = Timeline(cycles, context.rng("noise"), noise, ["result_valid"])
        self.rng = context.rng("host")
        self.t = cycles.now + 2
        self.begin = self.t
        self.update_steps = 0
        self.memory = np.zeros((machine.rows, machine.cols, machine.weight_depth), dtype=np.int64)
        self.readable: dict[int, int] = {}
        self.valid: dict[int, int] = defaultdict(int)
        self.neg: dict[int, int] = {}
        self.coarse: dict[int, int] = {}

    def result(self, cycle: int, col: int) -> None:
        """Column `col` shows a result."""
        self.valid[cycle] |= 1 << col

    def gap(self) -> None:
        """Wait until nothing is in flight."""
        self.t += self.machine.rows + self.machine.cols + HOST_HOLD

    def pause(self) -> None:
        """No step for a few cycles, often for none."""
        self.t += int(self.rng.choice([0, 0, 1, 3]))

    def wait(self, addr: int) -> None:
        """Until a word that was written can be read."""
        self.t = max(self.t, self.readable.get(addr, 0))

    def host(self, op: int, row: int, col: int, addr: int, data: int) -> int:
        """One host access; returns the cycle of its result."""
        self.wait(addr)
        t = self.t
        self.timeline.drive(t, step_valid=1, step_op=op, step_addr=addr, step_first=1, step_last=1)
        self.gap()
        held = {"host_row": row, "host_col": col, "host_data": data}
        for cycle in range(t, self.t):
            self.timeline.drive(cycle, **{name: value for name, value in held.items() if name in self.ports})
        return t + self.machine.rows + col + WindowArray.LATENCY

    def write(self, row: int, col: int, addr: int, value: int) -> None:
        """Write a word of a PE."""
        self.host(HOST_WRITE, row, col, addr, value)
        self.memory[row, col, addr] = value

    def read_all(self) -> None:
        """Read every word of every PE."""
        fraction = self.machine.fraction_bits
        for (row, col, addr), value in np.ndenumerate(self.memory):
            cycle = self.host(HOST_READ, row, col, addr, int(self.rng.integers(1 << 15)))
            inputs = {"PE": (row, col), "word": addr}
            self.result(cycle, col)
            port = f"result_data__{col}"
            self.timeline.expect(cycle, port, int(value), inputs, lambda code: code >> fraction)

    def acts(self, t: int, values: np.ndarray) -> None:
        """A step's activations, skewed."""
        for row, value in enumerate(values):
            self.timeline.drive(t + row + 1, **{f"act__{row}": int(value)})

    def advance(self, steps: int) -> None:
        """Tiles of their own that step the LFSRs and must leave every weight as it is."""
        flags = {"step_first": 1, "step_last": 1, "step_window_first": 1, "step_window_last": 1}
        for number in range(steps):
            addr = number % self.machine.weight_depth
            self.wait(addr)
            diagonal = int(self.rng.integers(2))
            self.timeline.drive(
                self.t, step_valid=1, step_op=UPDATE, step_addr=addr, step_diagonal=diagonal, **flags
            )
            self.acts(self.t, np.zeros(self.machine.rows, dtype=np.int64))
            self.readable[addr] = self.t + WindowArray.WRITE_LATENCY
            self.t += 1
        self.update_steps += steps

    def forward(self, layer: Layer, x: np.ndarray, pauses: bool) -> None:
        """A forward pass over positions `x (P, taps)`, depthwise `(P, N, taps)`."""
        rows, cols = self.machine.rows, self.machine.cols
        channels = len(layer.weight)
        z = pre_activation(x, layer.weight, np.zeros(channels, dtype=np.int64), 0)
        for jt in range(layer.tiles):
            for position in range(len(x)):
                for step in range(layer.steps):
                    addr = layer.base + jt * layer.steps + step
                    self.wait(addr)
                    if pauses:
                        self.pause()
                    self.timeline.drive(
                        self.t, step_valid=1, step_op=FORWARD, step_addr=addr,
                        step_first=step == 0, step_last=step == layer.steps - 1,
                    )  # fmt: skip
                    self.acts(self.t, layer.acts(x[position], jt, step))
                    self.t += 1
                for col in range(cols):
                    cycle = self.t - 1 + rows + col + WindowArray.LATENCY
                    self.result(cycle, col)
                    j = jt * cols + col
                    if j < channels:
                        inputs = {"channel": j, "position": position, "depthwise": layer.depthwise}
                        self.timeline.expect(cycle, f"result_data__{col}", int(z[position, j]), inputs)

    def update(
        self, layer: Layer, x: np.ndarray, neg: np.ndarray, windows: np.ndarray, d: np.ndarray, coarse: int,
        pauses: bool,
    ) -> None:
        """An update from positions `x (P, taps)`, slopes `neg (P, N)`, signals `d (windows, N)`; `windows (P,)` says
        which is whose, in order. Samples are simply further windows."""
        machine, timeline = self.machine, self.timeline
        cols = machine.cols
        channels, taps = layer.weight.shape
        change = gradient(gradient_sums(x, neg, windows), d, coarse)
        bits = depthwise_random if layer.depthwise else weight_random
        random = bits(machine, taps, channels, self.update_steps)
        self.update_steps += layer.tiles * layer.steps
        ends = [p == len(x) - 1 or windows[p + 1] != windows[p] for p in range(len(x))]
        for jt in range(layer.tiles):
            for step in range(layer.steps):
                addr = layer.base + jt * layer.steps + step
                self.wait(addr)
                for position, window in enumerate(windows):
                    if pauses:
                        self.pause()
                    t, ended = self.t, ends[position]
                    timeline.drive(
                        t, step_valid=1, step_op=UPDATE, step_addr=addr, step_diagonal=layer.depthwise,
                        step_window_first=position == 0 or ends[position - 1], step_window_last=ended,
                    )  # fmt: skip
                    if ended:
                        timeline.drive(t, step_first=window == 0, step_last=position == len(x) - 1)
                    self.acts(t, layer.acts(x[position], jt, step))
                    for col in range(cols):
                        j = jt * cols + col
                        slope = int(neg[position, j]) if j < channels else int(self.rng.integers(2))
                        self.neg[t + col] = self.neg.get(t + col, 0) | slope << col | 1 << (16 + col)
                        if ended:
                            timeline.drive(t + col, **{f"delta__{col}": -int(d[window, j]) if j < channels else 0})
                    self.coarse[t] = coarse > 0
                    self.t += 1
                self.readable[addr] = self.t - 1 + WindowArray.WRITE_LATENCY
        layer.weight = moved(layer.weight, change, random, machine.fraction_bits)
        for (j, t), value in np.ndenumerate(layer.weight):
            self.memory[layer.place(j, t)] = value

    async def run(self) -> None:
        """What was scheduled: lanes that several steps share are put together first."""
        self.gap()
        cols = self.machine.cols
        for cycle, mask in self.valid.items():
            self.timeline.expect(cycle, "result_valid", mask)
        for cycle, code in self.neg.items():
            # Columns without a step in this cycle get noise.
            named = code >> 16
            self.timeline.drive(cycle, neg=code & named | int(self.rng.integers(1 << cols)) & ~named)
        if self.coarse:
            # Stable while update steps are on their way: it changes halfway between two that differ.
            last, previous = min(self.coarse) - 1, 0
            for cycle in sorted(self.coarse):
                value = self.coarse[cycle]
                middle = (last + cycle) // 2
                for at in range(last + 1, cycle + 1):
                    self.timeline.drive(at, coarse=value if at > middle else previous)
                last, previous = cycle, value
            for at in range(last + 1, self.t):
                self.timeline.drive(at, coarse=previous)
        self.valid.clear()
        self.neg.clear()
        self.coarse.clear()
        await self.timeline.run(self.t)


def inputs_of(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> np.ndarray:
    """Activations: the corner -128, the corners mixed, or any."""
    if kind == 0:
        return np.full(shape, -128, dtype=np.int64)
    return rng.choice([-128, 127, 0, 1], shape) if kind == 1 else rng.integers(-128, 128, shape)


def windows_of(rng: np.random.Generator, sizes: list[int]) -> np.ndarray:
    """Which window each position belongs to."""
    return np.repeat(np.arange(len(sizes)), sizes)


@cocotb.test()
async def layers(dut):
    """Write every word, then run layers forward and update them from windows of 1 to 128 positions; read every word."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, rng = bench.machine, context.rng("layers")
    rows, cols = machine.rows, machine.cols
    # Sizes that the array divides, that it does not, smaller than it; depthwise with a tile that is not full.
    shapes = [(2 * cols, 2 * rows, False), (cols + 1, 3 * rows - 1, False), (1, 1, False)]
    shapes += [(cols + 1, 4, True), (1, machine.max_fan_in, False)]
    layers, base = [], 0
    for row, col, addr in np.ndindex(bench.memory.shape):
        bench.memory[row, col, addr] = rng.integers(-32768, 32768)
    for channels, taps, depthwise in shapes:
        weight = rng.choice([-32768, 32767, 0, 1, -1], (channels, taps)).astype(np.int16)
        mixed = rng.integers(2, size=weight.shape) == 1
        weight[mixed] = rng.integers(-32768, 32768, int(mixed.sum()))
        if channels == 1:
            weight[:] = -32768
        layer = Layer(weight, base, depthwise, machine)
        words = slice(base, base + layer.tiles * layer.steps)
        if depthwise:
            bench.memory[:, :, words] = 0  # off the diagonal there is no weight
        for (j, t), value in np.ndenumerate(weight):
            bench.memory[layer.place(j, t)] = value
        layers.append(layer)
        base = words.stop
    assert base <= machine.weight_depth
    for (row, col, addr), value in np.ndenumerate(bench.memory.copy()):
        bench.write(row, col, addr, int(value))
    await bench.run()
    bench.read_all()
    await bench.run()

    coarse_possible = machine.fraction_bits > STATE_BITS
    largest = machine.max_delta
    for turn in range(context.parameter("turns")):
        for layer in layers:
            channels, taps = layer.weight.shape
            cut = (channels, taps) if layer.depthwise else (taps,)
            x = inputs_of(rng, (int(rng.integers(1, 5)), *cut), turn % 3)
            bench.forward(layer, x, pauses=turn % 2 == 1)
            coarse = COARSE if coarse_possible and turn % 2 else 0
            limit = COARSE_WINDOW if coarse else WINDOW
            sizes = [[1], [limit], [1, 2, 1], [4, 2, 5, limit // 2, 1]][int(rng.integers(4))]
            x = inputs_of(rng, (sum(sizes), *cut), int(rng.integers(3)))
            neg = rng.integers(2, size=(sum(sizes), channels)) == 1
            if rng.integers(3) == 0:
                neg[:] = False
            d = rng.integers(-largest, largest + 1, (len(sizes), channels)) >> int(rng.integers(0, 18))
            if turn % 3 == 0:
                d[:] = rng.choice([-largest, largest], d.shape)
            bench.update(layer, x, neg, windows_of(rng, sizes), d, coarse, pauses=turn % 2 == 0)
            if rng.integers(2):
                bench.forward(layer, inputs_of(rng, (2, *cut), 2), pauses=False)
        bench.advance(int(rng.integers(1, 2 * machine.weight_depth)))
        await bench.run()
    bench.read_all()
    await bench.run()
