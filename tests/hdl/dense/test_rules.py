"""The core with each learning rule: every score, weight, bias and cycle against the equations of docs/rules.md."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.dense.core import Core
from spec import memory_map
from spec.basis import Basis
from spec.lfsr import SEQUENCE, offset
from spec.machine import load_machine
from spec.network import NO_LABEL
from spec.program import compile_program
from spec.rules import RULES
from spec.scores import basis_vectors, trained_shapes
from spec.timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    Phase,
    score_cycles,
    tile_interval,
    update_tail,
)
from tests.hdl.arithmetic import EXP, RCP8, RCP9, clip, msb, rnd, sat
from tests.hdl.core_host import Host
from tests.hdl.dense.networks import addresses, network
from tests.hdl.trained_scores import TrainedScores

TINY = load_machine("tiny")


class Trainer:
    """A network on a machine, one sample at a time, in plain integers."""

    def __init__(self, machine, program, net, rng):
        self.m, self.layers, self.rule = machine, program.layers, machine.learning
        self.basis = Basis(net.basis, basis_vectors(machine, net.classes))
        self.B = self.basis.table(machine.max_neurons).tolist()
        shapes = trained_shapes(net, machine)
        self.theta = [TrainedScores(self.rule.trains, self.basis, *shape, rng) for shape in shapes]
        code = lambda: rng.randint(-9000, 9000)  # noqa: E731
        self.w = [[[code() for _ in range(d.n_in)] for _ in range(d.n_out)] for d in self.layers]
        self.b = [[code() for _ in range(d.n_out)] for d in self.layers]
        self.array_steps = self.bias_steps = 0

    def parameters(self):
        """Bus address -> word, in the order of `test_core.addresses`."""
        values = [[*sum(w, []), *b] for w, b in zip(self.w, self.b, strict=True)]
        where = addresses(self.m, type("Program", (), {"layers": self.layers}))
        found = {a: v for layer, codes in zip(where, values, strict=True) for a, v in zip(layer, codes, strict=True)}
        rows = [row for layer in self.theta for row in layer.theta]
        return found | {
            memory_map.score_address(self.m, r, c): v for r, row in enumerate(rows) for c, v in enumerate(row)
        }

    def random(self, number, steps):
        return int(SEQUENCE[(offset(self.m, number) + steps) % 65535]) >> (16 - self.m.fraction_bits)

    def softmax(self, scores, shift, label):
        u = [sat(rnd(s << 9, shift), 16) for s in scores]
        d = [max(u) - v for v in u]
        E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in d]
        Z = sum(E)
        M = msb(Z)
        return [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) - 256 * (c == label) for c, v in enumerate(E)]

    def gradients(self, errors, n):
        return [rnd(sum(self.B[c][i] * e for c, e in enumerate(errors)), self.basis.fraction_bits) for i in range(n)]

    def hidden_delta(self, g, neg):
        t = rnd(g, 2)
        return clip(rnd(t, 3) if neg else t, 127)

    def fed_delta(self, G, a, neg):
        """`drtp`, `dfa`: a saturated activation is not pushed further; weights move against a delta."""
        deltas = [self.hidden_delta(g, n) for g, n in zip(G, neg, strict=True)]
        further = [(v == 127 and d < 0) or (v == -128 and d > 0) for v, d in zip(a, deltas, strict=True)]
        return [0 if f else d for f, d in zip(further, deltas, strict=True)]

    def own_signal(self, number, a, neg, label):
        """`lls` and the rules that train a part of it: deltas, k and scores."""
        layer, trained = self.layers[number], self.theta[number] if self.theta else None
        raws = [rnd(sum(b * v for b, v in zip(row, a, strict=False)), self.basis.fraction_bits) for row in self.B]
        scores = trained.scores(raws, a) if trained else [sat(raw, 20) for raw in raws]
        ss = sum(v * v for v in a)
        k, L = (msb(ss) + 1) >> 1, msb(ss)
        e = self.softmax(scores, layer.score_shift + k, label)
        h = sat(rnd(sum(x * s for x, s in zip(e, scores, strict=True)) << 1, k), 16)
        q = sat(rnd(h * RCP8[(ss << 4 >> L) & 15], (L >> 1) + 2), 16)
        G = trained.gradients(e, layer.n_out) if trained else self.gradients(e, layer.n_out)
        if trained:
            trained.update(a, e, layer.rate_shift - layer.act_shift + 20 + k)
        return [self.hidden_delta(g - rnd(q * v, 7), n) for g, v, n in zip(G, a, neg, strict=True)], k, scores

    def update(self, number, delta, x, k=0):
        layer, m, F = self.layers[number], self.m, self.m.fraction_bits
        ls = max(0, min(m.delta_bits - m.signal_bits, F - (layer.rate_shift + k)))
        shifted = [-d << ls for d in delta]
        for j, row in enumerate(self.w[number]):
            for i in range(layer.n_in):
                step = self.array_steps + j // m.cols * layer.row_tiles + i // m.rows
                r = self.random(i % m.rows * m.cols + j % m.cols, step)
                row[i] = sat(((row[i] << F) + r + shifted[j] * x[i]) >> F, 16)
        for j in range(layer.n_out):
            r = self.random(m.pes, self.bias_steps + j)
            self.b[number][j] = sat(((self.b[number][j] << F) + r + (shifted[j] << layer.bias_shift)) >> F, 16)
        self.array_steps += layer.steps
        self.bias_steps += layer.col_tiles * m.cols

    def step(self, pixels, label):
        """Takes a sample; the result's beats."""
        rule, beats, inputs, negs = self.rule, [], [pixels], []
        learns = label != NO_LABEL and rule.learns
        for number, layer in enumerate(self.layers):
            x = inputs[-1]
            z = [sum(w * v for w, v in zip(row, x, strict=True)) + (b << 7)
                 for row, b in zip(self.w[number], self.b[number], strict=True)]  # fmt: skip
            if layer.is_output:
                scores = [sat(rnd(v, layer.act_shift), 20) for v in z]
                break
            inputs.append([sat(rnd(v >> 3 if v < 0 else v, layer.act_shift), 8) for v in z])
            negs.append([v < 0 for v in z])
            if not (learns and layer.train):
                continue
            if rule.error == "own":
                delta, k, own = self.own_signal(number, inputs[-1], negs[-1], label)
                beats += own
                self.update(number, delta, x, k)
            elif rule.error == "label":
                G = [rnd(-256 * self.B[label][i], self.basis.fraction_bits) for i in range(layer.n_out)]
                self.update(number, self.fed_delta(G, inputs[-1], negs[-1]), x)
        beats += [*scores, scores.index(max(scores)) | label << 8]
        top = len(self.layers) - 1
        if not learns:
            return beats
        e = self.softmax(scores, self.layers[top].score_shift, label)
        back = rule.error == "back"
        delta = [clip(rnd(v, 3) << 6, 2047) if back else clip(rnd(v, 1), 127) for v in e]
        for number in range(top, -1, -1):
            layer = self.layers[number]
            below = []
            if layer.trains_below:
                rows = list(zip(self.w[number], delta, strict=True))
                sums = [sum(row[i] * d for row, d in rows) for i in range(layer.n_in)]
                t = [rnd(r, 14) for r in sums]
                below = [clip(rnd(v, 3) if n else v, 2047) for v, n in zip(t, negs[number - 1], strict=True)]
            if layer.train:
                self.update(number, delta, inputs[number])
            if not layer.trains_below:
                break
            G = self.gradients(e, layer.n_in)
            delta = below if back else self.fed_delta(G, inputs[number], negs[number - 1])
        return beats


