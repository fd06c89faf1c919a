"""Positions, tap reader and map memory together: every row's activation in every step of random layers."""

from collections.abc import Iterator

import cocotb
import numpy as np

from golden.maps import channel_patches, patches
from hdl.windowed.map_memory import MapMemory
from hdl.windowed.taps import TapReader
from sim.benches import context
from sim.benches.streams import Cycles, start
from sim.benches.timeline import Timeline
from sim.benches.windowed_order import walk_order
from spec.geometry import LayerGeometry
from spec.layout import excess, pitch, rewind_digits, step_digits, steps, words
from spec.machine import Machine

READ = TapReader.LATENCY + MapMemory.LATENCY
"""Cycles from a step to row 0's activation."""


class Bench:
    """Keeps the memory's elements and when each was written; schedules layers one after the other."""

    def __init__(self, cycles: Cycles):
        self.machine: Machine = context.design().machine
        rows, cols = self.machine.rows, self.machine.cols
        self.size = self.machine.activation_depth * rows
        self.inputs = context.inputs()
        noise = ["base", "tile_channels", "advance", "rewind", "write_element", "write_count", "load_element"]
        noise += ["load_data", *(f"write_data__{lane}" for lane in range(cols))]
        self.lanes = [f"act__{row}" for row in range(rows)]
        self.timeline = Timeline(cycles, context.rng("noise"), noise, self.lanes)
        self.rng = context.rng("reader")
        self.t = cycles.now + 1
        self.memory = np.zeros(self.size, dtype=np.int64)
        self.written = np.zeros(self.size, dtype=np.int64)

    def write(self, cycle: int, element: int, values: list[int]) -> None:
        """A vector write; a load that comes in the same cycle has to wait."""
        data = {f"write_data__{lane}": value for lane, value in enumerate(values)}
        self.timeline.drive(cycle, write_valid=1, write_element=element, write_count=len(values), **data)
        self.timeline.expect(cycle, "load_ready", 0, "a write")
        if self.rng.integers(2):
            self.timeline.drive(cycle, load_valid=1)
        self.memory[element : element + len(values)] = values
        self.written[element : element + len(values)] = cycle

    def load(self, cycle: int, element: int, value: int) -> None:
        """A load that is taken at once."""
        self.timeline.drive(cycle, load_valid=1, load_element=element, load_data=value)
        self.timeline.expect(cycle, "load_ready", 1, "a load")
        self.memory[element], self.written[element] = value, cycle

    def fill(self, cycle: int, elements: list[int]) -> int:
        """Random values into elements, in order, by writes and loads; returns the cycle after the last."""
        at = 0
        while at < len(elements):
            count = int(self.rng.integers(0, self.machine.cols + 1))
            run = elements[at : at + count]
            if self.rng.integers(3) == 0:
                self.load(cycle, elements[at], self.value())
                at += 1
            elif run == list(range(elements[at], elements[at] + len(run))):
                self.write(cycle, elements[at], [self.value() for _ in run])
                at += len(run)
            cycle += 1
        return cycle

    def value(self) -> int:
        """An element: a corner code often."""
        return int(self.rng.choice([-128, 127])) if self.rng.integers(4) == 0 else int(self.rng.integers(-128, 128))

    def layer(self, layer: LayerGeometry, window: tuple[int, int], pool: bool, samples: int, update: bool) -> None:
        """Maps are written while they are read, each element just in time; `window` and `pool` are free."""
        machine, rng, timeline = self.machine, self.rng, self.timeline
        rows = machine.rows
        height, width, channels = layer.input
        row_pitch, size = pitch(layer, rows), words(layer, rows) * rows
        gap = int(rng.integers(0, (self.size - samples * size) // samples + 1))
        bases = [number * (size + gap) + int(rng.integers(0, gap + 1)) for number in range(samples)]
        if rng.integers(2):
            bases = [base // rows * rows for base in bases]
        indices = np.arange(height)[:, None, None] * row_pitch + np.arange(width)[:, None] * channels
        indices = indices + np.arange(channels)
        begin = self.t
        elements = [int(base + index) for base in bases for index in indices.reshape(-1)]
        written = self.fill(begin, elements)
        maps = [self.memory[base + indices] for base in bases]

        prepared = begin + int(rng.integers(0, 3))
        self.parameters(layer, window, pool, prepared, begin)
        begins = prepared + rows  # `ready` has been low for rows - 1 cycles
        started = int(rng.integers(begin, begins))
        timeline.drive(started, start=1)
        self.walk(layer, window, pool, bases, maps, update, started, begins)
        self.t = max(self.t, written)  # strides pass over the last elements of some maps
        self.disturb(written, self.t, set(elements))
        for cycle in range(begin, self.t):
            timeline.drive(cycle, **self.held)
        for cycle in range(prepared, self.t):
            timeline.expect(cycle, "ready", not prepared < cycle < begins, layer)

    def parameters(
        self, layer: LayerGeometry, window: tuple[int, int], pool: bool, prepared: int, begin: int
    ) -> None:
        """What is held over the layer."""
        rows = self.machine.rows
        step, rewind = step_digits(layer, rows), rewind_digits(layer, rows)
        self.held = {
            "height": layer.output[0],
            "width": layer.output[1],
            "window_height": window[0],
            "window_width": window[1],
            "pool": pool,
            "kernel_height": layer.kernel[0],
            "kernel_width": layer.kernel[1],
            "channels": layer.input[2],
            "stride": layer.stride,
            "padding": layer.padding,
            "input_height": layer.input[0],
            "input_width": layer.input[1],
            "pitch": pitch(layer, rows),
            "excess": excess(layer, rows),
            "depthwise": layer.depthwise,
            **{f"step_{name}": value for name, value in step._asdict().items()},
            **{f"rewind_{name}": value for name, value in rewind._asdict().items()},
        }
        self.timeline.drive(prepared, prepare=1)

    def walk(
        self, layer: LayerGeometry, window: tuple[int, int], pool: bool, bases: list[int], maps: list[np.ndarray],
        update: bool, started: int, begins: int,
    ) -> None:
        """The steps in either loop order, and what each shows: its position, and its rows' activations."""
        machine, timeline, rng = self.machine, self.timeline, self.rng
        rows, cols = machine.rows, machine.cols
        order = walk_order(layer.output[:2], window, pool)
        count = steps(layer, rows)
        tiles = -(-layer.channels // cols) if layer.depthwise else int(rng.integers(1, 3))
        cut = channel_patches if layer.depthwise else patches
        seen = [cut(map_[None], layer.kernel, layer.stride, layer.padding)[0] for map_ in maps]
        needed = [self.needed(layer, base) for base in bases]
        samples = range(len(maps))

        def loops() -> Iterator[tuple[int, int, int, int]]:
            """Tile, sample, step and position's place in the order."""
            for jt in range(tiles):
                if update:
                    yield from ((jt, b, s, p) for s in range(count) for b in samples for p in range(len(order)))
                else:
                    yield from ((jt, 0, s, p) for p in range(len(order)) for s in range(count))

        t = begins
        hurried = bool(rng.integers(3))
        shown = started + 1  # from here on the position is visible
        for jt, sample, step, place in loops():
            position = order[place]
            number = position.y * layer.output[1] + position.x
            used = min(cols, layer.channels - jt * cols) if layer.depthwise else 0
            if layer.depthwise:
                acts = np.pad(seen[sample][number, jt * cols : jt * cols + used, step], (0, rows - used))
                sources = needed[sample][number, jt * cols : jt * cols + used, step]
            else:
                acts = seen[sample][number, step * rows : (step + 1) * rows]
                sources = needed[sample][number, step * rows : (step + 1) * rows]
                acts = np.pad(acts, (0, rows - len(acts)))
            sources = sources[sources >= 0]
            ready = int(self.written[sources].max(initial=0)) + MapMemory.WRITE_LATENCY - TapReader.LATENCY
            if not hurried and rng.integers(4) == 0:
                t += int(rng.integers(1, 4))
            t = max(t, ready)
            if update:
                advance = place == len(order) - 1 and sample == len(maps) - 1
                rewind = step == count - 1
                moves = True
            else:
                advance, rewind = True, step == count - 1
                moves = step == count - 1
            inputs = {"layer": layer, "sample": sample, "tile": jt, "step": step, "position": position, "t": t}
            base = bases[sample] + (jt * cols if layer.depthwise else 0)
            timeline.drive(t, step_valid=1, base=base, advance=advance, next_position=moves)
            if advance:
                timeline.drive(t, rewind=rewind)
            if layer.depthwise:
                timeline.drive(t, tile_channels=used)
            for row, value in enumerate(acts):
                timeline.expect(t + READ + row, self.lanes[row], int(value), inputs)
            for cycle in range(shown, t + 1):
                for name, value in vars(position).items():
                    if name != "block_whole" or (pool and position.block_last):
                        timeline.expect(cycle, name, value, inputs)
            shown = t + 1
            t += 1
        self.t = t + READ + rows

    def needed(self, layer: LayerGeometry, base: int) -> np.ndarray:
        """The elements that positions read, shaped as their patches; -1 for padding."""
        height, width, channels = layer.input
        rows = self.machine.rows
        at = base + np.arange(height)[:, None, None] * pitch(layer, rows) + np.arange(width)[:, None] * channels
        # One more than the element, so that the zeros of padding stand apart.
        elements = 1 + at + np.arange(channels)
        cut = channel_patches if layer.depthwise else patches
        return cut(elements[None], layer.kernel, layer.stride, layer.padding)[0] - 1

    def disturb(self, begin: int, end: int, kept: set[int]) -> None:
        """Writes and loads to other elements, gaps between rows among them, while the map is read."""
        rng, cols = self.rng, self.machine.cols
        for cycle in range(begin, end):
            if rng.integers(2):
                count = int(rng.integers(0, cols + 1))
                element = int(rng.integers(self.size - cols))
                if kept.isdisjoint(range(element, element + count)):
                    self.write(cycle, element, [self.value() for _ in range(count)])
            elif rng.integers(3) == 0:
                element = int(rng.integers(self.size))
                if element not in kept:
                    self.load(cycle, element, self.value())


def random_layer(rng: np.random.Generator, machine: Machine, side: int, samples: int, depthwise: bool) -> LayerGeometry:
    """A layer whose maps fit: kernels 1x1 to 5x5, strides 1 and 2, paddings below the kernel's sides."""
    rows = machine.rows
    while True:
        kernel = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        height, width = int(rng.integers(1, side + 1)), int(rng.integers(1, side + 1))
        channels = int(rng.integers(1, 2 * rows + 2)) if depthwise else int(rng.choice([1, 2, 3, 5, rows, 2 * rows]))
        padding = int(rng.integers(0, min(kernel)))
        stride = int(rng.integers(1, 3))
        if height + 2 * padding < kernel[0] or width + 2 * padding < kernel[1]:
            continue
        layer = LayerGeometry(
            (height, width, channels), channels if depthwise else 4, 7, 4,
            kernel=kernel, stride=stride, padding=padding, depthwise=depthwise,
        )  # fmt: skip
        work = layer.positions * steps(layer, rows) * (-(-channels // machine.cols) if depthwise else 1)
        fits = samples * words(layer, rows) <= machine.activation_depth
        if layer.taps <= machine.max_fan_in and fits and work <= 300:
            return layer


@cocotb.test()
async def layers(dut):
    """Random layers, in both loop orders, and the corners: a fully connected layer, the largest kernel, one pixel."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, rng = bench.machine, context.rng("layers")
    side = dict(context.design().arguments)["max_side"]
    bench.t = bench.fill(bench.t, list(range(bench.size)))
    await bench.timeline.run(bench.t)
    corners = [
        LayerGeometry((1, 1, machine.max_fan_in), 4, 7, 4),
        LayerGeometry((1, 1, 1), 4, 7, 4),
        LayerGeometry((5, 5, 2), 4, 7, 4, kernel=(5, 5), padding=4),
        LayerGeometry((6, 7, 2), 4, 7, 4, kernel=(5, 5), padding=2, stride=2),
        LayerGeometry((side, 3, 1), 4, 7, 4, kernel=(3, 3), padding=1),
        LayerGeometry((2, side, 3), 4, 7, 4, kernel=(2, 1), stride=2),
    ]
    for turn in range(context.parameter("layers")):
        samples = int(rng.integers(1, 4)) if turn % 2 else 1
        layer = corners[turn] if turn < len(corners) else random_layer(rng, machine, side, samples, turn % 3 == 0)
        if samples * words(layer, machine.rows) > machine.activation_depth:
            samples = 1
        window = (int(rng.integers(1, layer.output[0] + 1)), int(rng.integers(1, layer.output[1] + 1)))
        if rng.integers(3) == 0:
            window = layer.window
        bench.layer(layer, window, bool(rng.integers(2)), samples, update=turn % 2 == 1)
        await bench.timeline.run(bench.t)
    await bench.timeline.run()
