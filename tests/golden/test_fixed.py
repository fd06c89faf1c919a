"""The bit-exact model against the page it is written from, and what it must do as arithmetic."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from golden import fixed
from golden.data import load_digits
from golden.fixed import FixedModel, StepResult
from golden.train import Parameters, initial_codes
from spec.basis import Basis
from spec.errors import SpecError
from spec.lfsr import PERIOD
from spec.machine import Machine, load_machine
from spec.network import BASES, FullyConnected, Network, Recipe, load_network
from spec.rules import RULES
from tests.golden.exact_scores import ExactScores, wild_codes

SEED = 20
LEARNING = [name for name, rule in RULES.items() if rule.learns]
RULES_AND_BASES = [(name, basis) for name, rule in RULES.items() for basis in (BASES if rule.basis else BASES[:1])]


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
        return self.state >> (16 - bits)


class Page:
    """docs/architecture.md and docs/rules.md, sections 1 and 2 of each, once more: one number at a time,
    LFSRs that really step. Section 7 is in `ExactScores`.

    It shares nothing with the models but the basis; whoever changes the page changes both.
    `step` returns the prediction and each layer's scores.
    """

    def __init__(self, network: Network, machine: Machine, parameters: Parameters, train_hidden: bool = True):
        self.network, self.machine, self.train_hidden = network, machine, train_hidden
        self.w = [weight.tolist() for weight, _ in parameters]
        self.b = [bias.tolist() for _, bias in parameters]
        self.own = [
            ExactScores(machine.rule, network.basis, network.classes, n, machine.vectors)
            for _, n in network.shapes[:-1]
        ]
        count = machine.rows * machine.cols + 1
        self.lfsrs = [_Lfsr(n * (65535 // count)) for n in range(count)]
        self.exp = [round(4096 * 2 ** -((j + 0.5) / 16)) for j in range(16)]
        self.rcp9 = [round(512 / (1 + (j + 0.5) / 16)) for j in range(16)]
        self.rcp8 = [round(256 / (1 + (j + 0.5) / 16)) for j in range(16)]

    def step(self, x: list[int], label: int | None) -> tuple[int, list[list[int] | None]]:
        rule, last = self.machine.rule, len(self.w) - 1
        if rule == "inference":
            label = None
        inputs, slopes, scores = [x], [], []
        for number in range(last):
            z = self.forward(number, x)
            shift = 14 + (4 if number else 7) - 4
            a = [_sat(_rnd(v >> 3 if v < 0 else v, shift), 8) for v in z]
            slopes.append([v < 0 for v in z])
            scores.append(None)
            if label is not None and self.train_hidden:
                if RULES[rule].scores:
                    delta, scores[-1], k = self.hidden(number, a, slopes[-1], label)
                    self.update(number, x, delta, k)
                if rule == "drtp":
                    e = [-256 * (c == label) for c in range(self.network.classes)]
                    self.update(number, x, self.feedback(e, a, slopes[-1]))
            inputs.append(x := a)
        score = [_sat(_rnd(v, 14 + (4 if last else 7) - 9), 20) for v in self.forward(last, x)]
        if label is not None:
            e = self.error(score, label, 9)
            delta = [min(max(_rnd(v, 1), -127), 127) for v in e]
            if rule == "bp":
                delta = [min(max(64 * _rnd(v, 3), -2047), 2047) for v in e]
            for number in range(last, -1, -1):
                before = []
                if number > 0 and rule == "dfa":
                    before = self.feedback(e, inputs[number], slopes[number - 1])
                if number > 0 and rule == "bp":
                    before = self.back(number, delta, slopes[number - 1])
                self.update(number, inputs[number], delta)
                if not before or not self.train_hidden:
                    break
                delta = before
        return score.index(max(score)), [*scores, score]

    def forward(self, number: int, x: list[int]) -> list[int]:
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + bias * 128
            for row, bias in zip(self.w[number], self.b[number], strict=True)
        ]

    def basis(self, n: int) -> tuple[list[list[int]], int]:
        basis = Basis(self.network.basis, self.network.classes)
        return basis.table(n).tolist(), basis.fraction_bits

    def feedback(self, e: list[int], a: list[int], slopes: list[bool]) -> list[int]:
        table, frac = self.basis(len(slopes))
        sums = [sum(row[i] * v for row, v in zip(table, e, strict=True)) for i in range(len(slopes))]
        delta = [self.signal(_rnd(v, frac), 2, neg) for v, neg in zip(sums, slopes, strict=True)]
        further = [(v == 127 and t < 0) or (v == -128 and t > 0) for v, t in zip(a, delta, strict=True)]
        return [0 if full else t for full, t in zip(further, delta, strict=True)]

    def back(self, number: int, delta: list[int], slopes: list[bool]) -> list[int]:
        sums = [sum(self.w[number][j][i] * d for j, d in enumerate(delta)) for i in range(len(slopes))]
        return [self.signal(v, 14, neg) for v, neg in zip(sums, slopes, strict=True)]

    def signal(self, v: int, shift: int, neg: bool) -> int:
        t = _rnd(v, shift)
        if neg:
            t = _rnd(t, 3)
        largest = 2047 if self.machine.rule == "bp" else 127
        return min(max(t, -largest), largest)

    def hidden(self, number: int, a: list[int], neg: list[bool], label: int) -> tuple[list[int], list[int], int]:
        own, classes = self.own[number], range(self.network.classes)
        score = own.scores(a)
        ss = sum(v * v for v in a)
        top = int(math.log2(ss)) if ss else 0
        k = (top + 1) // 2
        e = self.error(score, label, self.network.recipe.temperature_shift + k)
        gs = sum(e[c] * score[c] for c in classes)
        h = _sat(_rnd(gs * 2, k), 16)
        mantissa = int(16 * ss / 2**top) % 16
        q = _sat(_rnd(h * self.rcp8[mantissa], top // 2 + 2), 16)
        gradient = [g - _rnd(q * v, 7) for g, v in zip(own.gradient(e, len(a)), a, strict=True)]
        delta = [self.signal(g, 2, slope) for g, slope in zip(gradient, neg, strict=True)]
        own.learn(a, e, self.network.recipe.hidden_rate_shift, k)
        return delta, score, k

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

    def rate_shift(self, number: int, k: int, in_frac: int) -> int:
        """The table of docs/rules.md, section 1."""
        recipe, rule = self.network.recipe, self.machine.rule
        if number == len(self.network.shapes) - 1:
            return recipe.output_rate_shift + {"bp": 11}.get(rule, 7) + in_frac - 14
        if RULES[rule].scores:
            return recipe.hidden_rate_shift + 6 - 4 + k + in_frac - 14
        return dict(recipe.rate_shifts)[rule] + {"bp": 11}.get(rule, 6) + in_frac - 14

    def update(self, number: int, x: list[int], delta: list[int], k: int = 0) -> None:
        machine, in_frac = self.machine, 4 if number else 7
        rows, cols, bits = machine.rows, machine.cols, machine.fraction_bits
        w, b = self.w[number], self.b[number]
        n_in, n_out = len(x), len(delta)
        room = machine.delta_bits - (12 if machine.rule == "bp" else 8)
        ls = min(max(bits - self.rate_shift(number, k, in_frac), 0), room)
        shifted = [-v * 2**ls for v in delta]
        for jt in range(-(-n_out // cols)):
            for it in range(-(-n_in // rows)):
                for r in range(rows):
                    for c in range(cols):
                        j, i, lfsr = jt * cols + c, it * rows + r, self.lfsrs[r * cols + c]
                        if j < n_out and i < n_in:
                            v = w[j][i] * 2**bits + lfsr.top(bits) + shifted[j] * x[i]
                            w[j][i] = _sat(v // 2**bits, 16)
                        lfsr.step()
            for c in range(cols):
                j, lfsr = jt * cols + c, self.lfsrs[rows * cols]
                if j < n_out:
                    v = b[j] * 2**bits + lfsr.top(bits) + shifted[j] * 2 ** (2 * in_frac - 7)
                    b[j] = _sat(v // 2**bits, 16)
                lfsr.step()

    def parameters(self) -> Parameters:
        return [(np.array(w), np.array(b)) for w, b in zip(self.w, self.b, strict=True)]


def machine(rows: int, cols: int, delta_bits: int = 18, fraction_bits: int = 12, rule: str = "lls") -> Machine:
    """A machine with memories large enough for the networks here."""
    name = f"{rows}x{cols}"
    return Machine(name, rows, cols, 4096, 256, 64, 64, 256, 4, delta_bits, fraction_bits, 64, rule=rule)


def network(sizes: list[int], basis: str, hidden: int = 3, output: int = 2, t: int = 0) -> Network:
    """Fully connected, the last size being the classes; the rates are those of every rule."""
    layers = tuple(FullyConnected(n) for n in sizes[1:])
    shifts = (("drtp", hidden + 1), ("dfa", hidden), ("bp", hidden - 1))
    return Network("test", (sizes[0],), sizes[-1], basis, layers, Recipe(hidden, output, t, rate_shifts=shifts))


def wild_parameters(net: Network, rng: np.random.Generator) -> Parameters:
    """Parameters of every size up to saturation, corner codes among them."""
    found = []
    for n_in, n_out in net.shapes:
        pair = []
        for shape in ((n_out, n_in), (n_out,)):
            codes = rng.normal(0, 2.0 ** rng.integers(9, 16), shape)
            corner = rng.random(shape) < 0.1
            codes = np.where(corner, rng.choice([-32768, 32767, 0, -1], shape), codes)
            pair.append(np.clip(np.round(codes), -32768, 32767).astype(np.int16))
        found.append((pair[0], pair[1]))
    return found


def wild_samples(features: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples int8, corners first."""
    x = rng.integers(-128, 128, (count, features)).astype(np.int8)
    x[0], x[1 % count], x[2 % count] = 127, -128, 0
    return x


