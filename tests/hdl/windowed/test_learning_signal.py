"""hdl.windowed.learning_signal against the equations of a training step: every score, signal and cycle."""

import gc
import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.learning_signal import LearningSignal
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.windowed_timing import ARGMAX_TAIL, SIGNAL_TAIL
from tests.hdl.arithmetic import EXP, RCP8, RCP9, clip, msb, rnd, sat


def machine(cols=3, **changes):
    values = {"cols": cols, "max_neurons": 48, "fraction_bits": 20, "gradient_bits": 44, "delta_bits": 18}
    return replace(load_machine("tiny"), **{**values, **changes})


class Layer:
    """A sample's latents in a layer, by channel and window, and what the equations make of them."""

    def __init__(self, machine, basis, values, windows, label, output=False, train=1, weights=None, rng=None,
                 score_shift=0, rate_shift=0, left_max=None, coarse=0):  # fmt: skip
        most = machine.delta_bits - 8
        self.values, self.windows, self.output, self.train = values, windows, output, train
        self.score_shift, self.rate_shift, self.coarse = score_shift, rate_shift, coarse
        self.left_max = most if left_max is None else left_max
        self.label, self.latents, classes = label, len(values), basis.classes
        rng = rng or random.Random(self.latents)
        self.weights = [8] * self.latents if output else weights or [code(rng, 1, 8192) for _ in values]
        B = basis.table(self.latents).tolist()
        if output:
            self.scores, ss, k = values, 0, 0
        else:
            raws = [sum(e * a for e, a in zip(row, values, strict=True)) for row in B]
            self.scores = [sat(rnd(raw, basis.fraction_bits), 20) for raw in raws]
            ss = sum(a * a for a in values)
            k = (msb(ss) + 1) >> 1
        u = [sat(rnd(s << 9, score_shift + k), 16) for s in self.scores]
        away = [max(u) - v for v in u]
        E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in away]
        Z = sum(E)
        M = msb(Z)
        p = [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) for v in E]
        e = [v - 256 * (c == label) for c, v in enumerate(p)]
        self.prediction = self.scores.index(max(self.scores))
        if output:
            self.d = [clip(rnd(v, 1)) for v in e]
        else:
            gs = sum(v * s for v, s in zip(e, self.scores, strict=True))
            h = sat(rnd(gs << 1, k), 16)
            L = msb(ss)
            self.q = q = sat(rnd(h * RCP8[(ss << 4 >> L) & 15], (L >> 1) + 2), 16)
            self.d = []
            for i, a in enumerate(values):
                G = rnd(sum(B[c][i] * e[c] for c in range(classes)), basis.fraction_bits)
                self.d.append(clip(rnd(G - rnd(q * a, 7), 2)))
        # left = coarse + clip(F - rate_shift - k - coarse, 0, left_max); d' = -d << (left - coarse)
        coarse_shift = 4 * coarse
        self.left = coarse_shift + sat_between(machine.fraction_bits - rate_shift - k - coarse_shift, 0, self.left_max)
        self.deltas = [-v << (self.left - coarse_shift) for v in self.d]

    def arriving(self, cols):
        """`(i, column)` in the order in which latents come."""
        channels, W = self.latents // self.windows, self.windows
        for first in range(0, channels, cols):
            for w in range(W):
                for c in range(min(cols, channels - first)):
                    yield (first + c) * W + w, c


def sat_between(v, low, high):
    return max(low, min(high, v))


def code(rng, low, high):
    return rng.choice([low, high, low + 7, rng.randint(low, high)])


