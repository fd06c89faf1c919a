"""A training step of convolutions and batches walked cycle by cycle: the witness of ``windowed`` and ``windowed_bp``.

Positions are issued in walk order, go down the diagonal control line and meet their PEs; sums come out at the columns,
windows' latents leave one a cycle, updates read slope bits back, with the latencies of ``docs/convolutions.md``,
section 6. Events are counted where they happen, padding with them. On the way it checks what the timing rests on: a
result a column and cycle, no two latents in one cycle, slope bits read back in the order in which they were written, no
weight visited twice in an update. The interval between positions is found by trying, not by its formula.

It is meant for tests: time grows with PEs times steps.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from sim.cycle.step import COMPARED
from sim.cycle.stepped import RESULT_LATENCY, WRITE_PORT, WalkedLayer
from spec.errors import check_choice
from spec.geometry import LayerGeometry
from spec.machine import Machine
from spec.network import Network
from spec.windowed_timing import FORWARD_TAIL, SIGNAL_TAIL, UPDATE_TAIL, setup_cycles

__all__ = ["walk_windowed_step"]

LEAD = 7
"""From the cycle in which a step's map addresses are formed to that in which it is issued to the array."""
COLUMNS = FORWARD_TAIL - (LEAD + RESULT_LATENCY - 1)
"""From the last total, in column C-1, to the end of ``forward``."""
WRITTEN = UPDATE_TAIL - (LEAD + WRITE_PORT - 2)
"""From the last write of a PE to the end of ``update``."""
PART_BITS = 18
"""A window's sum; each of its activations, 8 bits, may count 8-fold."""


@dataclass(frozen=True)
class _Position:
    """An output pixel in walk order; ``block``: its 2x2 block, None where that is cut by the map's edge."""

    y: int
    x: int
    window: int
    ends_window: bool
    block: tuple[int, int] | None
    ends_block: bool


Step = tuple[int, int, int, int]
"""Sample, column tile, step of a position, position in walk order."""


