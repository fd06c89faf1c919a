"""A sample walked cycle by cycle, under each learning rule: the witness of the closed forms in ``dense``.

Each step is issued, goes down the diagonal control line, reaches its PEs, and its column sums come out at the
bottom, with the latencies of ``docs/architecture.md``, section 2, and ``docs/rules.md``. Events are counted where they
happen, padding with them. On the way it checks what the timing rests on: one result a cycle, a shifted signal in the
FIFO whenever a column takes one, no address of a weight memory visited twice in an update, a signal of the way back
there before it is needed.

It is meant for tests: time grows with PEs times steps.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

from spec.machine import Machine
from spec.network import Network
from spec.program import LayerDescriptor, compile_program
from spec.scores import basis_vectors
from spec.timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    delta_latency,
    score_cycles,
)

__all__ = ["Visit", "Walk", "WalkedLayer", "merged", "walk_score_parameters", "walk_step"]

PHASES: tuple[str, ...] = ("setup", "forward", "signal", "update", "finish")
RESULT_LATENCY = 5
"""A column's total is visible ``R + c + 5`` cycles after its last step was issued, a row's ``C + r + 5``."""
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


Visit = tuple[str, int, int]
"""A phase, the layer, and the cycles that the sequencer stays there."""


@dataclass
class Walk:
    """``visits`` in their order, and what was seen of each layer."""

    visits: list[Visit]
    layers: list[WalkedLayer]


@dataclass
class _Array:
    """The array as a delay line: who meets which step when."""

    machine: Machine
    layer: LayerDescriptor
    events: Counter = field(default_factory=Counter)
    macs: Counter = field(default_factory=Counter)

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


def walk_step(machine: Machine, network: Network, train_hidden: bool = True, labelled: bool = True) -> Walk:
    """Walks a sample in the order of ``docs/rules.md``, section 2, under the machine's rule.

    ``train_hidden=False``: the hidden layers are frozen. Without a label nothing is learned.
    """
    arrays = [_Array(machine, layer) for layer in compile_program(network, machine, train_hidden).layers]
    arrays[0].events["forward", "activation_write"] += arrays[0].layer.n_in
    visits = _first_to_last(arrays, network.classes, labelled)
    if labelled and machine.learning.waits:
        visits += _last_to_first(arrays)
    visits.append(("finish", len(arrays) - 1, FINISH_CYCLES))
    layers = []
    for number, array in enumerate(arrays):
        cycles = dict.fromkeys(PHASES, 0)
        for phase, layer, spent in visits:
            # It is the step's, not a layer's.
            if layer == number and phase != "finish":
                cycles[phase] += spent
        layers.append(WalkedLayer(cycles, dict(array.events), dict(array.macs)))
    return Walk(merged(visits), layers)


def _first_to_last(arrays: list[_Array], classes: int, labelled: bool) -> list[Visit]:
    """Forward, with the signals and updates that do not wait for the output layer's errors."""
    rule, visits = arrays[0].machine.learning, []
    for number, array in enumerate(arrays):
        layer, trains = array.layer, labelled and array.layer.train
        visits += [("setup", number, SETUP_CYCLES), ("forward", number, _forward(array))]
        if trains and not layer.is_output and not rule.scores:
            array.events["signal", "kept_bit"] += layer.n_out * (1 if rule.transposes else 2)
        if trains and (layer.is_output or rule.scores):
            visits.append(("signal", number, _errors(array, classes)))
        elif layer.is_output:
            visits.append(("signal", number, _largest(array, classes)))
        if trains and not rule.waits:
            visits.append(("update", number, _update(array)))
    return visits


def _last_to_first(arrays: list[_Array]) -> list[Visit]:
    """The layers' updates once the output layer's errors are there, each behind the way back through its weights."""
    visits: list[Visit] = []
    for number in reversed(range(len(arrays))):
        array, layer, since, there = arrays[number], arrays[number].layer, 0, 0
        if not layer.is_output:
            visits.append(("setup", number, SETUP_CYCLES))
        if array.machine.learning.transposes and layer.trains_below:
            since, there = _back(array)
            visits.append(("signal", number, since))
        if layer.train:
            update = _update(array)
            visits.append(("update", number, update))
            assert there < since + update, "a signal of the way back is late"
        if not layer.trains_below:
            break
    return visits


