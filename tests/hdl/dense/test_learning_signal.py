"""The learning-signal unit against the equations of a training step, every score, error and signal."""

import gc
import random
from dataclasses import replace
from itertools import product

import pytest
from amaranth.sim import Simulator

from hdl.dense.learning_signal import LearningSignal
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.rules import RULES
from spec.timing import ARGMAX_TAIL, DELTA_LATENCY, SIGNAL_TAIL, score_cycles
from tests.hdl.arithmetic import EXP, RCP8, RCP9, clip, msb, rnd, sat
from tests.hdl.trained_scores import TrainedScores

ACT_SHIFT = 14
TRAINED = [rule for rule in RULES if RULES[rule].trains]


class Layer:
    """A layer's stimulus and what the equations make of it."""

    def __init__(self, machine, basis, values, neg, label, output=False, score_shift=0, rate_shift=0, trained=None):
        self.values, self.neg, self.label, self.output, self.trained = values, neg, label, output, trained
        self.score_shift, self.rate_shift = score_shift, rate_shift
        self.n_out, classes = len(values), basis.classes
        self.first = [row[:] for row in trained.theta] if trained else []
        self.col_tiles = -(-self.n_out // machine.cols)
        B = basis.table(self.n_out).tolist()
        if output:
            self.scores, ss, k = values, 0, 0
        else:
            raws = [rnd(sum(e * a for e, a in zip(row, values, strict=True)), basis.fraction_bits) for row in B]
            self.scores = trained.scores(raws, values) if trained else [sat(raw, 20) for raw in raws]
            ss = sum(a * a for a in values)
            k = (msb(ss) + 1) >> 1
        u = [sat(rnd(s << 9, score_shift + k), 16) for s in self.scores]
        d = [max(u) - v for v in u]
        E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in d]
        Z = sum(E)
        M = msb(Z)
        p = [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) for v in E]
        self.e = e = [v - 256 * (c == label) for c, v in enumerate(p)]
        self.prediction = self.scores.index(max(self.scores))
        if output:
            signals = [clip(rnd(v, 1)) for v in e]
        else:
            gs = sum(v * s for v, s in zip(e, self.scores, strict=True))
            h = sat(rnd(gs << 1, k), 16)
            L = msb(ss)
            self.q = q = sat(rnd(h * RCP8[(ss << 4 >> L) & 15], (L >> 1) + 2), 16)
            signals = []
            if trained:
                gradients = trained.gradients(e, self.n_out)
                trained.update(values, e, rate_shift - ACT_SHIFT + 20 + k)
            else:
                sums = [sum(B[c][i] * e[c] for c in range(classes)) for i in range(self.n_out)]
                gradients = [rnd(total, basis.fraction_bits) for total in sums]
            for i, (a, G) in enumerate(zip(values, gradients, strict=True)):
                t = rnd(G - rnd(q * a, 7), 2)
                signals.append(clip(rnd(t, 3) if neg[i] else t))
        ls = max(0, min(machine.delta_bits - 8, machine.fraction_bits - rate_shift - k))
        padding = self.col_tiles * machine.cols - self.n_out
        self.deltas = [-v << ls for v in signals] + [0] * padding
        self.real = [1] * self.n_out + [0] * padding


