"""The learning-signal unit, layer by layer, against the golden model's functions."""

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np

from golden.fixed import (
    class_scores,
    hidden_delta,
    norm_exponent,
    output_delta,
    shift_delta,
    softmax_error,
    sum_of_squares,
)
from hdl.dense.learning_signal import LearningSignal
from sim.benches import context
from sim.benches.streams import Cycles, Scoreboard, signed, stalls, start
from spec.basis import Basis
from spec.machine import SCORE_BITS, Machine
from spec.timing import ARGMAX_TAIL, SIGNAL_TAIL


@dataclass
class Layer:
    """One layer's trip through the unit; ``a``, ``neg`` of a hidden layer, ``score`` of the output."""

    is_output: bool
    train: bool
    label: int
    score_shift: int
    rate_shift: int
    a: np.ndarray
    neg: np.ndarray
    score: np.ndarray

    @property
    def n_out(self) -> int:
        """Neurons."""
        return len(self.score) if self.is_output else len(self.a)

    def golden(self, machine: Machine, basis: Basis) -> tuple[np.ndarray, np.ndarray | None]:
        """Class scores, and the shifted signals when the layer trains."""
        if self.is_output:
            if not self.train:
                return self.score, None
            delta = output_delta(softmax_error(self.score, self.label, self.score_shift))
            return self.score, shift_delta(delta, self.rate_shift, machine)
        table, frac = basis.table(self.n_out), basis.fraction_bits
        score = class_scores(self.a, table, frac)
        k = norm_exponent(sum_of_squares(self.a))
        error = softmax_error(score, self.label, self.score_shift + k)
        delta = hidden_delta(error, score, self.a, self.neg, table, frac)
        return score, shift_delta(delta, self.rate_shift + k, machine)


