"""A batch of convolutions walked cycle by cycle, under each learning rule: the witness of ``windowed``.

Positions are issued in walk order, go down the diagonal control line and meet their PEs; sums come out at the columns,
windows' latents leave one a cycle, updates read slope bits back, with the latencies of ``docs/convolutions.md``,
section 6, in the order of phases of ``docs/rules.md``, sections 5 and 6. Events are counted where they happen, padding
with them. On the way it checks what the timing rests on: a result a column and cycle, no two latents in one cycle,
slope bits read back in the order in which they were written, no weight visited twice in an update, on the way back a
total a cycle, every product of the forward pass once, and the last signal there before it is needed. The interval
between positions is found by trying, not by its formula.

It is meant for tests: time grows with PEs times steps.
"""

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TypeVar

from sim.cycle.stepped import (
    PHASES,
    RESULT_LATENCY,
    WRITE_PORT,
    Visit,
    Walk,
    WalkedLayer,
    merged,
    walk_score_parameters,
)
from spec.geometry import LayerGeometry
from spec.machine import Machine
from spec.network import Network
from spec.rules import Rule
from spec.windowed import Windows, windows_of
from spec.windowed_timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FEEDBACK_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    LABEL_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SIGNAL_TAIL,
    UPDATE_TAIL,
    setup_cycles,
)

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


S = TypeVar("S")


@dataclass(frozen=True)
class _BackStep:
    """A step of the way back: for what the layer read at ``place``, the tap at ``kernel`` of the position that reads it
    there, if there is one."""

    sample: int
    place: tuple[int, int]
    row_tile: int
    tile: int
    kernel: tuple[int, int]
    position: tuple[int, int] | None
    last: bool