def same_scores(result: StepResult, expected: tuple[int, list[list[int] | None]]) -> bool:
    """Whether a result is the page's."""
    found = [None if score is None else score.tolist() for score in result.scores]
    return (result.prediction, found) == expected


CASES = [
    # rows, cols, delta_bits, fraction_bits, sizes, hidden and output rate shift, temperature
    (2, 2, 18, 12, [5, 3, 3], 6, 5, 0),
    (1, 1, 18, 12, [4, 3, 2], 0, -2, 0),
    (3, 2, 16, 10, [7, 5, 6, 4], 3, 2, 1),
    (2, 5, 18, 12, [9, 11, 3], -4, -4, 2),
    (4, 3, 8, 16, [6, 7, 5], 2, 0, 0),
    (3, 4, 18, 4, [8, 6, 5], -7, -8, 3),
    (2, 3, 12, 8, [5, 4], 1, 4, 0),
]


@pytest.mark.parametrize(("rule", "basis"), RULES_AND_BASES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("start", ["initial", "wild"])
def test_model_is_the_page(rule: str, case: tuple, basis: str, start: str) -> None:
    rows, cols, delta_bits, bits, sizes, hidden, output, t = case
    if rule == "bp":
        delta_bits = max(delta_bits, 12)
    net = network(sizes, basis, hidden, output, t)
    rng = np.random.default_rng([SEED, rows, cols])
    parameters = initial_codes(net.shapes, SEED) if start == "initial" else wild_parameters(net, rng)
    shape = machine(rows, cols, delta_bits, bits, rule)
    if start == "wild":
        shape = replace(shape, vectors=net.classes // 2 + 1)
    model = FixedModel(net, shape)
    model.load_parameters(parameters)
    page = Page(net, model.machine, parameters)
    if start == "wild":
        model.load_trained_scores([wild_codes(codes.shape, rng) for codes in model.trained_scores()])
        for own, codes in zip(page.own, model.trained_scores(), strict=False):
            own.theta = codes.tolist()
    before, trained = model.parameters(), model.trained_scores()
    for number, x in enumerate(wild_samples(net.features, 24, rng)):
        label = None if number % 6 == 5 else int(rng.integers(net.classes))
        assert same_scores(model.step(x, label), page.step(x.tolist(), label)), f"sample {number}"
        for layer, (found, expected) in enumerate(zip(model.parameters(), page.parameters(), strict=True)):
            assert np.array_equal(found[0], expected[0]), f"sample {number}, weights {layer}"
            assert np.array_equal(found[1], expected[1]), f"sample {number}, biases {layer}"
        assert [codes.tolist() for codes in model.trained_scores()] == [own.theta for own in page.own if own.theta]
    changed = [np.mean(a[0] != b[0]) for a, b in zip(before, model.parameters(), strict=True)]
    if rule == "inference":
        assert max(changed) == 0
    else:
        assert min(changed) > 0, "a layer whose weights stayed compares nothing"
    moved = [bool(np.any(old != new)) for old, new in zip(trained, model.trained_scores(), strict=True)]
    assert any(moved) == bool(RULES[rule].trains and page.own)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("rule", LEARNING)
def test_frozen_layers_stay_and_form_no_scores(rule: str, basis: str) -> None:
    net = network([7, 5, 6, 4], basis)
    rng = np.random.default_rng(SEED)
    parameters = initial_codes(net.shapes, SEED)
    model = FixedModel(net, machine(3, 2, rule=rule), SEED, train_hidden=False)
    page = Page(net, model.machine, parameters, train_hidden=False)
    for x in wild_samples(7, 12, rng):
        result = model.step(x, 1)
        assert same_scores(result, page.step(x.tolist(), 1))
        assert [score is None for score in result.scores] == [True, True, False]
    found = model.parameters()
    for number in range(2):
        assert np.array_equal(found[number][0], parameters[number][0])
        assert np.array_equal(found[number][1], parameters[number][1])
    assert not np.array_equal(found[2][0], parameters[2][0])
    assert (model.update_steps, model.bias_steps) == (12 * 2 * 2, 12 * 4)


@pytest.mark.parametrize("rule", LEARNING)
def test_inference_changes_nothing(rule: str) -> None:
    model = FixedModel(network([7, 5, 4], "square"), machine(3, 2, rule=rule), SEED)
    x = wild_samples(7, 8, np.random.default_rng(SEED))
    model.train(x, np.arange(8) % 4)
    before = model.state_dict()
    results = [model.infer(codes) for codes in x]
    assert model.predict(x).tolist() == [result.prediction for result in results]
    assert all(result.scores[0] is None for result in results)
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_counters_count_padding_and_wrap() -> None:
    net, shape = network([7, 5, 4], "square"), machine(3, 2)
    model = FixedModel(net, shape, SEED)
    x = wild_samples(7, 1, np.random.default_rng(SEED))[0]
    model.step(x, 0)
    # Tiles: 3 x 3 and 2 x 2; a tile of columns makes 2 biases.
    assert (model.update_steps, model.bias_steps) == (9 + 4, 2 * (3 + 2))
    other = FixedModel(net, shape, SEED)
    model.load_parameters(other.parameters())
    model.update_steps, model.bias_steps = PERIOD - 5, PERIOD - 3
    other.update_steps, other.bias_steps = 2 * PERIOD - 5, 2 * PERIOD - 3
    for m in (model, other):
        m.step(x, 1)
    assert (model.update_steps, model.bias_steps) == (13 - 5, 10 - 3)
    assert all(np.array_equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("rule", LEARNING)
def test_resumed_is_the_same(rule: str) -> None:
    net, shape = network([7, 5, 6, 4], "walsh"), machine(3, 2, rule=rule)
    x = wild_samples(7, 40, np.random.default_rng(SEED))
    labels = np.arange(40) % 4
    whole, first, second = (FixedModel(net, shape, seed) for seed in (1, 1, 2))
    whole.train(x, labels)
    first.train(x[:17], labels[:17])
    second.load_state_dict(first.state_dict())
    first.train(x[:1], labels[:1])  # the state that was given away must not follow
    second.train(x[17:], labels[17:])
    state = second.state_dict()
    assert all(np.array_equal(value, state[name]) for name, value in whole.state_dict().items())


# Units: what the arithmetic is for.


def test_leaky_relu_rounds_after_its_floor() -> None:
    z = np.array([0, 1, -1, 511, 512, -8 * 512, -4096 - 1, 2**30, -(2**30)])
    a, neg = fixed.hidden_activation(z, 10)
    assert neg.tolist() == (z < 0).tolist()
    assert a.tolist() == [0, 0, 0, 0, 1, 0, -1, 127, -128]
    assert fixed.output_score(np.array([2**40, -(2**40), 255, 256]), 9).tolist() == [
        2**19 - 1,
        -(2**19),
        0,
        1,
    ]


def test_update_rounds_without_bias() -> None:
    """Over all random numbers the mean change is the exact one, and no change is off by 1 or more."""
    bits, tries = 12, 1 << 12
    weight = np.full((1, tries), 100, dtype=np.int16)
    random = np.arange(tries)[None, :]
    for value in (0, 1, -1, 5, 4095, 4096, -4096, 12345, -70001):
        x = np.ones(tries, dtype=np.int64)
        moved = fixed.update_weights(weight, np.array([value]), x, random, bits)
        change = moved.astype(np.int64) - 100
        assert change.sum() == value
        assert np.abs(change - value / tries).max() < 1


def test_update_saturates() -> None:
    weight = np.array([[32767, -32768, 0]], dtype=np.int16)
    big = np.array([127 << 10])
    up = fixed.update_weights(weight, big, np.full(3, 127), np.zeros((1, 3), np.int64), 12)
    assert up.tolist() == [[32767, -32768 + 4032, 4032]]
    down = fixed.update_weights(weight, -big, np.full(3, 127), np.zeros((1, 3), np.int64), 12)
    assert down.tolist() == [[32767 - 4033, -32768, -4033]]
    bias = fixed.update_biases(weight[0], np.repeat(big, 3), 7, np.zeros(3, np.int64), 12)
    assert bias.tolist() == [32767, -32768 + 4064, 4064]


def test_every_pe_walks_its_own_part_of_the_sequence() -> None:
    """No two PEs are ever at the same place within a run of updates as long as a layer's."""
    shape = load_machine("digits")
    where = fixed.walk(shape, 64, 128)
    assert len(np.unique(where)) == where.size
    assert (where[0, 0], where[0, 8], where[8, 0]) == (0, 1, 8)
    assert where[0, 1] == 8 * (PERIOD // 65)
    assert where[1, 0] == PERIOD // 65


# What is refused, in one line that names it.


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((2, 6), np.int8), [0, 1], "samples: must have the shape (N, 7), got (2, 6)"),
        (np.zeros((2, 7), np.int16), [0, 1], "samples: must be int8 codes, got 'int16'"),
        (np.zeros((2, 7), np.int8), [0], "labels: must have the shape (2,), one a sample, got (1,)"),
        (np.zeros((2, 7), np.int8), [0, 4], "labels[1]: must be a class, 0 to 3, got 4"),
        (np.zeros((2, 7), np.int8), [-1, 0], "labels[0]: must be a class, 0 to 3, got -1"),
        (np.zeros((2, 7), np.int8), [0.0, 1.0], "labels: must be integers, got 'float64'"),
    ],
)
def test_wrong_samples_are_refused(x: np.ndarray, labels: list, message: str) -> None:
    model = FixedModel(network([7, 5, 4], "square"), machine(3, 2))
    with pytest.raises(SpecError) as error:
        model.train(x, np.array(labels))
    assert str(error.value) == message


def test_wrong_parameters_are_refused() -> None:
    model = FixedModel(network([7, 5, 4], "square"), machine(3, 2))
    good = [(w.astype(np.int64), b.astype(np.int64)) for w, b in model.parameters()]
    for wrong, message in [
        (good[:1], "parameters: must have 2 layers, got 1"),
        ([(good[0][0].T, good[0][1]), good[1]], "layer0_weight: must have the shape (5, 7), got"),
        ([good[0], (good[1][0] + 40000, good[1][1])], "layer1_weight: must hold codes of 16 bits"),
        ([good[0], (good[1][0], good[1][1] / 2)], "layer1_bias: must hold integer codes, got"),
    ]:
        with pytest.raises(SpecError, match="^" + message.replace("(", r"\(").replace(")", r"\)")):
            model.load_parameters(wrong)
    state = model.state_dict()
    with pytest.raises(SpecError, match="^state: .*layer1_bias"):
        model.load_state_dict({k: v for k, v in state.items() if k != "layer1_bias"})
    with pytest.raises(SpecError, match="^state: must count"):
        model.load_state_dict({**state, "bias_steps": np.array(-1)})


def test_network_must_fit() -> None:
    with pytest.raises(SpecError, match="max_neurons is 64"):
        FixedModel(network([7, 65, 4], "square"), machine(3, 2))


def test_identity_tells_runs_apart() -> None:
    net, shape = network([7, 5, 4], "square"), machine(3, 2)
    identity = FixedModel(net, shape).identity()
    assert FixedModel(net, replace(shape, name="other", weight_depth=999)).identity() == identity
    others = [
        identity,
        FixedModel(net, shape, train_hidden=False).identity(),
        FixedModel(net, machine(2, 3)).identity(),
        FixedModel(net, machine(3, 2, 16)).identity(),
        FixedModel(net, machine(3, 2, 18, 11)).identity(),
        FixedModel(replace(net, basis="walsh"), shape).identity(),
        *(FixedModel(net, machine(3, 2, rule=rule)).identity() for rule in RULES if rule != "lls"),
        FixedModel(net, machine(3, 2, rule="bp"), train_hidden=False).identity(),
    ]
    slower = replace(net, recipe=replace(net.recipe, rate_shifts=(("bp", 9),)))
    others.append(FixedModel(slower, machine(3, 2, rule="bp")).identity())
    assert all(a != b for a, b in combinations(others, 2))
    assert others[-1]["rate_shift"] == "9"


def test_a_rule_that_learns_nothing_refuses_to_train() -> None:
    model = FixedModel(network([7, 5, 4], "square"), machine(3, 2, rule="inference"))
    with pytest.raises(SpecError) as error:
        model.train(np.zeros((1, 7), np.int8), np.zeros(1, np.int64))
    assert str(error.value) == "machine 3x2: cannot train: its rule is inference"


def test_it_learns_digits() -> None:
    """One epoch: far above what the same net reaches with frozen hidden layers."""
    data = load_digits()
    right = {}
    for train_hidden in (True, False):
        model = FixedModel(load_network("digits"), load_machine("digits"), 0, train_hidden)
        model.train(data.x_train, data.y_train)
        right[train_hidden] = float(np.mean(model.predict(data.x_test) == data.y_test))
    assert right[True] > 0.8
    assert right[False] < 0.7
