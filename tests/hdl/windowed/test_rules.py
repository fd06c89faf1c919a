"""The core with each learning rule: every score, weight, bias and cycle against the equations, in plain integers.

Those of docs/rules.md, sections 5 and 6, and of docs/convolutions.md, sections 1 to 3.
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from amaranth.sim import Simulator

from hdl.windowed.core import Core
from spec import memory_map
from spec.basis import Basis
from spec.lfsr import SEQUENCE, offset
from spec.machine import load_machine
from spec.network import NO_LABEL, Convolution, FullyConnected, Network, Recipe
from spec.rules import RULES
from spec.scores import basis_vectors, score_basis, trained_shapes
from spec.timing import Phase, score_cycles
from spec.windowed import windowed_layers
from spec.windowed_program import compile_windowed
from spec.windowed_timing import (
    ARGMAX_TAIL,
    FEEDBACK_TAIL,
    FORWARD_TAIL,
    LABEL_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SETUP_TAIL,
    SIGNAL_TAIL,
    UPDATE_TAIL,
    back_cycles,
)
from tests.hdl.arithmetic import EXP, RCP8, RCP9, clip, msb, rnd, sat
from tests.hdl.core_host import Host
from tests.hdl.trained_scores import TrainedScores
from tests.hdl.windowed.networks import addresses, batches_of

TINY = replace(
    load_machine("conv-tiny"), slope_depth=2048, activation_depth=1024, max_neurons=48, max_side=8, signal_depth=256,
    index_depth=64,
)  # fmt: skip


class Layer:
    """A layer of the network: its shifts, its parameters as they are, and forward."""

    def __init__(self, shifts, rng):
        self.shifts, self.geometry = shifts, shifts.geometry
        geometry = self.geometry
        self.w = [[rng.randint(-9000, 9000) for _ in range(geometry.taps)] for _ in range(geometry.channels)]
        self.b = [rng.randint(-9000, 9000) for _ in range(geometry.channels)]
        (_, self.width, _), self.W = geometry.output, geometry.windows
        self.window_of = [int(w) for w in geometry.window_of]

    def places(self):
        """Elements of the map read, by row, column, channel, or None: `[channel][position][tap]`, one for all channels
        unless depthwise."""
        geometry = self.geometry
        (h, w, c), (kh, kw) = geometry.input, geometry.kernel
        H, W, N = geometry.output

        def at(y, x_, ci):
            return (y * w + x_) * c + ci if 0 <= y < h and 0 <= x_ < w else None

        def taps(oy, ox, channels):
            return [
                at(oy * geometry.stride - geometry.padding + ky, ox * geometry.stride - geometry.padding + kx, ci)
                for ky, kx, ci in product(range(kh), range(kw), channels)
            ]

        where = list(product(range(H), range(W)))
        if geometry.depthwise:
            return [[taps(oy, ox, [j]) for oy, ox in where] for j in range(N)]
        return [[taps(oy, ox, range(c)) for oy, ox in where]] * N

    def patches(self, x):
        """The elements of `x` that are read."""
        return [
            [[0 if place is None else x[place] for place in taps] for taps in channel] for channel in self.places()
        ]

    def pixels(self, d):
        """`[channel][position]`: each pixel's d is its window's."""
        return [[d[j * self.W + window] for window in self.window_of] for j in range(self.geometry.channels)]

    def handed_on(self, d, z):
        """The same under `bp`, where each of what is handed on has its d, and of a block the first of the largest."""
        H, W, N = self.geometry.output
        if self.geometry.pool == "latent":
            return self.pixels(d)
        if self.geometry.pool == "none":
            return [d[j * H * W :][: H * W] for j in range(N)]
        found, of_d = [[0] * (H * W) for _ in range(N)], iter(d)
        for j, y, x in product(range(N), range(0, H - 1, 2), range(0, W - 1, 2)):
            block = [(y + dy) * W + x + dx for dy, dx in product(range(2), range(2))]
            values = [self.activation(z[j][p]) for p in block]
            found[j][block[values.index(max(values))]] = next(of_d)
        return found

    def back(self, pixels, neg):
        """`bp`: d of what the layer before handed on, channel by channel."""
        h, w, c = self.geometry.input
        sums = [0] * (h * w * c)
        for j, channel in enumerate(self.places()):
            for p, taps in enumerate(channel):
                s = pixels[j][p] if neg[j][p] else pixels[j][p] << 3
                for t, place in enumerate(taps):
                    if place is not None:
                        sums[place] += self.w[j][t] * s
        return [clip(rnd(r, 17), 2047) for r in sums]

    def activation(self, z):
        return sat(rnd(z >> 3 if z < 0 else z, self.shifts.act_shift), 8)

    def forward(self, x):
        """Of a sample: pre-activations, negatives, `[channel][position]` each; latents in order; the map read next."""
        geometry = self.geometry
        H, W, N = geometry.output
        patches = self.patches(x)
        z = [[sum(a * v for a, v in zip(row, patch, strict=True)) + (b << geometry.in_frac) for patch in patches[j]]
             for j, (row, b) in enumerate(zip(self.w, self.b, strict=True))]  # fmt: skip
        neg = [[v < 0 for v in row] for row in z]
        a = [[self.activation(v) for v in row] for row in z]
        sums = [[0] * self.W for _ in range(N)]
        for j, p in product(range(N), range(H * W)):
            sums[j][self.window_of[p]] += a[j][p]
        latents = [sat(rnd(v, geometry.latent_shift), 8) for row in sums for v in row]
        if geometry.pool == "latent":
            following = [latents[j * self.W + w] for w in range(self.W) for j in range(N)]
        elif geometry.pool == "max":
            following = [
                max(a[j][(y + dy) * W + x + dx] for dy, dx in product(range(2), range(2)))
                for y, x, j in product(range(0, H - 1, 2), range(0, W - 1, 2), range(N))
            ]
        else:
            following = [a[j][p] for p in range(H * W) for j in range(N)]
        return z, neg, latents, following


class Trainer:
    """A network on a machine, a batch at a time."""

    def __init__(self, machine, net, rng, train_hidden=True):
        self.m, self.rule = machine, machine.learning
        self.layers = [Layer(shifts, rng) for shifts in windowed_layers(net, machine, train_hidden)]
        self.basis = Basis(net.basis, basis_vectors(machine, net.classes))
        self.B = self.basis.table(machine.max_neurons).tolist()
        shapes = trained_shapes(net, machine)
        trained = [TrainedScores(self.rule.trains, self.basis, *shape, rng) for shape in shapes]
        self.trained = dict(zip(self.layers[:-1], trained, strict=True)) if trained else {}
        self.array_steps = self.bias_steps = 0

    def parameters(self, program):
        """Bus address -> word."""
        found = {}
        for where, layer in zip(addresses(self.m, program), self.layers, strict=True):
            values = [v for row, b in zip(layer.w, layer.b, strict=True) for v in (*row, b)]
            found |= dict(zip(where, values, strict=True))
        rows = [row for layer in self.trained.values() for row in layer.theta]
        return found | {
            memory_map.score_address(self.m, r, c): v for r, row in enumerate(rows) for c, v in enumerate(row)
        }

    def softmax(self, scores, shift, label):
        u = [sat(rnd(s << 9, shift), 16) for s in scores]
        d = [max(u) - v for v in u]
        E = [0 if v >> 8 > 12 else EXP[(v & 255) >> 4] >> (v >> 8) for v in d]
        Z = sum(E)
        M = msb(Z)
        return [rnd(v * RCP9[(Z >> (M - 4)) & 15], M + 1) - 256 * (c == label) for c, v in enumerate(E)]

    def through_basis(self, errors, n):
        return [rnd(sum(self.B[c][i] * e for c, e in enumerate(errors)), self.basis.fraction_bits) for i in range(n)]

    def own_signal(self, layer, latents, label):
        """`lls` and the rules that train a part of it: d, k and scores."""
        trained, shifts = self.trained.get(layer), layer.shifts
        raws = [rnd(sum(b * v for b, v in zip(row, latents, strict=False)), self.basis.fraction_bits) for row in self.B]
        scores = trained.scores(raws, latents) if trained else [sat(raw, 20) for raw in raws]
        ss = sum(v * v for v in latents)
        L, k = msb(ss), (msb(ss) + 1) >> 1
        e = self.softmax(scores, shifts.score_shift + k, label)
        h = sat(rnd(sum(x * s for x, s in zip(e, scores, strict=True)) << 1, k), 16)
        q = sat(rnd(h * RCP8[(ss << 4 >> L) & 15], (L >> 1) + 2), 16)
        G = trained.gradients(e, len(latents)) if trained else self.through_basis(e, len(latents))
        if trained:
            trained.update(latents, e, shifts.rate_shift - shifts.act_shift - layer.geometry.latent_shift + 17 + k)
        return [clip(rnd(g - rnd(q * v, 7), 2)) for g, v in zip(G, latents, strict=True)], k, scores

    def label_signal(self, latents, label):
        """`drtp`."""
        G = [rnd(-256 * self.B[label][i], self.basis.fraction_bits) for i in range(len(latents))]
        d = [clip(rnd(g, 2)) for g in G]
        further = [(v == 127 and s < 0) or (v == -128 and s > 0) for v, s in zip(latents, d, strict=True)]
        return [0 if f else s for f, s in zip(further, d, strict=True)]

    def random(self, number, steps):
        F, state = self.m.fraction_bits, int(SEQUENCE[(offset(self.m, number) + steps) % 65535])
        return state >> (16 - F) if F < 16 else state << (F - 16)

    def update(self, layer, samples):
        """`samples`: of each its input, its negatives, its pixels' d and k."""
        m, F, geometry, shifts = self.m, self.m.fraction_bits, layer.geometry, layer.shifts
        N, P = geometry.channels, geometry.positions
        S = geometry.taps if geometry.depthwise else -(-geometry.taps // m.rows)
        D, Db = [[0] * geometry.taps for _ in range(N)], [0] * N
        for x, neg, d, k in samples:
            left = shifts.coarse + max(0, min(shifts.left_max, F - shifts.rate_shift - k - shifts.coarse))
            patches = layer.patches(x)
            for j, p in product(range(N), range(P)):
                change = -d[j][p] << left
                slope = 0 if neg[j][p] else 3
                for t, v in enumerate(patches[j][p]):
                    D[j][t] += (v << slope) * change
                Db[j] += ((1 << slope) << geometry.in_frac) * change
        for j in range(N):
            for t in range(geometry.taps):
                row, step = (j % m.cols, t) if geometry.depthwise else (t % m.rows, t // m.rows)
                r = self.random(row * m.cols + j % m.cols, self.array_steps + j // m.cols * S + step)
                layer.w[j][t] = sat(((layer.w[j][t] << F) + r + D[j][t]) >> F, 16)
            r = self.random(m.pes, self.bias_steps + j)
            layer.b[j] = sat(((layer.b[j] << F) + r + Db[j]) >> F, 16)
        tiles = -(-N // m.cols)
        self.array_steps += tiles * S
        self.bias_steps += tiles * m.cols

    def step(self, inputs, labels):
        """Takes a batch; the results' beats."""
        rule, beats, kept = self.rule, [], []
        learns, maps = rule.learns and labels != [NO_LABEL], inputs
        *hidden, top = self.layers
        for layer in hidden:
            found = [layer.forward(x) for x in maps]
            kept.append([(x, neg, z) for x, (z, neg, _, _) in zip(maps, found, strict=True)])
            trains, signals = learns and layer.shifts.train, []
            for (x, (_, neg, latents, _)), label in zip(zip(maps, found, strict=True), labels, strict=True):
                if trains and rule.error == "own":
                    d, k, scores = self.own_signal(layer, latents, label)
                    beats += scores
                    signals.append((x, neg, layer.pixels(d), k))
                elif trains and rule.error == "label":
                    signals.append((x, neg, layer.pixels(self.label_signal(latents, label)), 0))
            if signals:
                self.update(layer, signals)
            maps = [following for *_, following in found]
        errors, summaries, signals = [], [], []
        for x, label in zip(maps, labels, strict=True):
            z, *_ = top.forward(x)
            scores = [sat(rnd(row[0], top.shifts.act_shift), 20) for row in z]
            beats += scores
            summaries.append(scores.index(max(scores)) | label << 8)
            if learns:
                errors.append(self.softmax(scores, top.shifts.score_shift, label))
                signals.append((x, [[False]] * len(z), [[clip(rnd(e, 1))] for e in errors[-1]], 0))
        if learns and rule.transposes:
            self.way_back([*kept, [(x, neg, None) for x, neg, *_ in signals]], errors)
        elif learns:
            self.update(top, signals)
        if learns and rule.error == "output":
            for layer, samples in reversed(list(zip(hidden, kept, strict=True))):
                if layer.shifts.train:
                    G = [self.through_basis(e, layer.geometry.latents) for e in errors]
                    pixels = [layer.pixels([clip(rnd(g, 2)) for g in sample]) for sample in G]
                    self.update(layer, [(x, neg, d, 0) for (x, neg, _), d in zip(samples, pixels, strict=True)])
        return beats + summaries

    def way_back(self, kept, errors):
        """`bp`, of all layers' inputs, negatives and z: a layer's d goes to that before it, then it is updated."""
        ds = [[clip(rnd(e, 3) << 6, 2047) for e in sample] for sample in errors]
        for number, layer in reversed(list(enumerate(self.layers))):
            pixels = [layer.handed_on(d, z) for (*_, z), d in zip(kept[number], ds, strict=True)]
            goes_on = number > 0 and self.layers[number - 1].shifts.train
            if goes_on:
                N = self.layers[number - 1].geometry.channels
                found = [layer.back(s, neg) for s, (_, neg, _) in zip(pixels, kept[number], strict=True)]
                ds = [[v for j in range(N) for v in r[j::N]] for r in found]
            self.update(layer, [(x, neg, s, 0) for (x, neg, _), s in zip(kept[number], pixels, strict=True)])
            if not goes_on:
                return


def expected_phases(machine, program, classes, labels):
    """(phase, layer) -> cycles of one batch, from the description."""
    rule, cycles, samples = machine.learning, Counter(), len(labels)
    skew = machine.rows + machine.cols
    more_trained, more_inferred = score_cycles(rule.trains, basis_vectors(machine, classes))
    learns = rule.learns and labels != [NO_LABEL]
    for number, layer in enumerate(program.layers):
        tiles, trains = layer.col_tiles, learns and layer.train
        cycles[Phase.SETUP, number] = layer.words() + machine.rows + SETUP_TAIL
        cycles[Phase.SETUP, number] *= 2 if rule.waits and trains and not layer.is_output else 1
        forward = (tiles * layer.positions - 1) * layer.interval + layer.steps + skew + FORWARD_TAIL
        cycles[Phase.FORWARD, number] = samples * forward
        if layer.is_output:
            signal, argmax = (SIGNAL_TAIL, ARGMAX_TAIL) if rule.scores else (PLAIN_SIGNAL_TAIL, PLAIN_ARGMAX_TAIL)
            signal, argmax = signal + layer.latents * rule.scores + more_trained, argmax + more_inferred
            cycles[Phase.SIGNAL, number] = samples * (3 * classes + signal if trains else classes + argmax)
        if trains and rule.transposes:
            cycles[Phase.SIGNAL, number] += back_cycles(layer, machine, samples)
        elif trains and not layer.is_output:
            cycles[Phase.SIGNAL, number] = samples * {
                "own": 3 * classes + layer.latents + SIGNAL_TAIL + more_trained,
                "label": layer.latents + LABEL_TAIL,
                "output": classes + layer.latents + FEEDBACK_TAIL,
            }[rule.error]
        if trains:
            visits = layer.steps * samples * layer.positions
            apart = max(visits, machine.cols) if rule.waits else visits
            cycles[Phase.UPDATE, number] = (tiles - 1) * apart + visits + skew + UPDATE_TAIL
    cycles[Phase.FINISH, 0] = samples
    return cycles


def network(*layers, shape=(4, 3, 1), classes=3, batch=2, basis="walsh"):
    return Network(
        name="test", input_shape=shape, classes=classes, basis=basis, layers=(*layers, FullyConnected(classes)),
        recipe=Recipe(hidden_rate_shift=3, output_rate_shift=4, batch=batch),
    )  # fmt: skip


NETWORKS = {
    "pools": network(
        Convolution(4, (3, 3), (2, 2), padding=1, pool="max"),
        Convolution(4, (2, 2), (1, 1), pool="none"),
        shape=(5, 6, 1), basis="square",
    ),
    "depthwise": network(
        Convolution(2, (3, 2), (1, 2), padding=1, depthwise=True),
        Convolution(5, (1, 1), (2, 1), pool="latent"),
        shape=(3, 3, 2), batch=3,
    ),
    "dense": network(FullyConnected(9), FullyConnected(6), shape=(7,), batch=3, basis="sine"),
    "small": network(FullyConnected(9), FullyConnected(8), shape=(3,)),
    "window a position": network(Convolution(5, (2, 2), (3, 3)), shape=(4, 4, 1), batch=2, basis="square"),
    "alone": network(shape=(6,), batch=2),
    "stride": network(
        Convolution(4, (3, 3), (4, 3), padding=1, pool="latent"),
        Convolution(3, (3, 3), (1, 1), padding=1, stride=2, pool="max"),
        shape=(7, 6, 1), batch=2,
    ),
    "single": network(Convolution(2, (2, 2), (1, 1), stride=2), shape=(4, 3, 1), batch=1),
}  # fmt: skip
"""In `small` a batch of one sample has column tiles of an update that would follow each other too soon for `dfa`."""


def machine_for(rule, rows, cols, net):
    """Memories no deeper than need be, so that an advance comes by the same weights often, nor the result FIFO."""
    machine = replace(TINY, rule=rule, rows=rows, cols=cols)
    program = compile_windowed(net, machine)
    words = sum(layer.col_tiles * layer.steps for layer in program.layers)
    scored = len(program.layers) if machine.learning.scores else 1
    beats = program.batch * (scored * net.classes + 1)
    return replace(machine, weight_depth=max(8, words), result_fifo_depth=max(4, beats))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name, rows, cols", [
    ("pools", 2, 2), ("depthwise", 4, 3), ("dense", 2, 2), ("small", 4, 4), ("window a position", 4, 4),
    ("alone", 2, 2), ("stride", 4, 2), ("single", 1, 1),
])  # fmt: skip
def test_trains_by_the_book(rule, name, rows, cols):
    check(rule, NETWORKS[name], rows, cols)


@pytest.mark.parametrize("rule", RULES)
def test_frozen(rule):
    check(rule, NETWORKS["pools"], 2, 2, train_hidden=False)


class ImpatientHost(Host):
    """Does not wait for ever for a batch to begin."""

    async def tick(self, ctx):
        assert self.seen[Phase.WAIT, 0] < 12000, "no batch begins"
        await super().tick(ctx)


def test_fewer_vectors_than_classes():
    check("lls_mxm", NETWORKS["pools"], 2, 2, vectors=2)


def check(rule, net, rows, cols, train_hidden=True, vectors=0):
    machine = replace(machine_for(rule, rows, cols, net), vectors=vectors)
    program = compile_windowed(net, machine, train_hidden)
    core = Core(machine, net.classes, score_basis(net, machine))
    rng = random.Random(f"{rule} {net} {rows} {cols}")
    trainer = Trainer(machine, net, rng, train_hidden)
    initial = trainer.parameters(program)
    batch, top = program.batch, net.classes - 1
    labels = [rng.randrange(net.classes) for _ in range(batch)]
    labels += [*([top] if batch > 1 else []), NO_LABEL, NO_LABEL]
    labels += [rng.randrange(net.classes) for _ in range(2 * batch)]

    async def bench(ctx):
        host = ImpatientHost(core)
        await host.setup(ctx, program, initial)
        ctx.set(core.results.ready, 1)
        expected, phases, samples = [], Counter(), []
        for label in labels:
            samples.append([rng.choice([-128, 127, rng.randint(-128, 127)]) for _ in range(net.features)])
            await host.send(ctx, samples[-1], label)
        queue = iter(samples)
        for part in batches_of(labels, batch):
            expected += trainer.step([next(queue) for _ in part], part)
            phases += expected_phases(machine, program, net.classes, part)
        while len(host.beats) < len(expected):
            await host.tick(ctx)
        await host.idle(ctx)
        assert [data - (data >> 31 << 32) if not last else data for data, last in host.beats] == expected
        assert Counter({key: n for key, n in host.seen.items() if key[0] is not Phase.WAIT}) == phases
        trained = trainer.parameters(program)
        for address, value in trained.items():
            assert await host.bus(ctx, address) == value & 0xFFFFFFFF, address
        steps = sum(layer.col_tiles * layer.steps * layer.positions for layer in program.layers)
        assert await host.register(ctx, "FORWARD_STEPS") == len(labels) * steps
        assert await host.register(ctx, "UPDATE_STEPS") == trainer.array_steps
        assert await host.register(ctx, "BIAS_STEPS") == trainer.bias_steps
        if RULES[rule].learns:
            where = addresses(machine, program)
            for layer in where if train_hidden else where[-1:]:
                assert any(trained[a] != initial[a] for a in layer), "a layer has learned nothing"
        for name in ("ADVANCE_ARRAY", "ADVANCE_BIAS"):
            await host.register(ctx, name, 70)
        await host.idle(ctx)
        steps = 70 * RULES[rule].learns
        assert await host.register(ctx, "UPDATE_STEPS") == trainer.array_steps + steps
        assert await host.register(ctx, "BIAS_STEPS") == trainer.bias_steps + steps
        for address, value in trained.items():
            assert await host.bus(ctx, address) == value & 0xFFFFFFFF, address

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
