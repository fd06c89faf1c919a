"""The model of convolutions and batches against the page it is written from, and as arithmetic."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from golden import windowed
from golden.data import load_dataset
from golden.fixed import StepResult, moved
from golden.maps import window_labels
from golden.train import Parameters, Progress, initial_windowed_codes, train_epochs
from golden.windowed import WindowedModel
from spec.basis import Basis
from spec.errors import SpecError
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import Machine
from spec.network import BASES, Convolution, FullyConnected, Network, Recipe
from tests.golden.exact_scores import RULES as TRAINING_SCORES
from tests.golden.exact_scores import ExactScores, wild_codes

SEED = 20
OWN = ("lls", *TRAINING_SCORES)
LEARNING = (*OWN, "drtp", "dfa", "bp")
RULES = (*LEARNING, "inference")
Sample = tuple[int, list[list[int] | None]]


def _rnd(value: int, shift: int) -> int:
    return (value + 2**shift // 2) // 2**shift


def _sat(value: int, bits: int) -> int:
    return sorted((-(2 ** (bits - 1)), value, 2 ** (bits - 1) - 1))[1]


class _Lfsr:
    def __init__(self, steps: int):
        self.state = 1
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.state = (self.state >> 1) ^ (0xB400 if self.state & 1 else 0)

    def top(self, bits: int) -> int:
        return self.state * 2**bits // 2**16


class _Layer:
    """Section 1: a layer's sizes, from a network's layer and the `(h, w, c)` before it."""

    def __init__(self, layer: Convolution | FullyConnected, before: tuple[int, int, int], in_frac: int):
        self.in_frac, self.act_frac = in_frac, layer.activation_fraction
        self.pool = self.depthwise = None
        if isinstance(layer, Convolution):
            self.h, self.w, self.c = before
            self.kernel, self.stride, self.padding = layer.kernel, layer.stride, layer.padding
            self.depthwise, self.pool = layer.depthwise, layer.pool
            self.n = self.c if layer.depthwise else layer.channels
            asked = layer.latent
        else:
            self.h, self.w, self.c = 1, 1, math.prod(before)
            self.kernel, self.stride, self.padding, asked = (1, 1), 1, 0, (1, 1)
            self.n = layer.neurons
        self.H = (self.h + 2 * self.padding - self.kernel[0]) // self.stride + 1
        self.W = (self.w + 2 * self.padding - self.kernel[1]) // self.stride + 1
        self.wh, self.ww = math.ceil(self.H / asked[0]), math.ceil(self.W / asked[1])
        if self.pool == "max":
            self.wh, self.ww = self.wh + self.wh % 2, self.ww + self.ww % 2
        self.gh, self.gw = math.ceil(self.H / self.wh), math.ceil(self.W / self.ww)
        self.latent_shift = max(0, round(math.log2(self.wh * self.ww)) - 2)
        self.places = [(y, x) for y in range(self.H) for x in range(self.W)]
        ci = [0] if self.depthwise else range(self.c)
        self.taps = [(ky, kx, i) for ky in range(self.kernel[0]) for kx in range(self.kernel[1]) for i in ci]
        self.after, self.out_frac = (self.H, self.W, self.n), self.act_frac
        if self.pool == "max":
            self.after = (self.H // 2, self.W // 2, self.n)
        if self.pool == "latent":
            self.after = (self.gh, self.gw, self.n)
            self.out_frac += round(math.log2(self.wh * self.ww)) - self.latent_shift

    def element(self, place: tuple[int, int], tap: tuple[int, int, int], j: int) -> int | None:
        y = place[0] * self.stride + tap[0] - self.padding
        column = place[1] * self.stride + tap[1] - self.padding
        channel = j if self.depthwise else tap[2]
        inside = 0 <= y < self.h and 0 <= column < self.w
        return (y * self.w + column) * self.c + channel if inside else None

    def read(self, x: list[int], place: tuple[int, int], tap: tuple[int, int, int], j: int) -> int:
        element = self.element(place, tap, j)
        return 0 if element is None else x[element]

    def latent(self, j: int, place: tuple[int, int]) -> int:
        return j * self.gh * self.gw + place[0] // self.wh * self.gw + place[1] // self.ww

    def handed_on(self, a: dict, y: int, x: int, j: int) -> int | None:
        """Which value of the next layer's map a pixel is in; None for one that max-pooling does not take."""
        row, column = y, x
        if self.pool == "latent":
            row, column = y // self.wh, x // self.ww
        if self.pool == "max":
            row, column = y // 2, x // 2
            block = [(2 * row, 2 * column), (2 * row, 2 * column + 1)]
            block += [(2 * row + 1, 2 * column), (2 * row + 1, 2 * column + 1)]
            if block[3] not in self.places or (y, x) != max(block, key=lambda place: a[*place, j]):
                return None
        return (row * self.after[1] + column) * self.n + j


