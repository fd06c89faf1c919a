"""A training step walked cycle by cycle: the witness of the closed forms in ``dense`` and ``bp``.

Each step is issued, goes down the diagonal control line, reaches its PEs, and its column sums come out at the
bottom, with the latencies of ``docs/architecture.md``, section 2. Events are counted where they happen, padding
with them. On the way it checks what the timing rests on: one result a cycle, a shifted signal in the FIFO whenever
a column takes one, no address of a weight memory visited twice in an update.

It is meant for tests: time grows with PEs times steps.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from spec.machine import Machine
from spec.network import Network
from spec.program import LayerDescriptor, compile_program
from spec.timing import DELTA_LATENCY, FORWARD_TAIL, SETUP_CYCLES, SIGNAL_TAIL

__all__ = ["WalkedLayer", "walk_training_step"]

RESULT_LATENCY = 5
"""A total is visible ``R + c + 5`` cycles after its last step was issued."""
WRITE_PORT = 4
"""A PE writes 4 cycles after a step has reached it."""
POST_PROCESSING = FORWARD_TAIL - 4
"""From the last total, in column C-1, to the end of the phase."""
QUEUE_DEPTH = 32
"""Shifted signals that can wait; how many does not change the cycles, as long as one can."""


@dataclass(frozen=True)
class WalkedLayer:
    """What was seen of a layer: cycles by phase; events by purpose and name; MACs of real weights.

    ``multiplied``: how many of those are products, where the walk tells them apart.
    """

    cycles: dict[str, int]
    events: dict[tuple[str, str], int]
    macs: dict[str, int]
    multiplied: dict[str, int] = field(default_factory=dict)


@dataclass
class _Array:
    """The array as a delay line: who meets which step when."""

    machine: Machine
    layer: LayerDescriptor
    events: Counter
    macs: Counter

    def walk(
        self,
        purpose: str,
        tiles: tuple[int, int],
        interval: int,
        may_issue: Callable[[int], bool],
        every_cycle: Callable[[int], None],
        at_pe: Callable[[int, int, int, int, int], None],
    ) -> int:
        """Issues ``tiles[0]`` tiles of ``tiles[1]`` steps, a tile every ``interval`` cycles at the soonest.

        Runs until the last step has passed the last PE; ``at_pe(cycle, r, c, tile, step)``. Returns the last
        issue's cycle.
        """
        R, C = self.machine.rows, self.machine.cols
        line: deque[tuple[int, int] | None] = deque([None] * (R + C - 1))
        tile = step = cycle = last = 0
        soonest, passed = 0, 0
        while passed < tiles[0] * tiles[1]:
            every_cycle(cycle)
            issued = None
            if tile < tiles[0] and (step or (cycle >= soonest and may_issue(cycle))):
                if step == 0:
                    soonest = cycle + interval
                issued, last = (tile, step), cycle
                step += 1
                if step == tiles[1]:
                    tile, step = tile + 1, 0
            line.appendleft(issued)
            line.pop()
            for tap, found in enumerate(line):
                if found is None:
                    continue
                for r in range(max(0, tap - C + 1), min(R, tap + 1)):
                    self._meet(purpose, r, tap - r, *found)
                    at_pe(cycle, r, tap - r, *found)
                passed += tap == R + C - 2
            cycle += 1
        return last

    def _meet(self, purpose: str, r: int, c: int, tile: int, step: int) -> None:
        """A PE multiplies; does it do so for a real weight?"""
        jt, it = (step, tile) if purpose == "signal" else (tile, step)
        self.events[purpose, "multiply"] += 1
        self.events[purpose, "weight_read"] += 1
        j, i = jt * self.machine.cols + c, it * self.machine.rows + r
        self.macs[purpose] += j < self.layer.n_out and i < self.layer.n_in


def walk_training_step(machine: Machine, network: Network, rule: str = "lls") -> list[WalkedLayer]:
    """Walks the layers of a training step of ``lls``, ``bp`` or ``dfa``."""
    layers = compile_program(network, machine).layers
    walked = []
    for number, layer in enumerate(layers):
        events: Counter = Counter()
        macs: Counter = Counter()
        array = _Array(machine, layer, events, macs)
        output = bool(layer.is_output)
        if number == 0:
            events["forward", "activation_write"] += layer.n_in
        cycles = {"setup": SETUP_CYCLES, "finish": 0, "signal": 0}
        cycles["forward"] = _forward(array, output)
        if output or rule == "lls":
            cycles["signal"] += _class_walks(network.classes)
        if not output and rule != "lls":
            cycles["setup"] += SETUP_CYCLES
        if number > 0 and rule == "bp":
            cycles["signal"] += _transposed(array)
        # Deltas are there beforehand when something else came between them and this update.
        early = len(layers) > 1 if rule == "bp" else rule == "dfa" and not output
        cycles["update"] = _update(array, early)
        walked.append(WalkedLayer(cycles, dict(events), dict(macs)))
    return walked


def _class_walks(classes: int) -> int:
    """Maximum, exponentials, errors: a class a cycle."""
    cycles = 0
    for _ in ("maximum", "exponentials", "errors"):
        for _ in range(classes):
            cycles += 1
    return cycles + SIGNAL_TAIL


def _forward(array: _Array, output: bool) -> int:
    """Returns the phase's cycles."""
    machine, layer, events = array.machine, array.layer, array.events
    results: Counter = Counter()

    def at_pe(cycle: int, r: int, c: int, jt: int, it: int) -> None:
        if c == 0:
            events["forward", "activation_read"] += 1
        if r == machine.rows - 1:
            events["forward", "accumulate"] += 1
            if it == layer.row_tiles - 1:
                # This PE met the step R - 1 + c cycles after its issue.
                visible = cycle + 1 + RESULT_LATENCY
                results[visible] += 1
                events["forward", "bias_read"] += 1
                if jt * machine.cols + c < layer.n_out and not output:
                    events["forward", "activation_write"] += 1

    # The sequencer's pace: results leave one a cycle, C a tile.
    interval = max(layer.row_tiles, machine.cols)
    tiles = (layer.col_tiles, layer.row_tiles)
    array.walk("forward", tiles, interval, lambda cycle: True, lambda cycle: None, at_pe)
    assert set(results.values()) == {1}, "two columns finish in one cycle"
    return max(results) + POST_PROCESSING + 1


