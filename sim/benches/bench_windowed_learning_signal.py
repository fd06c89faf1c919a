"""The learning signal of layers with windows, from latents to shifted signals, against the golden model's functions."""

from dataclasses import dataclass

import cocotb
import numpy as np

from golden.fixed import output_delta, softmax_error
from golden.windowed import hidden_signal, left_shift
from sim.benches import context
from sim.benches.streams import Cycles, Scoreboard, signed, stalls, start
from spec.basis import Basis
from spec.geometry import LayerGeometry
from spec.machine import SCORE_BITS, Machine
from spec.windowed import WindowedLayer
from spec.windowed_timing import ARGMAX_TAIL, SIGNAL_TAIL, setup_cycles

COARSE = 4
OUTPUT_WEIGHT = 8
MAX_WEIGHT = 8 * 1024
PULSES = ("done", "report_valid", "delta_valid")


@dataclass
class Layer:
    """One layer's trip through the unit; `latents (windows, channels)`, in the output layer `score (K,)`."""

    is_output: bool
    train: bool
    label: int
    score_shift: int
    rate_shift: int
    left_max: int
    coarse: bool
    latents: np.ndarray
    weights: np.ndarray
    score: np.ndarray

    def __str__(self) -> str:
        with np.printoptions(threshold=40, linewidth=1000):
            return str(vars(self))

    def golden(self, machine: Machine, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
        """Class scores, and `d' (windows, channels)` if the layer trains."""
        coarse = COARSE if self.coarse else 0
        layer = WindowedLayer(
            LayerGeometry((1, 1, 1), 1, 7, 4), 9, self.score_shift, self.rate_shift, coarse, self.left_max,
            self.is_output, self.train,
        )  # fmt: skip
        if self.is_output:
            scores, k = self.score, 0
            d = output_delta(softmax_error(self.score, self.label, self.score_shift))[None]
        else:
            table = basis.table(self.latents.size)
            grid = self.latents[None]  # one row of windows
            scores, d, k = hidden_signal(grid, self.label, table, basis.fraction_bits, self.score_shift)
        return scores, -d << (left_shift(layer, k, machine.fraction_bits) - coarse)


class Bench:
    """Drives layers and checks every pulse of every cycle."""

    def __init__(self, cycles: Cycles):
        self.cycles = cycles
        self.dut = cycles.dut
        design = context.design()
        self.machine: Machine = design.machine
        self.classes = design.classes
        self.basis = Basis(design.basis, design.classes)
        self.inputs = set(context.inputs())
        self.rng = context.rng("gaps")
        self.noise = context.rng("noise")
        self.report = Scoreboard("report_score")
        self.deltas = Scoreboard("delta_value")
        self.reports = self.signals = 0
        self.held: dict[str, int] = {}

    async def cycle(self, drives: dict[str, int] | None = None, allowed: tuple[str, ...] = ()) -> tuple[int, int]:
        """One cycle with these inputs and those held, noise on others (pulses: 0); only `allowed` pulses may come.

        Returns `done` and `prediction`.
        """
        dut = self.dut
        values = {"start": 0, "latent_valid": 0, "go": 0, **self.held, **(drives or {})}
        for name in self.inputs:
            handle = getattr(dut, name)
            value = values[name] if name in values else int(self.noise.integers(1 << len(handle)))
            handle.value = value & ((1 << len(handle)) - 1)
        await self.cycles.sample()
        now = self.cycles.now
        for name in PULSES:
            if int(getattr(dut, name).value):
                assert name in allowed, f"{name}: cycle {now}: came out of turn"
        if int(dut.report_valid.value):
            self.report.got(signed(int(dut.report_score.value), SCORE_BITS), now)
        if int(dut.delta_valid.value):
            value = signed(int(dut.delta_value.value), self.machine.delta_bits)
            flags = (int(dut.delta_channel_last.value), int(dut.delta_sample_last.value))
            self.deltas.got((value, int(dut.delta_weight.value), *flags), now)
        seen = int(dut.done.value), int(dut.prediction.value)
        await self.cycles.next()
        return seen

    async def forward(self, layer: Layer, pattern: str) -> None:
        """The layer's latents in the order tile, window, column, with pauses."""
        cols = self.machine.cols
        windows, channels = layer.latents.shape
        self.held = {
            "is_output": layer.is_output,
            "latents": layer.latents.size,
            "windows": windows,
            "score_shift": layer.score_shift,
            "rate_shift": layer.rate_shift,
            "left_max": layer.left_max,
            "coarse": layer.coarse,
        }
        await self.cycle({"start": 1})
        permissions = stalls(pattern, self.rng)
        for first in range(0, channels, cols):
            for window in range(windows):
                for j in range(first, min(first + cols, channels)):
                    while not next(permissions):
                        await self.cycle()
                    drives = {"latent_valid": 1, "latent_column": j - first}
                    if layer.is_output:
                        drives |= {"score": int(layer.score[j]), "latent_weight": OUTPUT_WEIGHT}
                    else:
                        drives |= {"latent": int(layer.latents[window, j])}
                        drives |= {"latent_weight": int(layer.weights[window, j])}
                    await self.cycle(drives)

    async def layer(self, layer: Layer, pattern: str) -> None:
        """Forward, a pause, the signal phase."""
        await self.forward(layer, pattern)
        for _ in range(int(self.rng.choice([0, 0, 2, 20]))):
            await self.cycle()
        scores, deltas = layer.golden(self.machine, self.basis)
        windows, channels = layer.latents.shape
        total = windows * channels
        length = 3 * self.classes + total + SIGNAL_TAIL if layer.train else self.classes + ARGMAX_TAIL
        inputs = str(layer)
        for c, score in enumerate(scores):
            self.report.expect(int(score), f"class {c} of {inputs}")
        self.reports += len(scores)
        done = self.cycles.now + length - 1
        if layer.train:
            for number, (j, window) in enumerate(np.ndindex(channels, windows)):
                weight = OUTPUT_WEIGHT if layer.is_output else int(layer.weights[window, j])
                last = window == windows - 1
                golden = (int(deltas[window, j]), weight, int(last), int(last and j == channels - 1))
                at = done - total + 1 + number
                self.deltas.expect(golden, f"channel {j}, window {window} of {inputs}", at)
            self.signals += total
        self.held |= {"label": layer.label, "train": layer.train}
        for number in range(length):
            finished = number == length - 1
            allowed = (*(("delta_valid",) if layer.train else ()), "report_valid", *(("done",) if finished else ()))
            came, _ = await self.cycle({"go": int(number == 0)}, allowed)
            assert came or not finished, f"done: not in cycle {length} of the signal phase; inputs {inputs}"
        self.held = {}
        self.report.done(self.reports)
        self.deltas.done(self.signals)

    async def prediction(self, layer: Layer) -> None:
        """The output layer's prediction, from the cycle after `done` on."""
        for _ in range(int(self.rng.integers(1, 4))):
            _, got = await self.cycle()
            golden = int(np.argmax(layer.score))
            assert got == golden, f"prediction: got {got}, golden {golden}, inputs {layer}"


def latents(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Latents of a layer: ends of the range, small, large, none but one."""
    a = np.zeros(shape, dtype=np.int64)
    if kind == "full":
        a = rng.choice([-128, 127], shape)
    elif kind == "lowest":
        a[:] = -128
    elif kind == "one":
        a[rng.integers(shape[0]), rng.integers(shape[1])] = rng.integers(-128, 128)
    elif kind == "random":
        a = np.clip(np.round(rng.normal(0, rng.choice([1, 5, 30, 100]), shape)), -128, 127).astype(np.int64)
    return a


@cocotb.test()
async def layers(dut):
    """Hidden and output layers of every size, norm and shift, trained and not; some samples go forward alone."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, classes, rng = bench.machine, bench.classes, context.rng("layers")
    kinds = ["zero", "one", "full", "lowest", "random", "random", "random"]
    limit = 1 << (SCORE_BITS - 1)
    for turn in range(context.parameter("layers")):
        is_output = turn % 3 == 2
        windows, channels = 1, classes
        if not is_output:
            windows = int(rng.choice([1, 2, 4, 9, 16, machine.max_neurons]))
            most = machine.max_neurons // windows
            channels = int(rng.choice([1, most, int(rng.integers(1, most + 1))]))
        spread = int(rng.choice([2, 100, 2000, 30000, limit - 1]))
        score = rng.integers(-spread, spread + 1, classes)
        if turn % 9 == 2:
            score[:] = score[0]  # all tie: the lowest class is predicted
        if turn % 9 == 5:
            score[rng.permutation(classes)[:2]] = limit - 1, -limit
        shape = (windows, channels)
        layer = Layer(
            is_output=is_output,
            train=not is_output or turn % 4 != 1,
            label=int(rng.integers(classes)),
            score_shift=9 if is_output else int(rng.choice([0, 0, 1, 5, 16])),
            rate_shift=int(rng.choice([-32, -7, 0, 3, 6, 12, 15, 20, 31])),
            left_max=int(rng.choice([machine.delta_bits - 8, int(rng.integers(machine.delta_bits - 7))])),
            coarse=bool(rng.integers(2)),
            latents=latents(rng, shape, kinds[turn % len(kinds)]),
            weights=rng.choice(np.array([0, MAX_WEIGHT, 1, 8, 9, 1000, MAX_WEIGHT - 1]), shape),
            score=score,
        )
        pattern = str(rng.choice(["none", "every_other", "random", "bursts"]))
        if not is_output and turn % 7 == 3:
            # Without a label no signal phase follows, but the next layer's setup.
            await bench.forward(layer, pattern)
            for _ in range(setup_cycles(machine)):
                await bench.cycle()
            continue
        await bench.layer(layer, pattern)
        if is_output:
            await bench.prediction(layer)
    for _ in range(20):
        await bench.cycle()
    assert bench.reports and bench.signals