def run(machine, basis, layers, *, gaps=0.0, waits=False, seed=1):
    """Takes a layer's sample after the other through forward and signal; looks at all outputs in all cycles."""
    rng, K = random.Random(seed), basis.classes
    dut = LearningSignal(machine, K, basis)
    held = ("is_output", "latents", "windows", "score_shift", "rate_shift", "left_max", "coarse")

    def noise(ctx, *names):
        for name in names:
            port = getattr(dut, name)
            ctx.set(port, rng.randrange(-(1 << 20), 1 << 20))

    async def bench(ctx):
        found = {}

        async def cycle():
            """Ends a cycle; what it showed goes to `found`."""
            if ctx.get(dut.report_valid):
                found["scores"].append(ctx.get(dut.report_score))
            if ctx.get(dut.delta_valid):
                names = ("value", "weight", "channel_last", "sample_last")
                found["deltas"].append((found["cycles"], *(ctx.get(getattr(dut, f"delta_{n}")) for n in names)))
            if ctx.get(dut.done):
                found["done"].append(found["cycles"])
            found["cycles"] += 1
            await ctx.tick()
            for name in ("start", "go", "latent_valid"):
                ctx.set(getattr(dut, name), 0)
            noise(ctx, "latent", "latent_column", "latent_weight", "score")

        for number, layer in enumerate(layers):
            found |= {"scores": [], "deltas": [], "done": [], "cycles": 0}
            for name in held:
                ctx.set(getattr(dut, name), getattr(layer, {"is_output": "output"}.get(name, name)))
            noise(ctx, "label", "train")
            ctx.set(dut.start, 1)
            await cycle()
            for i, column in layer.arriving(machine.cols):
                while rng.random() < gaps:
                    noise(ctx, "label", "train")
                    await cycle()
                ctx.set(dut.latent_valid, 1)
                ctx.set(dut.latent_column, column)
                ctx.set(dut.latent_weight, layer.weights[i])
                if layer.output:
                    ctx.set(dut.score, layer.values[i])
                else:
                    ctx.set(dut.latent, layer.values[i])
                await cycle()
            for _ in range(rng.choice([1, 4, 20]) if waits else 0):
                noise(ctx, "label", "train")
                await cycle()
            ctx.set(dut.go, 1)
            ctx.set(dut.label, layer.label)
            ctx.set(dut.train, layer.train)
            length = 3 * K + layer.latents + SIGNAL_TAIL if layer.train else K + ARGMAX_TAIL
            last = found["cycles"] + length - 1
            for _ in range(length):
                await cycle()
            if waits:  # all but the prediction is done with
                for _ in range(rng.choice([1, 3, 60])):
                    noise(ctx, *held, "label", "train")
                    assert ctx.get(dut.prediction) == layer.prediction, number
                    await cycle()

            W, n = layer.windows, layer.latents
            expected = [
                (last - n + 1 + i, layer.deltas[i], layer.weights[i], i % W == W - 1, i == n - 1)
                for i in range(n if layer.train else 0)
            ]
            assert found["scores"] == layer.scores, number
            assert found["deltas"] == expected, number
            assert found["done"] == [last], number
            assert ctx.get(dut.prediction) == layer.prediction, number

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def shifts(rng, machine):
    return {"rate_shift": rng.randint(-4, 24), "left_max": rng.randint(0, machine.delta_bits - 8),
            "coarse": rng.randrange(2)}  # fmt: skip


def hidden(machine, basis, rng, channels, windows, scale=128, **changes):
    values = [sat(code(rng, -scale, scale), 8) for _ in range(channels * windows)]
    label = rng.randrange(basis.classes)
    keys = {"score_shift": rng.randrange(3), **shifts(rng, machine), **changes}
    return Layer(machine, basis, values, windows, label, rng=rng, **keys)


def output(machine, basis, rng, scale, **changes):
    values = [sat(code(rng, -scale, scale), 20) for _ in range(basis.classes)]
    keys = {"score_shift": 9, **shifts(rng, machine), **changes}
    return Layer(machine, basis, values, 1, rng.randrange(basis.classes), True, **keys)


SHAPES = [(1, 1), (2, 1), (3, 1), (1, 4), (4, 4), (7, 3), (8, 6), (48, 1), (5, 9), (1, 48)]


