"""A batch of convolutions walked cycle by cycle, under each learning rule: the witness of ``windowed`` and of
``windowed_bp``.

Positions are issued in walk order, go down the diagonal control line and meet their PEs; sums come out at the columns,
windows' latents leave one a cycle, updates read slope bits back, with the latencies of ``docs/convolutions.md``,
section 6, in the order of phases of ``docs/rules.md``, section 5. Events are counted where they happen, padding with
them. On the way it checks what the timing rests on: a result a column and cycle, no two latents in one cycle, slope
bits read back in the order in which they were written, no weight visited twice in an update. The interval between
positions is found by trying, not by its formula.

It is meant for tests: time grows with PEs times steps.
"""

import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count

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
from spec.rules import RULES, Rule
from spec.windowed_timing import (
    ARGMAX_TAIL,
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

__all__ = ["walk_windowed_bp", "walk_windowed_step"]

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
    rule: Rule
    output: bool
    train: bool
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
        self.passed = 0
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
        if not self.rule.transposes or self.geometry.pool != "max":
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
        self.passed += 1
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
        return self.rule.latents or self.output or self.geometry.pool == "latent"

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
                    self.events["signal", "error_write"] += 1
        signals = self.signals()
        if not (self.rule.scores or self.rule.transposes):
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

    @property
    def sums_biases(self) -> bool:
        """Whether columns add up their biases' gradients while the array is updated."""
        return self.rule.error == "output"

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
        machine, events, positions = self.machine, self.events, self.positions
        apart = self.rule.transposes and self.geometry.pool != "latent"
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
                assert written[jt][sample * len(positions) + p] == (sample, jt, p), "another position's slope bits"
                events["update", "slope_read"] += 1
            if r == 0 and position.ends_window:
                events["update", "signal_read"] += 1
            if r == step == 0 and self.sums_biases:
                events["update", "bias_add"] += 1
                if (sample, p) == (self.batch - 1, len(positions) - 1):
                    ended[cycle] += 1
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
            visits.append(("forward", number, _drained(layer)))
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


def walk_windowed_bp(machine: Machine, network: Network, batch: int | None = None, seed: int = 0) -> Walk:
    """Walks a batch under backpropagation, on the machine for LLS.

    ``seed``: of the places of the largest in max-pooling's blocks. ``multiplied`` of a layer counts real weights alone.
    """
    layers = _layers(machine, network, RULES["bp"], batch, True, True, seed)
    visits: list[Visit] = []
    for number, layer in enumerate(layers):
        setup = setup_cycles(machine)
        visits += [("setup", number, setup), ("forward", number, 0 if layer.output else _streamed(layer))]
        for _ in range(layer.batch * layer.output):
            visits += [("forward", number, _drained(layer)), ("signal", number, layer.errors(network.classes))]
    for number, layer in reversed(list(enumerate(layers))):
        visits.append(("setup", number, 0 if layer.output else setup_cycles(machine)))
        visits.append(("signal", number, layer.transposed() if number else 0))
        visits.append(("update", number, layer.update()))
    visits.append(("finish", len(layers) - 1, FINISH_CYCLES * layers[0].batch))
    return _walk(layers, visits)


def _layers(
    machine: Machine, network: Network, rule: Rule, batch: int | None, learns: bool, hidden: bool, seed: int = 0
) -> list[_Layer]:
    """The layers before a batch, ``hidden`` ones frozen or not; the first one's input is counted as it is loaded."""
    batch = network.recipe.batch if batch is None else batch
    last = len(network.layers) - 1
    layers = []
    for number, geometry in enumerate(network.geometry):
        output = number == last
        draw = random.Random(f"{seed} {number}")
        layers.append(_Layer(machine, geometry, rule, output, learns and (hidden or output), batch, draw))
    layers[0].events["forward", "activation_write"] += batch * math.prod(network.geometry[0].input)
    return layers


def _drained(layer: _Layer) -> int:
    """A sample's forward phase: its cycles."""
    return layer.forward(layer.passed, 0, layer.interval) + COLUMNS + 1


def _streamed(layer: _Layer) -> int:
    """All samples' forward passes, the next one's first position as if it were this one's: cycles with one drain."""
    total = 0
    for sample in range(layer.batch):
        start = sample * layer.tiles * len(layer.positions) * layer.interval
        total = layer.forward(sample, start, layer.interval)
    return total + COLUMNS + 1


def _last_to_first(layers: list[_Layer], classes: int) -> list[Visit]:
    """Updates once the output layer's errors of all samples are there, each behind the signals made of them."""
    visits: list[Visit] = []
    for number, layer in reversed(list(enumerate(layers))):
        if not layer.train:
            break
        if not layer.output:
            visits.append(("setup", number, setup_cycles(layer.machine)))
            visits += [("signal", number, layer.feedback(classes)) for _ in range(layer.batch)]
        visits.append(("update", number, layer.update()))
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