def expected_phases(machine, program, classes, label):
    """(phase, layer) -> cycles of one sample, from the closed forms."""
    rule, cycles = machine.learning, Counter()
    top = program.layers[-1]
    more_trained, more_inferred = score_cycles(rule.trains, basis_vectors(machine, classes))
    learns = rule.learns and label != NO_LABEL
    for number, layer in enumerate(program.layers):
        interval = tile_interval(layer.row_tiles, machine.cols)
        issue = (layer.col_tiles - 1) * interval + layer.row_tiles
        skew = machine.rows + machine.cols
        trains = learns and layer.train
        cycles[Phase.SETUP, number] = SETUP_CYCLES * (2 if rule.waits and trains and layer is not top else 1)
        cycles[Phase.FORWARD, number] = issue + skew + FORWARD_TAIL
        if layer is top:
            signal, argmax = (SIGNAL_TAIL, ARGMAX_TAIL) if rule.scores else (PLAIN_SIGNAL_TAIL, PLAIN_ARGMAX_TAIL)
            signal, argmax = signal + more_trained, argmax + more_inferred
            cycles[Phase.SIGNAL, number] = 3 * classes + signal if trains else classes + argmax
        elif trains and rule.scores:
            cycles[Phase.SIGNAL, number] = 3 * classes + SIGNAL_TAIL + more_trained
        if trains:
            cycles[Phase.UPDATE, number] = issue + skew + update_tail(machine.rule)
        if trains and rule.transposes and layer.trains_below:
            back = (layer.row_tiles - 1) * max(layer.col_tiles, machine.rows) + layer.col_tiles + BACK_TAIL
            cycles[Phase.SIGNAL, number] += back
    cycles[Phase.FINISH, 0] = FINISH_CYCLES
    return cycles


SHAPES = [(5, 3, 3), (4, 3), (1, 2, 3), (8, 8, 5, 3), (3, 11, 9, 4)]
MACHINES = [(2, 2), (1, 1), (3, 5), (5, 3), (4, 1), (1, 4)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("basis", ["square", "walsh", "sine"])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_trains_by_the_book(rule, basis, sizes):
    """Samples with and without labels, the weights drawn small so that signals reach the first layer."""
    if basis != "square" and not RULES[rule].basis:
        return
    rows, cols = MACHINES[(SHAPES.index(sizes) + len(basis)) % len(MACHINES)]
    check(rule, basis, sizes, rows, cols)


@pytest.mark.parametrize("rows, cols", MACHINES)
@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_arrays(rule, rows, cols):
    check(rule, "walsh", (8, 8, 5, 3), rows, cols)


@pytest.mark.parametrize("rule", RULES)
def test_frozen(rule):
    check(rule, "square", (6, 5, 3), 2, 2, train_hidden=False)


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].trains])
def test_padding_learns_nothing(rule):
    """Behind a narrow layer's latents stand a wide one's, and behind its trained scores the next layer's."""
    check(rule, "square", (4, 9, 3, 6, 3), 2, 5)