@dataclass
class _Layer:
    """A layer on its way through the array."""

    machine: Machine
    geometry: LayerGeometry
    rule: str
    output: bool
    batch: int
    random: random.Random

    def __post_init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        self.macs: Counter[str] = Counter()
        self.multiplied: Counter[str] = Counter()
        self.positions = list(_positions(self.geometry))
        self.tiles = len(range(0, self.geometry.channels, self.machine.cols))
        depth = 1 if self.geometry.depthwise else self.machine.rows
        self.steps = len(range(0, self.geometry.taps, depth))
        self.slopes: list[tuple[int, int, int]] = []
        self.largest: dict[tuple[int, int, tuple[int, int]], tuple[int, int]] = {}

    def real(self, r: int, c: int, jt: int, step: int) -> bool:
        """Whether PE(r, c) holds a weight at this step of this tile, not padding."""
        channel = jt * self.machine.cols + c
        if self.geometry.depthwise:
            return r == c and channel < self.geometry.channels
        return channel < self.geometry.channels and step * self.machine.rows + r < self.geometry.taps

    def has_signal(self, sample: int, channel: int, position: _Position) -> bool:
        """BP: whether a signal arrives here, which behind max-pooling is at the largest of a block, somewhere in it."""
        if self.rule != "bp" or self.geometry.pool != "max":
            return True
        if position.block is None:
            return False
        by, bx = position.block
        places = [(by + dy, bx + dx) for dy in (0, 1) for dx in (0, 1)]
        key = (sample, channel, position.block)
        return self.largest.setdefault(key, self.random.choice(places)) == (position.y, position.x)

    def pass_through(self, issued: Iterable[tuple[int, Step]], at_pe: Callable[[int, int, int, Step], None]) -> int:
        """Sends steps, each with its cycle, down the control line; ``at_pe(cycle, r, c, step)``. Returns the last
        step's cycle."""
        R, C = self.machine.rows, self.machine.cols
        line: deque[Step | None] = deque([None] * (R + C - 1))
        waiting = iter(issued)
        coming = next(waiting, None)
        last = 0
        for cycle in count():
            found = None
            if coming is not None and coming[0] == cycle:
                found, last = coming[1], cycle
                coming = next(waiting, None)
            line.appendleft(found)
            line.pop()
            for tap, step in enumerate(line):
                if step is not None:
                    for r in range(max(0, tap - C + 1), min(R, tap + 1)):
                        at_pe(cycle, r, tap - r, step)
            if coming is None and not any(line):
                return last
        raise AssertionError

    def forward(self, sample: int, start: int, interval: int) -> int:
        """A sample's forward pass, its first addresses formed in cycle ``start``; returns the last total's cycle."""
        machine, events = self.machine, self.events
        results: Counter[tuple[int, int]] = Counter()
        latents: Counter[int] = Counter()

        def issued() -> Iterator[tuple[int, Step]]:
            number = 0
            for jt in range(self.tiles):
                for p in range(len(self.positions)):
                    for step in range(self.steps):
                        yield start + number * interval + step + LEAD, (sample, jt, step, p)
                    number += 1

        def at_pe(cycle: int, r: int, c: int, found: Step) -> None:
            _, jt, step, p = found
            self.meet("forward", r, c, jt, step)
            events["forward", "weight_read"] += 1
            if c == 0:
                events["forward", "activation_read"] += 1
            if r == machine.rows - 1:
                events["forward", "accumulate"] += 1
                if step == self.steps - 1:
                    visible = cycle + 1 + RESULT_LATENCY
                    results[visible, c] += 1
                    self.column(sample, jt, p, c)
                    if self.positions[p].ends_window:
                        latents[visible] += 1

        self.pass_through(issued(), at_pe)
        assert set(results.values()) == {1}, "a column has two results in one cycle"
        if self.needs_latents:
            assert set(latents.values()) == {1}, "two latents leave in one cycle"
        return max(cycle for cycle, _ in results)

    @property
    def needs_latents(self) -> bool:
        """Whether something leaves the columns one by one."""
        return self.rule == "lls" or self.output or self.geometry.pool == "latent"

    def column(self, sample: int, jt: int, p: int, c: int) -> None:
        """A total arrives at its lane."""
        events, position = self.events, self.positions[p]
        real = jt * self.machine.cols + c < self.geometry.channels
        events["forward", "result"] += 1
        events["forward", "bias_read"] += p == 0
        if position.ends_window:
            events["forward", "latent"] += 1
        if c == 0:
            self.slopes.append((sample, jt, p))
        written = position.block is not None and position.ends_block
        if self.geometry.pool != "max":
            written = position.ends_window if self.geometry.pool == "latent" else True
        events["forward", "activation_write"] += real and written and not self.output

    def meet(self, purpose: str, r: int, c: int, jt: int, step: int) -> None:
        """A PE multiplies, forward or ``Wᵀδ``."""
        self.events[purpose, "multiply"] += 1
        self.macs[purpose] += self.real(r, c, jt, step)

    def interval(self) -> int:
        """Cycles from one position to the next: the least with which no two latents would leave at once, however many
        column tiles follow each other."""
        if not self.needs_latents:
            return self.steps
        ends = [n for n, position in enumerate(self.positions * (self.tiles + 1)) if position.ends_window]
        for interval in count(self.steps):
            leaving = [end * interval + c for end in ends for c in range(self.machine.cols)]
            if len(set(leaving)) == len(leaving):
                return interval
        raise AssertionError

    def signal(self, classes: int) -> int:
        """A sample's class walks and the signals that leave: cycles of the phase."""
        cycles = 0
        for _ in ("maximum", "exponentials", "errors"):
            for _ in range(classes):
                cycles += 1
        for _channel in range(self.geometry.channels):
            for _window in {position.window for position in self.positions}:
                self.events["signal", "signal_write"] += 1
                cycles += 1
        return cycles + SIGNAL_TAIL

    def transposed(self) -> int:
        """BP's ``Wᵀδ`` of all samples: the cycles up to the last step."""
        events, machine = self.events, self.machine

        def issued() -> Iterator[tuple[int, Step]]:
            cycle = 0
            for sample in range(self.batch):
                for p in range(len(self.positions)):
                    for step in range(self.steps):
                        for jt in range(self.tiles):
                            yield cycle, (sample, jt, step, p)
                            cycle += 1

        def at_pe(cycle: int, r: int, c: int, found: Step) -> None:
            sample, jt, step, p = found
            events["signal", "add"] += 1
            events["signal", "accumulate"] += c == machine.cols - 1
            events["signal", "weight_read"] += 1
            self.macs["signal"] += self.real(r, c, jt, step)
            if self.has_signal(sample, jt * machine.cols + c, self.positions[p]):
                events["signal", "multiply"] += 1
                events["signal", "delta_read"] += r == 0
                self.multiplied["signal"] += self.real(r, c, jt, step)

        events["signal", "delta_write"] += self.batch * math.prod(self.geometry.input)
        return self.pass_through(issued(), at_pe) + 1

    def update(self) -> int:
        """The update of all samples: cycles of the phase, which end after the last write."""
        machine, events, positions = self.machine, self.events, self.positions
        apart = self.rule == "dfa" or (self.rule == "bp" and self.geometry.pool != "latent")
        filled: dict[tuple[int, int], int] = {}
        visited: Counter[tuple[int, int, int, int]] = Counter()
        writes_end = 0
        largest = (1 << PART_BITS - 1) // (8 * 128)
        steps = [
            (sample, jt, step, p)
            for jt in range(self.tiles)
            for step in range(self.steps)
            for sample in range(self.batch)
            for p in range(len(positions))
        ]
        # One tile after the other, the walk of the samples again and again: as it wrote them.
        written = {jt: [found for found in self.slopes if found[1] == jt] for jt in range(self.tiles)}

        def at_pe(cycle: int, r: int, c: int, found: Step) -> None:
            nonlocal writes_end
            sample, jt, step, p = found
            position, real = positions[p], self.real(r, c, jt, step)
            self.macs["update"] += real
            if c == 0:
                events["update", "activation_read"] += 1
            if r == c == 0:
                assert written[jt][sample * len(positions) + p] == (sample, jt, p), "another position's slope bits"
                events["update", "slope_read"] += 1
            if r == 0 and position.ends_window:
                events["update", "signal_read"] += 1
            if apart:
                applied = self.has_signal(sample, jt * machine.cols + c, position)
            else:
                events["update", "window_add"] += 1
                filled[r, c] = filled.get((r, c), 0) + 1
                applied = position.ends_window or filled[r, c] == largest
            if applied:
                filled[r, c] = 0
                events["update", "multiply"] += 1
                events["update", "delta_read"] += r == 0
                self.multiplied["update"] += real
            if (sample, p) == (0, 0):
                events["update", "weight_read"] += 1
                visited[r, c, jt, step] += 1
            if (sample, p) == (self.batch - 1, len(positions) - 1):
                if r == c or not self.geometry.depthwise:
                    events["update", "weight_write"] += 1
                writes_end = max(writes_end, cycle + WRITE_PORT)

        self.pass_through(((cycle + LEAD, found) for cycle, found in enumerate(steps)), at_pe)
        assert set(visited.values()) == {1}, "a weight is visited twice"
        return writes_end + 1 + WRITTEN