def run(machine, basis, layers, *, gaps=0.0, interval=None, seed=1, classes=None):
    """Takes the layers through all phases. `layers` has pairs (layer, train)."""
    rng = random.Random(seed)
    K = classes or basis.classes
    dut = LearningSignal(machine, K, basis)
    trains = machine.learning.trains
    more_trained, more_inferred = score_cycles(trains, basis.classes)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def host(ctx, layer, codes=None):
        """Writes `codes` as the layer's trained scores, or reads these."""
        found, lanes = [], len(layer.first[0]) if layer.first else 0
        for row, lane in product(range(len(layer.first)), range(lanes)):
            ctx.set(dut.host_valid, 1)
            ctx.set(dut.host_write, codes is not None)
            ctx.set(dut.host_row, row)
            if layer.trained.kind != "factors":
                ctx.set(dut.host_lane, lane)
            ctx.set(dut.host_data, codes[row][lane] if codes else rng.randint(-9999, 9999))
            while not ctx.get(dut.host_done):
                await ctx.tick()
            found.append(ctx.get(dut.host_q))
            await ctx.tick()
            ctx.set(dut.host_valid, 0)
        return found

    async def bench(ctx):
        if trains:
            ctx.set(dut.act_shift, ACT_SHIFT)
            ctx.set(dut.first_layer, 1)
        for number, (layer, train) in enumerate(layers):
            where = f"layer {number}"
            await host(ctx, layer, layer.first)
            for name in ("n_out", "col_tiles", "score_shift", "rate_shift", "label"):
                ctx.set(getattr(dut, name), getattr(layer, name))
            ctx.set(dut.is_output, layer.output)
            ctx.set(dut.train, train)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for i, value in enumerate(layer.values):
                while rng.random() < gaps:
                    await ctx.tick()
                ctx.set(dut.in_valid, 1)
                # What does not count in this kind of layer is anything.
                ctx.set(dut.in_a, rng.randint(-128, 127) if layer.output else value)
                ctx.set(dut.in_neg, layer.neg[i])
                ctx.set(dut.in_score, value if layer.output else rng.randint(-500000, 500000))
                await ctx.tick()
                ctx.set(dut.in_valid, 0)

            reported, cycles = [], 0
            ctx.set(dut.go, 1)
            while True:
                cycles += 1
                if ctx.get(dut.report_valid):
                    reported.append(ctx.get(dut.report_score))
                done = ctx.get(dut.done)
                await ctx.tick()
                ctx.set(dut.go, 0)
                if done:
                    break
                assert cycles < 10000
            length = 3 * K + SIGNAL_TAIL + more_trained if train else K + ARGMAX_TAIL + more_inferred
            assert cycles == length, where
            assert reported == layer.scores, where
            assert ctx.get(dut.prediction) == layer.prediction, where
            if not train:
                continue

            # Pops as the array does it: C a tile, tiles `interval` apart, never late.
            step = max(interval or 0, machine.cols)
            total = layer.col_tiles * machine.cols
            last = DELTA_LATENCY + (layer.col_tiles - 1) * step + machine.cols - 1
            made, popped = [], []
            ctx.set(dut.delta_go, 1)
            for cycle in range(last + 6):
                tile, column = divmod(cycle - DELTA_LATENCY, step)
                pop = cycle >= DELTA_LATENCY and column < machine.cols and tile < layer.col_tiles
                assert not pop or ctx.get(dut.delta_fifo_level) > 0, (where, cycle)
                if pop:
                    popped.append(ctx.get(dut.delta_fifo_data))
                ctx.set(dut.delta_pop, pop)
                if ctx.get(dut.delta_made):
                    made.append((ctx.get(dut.delta_value), ctx.get(dut.delta_real)))
                await ctx.tick()
                ctx.set(dut.delta_go, 0)
            assert len(made) == total, where
            assert made == list(zip(layer.deltas, layer.real, strict=True)), where
            assert popped == layer.deltas, where
            assert ctx.get(dut.delta_fifo_level) == 0, where
            assert await host(ctx, layer) == [code for row in layer.trained.theta for code in row] if layer.first else 1

    simulator.add_testbench(bench)
    simulator.run()


def hidden(machine, basis, rng, n, scale=127, **kwargs):
    """A hidden layer with activations up to `scale`; z is negative where a is, and in a few zeros."""
    values = [rng.randint(-scale - (scale == 127), scale) for _ in range(n)]
    neg = [int(a < 0 or (a == 0 and rng.random() < 0.5)) for a in values]
    return Layer(machine, basis, values, neg, rng.randrange(basis.classes), **kwargs)


def output(machine, basis, rng, scale, **kwargs):
    values = [rng.randint(-scale, scale - 1) for _ in range(basis.classes)]
    neg = [rng.randrange(2) for _ in values]
    label = rng.randrange(basis.classes)
    return Layer(machine, basis, values, neg, label, True, **{"score_shift": 9, **kwargs})