def merged(visits: list[Visit]) -> list[Visit]:
    """As the sequencer shows it: what follows in the same phase of the same layer is one visit."""
    found: list[Visit] = []
    for (phase, layer), group in groupby(visits, lambda visit: visit[:2]):
        found.append((phase, layer, sum(cycles for *_, cycles in group)))
    return found


def _errors(array: _Array, classes: int) -> int:
    """Maximum, exponentials, errors: a class a cycle."""
    cycles = 0
    for walk in ("maximum", "exponentials", "errors"):
        for _ in range(classes):
            cycles += 1
            if walk == "errors" and array.machine.learning.transposes:
                array.events["signal", "delta_write"] += 1
    if not array.machine.learning.scores:
        return cycles + PLAIN_SIGNAL_TAIL
    own = Counter() if array.layer.is_output else array.events
    return cycles + SIGNAL_TAIL + walk_score_parameters(array.machine, classes, array.layer.n_out, own)


def _largest(array: _Array, classes: int) -> int:
    """The largest score: a class a cycle."""
    cycles = len(range(classes))
    if not array.machine.learning.scores:
        return cycles + PLAIN_ARGMAX_TAIL
    return cycles + ARGMAX_TAIL + walk_score_parameters(array.machine, classes, array.layer.n_out, None)


def walk_score_parameters(machine: Machine, classes: int, latents: int, events: Counter | None) -> int:
    """The rows of what is trained of a layer's class scores, one after the other for the scores and for the errors.

    The cycles that they add to the phase: those of a matrix one each, the others pass beside other walks. ``events``:
    of a sample that the layer trains on; None where no errors follow the scores.
    """
    kind, cycles = machine.learning.trains, 0
    rows = {"": 0, "factors": classes, "matrix": basis_vectors(machine, classes), "basis": latents}[kind]
    lanes = 1 if kind == "factors" else classes
    for errors in (False, True)[: 1 if events is None else 2]:
        for _ in range(rows):
            cycles += kind == "matrix"
            if events is not None:
                events["signal", "parameter_read"] += lanes
                events["signal", "parameter_write"] += lanes * errors
    return cycles + score_cycles(kind, 0)[events is None]


def _forward(array: _Array) -> int:
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
                if jt * machine.cols + c < layer.n_out and not layer.is_output:
                    events["forward", "activation_write"] += 1

    # The sequencer's pace: results leave one a cycle, C a tile.
    interval = max(layer.row_tiles, machine.cols)
    tiles = (layer.col_tiles, layer.row_tiles)
    array.walk("forward", tiles, interval, lambda cycle: True, lambda cycle: None, at_pe)
    assert set(results.values()) == {1}, "two columns finish in one cycle"
    return max(results) + POST_PROCESSING + 1


def _back(array: _Array) -> tuple[int, int]:
    """The phase's cycles, and the cycle in which the last of its results is seen; that goes on beside the update."""
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
    return last + 1 + BACK_TAIL, max(results)


def _update(array: _Array) -> int:
    """Returns the phase's cycles, which end with the last write."""
    machine, layer, events = array.machine, array.layer, array.events
    total, latency = layer.col_tiles * machine.cols, delta_latency(machine.rule)
    made = level = writes_end = 0
    visited: set[tuple[int, int, int, int]] = set()

    def make() -> None:
        nonlocal made, level
        events["update", "bias_read"] += 1
        events["update", "bias_write"] += made < layer.n_out
        if machine.learning.transposes:
            events["signal", "delta_read"] += 1
        made, level = made + 1, level + 1

    def every_cycle(cycle: int) -> None:
        if made < total and level < QUEUE_DEPTH and cycle >= latency:
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