@dataclass
class _Layer:
    """A layer on its way through the array."""

    machine: Machine
    geometry: LayerGeometry
    rule: Rule
    output: bool
    train: bool
    batch: int

    def __post_init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        self.macs: Counter[str] = Counter()
        self.multiplied: Counter[str] = Counter()
        self.windows = windows_of(self.geometry, self.machine)
        self.chosen = self.rule.transposes and self.geometry.pool == "max"
        self.positions = list(_positions(self.windows, self.geometry.pool == "max"))
        self.tiles = len(range(0, self.geometry.channels, self.machine.cols))
        depth = 1 if self.geometry.depthwise else self.machine.rows
        self.steps = len(range(0, self.geometry.taps, depth))
        self.passed = 0
        self.slopes: list[tuple[int, int, int]] = []

    def real(self, r: int, c: int, jt: int, step: int) -> bool:
        """Whether PE(r, c) holds a weight at this step of this tile, not padding."""
        channel = jt * self.machine.cols + c
        if self.geometry.depthwise:
            return r == c and channel < self.geometry.channels
        return channel < self.geometry.channels and step * self.machine.rows + r < self.geometry.taps

    def adds(self, position: _Position) -> bool:
        """Whether a pixel has a slope bit and a part in the gradient: under BP one of a block, said to be the last."""
        return position.ends_block or not self.chosen

    def pass_through(self, issued: Iterable[tuple[int, S]], at_pe: Callable[[int, int, int, S], None]) -> int:
        """Sends steps, each with its cycle, down the control line; ``at_pe(cycle, r, c, step)``. Returns the last
        step's cycle."""
        R, C = self.machine.rows, self.machine.cols
        line: deque[S | None] = deque([None] * (R + C - 1))
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

    def forward(self) -> int:
        """The next sample's forward pass: cycles of the phase."""
        machine, events, sample = self.machine, self.events, self.passed
        self.passed += 1
        results: Counter[tuple[int, int]] = Counter()
        latents: Counter[int] = Counter()

        def issued() -> Iterator[tuple[int, Step]]:
            number = 0
            for jt in range(self.tiles):
                for p in range(len(self.positions)):
                    for step in range(self.steps):
                        yield number * self.interval + step + LEAD, (sample, jt, step, p)
                    number += 1

        def at_pe(cycle: int, r: int, c: int, found: Step) -> None:
            _, jt, step, p = found
            self.macs["forward"] += self.real(r, c, jt, step)
            events["forward", "multiply"] += 1
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
        return max(cycle for cycle, _ in results) + COLUMNS + 1

    @property
    def needs_latents(self) -> bool:
        """Whether something leaves the columns one by one."""
        return self.rule.latents or self.output or self.geometry.pool == "latent"

    def column(self, sample: int, jt: int, p: int, c: int) -> None:
        """A total arrives at its lane."""
        events, position = self.events, self.positions[p]
        real = jt * self.machine.cols + c < self.geometry.channels
        events["forward", "result"] += 1
        events["forward", "bias_read"] += p == 0
        if position.ends_window:
            events["forward", "latent"] += 1
        if c == 0 and self.adds(position):
            self.slopes.append((sample, jt, p))
            events["update", "slope_write"] += self.train
        written = position.block is not None and position.ends_block
        if self.geometry.pool != "max":
            written = position.ends_window if self.geometry.pool == "latent" else True
        events["forward", "activation_write"] += real and written and not self.output

    @cached_property
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

    def errors(self, classes: int) -> int:
        """Maximum, exponentials and errors of a sample that the layer trains on: cycles of the phase.

        Where hidden layers have such a phase too, signals leave after the errors, elsewhere with them.
        """
        cycles = 0
        for walk in ("maximum", "exponentials", "errors"):
            for _ in range(classes):
                cycles += 1
                if walk == "errors" and self.rule.waits:
                    self.events["signal", "delta_write" if self.rule.transposes else "error_write"] += 1
        if self.rule.transposes:
            return cycles + PLAIN_SIGNAL_TAIL
        signals = self.signals()
        if not self.rule.scores:
            return cycles + PLAIN_SIGNAL_TAIL
        own = Counter() if self.output else self.events
        return cycles + signals + SIGNAL_TAIL + walk_score_parameters(self.machine, classes, signals, own)

    def signals(self) -> int:
        """The signals of a sample, one a cycle: cycles."""
        cycles = 0
        for _channel in range(self.geometry.channels):
            for _window in {position.window for position in self.positions}:
                self.events["signal", "signal_write"] += 1
                cycles += 1
        return cycles

    def labelled(self) -> int:
        """Signals of the label alone: cycles of the phase."""
        signals = self.signals()
        self.events["signal", "kept_bit"] += 2 * signals
        self.events["signal", "entry_read"] += signals
        return signals + LABEL_TAIL

    def feedback(self, classes: int) -> int:
        """The sample's errors come back, then its signals: cycles of the phase."""
        cycles = 0
        for _ in range(classes):
            self.events["signal", "error_read"] += 1
            cycles += 1
        signals = self.signals()
        self.events["signal", "entry_read"] += signals * classes
        return cycles + signals + FEEDBACK_TAIL

    def largest_score(self, classes: int) -> int:
        """The largest score: cycles of the phase."""
        if not self.rule.scores:
            return len(range(classes)) + PLAIN_ARGMAX_TAIL
        return len(range(classes)) + ARGMAX_TAIL + walk_score_parameters(self.machine, classes, classes, None)

    def back(self) -> tuple[int, int]:
        """The way back of all samples: cycles of the phase, and the cycle in which its last total is seen.

        A signal that is a block's is counted at each of its pixels, of which one has it.
        """
        events, geometry, (R, C) = self.events, self.geometry, (self.machine.rows, self.machine.cols)
        height, width, channels = geometry.input
        totals: Counter[int] = Counter()
        met: Counter[tuple[tuple[int, int], tuple[int, int], int]] = Counter()
        steps, end = [], 0
        for sample, y, x in itertools.product(range(self.batch), range(height), range(width)):
            for row_tile in range(0, self.tiles if geometry.depthwise else -(-channels // R)):
                found = list(self._back_steps(sample, (y, x), row_tile))
                end += max(len(found), R)
                # Idle cycles come first, so that the last steps of row tiles, too, are as far apart.
                steps += [(end - len(found) + n, step) for n, step in enumerate(found)]

        def at_pe(cycle: int, r: int, c: int, step: _BackStep) -> None:
            row = step.row_tile * (C if geometry.depthwise else R) + r
            channel = step.tile * C + c
            real = row < channels and channel < geometry.channels and (r == c or not geometry.depthwise)
            events["signal", "add"] += 1
            events["signal", "weight_read"] += 1
            events["signal", "slope_read"] += r == c == 0
            events["signal", "delta_read"] += r == 0
            if step.position is not None:
                events["signal", "multiply"] += 1
                self.multiplied["signal"] += real
                if real and step.sample == 0:
                    met[step.position, step.kernel, channel] += 1
            if c == C - 1:
                events["signal", "accumulate"] += 1
                if step.last:
                    events["signal", "total"] += 1
                    totals[cycle + 1 + RESULT_LATENCY] += 1
                    if row < channels and r < (C if geometry.depthwise else R):
                        events["signal", "delta_write"] += 1

        self.pass_through(steps, at_pe)
        assert set(totals.values()) == {1}, "two rows finish in one cycle"
        once = {1 if geometry.depthwise else channels}
        assert met.keys() == self._met() and set(met.values()) <= once, "not every product of the forward pass once"
        return end + BACK_TAIL, max(totals)

    def _back_steps(self, sample: int, place: tuple[int, int], row_tile: int) -> Iterator[_BackStep]:
        """The steps of a row tile at a place of the map: of every tap that meets it, of every column tile."""
        geometry = self.geometry
        below = [side + geometry.padding for side in place]
        rows, columns = (
            list(range(side % geometry.stride, size, geometry.stride)) or [side % geometry.stride]
            for side, size in zip(below, geometry.kernel, strict=True)
        )
        tiles = [row_tile] if geometry.depthwise else range(self.tiles)
        found = list(itertools.product(rows, columns, tiles))
        for number, (ky, kx, tile) in enumerate(found):
            y, x = ((side - tap) // geometry.stride for side, tap in zip(below, (ky, kx), strict=True))
            inside = 0 <= y < self.windows.height and 0 <= x < self.windows.width
            inside = inside and ky < geometry.kernel[0] and kx < geometry.kernel[1]
            yield _BackStep(
                sample, place, row_tile, tile, (ky, kx), (y, x) if inside else None, number == len(found) - 1
            )

    def _met(self) -> set[tuple[tuple[int, int], tuple[int, int], int]]:
        """Positions, taps and channels of the forward pass that read something of the map."""
        geometry, found = self.geometry, set()
        for position, kernel in itertools.product(self.positions, itertools.product(*map(range, geometry.kernel))):
            places = [
                side * geometry.stride - geometry.padding + tap
                for side, tap in zip((position.y, position.x), kernel, strict=True)
            ]
            if all(0 <= place < size for place, size in zip(places, geometry.input[:2], strict=True)):
                found |= {((position.y, position.x), kernel, channel) for channel in range(geometry.channels)}
        return found

    @property
    def sums_biases(self) -> bool:
        """Whether columns add up their biases' gradients while the array is updated."""
        return self.rule.waits

    def tile_interval(self) -> int:
        """Cycles from one column tile of an update to the next: where columns add up their biases meanwhile, the least
        with which no two of them would end at once."""
        visits = self.steps * self.batch * len(self.positions)
        if not self.sums_biases:
            return visits
        for interval in count(visits):
            ends = [jt * interval + c for jt in range(self.tiles + 1) for c in range(self.machine.cols)]
            if len(set(ends)) == len(ends):
                return interval
        raise AssertionError

    def update(self) -> int:
        """The update of all samples: cycles of the phase, which end after the last write."""
        events, positions = self.events, self.positions
        filled: dict[tuple[int, int], int] = {}
        visited: Counter[tuple[int, int, int, int]] = Counter()
        ended: Counter[int] = Counter()
        writes_end = 0
        largest = (1 << PART_BITS - 1) // (8 * 128)
        interval = self.tile_interval()
        steps = []
        for jt in range(self.tiles):
            walked = itertools.product(range(self.steps), range(self.batch), range(len(positions)))
            steps += [(jt * interval + n, (sample, jt, step, p)) for n, (step, sample, p) in enumerate(walked)]
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
                if self.adds(position):
                    read = len(written[jt]) * sample // self.batch + sum(map(self.adds, positions[:p]))
                    assert written[jt][read] == (sample, jt, p), "another position's slope bits"
                    events["update", "slope_read"] += 1
            if r == 0 and position.ends_window:
                events["update", "signal_read"] += 1
            if r == step == 0 and self.sums_biases:
                events["update", "bias_add"] += self.adds(position)
                if (sample, p) == (self.batch - 1, len(positions) - 1):
                    ended[cycle] += 1
            events["update", "window_add"] += self.adds(position)
            filled[r, c] = filled.get((r, c), 0) + self.adds(position)
            if position.ends_window or filled[r, c] == largest:
                filled[r, c] = 0
                events["update", "multiply"] += 1
                self.multiplied["update"] += real
            if (sample, p) == (0, 0):
                events["update", "weight_read"] += 1
                visited[r, c, jt, step] += 1
            if (sample, p) == (self.batch - 1, len(positions) - 1):
                if r == c or not self.geometry.depthwise:
                    events["update", "weight_write"] += 1
                writes_end = max(writes_end, cycle + WRITE_PORT)

        self.pass_through(((cycle + LEAD, found) for cycle, found in steps), at_pe)
        assert set(visited.values()) == {1}, "a weight is visited twice"
        assert set(ended.values()) <= {1}, "two biases end in one cycle"
        return writes_end + 1 + WRITTEN


def walk_windowed_step(
    machine: Machine, network: Network, batch: int | None = None, train_hidden: bool = True, labelled: bool = True
) -> Walk:
    """Walks ``batch`` samples, those of the network's recipe if not said otherwise, under the machine's rule.

    ``train_hidden=False``: the hidden layers are frozen. Without labels nothing is learned.
    """
    rule = machine.learning
    layers = _layers(machine, network, rule, batch, labelled and rule.learns, train_hidden)
    visits: list[Visit] = []
    for number, layer in enumerate(layers):
        visits.append(("setup", number, setup_cycles(machine)))
        for _ in range(layer.batch):
            visits.append(("forward", number, layer.forward()))
            if layer.output:
                walk = layer.errors if layer.train else layer.largest_score
                visits.append(("signal", number, walk(network.classes)))
            elif layer.train and not layer.rule.waits:
                walk = layer.errors(network.classes) if layer.rule.scores else layer.labelled()
                visits.append(("signal", number, walk))
        if layer.train and not layer.rule.waits:
            visits.append(("update", number, layer.update()))
    if rule.waits:
        visits += _last_to_first(layers, network.classes)
    visits.append(("finish", len(layers) - 1, FINISH_CYCLES * layers[0].batch))
    return _walk(layers, visits)


def _layers(
    machine: Machine, network: Network, rule: Rule, batch: int | None, learns: bool, hidden: bool
) -> list[_Layer]:
    """The layers before a batch, ``hidden`` ones frozen or not; the first one's input is counted as it is loaded."""
    batch = network.recipe.batch if batch is None else batch
    last = len(network.layers) - 1
    layers = []
    for number, geometry in enumerate(network.geometry):
        output = number == last
        layers.append(_Layer(machine, geometry, rule, output, learns and (hidden or output), batch))
    layers[0].events["forward", "activation_write"] += batch * math.prod(network.geometry[0].input)
    return layers


def _last_to_first(layers: list[_Layer], classes: int) -> list[Visit]:
    """Updates once the output layer's errors of all samples are there, each behind the signals made of them, or behind
    the way back through its weights."""
    visits: list[Visit] = []
    for number, layer in reversed(list(enumerate(layers))):
        if not layer.train:
            break
        if not layer.output:
            visits.append(("setup", number, setup_cycles(layer.machine)))
            if not layer.rule.transposes:
                visits += [("signal", number, layer.feedback(classes)) for _ in range(layer.batch)]
        there = since = 0
        if layer.rule.transposes and number and layers[number - 1].train:
            since, there = layer.back()
            visits.append(("signal", number, since))
        update = layer.update()
        visits.append(("update", number, update))
        assert there < since + update, "a signal of the way back is late"
    return visits


def _walk(layers: list[_Layer], visits: list[Visit]) -> Walk:
    """What was seen; ``finish`` is the batch's, not a layer's."""
    walked = []
    for number, layer in enumerate(layers):
        cycles = dict.fromkeys(PHASES, 0)
        for phase, where, spent in visits:
            if where == number and phase != "finish":
                cycles[phase] += spent
        walked.append(WalkedLayer(cycles, dict(layer.events), dict(layer.macs), dict(layer.multiplied)))
    return Walk(merged(visits), walked)


def _positions(windows: Windows, pools: bool) -> Iterator[_Position]:
    """The positions of a map in walk order: windows, in them blocks where the layer max-pools, in them pixels."""
    height, width, (wh, ww) = windows.height, windows.width, windows.size
    side = 2 if pools else 1
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
