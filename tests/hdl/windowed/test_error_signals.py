"""hdl.windowed.label_signal, feedback_signal and back_signal against the equations of docs/rules.md: every score,
signal, cycle."""

import gc
import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.back_signal import BackSignal
from hdl.windowed.feedback_signal import FeedbackSignal
from hdl.windowed.label_signal import LabelSignal
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.windowed_timing import FEEDBACK_TAIL, LABEL_TAIL, PLAIN_ARGMAX_TAIL, PLAIN_SIGNAL_TAIL
from tests.hdl.arithmetic import EXP, RCP9, clip, msb, rnd, sat

UNITS = {"drtp": LabelSignal, "dfa": FeedbackSignal, "bp": BackSignal}
HELD = ("is_output", "latents", "windows", "score_shift", "rate_shift", "left_max", "coarse")


def machine(rule, cols=3, **changes):
    values = {"cols": cols, "max_neurons": 48, "fraction_bits": 20, "gradient_bits": 44, "delta_bits": 18,
              "max_batch": 4}  # fmt: skip
    return replace(load_machine("tiny"), rule=rule, **{**values, **changes})


def code(rng, low, high):
    return rng.choice([low, high, 0, rng.randint(low, high)])


def softmax(scores, shift, label):
    u = [sat(rnd(s << 9, shift), 16) for s in scores]
    away = [max(u) - v for v in u]
    E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in away]
    Z = sum(E)
    M = msb(Z)
    return [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) - 256 * (c == label) for c, v in enumerate(E)]


class Layer:
    """A layer's parameters."""

    def __init__(self, m, rng, channels, windows, output=False, **changes):
        self.is_output, self.windows, self.latents = int(output), windows, channels * windows
        self.score_shift = changes.get("score_shift", 9)
        self.rate_shift, self.coarse = rng.randint(-4, 24), rng.randrange(2)
        self.left_max = rng.randint(0, m.delta_bits - m.signal_bits)
        left = m.fraction_bits - self.rate_shift - 4 * self.coarse
        self.left = max(0, min(self.left_max, left))  # beyond the coarse part

    def arriving(self, cols):
        """`(i, column)` in the order in which latents come."""
        channels, W = self.latents // self.windows, self.windows
        for first in range(0, channels, cols):
            for w in range(W):
                for c in range(min(cols, channels - first)):
                    yield (first + c) * W + w, c