class Page:
    """docs/convolutions.md, sections 1 to 3, and docs/rules.md, sections 5 and 6, once more: one number at a
    time, LFSRs that really step. Section 7 is in `ExactScores`.

    A gradient is the sum over pixels of `x · s`, `s = d · slope`. It shares nothing with the model but the
    basis; whoever changes the page changes both.
    """

    def __init__(self, network: Network, machine: Machine, parameters: Parameters, train_hidden: bool = True):
        self.network, self.machine, self.train_hidden = network, machine, train_hidden
        self.w = [weight.tolist() for weight, _ in parameters]
        self.b = [bias.tolist() for _, bias in parameters]
        self.layers: list[_Layer] = []
        height, width, channels = (*network.input_shape, 1, 1)[:3]
        before, frac = (height, width, channels), 7
        for layer in network.layers:
            self.layers.append(_Layer(layer, before, frac))
            before, frac = self.layers[-1].after, self.layers[-1].out_frac
        self.own = [
            ExactScores(machine.rule, network.basis, network.classes, layer.n * layer.gh * layer.gw, machine.vectors)
            for layer in self.layers[:-1]
        ]
        count = machine.rows * machine.cols + 1
        self.lfsrs = [_Lfsr(n * (65535 // count)) for n in range(count)]
        self.exp = [round(4096 * 2 ** -((j + 0.5) / 16)) for j in range(16)]
        self.rcp9 = [round(512 / (1 + (j + 0.5) / 16)) for j in range(16)]
        self.rcp8 = [round(256 / (1 + (j + 0.5) / 16)) for j in range(16)]

    def batch(self, samples: list[list[int]], labels: list[int] | None) -> list[Sample]:
        rule = self.machine.rule
        if rule == "inference":
            labels = None
        samples = list(samples)
        scores: list[list[list[int] | None]] = [[] for _ in samples]
        kept, errors = [], []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            traces, updates = [], []
            for index, x in enumerate(samples):
                z = self.forward(number, x)
                neg, score, d, k = {at: z[at] < 0 and not last for at in z}, None, None, 0
                if last:
                    score = [_sat(_rnd(z[0, 0, j], 14 + layer.in_frac - 9), 20) for j in range(layer.n)]
                    after = []
                    a = z
                    if labels is not None:
                        errors.append(self.error(score, labels[index], 9))
                        if rule != "bp":
                            d = [self.signal(v, 1) for v in errors[-1]]
                else:
                    a, lat, after = self.pooled(layer, z)
                    if labels is not None and self.train_hidden:
                        if rule in OWN:
                            d, score, k = self.hidden(number, lat, labels[index])
                        if rule == "drtp":
                            d = self.target(lat, labels[index])
                scores[index].append(score)
                traces.append((x, neg, a))
                if d is not None:
                    updates.append((x, self.sloped(layer, neg, d), k))
                samples[index] = after
            if updates:
                self.update(number, updates, last)
            kept.append(traces)
        if rule == "dfa" and self.train_hidden:
            for number in range(len(kept) - 2, -1, -1):
                found = [self.feedback(number, e) for e in errors]
                layer, ends = self.layers[number], zip(kept[number], found, strict=False)
                updates = [(x, self.sloped(layer, neg, d), 0) for (x, neg, _), d in ends]
                if updates:
                    self.update(number, updates, False)
        if rule == "bp" and errors:
            self.backpropagate(kept, errors)
        found = []
        for sample in scores:
            assert sample[-1] is not None
            found.append((sample[-1].index(max(sample[-1])), sample))
        return found

    def forward(self, number: int, x: list[int]) -> dict:
        layer, z = self.layers[number], {}
        for place in layer.places:
            for j in range(layer.n):
                total = self.b[number][j] * 2**layer.in_frac
                for t, tap in enumerate(layer.taps):
                    total += self.w[number][j][t] * layer.read(x, place, tap, j)
                z[*place, j] = total
        return z

    def pooled(self, layer: _Layer, z: dict) -> tuple[dict, list[int], list[int]]:
        shift = 14 + layer.in_frac - layer.act_frac
        a = {at: _sat(_rnd(v >> 3 if v < 0 else v, shift), 8) for at, v in z.items()}
        sums = [0] * (layer.n * layer.gh * layer.gw)
        for (y, x, j), v in a.items():
            sums[layer.latent(j, (y, x))] += v
        lat = [_sat(_rnd(v, layer.latent_shift), 8) for v in sums]
        after = []
        for y in range(layer.after[0]):
            for x in range(layer.after[1]):
                for j in range(layer.n):
                    if layer.pool == "max":
                        after.append(max(a[2 * y + dy, 2 * x + dx, j] for dy in (0, 1) for dx in (0, 1)))
                    elif layer.pool == "latent":
                        after.append(lat[(j * layer.gh + y) * layer.gw + x])
                    else:
                        after.append(a[y, x, j])
        return a, lat, after

    def basis(self, latents: int) -> tuple[list[list[int]], int]:
        basis = Basis(self.network.basis, self.network.classes)
        return basis.table(latents).tolist(), basis.fraction_bits

    def signal(self, v: int, shift: int) -> int:
        return min(max(_rnd(v, shift), -127), 127)

    def target(self, lat: list[int], label: int) -> list[int]:
        table, frac = self.basis(len(lat))
        d = [self.signal(_rnd(-256 * v, frac), 2) for v in table[label]]
        further = [(v == 127 and s < 0) or (v == -128 and s > 0) for v, s in zip(lat, d, strict=True)]
        return [0 if full else s for full, s in zip(further, d, strict=True)]

    def feedback(self, number: int, e: list[int]) -> list[int]:
        layer = self.layers[number]
        latents = layer.n * layer.gh * layer.gw
        table, frac = self.basis(latents)
        sums = [sum(row[i] * v for row, v in zip(table, e, strict=True)) for i in range(latents)]
        return [self.signal(_rnd(v, frac), 2) for v in sums]

    def hidden(self, number: int, lat: list[int], label: int) -> tuple[list[int], list[int], int]:
        own, classes = self.own[number], range(self.network.classes)
        score = own.scores(lat)
        ss = sum(v * v for v in lat)
        top = int(math.log2(ss)) if ss else 0
        k = (top + 1) // 2
        e = self.error(score, label, self.network.recipe.temperature_shift + k)
        gs = sum(e[c] * score[c] for c in classes)
        h = _sat(_rnd(gs * 2, k), 16)
        mantissa = int(16 * ss / 2**top) % 16
        q = _sat(_rnd(h * self.rcp8[mantissa], top // 2 + 2), 16)
        d = [self.signal(g - _rnd(q * v, 7), 2) for g, v in zip(own.gradient(e, len(lat)), lat, strict=True)]
        own.learn(lat, e, self.network.recipe.hidden_rate_shift, k)
        return d, score, k

    def sloped(self, layer: _Layer, neg: dict, d: list[int]) -> dict:
        return {(y, x, j): d[layer.latent(j, (y, x))] * (1 if neg[y, x, j] else 8) for y, x, j in neg}

    def backpropagate(self, kept: list, errors: list[list[int]]) -> None:
        """Section 6 of docs/rules.md: signals are of the next layer's map, flat."""
        signals = [[min(max(_rnd(v, 3) * 64, -2047), 2047) for v in e] for e in errors]
        for number in range(len(kept) - 1, -1 if self.train_hidden else len(kept) - 2, -1):
            layer, updates, below = self.layers[number], [], []
            for (x, neg, a), d in zip(kept[number], signals, strict=True):
                s, r = {}, [0] * len(x)
                for place in layer.places:
                    for j in range(layer.n):
                        at = layer.handed_on(a, *place, j)
                        s[*place, j] = 0 if at is None else d[at] if neg[*place, j] else d[at] * 8
                        for t, tap in enumerate(layer.taps):
                            element = layer.element(place, tap, j)
                            if element is not None:
                                r[element] += self.w[number][j][t] * s[*place, j]
                updates.append((x, s, 0))
                below.append([min(max(_rnd(v, 17), -2047), 2047) for v in r])
            self.update(number, updates, number == len(kept) - 1)
            signals = below

    def error(self, score: list[int], label: int, shift: int) -> list[int]:
        u = [_sat(_rnd(v * 512, shift), 16) for v in score]
        powers = []
        for v in u:
            whole, part = divmod(max(u) - v, 256)
            powers.append(0 if whole > 12 else self.exp[part // 16] >> whole)
        total = sum(powers)
        top = int(math.log2(total))
        reciprocal = self.rcp9[int(total / 2 ** (top - 4)) % 16]
        p = [_rnd(v * reciprocal, top + 1) for v in powers]
        return [v - 256 * (c == label) for c, v in enumerate(p)]

    def left(self, number: int, k: int, last: bool) -> int:
        layer, machine, recipe = self.layers[number], self.machine, self.network.recipe
        bits = machine.fraction_bits
        if machine.rule == "bp":
            hidden = dict(recipe.rate_shifts).get("bp", recipe.output_rate_shift)
            rate = (recipe.output_rate_shift if last else hidden) + 14 + layer.in_frac - 14
            rate += sum(round(math.log2(each.wh * each.ww)) for each in self.layers[number:] if each.pool == "latent")
        elif last:
            rate = recipe.output_rate_shift + 10 + layer.in_frac - 14
        elif machine.rule not in OWN:
            hidden = dict(recipe.rate_shifts).get(machine.rule, recipe.output_rate_shift + 4)
            rate = hidden + 9 + round(math.log2(layer.H * layer.W)) + layer.in_frac - 14
        else:
            rate = recipe.hidden_rate_shift + 9 + layer.in_frac + layer.latent_shift - layer.act_frac - 14
        connected = isinstance(self.network.layers[number], FullyConnected)
        coarse = 4 if connected and bits > 16 else 0
        most = machine.delta_bits - (12 if machine.rule == "bp" else 8)
        if machine.rule == "bp":
            coarse = 4 if bits > 16 and bits - rate > most and layer.pool != "latent" else 0
        while not self.fits(layer, most + coarse):
            most -= 1
        assert most >= 0
        return coarse + min(max(bits - rate - k - coarse, 0), most)

    def fits(self, layer: _Layer, left: int) -> bool:
        signals, largest = layer.H * layer.W, 127
        if self.machine.rule == "bp":
            signals, largest = signals if layer.pool != "max" else layer.H // 2 * (layer.W // 2), 2047
        d = self.network.recipe.batch * signals * 8 * max(128, 2**layer.in_frac) * largest * 2**left
        return 2 ** (15 + self.machine.fraction_bits) + d <= 2 ** (self.machine.psum_bits - 1)

    def update(self, number: int, updates: list, last: bool) -> None:
        layer, bits = self.layers[number], self.machine.fraction_bits
        rows, cols = self.machine.rows, self.machine.cols
        w, b = self.w[number], self.b[number]
        lefts = [self.left(number, k, last) for _, _, k in updates]

        def total(j: int, read: Callable[[list[int], tuple[int, int]], int]) -> int:
            change = 0
            for (x, s, _), left in zip(updates, lefts, strict=True):
                for place in layer.places:
                    change += read(x, place) * -s[*place, j] * 2**left
            return change

        def move(code: int, lfsr: _Lfsr, change: int) -> int:
            value = code * 2**bits + lfsr.top(bits) + change
            assert abs(value) < 2 ** (self.machine.psum_bits - 1)
            return _sat(value // 2**bits, 16)

        tiles = len(layer.taps) if layer.depthwise else -(-len(layer.taps) // rows)
        for jt in range(-(-layer.n // cols)):
            for it in range(tiles):
                for r in range(rows):
                    for c in range(cols):
                        j, t, lfsr = jt * cols + c, it * rows + r, self.lfsrs[r * cols + c]
                        if layer.depthwise:
                            t = it if r == c else len(layer.taps)
                        if j < layer.n and t < len(layer.taps):
                            tap = layer.taps[t]
                            change = total(j, lambda x, place, tap=tap, j=j: layer.read(x, place, tap, j))
                            w[j][t] = move(w[j][t], lfsr, change)
                        lfsr.step()
            for c in range(cols):
                j, lfsr = jt * cols + c, self.lfsrs[rows * cols]
                if j < layer.n:
                    b[j] = move(b[j], lfsr, total(j, lambda x, place: 2**layer.in_frac))
                lfsr.step()

    def parameters(self) -> Parameters:
        return [(np.array(w), np.array(b)) for w, b in zip(self.w, self.b, strict=True)]


def machine(
    rows: int, cols: int, delta_bits: int = 18, fraction_bits: int = 20, gradient_bits: int = 48, rule: str = "lls"
) -> Machine:
    """A machine with memories large enough for the networks here."""
    sizes = (4096, 4096, 4096, 4096, 256, 4, delta_bits, fraction_bits, 64)
    return Machine(f"{rows}x{cols}", rows, cols, *sizes, gradient_bits=gradient_bits, rule=rule)


def conv(channels: int, kernel: tuple[int, int], latent: tuple[int, int], **other) -> Convolution:
    return Convolution(channels, kernel, latent, **other)


def depthwise(kernel: tuple[int, int], latent: tuple[int, int], channels: int, **other) -> Convolution:
    return Convolution(channels, kernel, latent, depthwise=True, **other)


def network(shape: tuple[int, ...], layers: list, basis: str = "square", rates: tuple = (3, 2), **other) -> Network:
    """The last size is the classes; `other` is the recipe's, and `input` the network's."""
    shifts = (("drtp", max(-8, rates[0] - 3)), ("dfa", max(-8, rates[0] - 4)), ("bp", max(-8, rates[0] - 4)))
    other.setdefault("rate_shifts", shifts)
    given = tuple(FullyConnected(layer) if isinstance(layer, int) else layer for layer in layers)
    coding = other.pop("input", "unsigned")
    return Network("test", shape, given[-1].neurons, basis, given, Recipe(*rates, **other), input=coding)


def wild_parameters(net: Network, rng: np.random.Generator) -> Parameters:
    """Parameters of every size up to saturation, corner codes among them."""
    found = []
    for taps, channels in net.shapes:
        pair = []
        for shape in ((channels, taps), (channels,)):
            codes = rng.normal(0, 2.0 ** rng.integers(9, 16), shape)
            corner = rng.random(shape) < 0.1
            codes = np.where(corner, rng.choice([-32768, 32767, 0, -1], shape), codes)
            pair.append(np.clip(np.round(codes), -32768, 32767).astype(np.int16))
        found.append((pair[0], pair[1]))
    return found


def wild_samples(features: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples int8, corners among them."""
    x = rng.integers(-128, 128, (count, features)).astype(np.int8)
    x[0], x[1 % count], x[2 % count] = 127, -128, 0
    return x


def plain(results: list[StepResult]) -> list[Sample]:
    """Results as the page gives them."""
    scores = [[None if score is None else score.tolist() for score in result.scores] for result in results]
    return [(result.prediction, sample) for result, sample in zip(results, scores, strict=True)]


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


NETWORKS = {
    "max pool, odd map": network((5, 4, 2), [conv(3, (3, 3), (2, 2), padding=1, pool="max"), 3], batch=3),
    "stride, windows that do not divide": network(
        (9, 8, 1),
        [conv(3, (3, 2), (3, 3), stride=2, padding=1, pool="latent"), conv(2, (2, 2), (1, 1)), 5, 3],
        "walsh",
        batch=2,
    ),
    "depthwise": network(
        (7, 5, 1),
        [
            conv(5, (3, 3), (2, 2), stride=2, padding=1),
            depthwise((3, 3), (2, 1), 5, padding=1, pool="latent", activation_fraction=6),
            conv(3, (1, 1), (1, 1), pool="latent", activation_fraction=5),
            4,
        ],
        "sine",
        batch=3,
        input="signed",
    ),
    "depthwise, stride, max": network(
        (8, 7, 3), [depthwise((3, 2), (2, 2), 3, stride=2, pool="max"), 3], rates=(-2, -4), temperature_shift=1
    ),
    "fully connected": network((7,), [5, 6, 4], batch=2, rates=(2, 1), rate_shifts=()),
    "latents of 9 bits, windows of one pixel": network(
        (5, 5, 1),
        [
            conv(3, (2, 2), (2, 2), activation_fraction=7, pool="latent"),
            conv(4, (1, 1), (2, 2), activation_fraction=5),
            3,
        ],
        "walsh",
        batch=4,
        rates=(-8, -8),
    ),
    "rates below the last fraction bit": network(
        (6, 6, 1), [conv(2, (3, 3), (2, 2), padding=2), 6, 3], batch=2, rates=(14, 12)
    ),
    "activations of 3 and 6 bits": network(
        (4, 4, 2), [conv(4, (2, 2), (3, 1), activation_fraction=3), FullyConnected(4, 6), 3], batch=4, gain_shift=1
    ),
}
MACHINES = [machine(2, 2), machine(4, 3, 18, 12, 30), machine(3, 2, 18, 24, 46), machine(5, 5, 18, 16, 41)]


@pytest.mark.parametrize("start", ["initial", "wild"])
@pytest.mark.parametrize("shape", MACHINES, ids=lambda m: f"{m.name} F{m.fraction_bits}")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_model_is_the_page(rule: str, name: str, shape: Machine, start: str) -> None:
    net = NETWORKS[name]
    shape = replace(shape, rule=rule, vectors=net.classes // 2 + 1 if start == "wild" else 0)
    rng = np.random.default_rng([SEED, shape.rows])
    codes = initial_windowed_codes(net.shapes, SEED, net.recipe.gain_shift)
    parameters = codes if start == "initial" else wild_parameters(net, rng)
    if any(isinstance(layer, Convolution) and layer.depthwise for layer in net.layers) and shape.rows < shape.cols:
        pytest.skip("depthwise needs R >= C")
    model = WindowedModel(net, shape)
    model.load_parameters(parameters)
    page = Page(net, shape, parameters)
    if start == "wild":
        model.load_trained_scores([wild_codes(codes.shape, rng) for codes in model.trained_scores()])
        for own, codes in zip(page.own, model.trained_scores(), strict=False):
            own.theta = codes.tolist()
    before, trained = model.parameters(), model.trained_scores()
    # The last batch is short where a batch is more than one sample.
    count = max(3, 2 * net.recipe.batch + 1)
    x, labels = wild_samples(net.features, count, rng), rng.integers(net.classes, size=count)
    expected = []
    for first in range(0, count, net.recipe.batch):
        part = slice(first, first + net.recipe.batch)
        expected += page.batch(x[part].tolist(), labels[part].tolist())
    assert plain(model.run(x, labels)) == expected
    assert plain([model.step(x[-1])]) == [
        (guess, [*[None] * (len(net.layers) - 1), scores[-1]]) for guess, scores in page.batch([x[-1].tolist()], None)
    ]
    for number, (found, wanted) in enumerate(zip(model.parameters(), page.parameters(), strict=True)):
        assert np.array_equal(found[0], wanted[0]), f"weights {number}"
        assert np.array_equal(found[1], wanted[1]), f"biases {number}"
    assert [codes.tolist() for codes in model.trained_scores()] == [own.theta for own in page.own if own.theta]
    moved_scores = [bool(np.any(old != new)) for old, new in zip(trained, model.trained_scores(), strict=True)]
    if name != "rates below the last fraction bit":
        assert any(moved_scores) == (rule in TRAINING_SCORES)
    pairs = zip(before, model.parameters(), strict=True)
    changed = [any(np.any(old != new) for old, new in zip(a, b, strict=True)) for a, b in pairs]
    assert changed == [rule != "inference"] * len(net.layers), "a layer that stayed compares nothing"


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("rule", LEARNING)
def test_frozen_layers_stay_and_form_no_scores(rule: str, basis: str) -> None:
    net = replace(NETWORKS["stride, windows that do not divide"], basis=basis)
    shape = machine(3, 2, rule=rule)
    model = WindowedModel(net, shape, SEED, train_hidden=False)
    parameters = model.parameters()
    page = Page(net, shape, parameters, train_hidden=False)
    x = wild_samples(net.features, 4, np.random.default_rng(SEED))
    results = model.run(x, np.array([0, 1, 2, 0]))
    assert plain(results) == page.batch(x[:2].tolist(), [0, 1]) + page.batch(x[2:].tolist(), [2, 0])
    assert [score is None for score in results[0].scores] == [True, True, True, False]
    for number, (found, was) in enumerate(zip(model.parameters(), parameters, strict=True)):
        assert np.array_equal(found[0], was[0]) == np.array_equal(found[1], was[1]) == (number < 3)
    # Two updates of the last layer alone: 5 taps and 3 channels are 2 x 2 tiles.
    assert (model.update_steps, model.bias_steps) == (2 * 4, 2 * 4)


def test_counters_count_padding_and_wrap() -> None:
    net, shape = NETWORKS["depthwise"], machine(3, 2)
    model = WindowedModel(net, shape, SEED)
    x = wild_samples(net.features, 4, np.random.default_rng(SEED))
    model.train(x, np.arange(4))
    # Column tiles times row tiles; depthwise one step a tap. Two batches.
    tiles = [(3, 3), (3, 9), (2, 2), (2, 1)]
    assert net.shapes == ((9, 5), (9, 5), (5, 3), (3, 4))
    assert model.update_steps == 2 * sum(columns * steps for columns, steps in tiles)
    assert model.bias_steps == 2 * sum(columns * 2 for columns, _ in tiles)
    other = WindowedModel(net, shape, SEED)
    model.load_parameters(other.parameters())
    model.update_steps, model.bias_steps = PERIOD - 5, PERIOD - 3
    other.update_steps, other.bias_steps = 2 * PERIOD - 5, 2 * PERIOD - 3
    for m in (model, other):
        m.train(x[:2], np.array([1, 2]))
    assert model.update_steps == sum(columns * steps for columns, steps in tiles) - 5
    assert same(model.state_dict(), other.state_dict())


# Batches.


@pytest.mark.parametrize("rule", LEARNING)
def test_whole_batches_may_be_cut_anywhere_else(rule: str) -> None:
    """Chunks of whole batches give what one call gives, also from the state of another model."""
    net, shape = NETWORKS["max pool, odd map"], machine(3, 2, rule=rule)
    x, labels = wild_samples(net.features, 11, np.random.default_rng(SEED)), np.arange(11) % 3
    whole, first, second = (WindowedModel(net, shape, seed) for seed in (1, 1, 2))
    predictions = whole.train(x, labels).predictions
    assert whole.batch == 3
    early = first.train(x[:6], labels[:6]).predictions
    second.load_state_dict(first.state_dict())
    first.train(x[:1], labels[:1])  # the state that was given away must not follow
    late = second.train(x[6:], labels[6:]).predictions
    assert np.array_equal(np.concatenate([early, late]), predictions)
    assert same(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("rule", [rule for rule in LEARNING if rule not in TRAINING_SCORES])
def test_a_batch_has_no_order_but_layers_have(rule: str) -> None:
    net, shape = NETWORKS["stride, windows that do not divide"], machine(3, 2, rule=rule)
    net = replace(net, recipe=replace(net.recipe, batch=4))
    x, labels = wild_samples(net.features, 4, np.random.default_rng(SEED)), np.arange(4) % 3
    model, turned, single = (WindowedModel(net, shape, SEED) for _ in range(3))
    results = model.run(x, labels)
    back = turned.run(x[::-1], labels[::-1])
    assert plain(results) == plain(back)[::-1]
    assert same(model.state_dict(), turned.state_dict())
    # Every layer saw what the weights before the batch made of the samples; alone, only the first did.
    fresh = WindowedModel(net, shape, SEED).run(x, None)
    assert [r.prediction for r in fresh] == [r.prediction for r in results]
    assert [r.scores[-1].tolist() for r in fresh] == [r.scores[-1].tolist() for r in results]  # type: ignore
    alone = [single.step(sample, int(label)) for sample, label in zip(x, labels, strict=True)]
    assert plain(alone)[0] == plain(results)[0]
    assert plain(alone)[1:] != plain(results)[1:]


@pytest.mark.parametrize("rule", LEARNING)
def test_inference_is_one_by_one_and_changes_nothing(rule: str) -> None:
    net = NETWORKS["depthwise"]
    model = WindowedModel(net, machine(3, 2, rule=rule), SEED)
    x = wild_samples(net.features, 8, np.random.default_rng(SEED))
    model.train(x, np.arange(8) % 4)
    before = model.state_dict()
    results = [model.infer(codes) for codes in x]
    assert model.predict(x).tolist() == [result.prediction for result in results]
    assert all(score is None for result in results for score in result.scores[:-1])
    assert same(before, model.state_dict())


def test_nothing_to_train_on() -> None:
    model = WindowedModel(NETWORKS["depthwise"], machine(3, 2), SEED)
    before, none = model.state_dict(), np.zeros((0, 35), np.int8)
    assert model.train(none, np.zeros(0, np.int64)).predictions.shape == model.predict(none).shape == (0,)
    assert same(before, model.state_dict())


# Units: what the arithmetic is for.


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "fully connected"])
def test_additions_give_the_sum_of_products(kind: str) -> None:
    """Adding up a window's inputs and multiplying once is the sum over its pixels of x · d · slope."""
    rng = np.random.default_rng(SEED)
    size, window, n, taps = ((5, 7), (2, 3), 4, 9) if kind != "fully connected" else ((1, 1), (1, 1), 4, 9)
    labels = window_labels(size, window)
    positions, windows = len(labels), labels.max() + 1
    x = rng.integers(-128, 128, (positions, n, taps) if kind == "depthwise" else (positions, taps))
    neg, d = rng.random((positions, n)) < 0.5, rng.integers(-127, 128, (windows, n))
    sums = windowed.gradient_sums(x, neg, labels)
    assert sums.shape == (windows, n, taps)
    assert np.abs(sums).max() <= 8 * 128 * window[0] * window[1]
    shifted = -d[labels] * np.where(neg, 1, 8) * 2**5
    wide = x if kind == "depthwise" else x[:, None, :]
    assert np.array_equal(windowed.gradient(sums, d, 5), (wide * shifted[:, :, None]).sum(axis=0))


@pytest.mark.parametrize("bits", [6, 16, 20, 24])
def test_every_weight_has_the_bits_of_its_place(bits: int) -> None:
    shape = machine(4, 3, fraction_bits=bits)
    net = network((6, 6, 5), [depthwise((3, 3), (2, 2), 5), conv(7, (2, 2), (1, 1)), 3])
    layers = WindowedModel(net, shape).layers
    for layer, (taps, channels), steps in zip(layers, net.shapes, (0, 77, PERIOD - 2), strict=True):
        found = windowed.layer_random(layer.geometry, shape, steps)
        assert found.shape == (channels, taps)
        for j, t in np.ndindex(found.shape):
            if layer.geometry.depthwise:
                pe, step = j % 3 * 3 + j % 3, j // 3 * taps + t
            else:
                pe, step = t % 4 * 3 + j % 3, j // 3 * -(-taps // 4) + t // 4
            state = int(SEQUENCE[(offset(shape, pe) + step + steps) % PERIOD])
            assert found[j, t] == (state >> (16 - bits) if bits <= 16 else state << (bits - 16))
        assert found.max() < 2**bits


@pytest.mark.parametrize("bits", [12, 20, 24])
def test_update_rounds_without_bias(bits: int) -> None:
    """Over all random numbers the mean change is the exact one, and no change is off by 1 or more."""
    spare = max(bits - 16, 0)
    random = np.arange(1 << (bits - spare)) << spare
    codes = np.full(random.shape, 100, dtype=np.int16)
    for value in (0, 1, -1, 5, 4096, -4096, 12345, -70001, 1 << bits, -3 << bits):
        change = moved(codes, np.full(random.shape, value), random, bits).astype(np.int64) - 100
        # Below the LFSR's 16 bits nothing is random: what is there is dropped.
        assert change.sum() == value >> spare
        assert np.abs(change - value / 2**bits).max() < 1


def test_corners_saturate() -> None:
    shape = machine(3, 2, fraction_bits=24)
    codes, most = np.array([32767, -32768, 0, 0, -1], dtype=np.int16), 1 << 46
    assert moved(codes, np.full(5, most), np.zeros(5, np.int64), 24).tolist() == [32767] * 5
    assert moved(codes, np.full(5, -most), np.full(5, 2**24 - 1), 24).tolist() == [-32768] * 5
    one = np.array([1, -1, 0, -(1 << 24), (1 << 24) - 1])
    assert moved(codes, one, np.full(5, 2**24 - 1), 24).tolist() == [32767, -32768, 0, -1, 0]
    # Nine pixels of 127, halved once, are more than 8 bits hold.
    layer = WindowedModel(network((3, 3, 1), [conv(2, (1, 1), (1, 1)), 3]), shape).layers[0]
    assert layer.geometry.latent_shift == 1
    full = np.full((3, 3, 2), 127)
    assert windowed.window_latents(full, layer.geometry).tolist() == [[[127, 127]]]
    assert windowed.window_latents(-full - 1, layer.geometry).tolist() == [[[-128, -128]]]
    assert windowed.window_latents(np.full((3, 3, 2), -1), layer.geometry).tolist() == [[[-4, -4]]]


@pytest.mark.parametrize(("rule", "largest", "most"), [("lls", 127, 10), ("bp", 2047, 6)])
def test_no_shift_overflows_the_sums(rule: str, largest: int, most: int) -> None:
    """The largest gradient there can be, from the largest inputs and signals, fits the partial sums."""
    for gradient_bits in (36, 40, 48):
        shape = machine(3, 2, fraction_bits=20, gradient_bits=gradient_bits, rule=rule)
        net = network((8, 8, 1), [conv(2, (3, 3), (2, 2), padding=1), 3], batch=5, rates=(-8, -8))
        for layer in WindowedModel(net, shape).layers:
            left = windowed.left_shift(layer, 0, 20)
            change = 5 * layer.geometry.positions * 8 * 128 * largest << left
            assert (1 << 35) + change <= 1 << (shape.psum_bits - 1)
            # The limit is one of the signal's width or of the sums', not lower.
            assert left - layer.coarse == most or (1 << 35) + 2 * change > 1 << (shape.psum_bits - 1)


def test_hidden_signal_of_nothing() -> None:
    table = Basis("walsh", 3).table(8)
    scores, d, k = windowed.hidden_signal(np.zeros((2, 2, 2), dtype=np.int64), 1, table, 0, 0)
    assert (scores.tolist(), k) == ([0, 0, 0], 0)
    error = [85, -171, 85]
    expected = [_rnd(sum(e * int(row[i]) for e, row in zip(error, table, strict=True)), 2) for i in range(8)]
    # Channel by channel: window 0 has the latents 0 and 4.
    assert np.abs(d.T.reshape(-1) - expected).max() <= 1


@pytest.mark.parametrize("basis", BASES)
def test_signals_of_label_and_error_are_the_basis(basis: str) -> None:
    """Each window and channel has its own entry of the basis; only those of the label spare saturated latents."""
    kind = Basis(basis, 5)
    table, bits = kind.table(24), kind.fraction_bits
    entries = table.reshape(5, 4, 6) / 2.0 ** (bits - 6)
    latents = np.random.default_rng(SEED).choice([127, -128, 126, -127], (2, 3, 4))
    for label in range(5):
        wanted = -entries[label].T
        error = -256 * (np.arange(5) == label)
        fed_back = windowed.feedback_signal(error, table, bits, 4)
        assert fed_back.shape == (6, 4)
        assert np.abs(fed_back - wanted).max() <= 0.75
        found, flat = windowed.label_signal(latents, label, table, bits), latents.reshape(6, 4)
        free = (np.abs(flat + 0.5) < 127) | (np.sign(fed_back) != np.sign(-(flat + 0.5)))
        assert np.array_equal(found, np.where(free, fed_back, 0))
        assert 0 < np.sum(~free) < free.size


# What is refused, and what tells runs apart.


def test_wrong_samples_and_parameters_are_refused() -> None:
    model = WindowedModel(NETWORKS["depthwise"], machine(3, 2))
    with pytest.raises(SpecError, match=r"^samples: must have the shape \(N, 35\), got \(2, 7, 5\)$"):
        model.train(np.zeros((2, 7, 5), np.int8), np.array([0, 1]))
    with pytest.raises(SpecError, match=r"^labels\[1\]: must be a class, 0 to 3, got 4$"):
        model.train(np.zeros((2, 35), np.int8), np.array([0, 4]))
    good = model.parameters()
    with pytest.raises(SpecError, match=r"^layer1_weight: must have the shape \(5, 9\)"):
        model.load_parameters([good[0], (good[1][0].T, good[1][1]), *good[2:]])
    with pytest.raises(SpecError, match="^parameters: must have 4 layers, got 3"):
        model.load_parameters(good[:3])


def test_a_rule_that_learns_nothing_refuses_to_train() -> None:
    model = WindowedModel(NETWORKS["depthwise"], machine(3, 2, rule="inference"))
    with pytest.raises(SpecError, match=r"^machine 3x2: cannot train: its rule is inference$"):
        model.train(np.zeros((1, 35), np.int8), np.zeros(1, np.int64))


def test_networks_it_is_not_for_are_refused() -> None:
    with pytest.raises(SpecError, match="^network test: must have convolutions or batches"):
        WindowedModel(network((7,), [5, 4]), machine(3, 2))
    with pytest.raises(SpecError, match="gradient_bits: must not be 0"):
        WindowedModel(NETWORKS["depthwise"], machine(3, 2, 18, 16, 0))
    with pytest.raises(SpecError, match="depthwise: needs a machine with as many rows as columns"):
        WindowedModel(NETWORKS["depthwise"], machine(2, 3))


def test_identity_tells_runs_apart() -> None:
    net, shape = NETWORKS["max pool, odd map"], machine(3, 2)
    identity = WindowedModel(net, shape).identity()
    assert WindowedModel(replace(net, name="other"), replace(shape, name="other")).identity() == identity
    first = net.layers[0]
    assert isinstance(first, Convolution)
    slower = replace(net, recipe=replace(net.recipe, rate_shifts=(("dfa", 9),)))
    assert WindowedModel(slower, shape).identity() == identity
    others = [identity, WindowedModel(slower, machine(3, 2, rule="dfa")).identity()]
    others += [WindowedModel(net, machine(3, 2, rule=rule)).identity() for rule in RULES[1:]]
    assert all(a != b for a, b in combinations(others, 2))
    for other in (
        WindowedModel(net, shape, train_hidden=False),
        WindowedModel(net, machine(2, 3)),
        WindowedModel(net, machine(3, 2, 17)),
        WindowedModel(net, machine(3, 2, 18, 21)),
        WindowedModel(net, machine(3, 2, 18, 20, 47)),
        WindowedModel(replace(net, basis="walsh"), shape),
        WindowedModel(replace(net, input="signed"), shape),
        WindowedModel(replace(net, input_shape=(4, 5, 2)), shape),
        WindowedModel(replace(net, recipe=replace(net.recipe, batch=2)), shape),
        WindowedModel(replace(net, layers=(replace(first, pool="latent"), net.layers[1])), shape),
        WindowedModel(replace(net, layers=(replace(first, activation_fraction=5), net.layers[1])), shape),
    ):
        assert other.identity() != identity


def test_with_frozen_hidden_layers_all_rules_but_bp_are_one() -> None:
    net = NETWORKS["max pool, odd map"]
    x, labels = wild_samples(net.features, 7, np.random.default_rng(SEED)), np.arange(7) % 3
    rules = [rule for rule in LEARNING if rule != "bp"]
    models = [WindowedModel(net, machine(3, 2, rule=rule), SEED, train_hidden=False) for rule in rules]
    predictions = [model.train(x, labels).predictions.tolist() for model in models]
    for model, prediction in zip(models[1:], predictions[1:], strict=True):
        assert model.identity() == models[0].identity()
        assert prediction == predictions[0]
        assert same(model.state_dict(), models[0].state_dict())


def test_initial_codes() -> None:
    net = NETWORKS["activations of 3 and 6 bits"]
    parameters = WindowedModel(net, machine(3, 2)).parameters()
    for (weight, bias), (taps, channels) in zip(parameters, net.shapes, strict=True):
        assert (weight.shape, bias.shape) == ((channels, taps), (channels,))
        bound = 2 * 2**14 / math.sqrt(taps)
        both = np.abs(np.concatenate([weight.reshape(-1), bias]).astype(np.float64))
        assert bound / 2 < both.max() <= bound + 1
    # One tap: the bound is 2.0, one code more than there is.
    assert initial_windowed_codes([(1, 1 << 17)], 0, 1)[0][0].max() == 2**15 - 1
    # Every bias has 14 fraction bits, in the second layer too, and a gain of 2 doubles all.
    (_, one), (_, two) = (initial_windowed_codes([(4, 9), (9, 50)], 3, gain)[1] for gain in (0, 1))
    assert np.abs(two - 2.0 * one).max() <= 1 < np.abs(one).max() / 2**11


def test_it_learns_digits() -> None:
    """One epoch: right far more often than with hidden layers that stay as they were drawn."""
    first = conv(8, (3, 3), (4, 4), padding=1, pool="max", activation_fraction=5)
    shifts = (("drtp", 4), ("dfa", 9), ("bp", 5))
    layers = [first, FullyConnected(24, 5), 10]
    net = network((8, 8), layers, "walsh", (4, 5), batch=2, gain_shift=1, rate_shifts=shifts)
    data, right = load_dataset("digits", net), {}
    for rule in (*LEARNING, "frozen"):
        shape = machine(8, 8, rule="lls" if rule == "frozen" else rule)
        model = WindowedModel(net, shape, 0, train_hidden=rule != "frozen")
        right[rule] = train_epochs(model, data, 1, progress=Progress(quiet=True)).test_accuracy
    assert right["lls"] > 85
    assert min(right[rule] for rule in TRAINING_SCORES) > 83
    assert right["bp"] > 85
    assert min(right["drtp"], right["dfa"]) > 78
    assert right["frozen"] < 70
