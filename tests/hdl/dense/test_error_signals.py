"""The units that begin at the output layer's error, and the walk of an inference: every value in its cycle."""

import gc
import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.argmax import Argmax
from hdl.dense.back_signal import BackSignal
from hdl.dense.feedback_signal import FeedbackSignal
from hdl.dense.label_signal import LabelSignal
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.timing import PLAIN_ARGMAX_TAIL, PLAIN_SIGNAL_TAIL, SETUP_CYCLES, delta_latency, tile_interval
from tests.hdl.arithmetic import EXP, RCP9, clip, rnd, sat


def errors(scores, shift, label):
    u = [sat(rnd(s << 9, shift), 16) for s in scores]
    d = [max(u) - v for v in u]
    E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in d]
    Z = sum(E)
    M = Z.bit_length() - 1
    return [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) - 256 * (c == label) for c, v in enumerate(E)]


def sloped(t, neg, most):
    return clip(rnd(t, 3) if neg else t, most)


def held(t, neg, end):
    """Saturated (`end`), at the top or, with `neg`, at the bottom: no further. Weights move against a signal."""
    return 0 if end and (t > 0 if neg else t < 0) else t


class Script:
    """What goes into a unit, and what must come out, by cycle."""

    def __init__(self, machine, classes, basis, seed):
        self.m, self.K, self.basis = machine, classes, basis
        self.rng = random.Random(seed)
        self.B = basis.table(machine.max_neurons).tolist()
        self.inputs = {}  # cycle -> {port: value}: pulses, and values that are noise in other cycles
        self.held = {}  # cycle -> {port: value}, from then on
        self.reports, self.dones, self.predictions = [], [], {}
        self.made, self.heads = [], {}
        self.backs = {}  # (cycle, column) -> signal
        self.t, self.bias = 2, 3

    def at(self, cycle, **ports):
        self.inputs.setdefault(cycle, {}).update(ports)

    def hold(self, **ports):
        self.held.setdefault(self.t, {}).update(ports)

    def layer(self, n_out, n_in, output=False):
        """A layer's parameters; `negs` are the slopes that hidden layers keep."""
        layer = {
            "n_out": n_out, "n_in": n_in, "is_output": int(output), "col_tiles": -(-n_out // self.m.cols),
            "rate_shift": self.rng.randint(-6, 14), "score_shift": 9 if output else self.rng.randrange(32),
            "b_base": self.bias, "negs": [self.rng.randrange(2) for _ in range(n_out)],
            "ends": [self.rng.randrange(2) for _ in range(n_out)],
        }  # fmt: skip
        self.bias += n_out
        return layer

    def parameters(self, layer, number=0, early=False):
        """`early`: but for the rate, which `setup` reads last."""
        ports = ["n_out", "col_tiles", "score_shift", "is_output"] + ["rate_shift"] * (not early)
        ports += ["b_base"] * self.m.learning.waits + ["n_in"] * self.m.learning.transposes
        if self.m.learning.transposes:
            self.hold(half=number & 1)
        self.hold(**{name: layer[name] for name in ports})

    def forward(self, layer, scores=None, number=0):
        self.parameters(layer, number)
        self.at(self.t, start=1)
        self.t += 1
        for j in range(layer["n_out"]):
            self.t += self.rng.random() < 0.2
            score = scores[j] if scores else self.rng.randint(-500000, 500000)
            self.at(self.t, in_valid=1, in_neg=layer["negs"][j], in_score=score)
            if self.m.rule != "bp":
                self.at(self.t, in_saturated=layer["ends"][j])
            self.t += 1

    def signal(self, scores, label, train):
        self.hold(label=label, train=train)
        self.at(self.t, go=1)
        self.reports += scores
        self.t += 3 * self.K + PLAIN_SIGNAL_TAIL if train else self.K + PLAIN_ARGMAX_TAIL
        self.dones.append(self.t - 1)
        self.predictions[self.t] = scores.index(max(scores))
        return errors(scores, 9, label)

    def update(self, layer, deltas, number=0, row_tiles=1):
        """From `delta_go` on: pops as the array makes them, column tiles as early as it may."""
        m = self.m
        self.parameters(layer, number)
        ls = max(0, min(m.delta_bits - m.signal_bits, m.fraction_bits - layer["rate_shift"]))
        total = layer["col_tiles"] * m.cols
        padding = total - layer["n_out"]
        shifted = [-d << ls for d in deltas] + [0] * padding
        self.made += zip(shifted, [1] * layer["n_out"] + [0] * padding, strict=True)
        self.at(self.t, delta_go=1)
        first = self.t + delta_latency(m.rule)
        for number, value in enumerate(shifted):
            tile, column = divmod(number, m.cols)
            cycle = first + tile * tile_interval(row_tiles, m.cols) + column
            self.at(cycle, delta_pop=1)
            self.heads[cycle] = value
        self.t = cycle + 1

    def way_back(self, layer, below, deltas, number):
        """The steps, the array's answers after them, and the signals of the layer before."""
        m, rng = self.m, self.rng
        row_tiles = -(-layer["n_in"] // m.rows)
        self.at(self.t - 1, back_start=1)
        most = (1 << (m.back_sum_bits - 1)) - 1
        sums = []
        start = self.t
        for it in range(row_tiles):
            self.t = start + it * max(layer["col_tiles"], m.rows)
            for jt in range(layer["col_tiles"]):
                last = jt == layer["col_tiles"] - 1
                self.at(self.t, step_valid=1, step_tile=jt, step_last=int(last))
                for c in range(m.cols):
                    j = jt * m.cols + c
                    self.backs[self.t + c + 1, c] = deltas[j] if j < layer["n_out"] else 0
                self.t += 1
            for r in range(m.rows):
                corners = [most, -most - 1, 0, 1 << 13, (1 << 13) - 1, -(1 << 13), (2047 << 14) + (1 << 13)]
                corners += [rng.randint(-(1 << bits), 1 << bits) for bits in (18, 24, 25, 26, 28)]
                value = clip(rng.choice(corners), most)
                sums.append(value)
                self.at(self.t - 1 + r + m.cols + 5, back_valid=1, back_data=value)
        return [sloped(rnd(v, 14), n, 2047) for v, n in zip(sums, below["negs"], strict=False)]

    def fed(self, layer, G):
        """Signals of a hidden layer from what comes to it through the basis."""
        kept = zip(G, layer["negs"], layer["ends"], strict=True)
        return [held(sloped(rnd(g, 2), n, 127), n, end) for g, n, end in kept]

    def gradients(self, e, n):
        return [rnd(sum(self.B[c][i] * v for c, v in enumerate(e)), self.basis.fraction_bits) for i in range(n)]

    def sample(self, sizes, scores, label, train=1):
        rule, deltas = self.m.learning, []
        self.bias = 3
        top = len(sizes) - 2
        layers = [self.layer(sizes[n + 1], sizes[n], n == top) for n in range(top + 1)]
        for number, layer in enumerate(layers[:-1]):
            self.forward(layer, number=number)
            if rule.error == "label" and train:
                self.hold(label=label)
                G = [rnd(-256 * self.B[label][i], self.basis.fraction_bits) for i in range(layer["n_out"])]
                self.update(layer, self.fed(layer, G))
                self.t += 10
        self.forward(layers[-1], scores, number=top)
        e = self.signal(scores, label, train)
        if not train:
            self.t += 2
            return
        back = rule.error == "back"
        deltas = [clip(rnd(v, 3) << 6, 2047) if back else clip(rnd(v, 1), 127) for v in e]
        for number in range(top, -1 if rule.waits else top - 1, -1):
            layer = layers[number]
            if number < top:
                # As early as it may be: the update of the layer behind, and the way of its last pop.
                self.t += SETUP_CYCLES + 2 + self.m.rows + self.m.cols
                self.parameters(layer, number, early=True)
                self.t += 2
                G = self.gradients(e, layer["n_out"])
                if not back:
                    deltas = self.fed(layer, G)
            below = []
            if back and number:
                below = self.way_back(layer, layers[number - 1], deltas, number)
            self.update(layer, deltas, number, self.rng.randint(1, 3))
            deltas = below
        self.t += 12

    def run(self, dut):
        reports, dones, made = [], [], []
        back = self.m.learning.transposes
        pulses = ["start", "in_valid", "go", "delta_go", "delta_pop"]
        pulses += ["back_start", "step_valid", "back_valid"] * back
        noise = {"in_neg": 1, "in_score": 1 << 19}
        if not back:
            noise["in_saturated"] = 1
        if back:
            noise |= {"step_last": 1, "back_data": 1 << 20}

        async def bench(ctx):
            for cycle in range(self.t + 20):
                for port, value in self.held.get(cycle, {}).items():
                    ctx.set(getattr(dut, port), value)
                given = self.inputs.get(cycle, {})
                for port in pulses:
                    ctx.set(getattr(dut, port), given.get(port, 0))
                for port, most in noise.items():
                    ctx.set(getattr(dut, port), given.get(port, self.rng.randrange(most)))
                if back:
                    ctx.set(dut.step_tile, given.get("step_tile", 0))
                    for c in range(self.m.cols):
                        if (cycle, c) in self.backs:
                            assert ctx.get(dut.back_delta[c]) == self.backs[cycle, c], (cycle, c)
                if ctx.get(dut.report_valid):
                    reports.append(ctx.get(dut.report_score))
                if ctx.get(dut.done):
                    dones.append(cycle)
                if cycle in self.predictions:
                    assert ctx.get(dut.prediction) == self.predictions[cycle]
                if ctx.get(dut.delta_made):
                    made.append((ctx.get(dut.delta_value), ctx.get(dut.delta_real)))
                if cycle in self.heads:
                    assert ctx.get(dut.delta_fifo_level) > 0, cycle
                    assert ctx.get(dut.delta_fifo_data) == self.heads[cycle], cycle
                await ctx.tick()
            assert ctx.get(dut.delta_fifo_level) == 0

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        assert reports == self.reports
        assert dones == self.dones
        assert made == self.made


UNITS = {"drtp": LabelSignal, "dfa": FeedbackSignal, "bp": BackSignal}


def unit(script):
    rule = script.m.rule
    return BackSignal(script.m, script.K) if rule == "bp" else UNITS[rule](script.m, script.K, script.basis)


def script_for(rule, kind, classes, rows, cols, seed, **changes):
    values = {"max_neurons": 40, "max_fan_in": 40, "bias_depth": 128, "rows": rows, "cols": cols, "rule": rule}
    return Script(replace(load_machine("tiny"), **{**values, **changes}), classes, Basis(kind, classes), seed)


@pytest.mark.parametrize(
    "rule, kind", [("bp", "square"), *((r, k) for r in ("drtp", "dfa") for k in ("square", "walsh", "sine"))]
)
@pytest.mark.parametrize("classes, rows, cols", [(2, 2, 3), (3, 1, 1), (10, 4, 2), (10, 2, 4)])
def test_samples(rule, kind, classes, rows, cols):
    """Layers of all sizes, with and without training; scores that are close, far apart, equal, extreme."""
    script = script_for(rule, kind, classes, rows, cols, f"{rule} {kind} {classes}")
    rng = script.rng
    cases = ((900, (5, 17)), (5000, (1, 40, 1)), (1 << 19, (39,)), (1, (3, 2, 1, 7)), (60, (40, 23)))
    for scale, sizes in cases:
        scores = [rng.randint(-scale, scale - 1) for _ in range(classes)]
        script.sample([*sizes, classes], scores, rng.randrange(classes), train=int(scale != 1))
    script.run(unit(script))


@pytest.mark.parametrize("rule", UNITS)
def test_the_largest_errors(rule):
    """A class that is certain: right, where its probability exceeds 1, and wrong; delta_bits as narrow as may be."""
    script = script_for(rule, "walsh", 4, 3, 2, 1, delta_bits=12 if rule == "bp" else 8, fraction_bits=4)
    for label in (0, 3):
        script.sample([5, 9, 4], [(1 << 19) - 1, *[-(1 << 19)] * 3], label)
        script.sample([5, 9, 4], [-(1 << 19)] * 4, label)
    script.run(unit(script))


@pytest.mark.parametrize("classes", [2, 3, 8, 10])
def test_argmax(classes):
    """Hidden layers' numbers leave no trace; the lowest of equal scores wins."""
    rng = random.Random(classes)
    dut = Argmax(classes)
    low, high = -(1 << 19), (1 << 19) - 1

    async def bench(ctx):
        for case in range(12):
            scores = [rng.choice([low, high, 0, -1, rng.randint(low, high)]) for _ in range(classes)]
            if case == 0:
                scores = [low] * classes
            for output in (0, 1):
                ctx.set(dut.is_output, output)
                ctx.set(dut.start, 1)
                await ctx.tick()
                ctx.set(dut.start, 0)
                for score in scores if output else range(5):
                    ctx.set(dut.in_valid, 1)
                    ctx.set(dut.in_score, score)
                    await ctx.tick()
                    ctx.set(dut.in_valid, 0)
                    if rng.randrange(3) == 0:
                        await ctx.tick()
            reported = []
            ctx.set(dut.go, 1)
            for cycle in range(classes + PLAIN_ARGMAX_TAIL):
                assert ctx.get(dut.done) == (cycle == classes + PLAIN_ARGMAX_TAIL - 1)
                if ctx.get(dut.report_valid):
                    reported.append(ctx.get(dut.report_score))
                await ctx.tick()
                ctx.set(dut.go, 0)
            assert reported == scores
            assert ctx.get(dut.prediction) == scores.index(max(scores))
            assert not ctx.get(dut.report_valid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("rule", UNITS)
def test_refuses_more_classes_than_neurons(rule):
    with pytest.raises(SpecError, match="max_neurons"):
        unit(script_for(rule, "walsh", 9, 2, 2, 0, max_neurons=8))
    gc.collect()  # so that the complaint about unused components comes while it is ignored