class Rig:
    """Drives a unit; on all ports not named there is noise. Looks at all outputs in all cycles."""

    def __init__(self, rule, basis, seed, cols=3, **changes):
        self.m, self.basis, self.rng = machine(rule, cols, **changes), basis, random.Random(f"{rule} {seed}")
        self.dut = UNITS[rule](self.m, basis.classes, basis)
        self.B = basis.table(self.m.max_neurons).tolist()
        self.held = {}

    async def cycle(self, ctx, **ports):
        dut, rng = self.dut, self.rng
        for name in ("start", "layer_start", "latent_valid", "go"):
            if name in dut.signature.members:
                ctx.set(getattr(dut, name), ports.get(name, 0))
        for name in (*HELD, "signal_base", "label", "train", "latent", "latent_column", "latent_weight", "score"):
            if name in dut.signature.members:
                port = getattr(dut, name)
                noise = rng.randrange(1 << len(port))
                ctx.set(port, ports.get(name, self.held.get(name, noise)))
        if ctx.get(dut.report_valid):
            self.reports.append(ctx.get(dut.report_score))
        kind, names = "delta", ["value", "channel_last", "sample_last"] + ["weight"] * self.m.learning.latents
        if self.m.learning.transposes:
            kind, names = "signal", ["bank", "word", "value"]
        if ctx.get(getattr(dut, f"{kind}_valid")):
            self.deltas.append((self.cycles, *(ctx.get(getattr(dut, f"{kind}_{n}")) for n in names)))
        if ctx.get(dut.done):
            self.dones.append(self.cycles)
        self.cycles += 1
        await ctx.tick()

    async def forward(self, ctx, layer, values, weights, first, word=0):
        """A sample's forward; values are latents, or scores, which alone `dfa` and `bp` look at."""
        rng, waits = self.rng, self.m.learning.waits
        self.held = {name: getattr(layer, name) for name in HELD}
        self.reports, self.deltas, self.dones, self.cycles = [], [], [], 0
        await self.cycle(ctx, start=1, layer_start=first, signal_base=word)
        for i, column in layer.arriving(self.m.cols):
            while rng.random() < 0.2:
                await self.cycle(ctx)
            value = {"score" if layer.is_output else "latent": values[i]}
            await self.cycle(ctx, latent_valid=1, latent_column=column, latent_weight=weights[i], **value)
        if not (layer.is_output or waits):
            assert not self.reports and not self.deltas
        assert not self.dones

    async def signal(self, ctx, layer, label, train, expected, length, reports=(), weights=(), first=0, word=0):
        """A sample's signal phase, from the cycle after the last latent on; `expected`: its d, under `bp` from `word`
        on."""
        self.held = {name: getattr(layer, name) for name in HELD} | {"label": label, "train": train}
        self.reports, self.deltas, self.dones, self.cycles = [], [], [], 0
        await self.cycle(ctx, go=1, layer_start=first)
        for _ in range(length - 1):
            await self.cycle(ctx)
        n, W = len(expected), layer.windows
        found = [
            (length - n + i, -d << layer.left, int(i % W == W - 1), int(i == n - 1)) for i, d in enumerate(expected)
        ]
        if self.m.learning.transposes:
            found = [
                (length - n - 1 + i, i % self.m.cols, word + i // self.m.cols, d) for i, d in enumerate(expected)
            ]
            assert ctx.get(self.dut.left_shift) == layer.left
        if self.m.learning.latents:
            found = [(*values, weight) for values, weight in zip(found, weights, strict=True)]
        assert self.deltas == found
        assert self.dones == [length - 1]
        assert self.reports == list(reports)

    async def output(self, ctx, layer, label, train, scale, first, word=0):
        """The output layer's forward and signal of a sample; its errors."""
        K = self.basis.classes
        scores = [sat(code(self.rng, -scale, scale), 20) for _ in range(K)]
        errors = softmax(scores, layer.score_shift, label)
        await self.forward(ctx, layer, scores, [8] * K, first, word)
        length = 3 * K + PLAIN_SIGNAL_TAIL if train else K + PLAIN_ARGMAX_TAIL
        d = [clip(rnd(e, 1)) for e in errors] if train else []
        if self.m.learning.transposes:
            d = [max(-2047, min(2047, rnd(e, 3) << 6)) for e in errors] if train else []
        await self.signal(ctx, layer, label, train, d, length, scores, [8] * len(d), word=word)
        assert ctx.get(self.dut.prediction) == scores.index(max(scores))
        return errors

    def run(self, bench):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


SHAPES = [(1, 1), (2, 1), (1, 4), (4, 4), (7, 3), (8, 6), (48, 1), (5, 9), (1, 48)]
KINDS = ["square", "walsh", "sine"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes, cols", [(2, 1), (3, 3), (10, 8)])
def test_labels(kind, classes, cols):
    """`drtp`: hidden and output layers in turn, sample after sample without a wasted cycle."""
    basis = Basis(kind, classes)
    rig = Rig("drtp", basis, f"{kind} {classes}", cols)
    rng, m = rig.rng, rig.m
    held = set()

    async def bench(ctx):
        for shape in rng.sample(SHAPES, 6):
            layer = Layer(m, rng, *shape)
            n = layer.latents
            for sample in range(3):
                latents = [code(rng, -128, 127) for _ in range(n)]
                weights = [code(rng, 1, 8192) for _ in range(n)]
                label = rng.randrange(classes)
                await rig.forward(ctx, layer, latents, weights, sample == 0)
                d = [clip(rnd(rnd(-256 * rig.B[label][i], basis.fraction_bits), 2)) for i in range(n)]
                further = [(a == 127 and v < 0) or (a == -128 and v > 0) for a, v in zip(latents, d, strict=True)]
                held.update(a for a, f in zip(latents, further, strict=True) if f)
                d = [0 if f else v for f, v in zip(further, d, strict=True)]
                await rig.signal(ctx, layer, label, 1, d, n + LABEL_TAIL, weights=weights)
            top = Layer(m, rng, classes, 1, output=True)
            for sample in range(2):
                train = rng.randrange(4) > 0
                await rig.output(ctx, top, rng.randrange(classes), train, rng.choice([9, 900, 1 << 19]), sample == 0)

    rig.run(bench)
    assert held == {127, -128}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes, cols", [(2, 1), (3, 3), (10, 8)])
def test_feedback(kind, classes, cols):
    """`dfa`: batches of 1 to 4 samples forward; then the errors of each once more, a layer after the other."""
    basis = Basis(kind, classes)
    rig = Rig("dfa", basis, f"{kind} {classes}", cols)
    rng, m = rig.rng, rig.m

    async def bench(ctx):
        for batch in (2, 1, 4, 3, 1):
            layers = [Layer(m, rng, *shape) for shape in rng.sample(SHAPES, 3)]
            for layer in layers:
                for sample in range(batch):
                    await rig.forward(ctx, layer, [0] * layer.latents, [0] * layer.latents, sample == 0)
            top = Layer(m, rng, classes, 1, output=True)
            scale = rng.choice([9, 900, 1 << 19])
            labels = [rng.randrange(classes) for _ in range(batch)]
            if rng.randrange(3) == 0:
                await rig.output(ctx, top, 0, 0, scale, 1)
                continue
            errors = [await rig.output(ctx, top, label, 1, scale, b == 0) for b, label in enumerate(labels)]
            for layer in reversed(layers):
                n = layer.latents
                for sample, e in enumerate(errors):
                    G = [rnd(sum(row[i] * v for row, v in zip(rig.B, e, strict=True)), basis.fraction_bits)
                         for i in range(n)]  # fmt: skip
                    d = [clip(rnd(g, 2)) for g in G]
                    await rig.signal(ctx, layer, 0, 1, d, classes + n + FEEDBACK_TAIL, first=sample == 0)

    rig.run(bench)


@pytest.mark.parametrize("delta_bits", [15, 18])
@pytest.mark.parametrize("classes, cols", [(2, 1), (3, 3), (10, 8), (7, 2)])
def test_back(classes, cols, delta_bits):
    """`bp`: the output layer's alone, of batches of 1 to 4 samples; hidden layers go forward in between."""
    rig = Rig("bp", Basis("square", classes), classes, cols, delta_bits=delta_bits, signal_depth=500)
    rng, m, errors = rig.rng, rig.m, set()

    async def bench(ctx):
        for batch in (2, 1, 4, 3, 1, 2, 4):
            hidden = Layer(m, rng, 4, 1)
            for sample in range(batch):
                await rig.forward(ctx, hidden, [0] * hidden.latents, [0] * hidden.latents, sample == 0)
            top = Layer(m, rng, classes, 1, output=True)
            scale, word = rng.choice([9, 900, 1 << 19, 1 << 19, 1 << 19]), rng.randrange(400)
            train = rng.randrange(4) > 0
            for sample in range(batch):
                label = rng.randrange(classes)
                errors.update(await rig.output(ctx, top, label, train, scale, sample == 0, word))
                word += -(-classes // cols)

    rig.run(bench)
    assert min(errors) == -256  # which is clipped


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("rule", UNITS)
def test_refuses(rule):
    m = machine(rule, max_neurons=8)
    with pytest.raises(SpecError, match="basis.classes"):
        UNITS[rule](m, 4, Basis("walsh", 5))
    with pytest.raises(SpecError, match="max_neurons"):
        UNITS[rule](m, 9, Basis("walsh", 9))
    gc.collect()  # so that the complaint about unused components comes while it is ignored