def walk_windowed_step(
    machine: Machine, network: Network, rule: str = "lls", batch: int | None = None, seed: int = 0
) -> list[WalkedLayer]:
    """Walks the layers of a training step of ``lls``, ``bp`` or ``dfa``.

    ``seed``: of the places of the largest in max-pooling's blocks. ``multiplied`` of a layer counts real weights alone.
    """
    check_choice("rule", rule, COMPARED)
    batch = network.recipe.batch if batch is None else batch
    walked = []
    for number, geometry in enumerate(network.geometry):
        output = number == len(network.geometry) - 1
        layer = _Layer(machine, geometry, rule, output, batch, random.Random(f"{seed} {number}"))
        cycles = {"setup": setup_cycles(machine), "finish": 0, "signal": 0, "forward": 0}
        if number == 0:
            layer.events["forward", "activation_write"] += batch * math.prod(geometry.input)
        streamed = rule != "lls" and not output
        start, interval = 0, layer.interval()
        for sample in range(batch):
            total = layer.forward(sample, start, interval)
            if streamed:
                # The next sample's first position follows as if it were this one's.
                start += layer.tiles * len(layer.positions) * interval
            else:
                cycles["forward"] += total + COLUMNS + 1
                if rule == "lls" or output:
                    cycles["signal"] += layer.signal(network.classes)
            if streamed and sample == batch - 1:
                cycles["forward"] += total + COLUMNS + 1
        if streamed:
            cycles["setup"] += setup_cycles(machine)
        if number > 0 and rule == "bp":
            cycles["signal"] += layer.transposed()
        cycles["update"] = layer.update()
        walked.append(WalkedLayer(cycles, dict(layer.events), dict(layer.macs), dict(layer.multiplied)))
    return walked


def _positions(geometry: LayerGeometry) -> Iterator[_Position]:
    """The positions of a map in walk order: windows, in them blocks where the layer max-pools, in them pixels."""
    (height, width, _), (wh, ww) = geometry.output, geometry.window
    side = 2 if geometry.pool == "max" else 1
    window = 0
    for top in range(0, height, wh):
        for left in range(0, width, ww):
            bottom, right = min(top + wh, height), min(left + ww, width)
            found = []
            for by in range(top, bottom, side):
                for bx in range(left, right, side):
                    whole = by + side <= bottom and bx + side <= right
                    pixels = [
                        (y, x) for y in range(by, min(by + side, bottom)) for x in range(bx, min(bx + side, right))
                    ]
                    found += [(pixel, (by, bx) if whole else None, pixel == pixels[-1]) for pixel in pixels]
            for index, ((y, x), block, ends_block) in enumerate(found):
                yield _Position(y, x, window, index == len(found) - 1, block, ends_block)
            window += 1