def _transposed(array: _Array) -> int:
    """Returns the cycles up to the last step; what is still on its way goes on beside the update."""
    machine, layer, events = array.machine, array.layer, array.events
    results: Counter = Counter()

    def at_pe(cycle: int, r: int, c: int, it: int, jt: int) -> None:
        if r == 0:
            events["signal", "delta_read"] += 1
        if c == machine.cols - 1:
            events["signal", "accumulate"] += 1
            if jt == layer.col_tiles - 1:
                results[cycle + 1 + RESULT_LATENCY] += 1
                if it * machine.rows + r < layer.n_in:
                    events["signal", "delta_write"] += 1

    interval = max(layer.col_tiles, machine.rows)
    tiles = (layer.row_tiles, layer.col_tiles)
    last = array.walk("signal", tiles, interval, lambda cycle: True, lambda cycle: None, at_pe)
    assert set(results.values()) == {1}, "two rows finish in one cycle"
    return last + 1


def _update(array: _Array, early: bool) -> int:
    """Returns the phase's cycles, which end with the last write.

    ``early``: the FIFO was filled before the phase began.
    """
    machine, layer, events = array.machine, array.layer, array.events
    total = layer.col_tiles * machine.cols
    made = level = writes_end = 0
    visited: set[tuple[int, int, int, int]] = set()

    def make() -> None:
        nonlocal made, level
        events["update", "bias_read"] += 1
        events["update", "bias_write"] += made < layer.n_out
        made, level = made + 1, level + 1

    while early and level < min(QUEUE_DEPTH, total):
        make()

    def every_cycle(cycle: int) -> None:
        if made < total and level < QUEUE_DEPTH and (early or cycle >= DELTA_LATENCY):
            make()

    def may_issue(cycle: int) -> bool:
        # A tile begins when its first signal can be taken: the columns take one a cycle, as they are made.
        return level > 0

    def at_pe(cycle: int, r: int, c: int, jt: int, it: int) -> None:
        nonlocal level, writes_end
        if c == 0:
            events["update", "activation_read"] += 1
        if r == 0 and it == 0:
            assert level > 0, "a column takes a shifted signal that is not there"
            level -= 1
        events["update", "weight_write"] += 1
        assert (r, c, jt, it) not in visited, "an address is visited twice"
        visited.add((r, c, jt, it))
        writes_end = max(writes_end, cycle + WRITE_PORT)

    interval = max(layer.row_tiles, machine.cols)
    array.walk("update", (layer.col_tiles, layer.row_tiles), interval, may_issue, every_cycle, at_pe)
    return writes_end + 1