@pytest.mark.parametrize("vectors", [2, 3, 4])
@pytest.mark.parametrize("basis", ["square", "sine"])
def test_fewer_vectors_than_classes(basis, vectors):
    check("lls_mxm", basis, (3, 11, 9, 4), 3, 5, vectors=vectors)


def check(rule, basis, sizes, rows, cols, train_hidden=True, **changes):
    net = network(*sizes, basis=basis)
    machine = replace(
        TINY, rule=rule, rows=rows, cols=cols, weight_depth=256, activation_depth=64, bias_depth=64,
        max_neurons=max(12, *sizes), max_fan_in=12, max_layers=4, result_fifo_depth=32,
        **changes,
    )  # fmt: skip
    program = compile_program(net, machine, train_hidden)
    core = Core(machine, net.classes, Basis(basis, basis_vectors(machine, net.classes)))
    rng = random.Random(f"{rule} {basis} {sizes} {rows} {cols}")
    trainer = Trainer(machine, program, net, rng)
    initial = trainer.parameters()
    top = net.classes - 1
    samples = [([rng.randint(0, 127) for _ in range(net.features)], label) for label in (0, NO_LABEL, top, 1, 1, 0)]

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, initial)
        ctx.set(core.results.ready, 1)
        expected, phases = [], Counter()
        for pixels, label in samples:
            await host.send(ctx, pixels, label)
            expected += trainer.step(pixels, label)
            phases += expected_phases(machine, program, net.classes, label)
        while len(host.beats) < len(expected):
            await host.tick(ctx)
        while not await host.register(ctx, "STATUS") & 1:
            pass
        assert [data - (data >> 31 << 32) if not last else data for data, last in host.beats] == expected
        assert Counter({key: n for key, n in host.seen.items() if key[0] is not Phase.WAIT}) == phases
        trained = trainer.parameters()
        for address, value in trained.items():
            assert await host.bus(ctx, address) == value & 0xFFFFFFFF, memory_map.describe(machine)["windows"]
        assert await host.register(ctx, "UPDATE_STEPS") == trainer.array_steps
        assert await host.register(ctx, "BIAS_STEPS") == trainer.bias_steps
        forward = len(samples) * sum(layer.steps for layer in program.layers)
        assert await host.register(ctx, "FORWARD_STEPS") == forward
        if RULES[rule].learns:
            where = addresses(machine, program)
            for layer in where if train_hidden else where[-1:]:
                assert any(trained[a] != initial[a] for a in layer), "a layer has learned nothing"
        changed = [a for a in set(trained) - {a for layer in addresses(machine, program) for a in layer}
                   if trained[a] != initial[a]]  # fmt: skip
        assert bool(changed) == bool(trainer.theta and train_hidden), "trained scores"
        for name in ("ADVANCE_ARRAY", "ADVANCE_BIAS"):
            await host.register(ctx, name, 70)
        while not await host.register(ctx, "STATUS") & 1:
            pass
        steps = 70 * RULES[rule].learns
        assert await host.register(ctx, "UPDATE_STEPS") == trainer.array_steps + steps
        assert await host.register(ctx, "BIAS_STEPS") == trainer.bias_steps + steps
        for address, value in trained.items():
            assert await host.bus(ctx, address) == value & 0xFFFFFFFF

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("rule", ["dfa", "inference"])
def test_room_is_kept_for_the_output_layers_scores(rule):
    """Only they are reported: a sample begins when they fit, however many layers there are, and not before."""
    net = network(4, 5, 5, 3)
    machine = replace(TINY, rule=rule, activation_depth=32, result_fifo_depth=32)
    program = compile_program(net, machine)
    machine = replace(machine, result_fifo_depth=net.classes + 1)
    core = Core(machine, net.classes, Basis(net.basis, net.classes))
    trainer = Trainer(machine, program, net, random.Random(rule))
    pixels = [3, 99, 7, 127]

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, trainer.parameters())
        for label in (1, 2):
            await host.send(ctx, pixels, label)
        for taken in range(net.classes + 1):
            for _ in range(1000):
                await host.tick(ctx)
            assert await host.register(ctx, "SAMPLES") == 1, f"{taken} of its beats are taken"
            ctx.set(core.results.ready, 1)
            await host.tick(ctx)
            ctx.set(core.results.ready, 0)
        ctx.set(core.results.ready, 1)
        for _ in range(1500):
            await host.tick(ctx)
        assert await host.register(ctx, "SAMPLES") == 2
        expected = [beat for label in (1, 2) for beat in trainer.step(pixels, label)]
        assert [data - (data >> 31 << 32) if not last else data for data, last in host.beats] == expected

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