@pytest.mark.parametrize("kind", ["square", "walsh", "sine"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_layers(kind, classes):
    """Hidden and output layers in turn, of all shapes, temperatures and rates; without a wasted cycle, and with."""
    rng = random.Random(f"{kind} {classes}")
    for cols, gaps in ((1, 0.0), (2, 0.3), (3, 0.0), (8, 0.2)):
        m = machine(cols)
        basis = Basis(kind, classes)
        layers = []
        for channels, windows in rng.sample(SHAPES, 6):
            layers += [hidden(m, basis, rng, channels, windows, scale) for scale in rng.sample([1, 20, 128], 2)]
            layers.append(output(m, basis, rng, rng.choice([600, 5000, 1 << 19])))
        run(m, basis, layers, gaps=gaps, waits=gaps > 0)


@pytest.mark.parametrize("kind", ["square", "walsh", "sine"])
@pytest.mark.parametrize("windows", [1, 4])
def test_extremes(kind, windows):
    """The largest latents that all agree with one class's row, all one code, all 0, all 0 but one."""
    m = machine(8, max_neurons=64)
    basis = Basis(kind, 10)
    table = basis.table(64).tolist()
    layers = []
    for label in (0, 9):
        for values in (
            [127 if entry > 0 else -128 for entry in table[label]],
            [-128 if entry > 0 else 127 for entry in table[label]],
            [-128] * 64,
            [127] * 64,
            [0] * 64,
            [1] + [0] * 63,
            [0] * 63 + [-1],
            [0] * 21 + [-128] + [0] * 42,
        ):
            layers.append(Layer(m, basis, values, windows, label))
    for values in ([-(1 << 19)] * 10, [(1 << 19) - 1] * 10, [5, 7, 7, 7] + [-3] * 6, [0] * 10):
        layers.append(Layer(m, basis, values, 1, 3, True, score_shift=9))
    run(m, basis, layers)


@pytest.mark.parametrize("changes", [{}, {"fraction_bits": 24, "gradient_bits": 48},
                                     {"fraction_bits": 12, "gradient_bits": 40, "delta_bits": 14}])  # fmt: skip
def test_every_shift(changes):
    """From where nothing is left of the rate to where it is clipped, with `coarse` and without."""
    m, rng = machine(2, **changes), random.Random(3)
    basis = Basis("square", 3)
    most = m.delta_bits - 8
    layers, lefts = [], set()
    for coarse in (0, 1):
        for left_max in (0, 1, most - 1, most):
            for rate_shift in (-32, 31, *range(m.fraction_bits - most - 14, m.fraction_bits + 2, 3)):
                keys = {"rate_shift": sat_between(rate_shift, -32, 31), "left_max": left_max, "coarse": coarse}
                layers += [hidden(m, basis, rng, 2, 2, **keys), output(m, basis, rng, 3000, **keys)]
    run(m, basis, layers)
    lefts = {layer.left - 4 * layer.coarse for layer in layers}
    assert lefts == set(range(most + 1))


@pytest.mark.parametrize("waits", [False, True])
def test_inference(waits):
    """Without training: a shorter phase, no signal, and no trace of it in what follows."""
    rng = random.Random(6)
    m = machine(4)
    basis = Basis("square", 7)
    layers = []
    for _ in range(4):
        layers += [output(m, basis, rng, 900, train=0), hidden(m, basis, rng, 5, 6)]
        layers += [hidden(m, basis, rng, 3, 2, train=0), output(m, basis, rng, 900)]
        layers += [output(m, basis, rng, 9, train=0), output(m, basis, rng, 9, train=0)]
    run(m, basis, layers, waits=waits)


def test_samples_of_a_batch():
    """One layer, sample after sample: scores, norm and index of the one before are gone."""
    rng = random.Random(8)
    m = machine(4)
    basis = Basis("walsh", 10)
    keys = {"score_shift": 1, "rate_shift": 8, "left_max": 9, "coarse": 0}
    for train in (1, 0):
        layers = [hidden(m, basis, rng, 11, 4, scale, **keys) for scale in (128, 1, 128, 0, 3)]
        layers += [output(m, basis, rng, 800, train=train) for _ in range(3)]
        run(m, basis, layers)


def test_large_projection():
    """Many small latents along one class and a large one: its signal is almost all projection."""
    m = machine(8, max_neurons=512)
    basis = Basis("square", 10)
    row = basis.table(512)[4].tolist()
    layers = []
    for large in (127, -128):
        values = [5 * entry for entry in row]
        values[7] = large
        layers.append(Layer(m, basis, values, 16, label=3))
        assert abs(layers[-1].q) * 127 >> (7 + 2) > 127, "not a large projection"
    assert {-127, 127} <= {d for layer in layers for d in layer.d}, "not clipped"
    run(m, basis, layers)


def test_scores_saturate():
    """So many latents that 20 bits do not hold the score of a class that they agree with, or the opposite of."""
    m = machine(8, max_neurons=4200)
    basis = Basis("square", 2)
    values = [127 if entry > 0 else -128 for entry in basis.table(4200)[1].tolist()]
    for sign in (0, -1):
        layer = Layer(m, basis, [value ^ sign for value in values], 100, label=0)
        assert layer.scores[1] == (sign or 1) * (1 << 19) - (not sign)
        run(m, basis, [layer])


def test_many_classes():
    """The deepest adder tree; latents beyond a byte."""
    m, rng = machine(8, max_neurons=300), random.Random(7)
    for kind in ("square", "walsh"):
        basis = Basis(kind, 150)
        run(m, basis, [hidden(m, basis, rng, 75, 4), output(m, basis, rng, 700), hidden(m, basis, rng, 300, 1)])


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refuses():
    m = machine(max_neurons=8)
    with pytest.raises(SpecError, match="basis.classes"):
        LearningSignal(m, 4, Basis("walsh", 5))
    with pytest.raises(SpecError, match="max_neurons"):
        LearningSignal(m, 9, Basis("walsh", 9))
    gc.collect()  # so that the complaint about unused components comes while it is ignored