@pytest.mark.parametrize("kind", ["square", "walsh", "sine"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_layers(kind, classes):
    """Hidden and output layers in turn, of all sizes, temperatures and rates."""
    rng = random.Random(f"{kind} {classes}")
    machine = replace(load_machine("tiny"), max_neurons=40, cols=3)
    basis = Basis(kind, classes)
    layers = []
    for n in (1, 2, 3, 17, 40):
        for scale in (1, 20, 127):
            shifts = {"score_shift": rng.randrange(3), "rate_shift": rng.randint(-4, 12)}
            layers.append((hidden(machine, basis, rng, n, scale, **shifts), 1))
        scale = rng.choice([600, 5000, 1 << 19])
        layers.append((output(machine, basis, rng, scale, rate_shift=rng.randint(-20, 20)), 1))
    run(machine, basis, layers, gaps=0.2)


@pytest.mark.parametrize("kind", ["square", "walsh", "sine"])
def test_extremes(kind):
    """The largest activations that all agree with one class's row, or all one code, or all 0."""
    machine = replace(load_machine("ice40up5k"), max_neurons=64)
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
        ):
            neg = [int(a < 0) for a in values]
            layers.append((Layer(machine, basis, values, neg, label), 1))
    for values in ([-(1 << 19)] * 10, [(1 << 19) - 1] * 10, [5, 7, 7, 7] + [-3] * 6, [0] * 10):
        layers.append((Layer(machine, basis, values, [0] * 10, 3, True, 9), 1))
    run(machine, basis, layers)


def test_steady_rate():
    """Column tiles exactly C cycles apart: a signal a cycle, and none late; then far apart."""
    rng = random.Random(5)
    for cols in (1, 2, 8):
        machine = replace(load_machine("tiny"), max_neurons=61, cols=cols)
        basis = Basis("square", 4)
        layers = [(hidden(machine, basis, rng, n), 1) for n in (61, 60, cols)]
        run(machine, basis, layers)
        run(machine, basis, layers, interval=cols + 5)


def test_inference():
    """Without training: a shorter phase, and no trace of it in the layer that follows."""
    rng = random.Random(6)
    machine = load_machine("tiny")
    basis = Basis("square", 7)
    layers = []
    for _ in range(4):
        layers += [(output(machine, basis, rng, 900), 0), (hidden(machine, basis, rng, 8), 1)]
        layers += [(output(machine, basis, rng, 900), 1), (output(machine, basis, rng, 9), 0)]
    run(machine, basis, layers)


def test_many_classes():
    """More classes than fit a byte's half: the deepest adder tree."""
    rng = random.Random(7)
    machine = replace(load_machine("tiny"), max_neurons=160)
    for kind in ("square", "walsh"):
        basis = Basis(kind, 150)
        layers = [(hidden(machine, basis, rng, 160), 1), (output(machine, basis, rng, 700), 1)]
        run(machine, basis, layers)


def test_large_projection():
    """Many small activations along one class and a large one: its signal is almost all projection."""
    machine = replace(load_machine("tiny"), max_neurons=512)
    basis = Basis("square", 10)
    row = basis.table(512)[4].tolist()
    layers = []
    for large in (127, -128):
        values = [5 * entry for entry in row]
        values[7] = large
        layer = Layer(machine, basis, values, [1] * 512, label=3)
        assert abs(layer.q) * 127 >> (7 + 2) > 511, "not a large projection"
        layers.append((layer, 1))
    run(machine, basis, layers)


def trained_layer(machine, basis, classes, rng, values, **kwargs):
    """A hidden layer that trains a part of its class scores."""
    kind = machine.learning.trains
    rows = {"factors": classes, "matrix": basis.classes, "basis": len(values)}[kind]
    trained = TrainedScores(kind, basis, rows, 1 if kind == "factors" else classes, rng)
    neg = [int(a < 0) for a in values]
    return Layer(machine, basis, values, neg, rng.randrange(classes), trained=trained, **kwargs)


@pytest.mark.parametrize("rule", TRAINED)
@pytest.mark.parametrize("classes, vectors", [(2, 2), (3, 2), (10, 10), (10, 4), (19, 19)])
def test_trained_scores(rule, classes, vectors):
    """All three rules, at rates from those that fill the range in a step to those that change nothing."""
    if vectors < classes and rule != "lls_mxm":
        return
    rng = random.Random(f"{rule} {classes} {vectors}")
    machine = replace(load_machine("tiny"), max_neurons=40, cols=3, rule=rule, vectors=vectors)
    basis = Basis(rng.choice(["square", "walsh", "sine"]), vectors)
    layers = []
    for rate_shift in (-31, *range(-14, 26, 3)):
        values = [rng.randint(-128, 127) for _ in range(rng.choice([1, 2, 17, 40]))]
        layers.append((trained_layer(machine, basis, classes, rng, values, rate_shift=rate_shift), 1))
        scores = [rng.randint(-9000, 9000) for _ in range(classes)]
        neg = [0] * classes
        for train in (0, 1):  # errors stay behind while the host writes
            layers.append((Layer(machine, Basis("square", classes), scores, neg, 1, True, 9, 3), train))
    run(machine, basis, layers, gaps=0.1, classes=classes)


@pytest.mark.parametrize("rule", TRAINED)
def test_trained_scores_saturate(rule):
    """More than a vector's 18 bits, a score's 20 and an error's 12, either way."""
    rng = random.Random(rule)
    machine = replace(load_machine("tiny"), max_neurons=1200, cols=4, rule=rule, classifier_depth=2048)
    basis = Basis("walsh", 3)
    layers = []
    for sign in (1, -1):
        values = [127 if sign * entry > 0 else -128 for entry in basis.table(1200)[1].tolist()]
        layer = trained_layer(machine, basis, 3, rng, values, rate_shift=-10)
        assert layer.trained and (rule == "local_classifier" or layer.trained.v[1] in (-(1 << 17), (1 << 17) - 1))
        layers.append((layer, 1))
    run(machine, basis, layers, classes=3)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refuses():
    machine = load_machine("tiny")
    with pytest.raises(SpecError, match="basis.classes"):
        LearningSignal(machine, 4, Basis("walsh", 5))
    with pytest.raises(SpecError, match="max_neurons"):
        LearningSignal(machine, 9, Basis("walsh", 9))
    for vectors, classes, word in ((0, 4, "classes"), (4, 5, "vectors"), (6, 6, "vectors")):
        with pytest.raises(SpecError, match=word):
            LearningSignal(replace(machine, rule="lls_mxm", vectors=vectors), 5, Basis("walsh", classes))
    gc.collect()  # so that the complaint about unused components comes while it is ignored