class Bench:
    """Drives layers and checks every pulse of every cycle."""

    def __init__(self, cycles: Cycles):
        self.cycles = cycles
        self.dut = cycles.dut
        design = context.design()
        self.machine, self.classes = design.machine, design.classes
        self.basis = Basis(design.basis, design.classes)
        self.rng = context.rng("gaps")
        self.report = Scoreboard("report_score")
        self.made = Scoreboard("delta_made")
        self.reports = self.values = 0

    async def cycle(self, allowed: tuple[str, ...] = (), **drives: int) -> None:
        """One cycle with these inputs; pulses that are not ``allowed`` must not come."""
        dut = self.dut
        for name, value in drives.items():
            handle = getattr(dut, name)
            handle.value = value & ((1 << len(handle)) - 1)
        await self.cycles.sample()
        for name in ("done", "report_valid", "delta_made"):
            if int(getattr(dut, name).value):
                assert name in allowed, f"{name}: cycle {self.cycles.now}: came out of turn"
        if int(dut.report_valid.value):
            self.report.got(signed(int(dut.report_score.value), SCORE_BITS), self.cycles.now)
        if int(dut.delta_made.value):
            value = signed(int(dut.delta_value.value), self.machine.delta_bits)
            self.made.got((value, int(dut.delta_real.value)), self.cycles.now)
        if "delta_pop" not in drives:
            assert int(dut.delta_fifo_level.value) == 0, "the queue was not empty"

    async def layer(self, layer: Layer, pattern: str) -> None:
        """Forward, signal and, when the layer trains, update; ``pattern`` stalls inputs and pops."""
        dut, rng, machine = self.dut, self.rng, self.machine
        col_tiles = -(-layer.n_out // machine.cols)
        scores, deltas = layer.golden(machine, self.basis)
        inputs = vars(layer)
        dut.is_output.value = layer.is_output
        dut.n_out.value = layer.n_out
        dut.col_tiles.value = col_tiles
        dut.score_shift.value = layer.score_shift
        dut.rate_shift.value = layer.rate_shift & ((1 << len(dut.rate_shift)) - 1)
        await self.cycle(start=1)
        await self.cycles.next()
        permissions = stalls(pattern, rng)
        for j in range(layer.n_out):
            noise: dict[str, Any] = {
                "in_a": int(rng.integers(256)),
                "in_neg": int(rng.integers(2)),
                "in_score": int(rng.integers(1 << SCORE_BITS)),
            }
            while not next(permissions):
                await self.cycle(start=0, in_valid=0, **noise)
                await self.cycles.next()
            if layer.is_output:
                noise["in_score"] = int(layer.score[j])
            else:
                noise["in_a"], noise["in_neg"] = int(layer.a[j]), int(layer.neg[j])
            await self.cycle(start=0, in_valid=1, **noise)
            await self.cycles.next()

        for c, score in enumerate(scores):
            self.report.expect(int(score), f"class {c} of {inputs}")
        self.reports += len(scores)
        dut.label.value = layer.label
        dut.train.value = layer.train
        length = 3 * self.classes + SIGNAL_TAIL if layer.train else self.classes + ARGMAX_TAIL
        for number in range(length):
            last = number == length - 1
            allowed = ("report_valid", "done") if last else ("report_valid",)
            await self.cycle(allowed, in_valid=0, go=number == 0)
            assert not last or int(dut.done.value), f"done: not in cycle {length} of the signal phase; inputs {inputs}"
            await self.cycles.next()
        self.report.done(self.reports)
        if layer.is_output:
            await self.cycle(go=0)
            got, golden = int(dut.prediction.value), int(np.argmax(layer.score))
            assert got == golden, f"prediction: got {got}, golden {golden}, inputs {inputs}"
            await self.cycles.next()
        for _ in range(int(rng.integers(3))):
            await self.cycle(go=0)
            await self.cycles.next()
        if deltas is not None:
            await self.update(deltas, col_tiles * machine.cols, pattern, inputs)

    async def update(self, deltas: np.ndarray, total: int, pattern: str, inputs: Any) -> None:
        """The update phase; every value leaves once as it is made and once through the queue."""
        dut, machine = self.dut, self.machine
        padded = [*map(int, deltas), *[0] * (total - len(deltas))]
        queue = Scoreboard("delta_fifo_data")
        for j, value in enumerate(padded):
            self.made.expect((value, int(j < len(deltas))), f"neuron {j} of {inputs}")
            queue.expect(value, f"neuron {j} of {inputs}")
        self.values += total
        permissions = stalls(pattern, self.rng)
        popped, elapsed, patience = 0, 0, 200 * total + 1000
        while popped < total:
            # Whether the oldest value is taken must be known in its own cycle: look, then pop.
            dut.delta_go.value = elapsed == 0
            dut.delta_pop.value = 0
            await self.cycle(("delta_made",), go=0, delta_pop=0)
            level = int(dut.delta_fifo_level.value)
            arrived = min(max(elapsed - LearningSignal.LATENCY + 1, 0), total)
            if total <= 2 * machine.cols + 8:
                assert level == arrived - popped, (
                    f"delta_fifo_level: {elapsed} cycles after delta_go: got {level}, expected {arrived} - {popped}"
                )
            assert level <= arrived - popped, "the queue is faster than its latency"
            if level and next(permissions):
                queue.got(signed(int(dut.delta_fifo_data.value), machine.delta_bits), self.cycles.now)
                dut.delta_pop.value = 1
                popped += 1
            await self.cycles.next()
            elapsed += 1
            assert elapsed < patience, f"only {popped} of {total} values came"
        dut.delta_pop.value = 0
        for _ in range(4):
            await self.cycle()
            await self.cycles.next()
        queue.done(total)
        self.made.done(self.values)


def latents(rng: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations and signs of a hidden layer; the sign of z is free where the activation is 0."""
    if kind == "zero":
        a = np.zeros(n, dtype=np.int64)
    elif kind == "full":
        a = rng.choice([-128, 127], n).astype(np.int64)
    elif kind == "lowest":
        a = np.full(n, -128, dtype=np.int64)
    elif kind == "one":
        a = np.zeros(n, dtype=np.int64)
        a[rng.integers(n)] = rng.integers(-128, 128)
    else:
        a = np.clip(np.round(rng.normal(0, rng.choice([1, 5, 30, 100]), n)), -128, 127).astype(np.int64)
    return a, (a < 0) | ((a == 0) & (rng.integers(2, size=n) == 1))


@cocotb.test()
async def layers(dut):
    """Hidden and output layers of every size, norm and shift, trained and not, in random order."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, classes, rng = bench.machine, bench.classes, context.rng("layers")
    kinds = ["zero", "one", "full", "lowest", "random", "random", "random"]
    sizes = [1, 2, machine.cols, machine.cols + 1, machine.max_neurons - 1, machine.max_neurons]
    limit = 1 << (SCORE_BITS - 1)
    for turn in range(context.parameter("layers")):
        is_output = turn % 3 == 2
        n = int(sizes[turn % len(sizes)] if turn % 2 else rng.integers(1, machine.max_neurons + 1))
        a, neg = latents(rng, n, kinds[turn % len(kinds)])
        spread = int(rng.choice([2, 100, 2000, 30000, limit - 1]))
        score = rng.integers(-spread, spread + 1, classes)
        if turn % 9 == 2:
            score[:] = score[0]  # all tie: the lowest class is predicted
        if turn % 9 == 5:
            score[rng.permutation(classes)[:2]] = limit - 1, -limit
        layer = Layer(
            is_output=is_output,
            train=not is_output or turn % 4 != 1,
            label=int(rng.integers(classes)),
            score_shift=9 if is_output else int(rng.choice([0, 0, 1, 5])),
            rate_shift=int(rng.choice([-20, -7, 0, 3, 6, 12, 20])),
            a=a,
            neg=neg,
            score=score,
        )
        await bench.layer(layer, str(rng.choice(["none", "every_other", "random", "bursts"])))
    assert bench.reports == classes * context.parameter("layers")
