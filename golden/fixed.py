"""The bit-exact integer model of the machine, in plain NumPy: what the hardware computes, readably.

A training step is a walk over the layers, by the machine's rule (`docs/rules.md`). Under `lls`, its kin and
`drtp` each layer goes forward and at once learns from a signal of its own: no layer waits for
another. Under `dfa` and `bp` all go forward, and then learn from the output layer's error, the last
first. The functions stand in the order of a step, the signals' in `golden.signals`, each for one unit
of the machine, so that a bench can check a unit by itself; `FixedModel` strings them together and
keeps the state.

Arrays are int64 codes unless said otherwise. Formats: weight s16, 14 fraction bits; pixel s8, 7;
hidden activation s8, 4; bias s16, 7 more than the layer's input; output score s20, 9; the signals' are
in `golden.signals`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from golden.arith import random_bits, rnd, sat
from golden.signals import (
    HIDDEN_DELTAS,
    SLOPE_SHIFT,
    back_delta,
    back_sums,
    class_scores,
    factor_errors,
    factor_scores,
    feedback_delta,
    held,
    hidden_delta,
    label_delta,
    matrix_errors,
    matrix_scores,
    moved_trained,
    norm_exponent,
    output_back_delta,
    output_delta,
    shift_delta,
    softmax_error,
    sum_of_squares,
    trained_error,
    trained_shift,
    used,
    vector_scores,
)
from golden.train import Parameters, TrainReport, initial_codes, network_identity
from spec.errors import SpecError
from spec.lfsr import PERIOD, offset
from spec.machine import ACT_BITS, BIAS_LEFT_SHIFT, SCORE_BITS, WEIGHT_BITS, Machine
from spec.network import NO_LABEL, Network
from spec.program import compile_program
from spec.rules import part
from spec.scores import TRAINED_BITS, USED_FRAC, first_codes, score_basis, trained_shapes

__all__ = [
    "FixedModel",
    "IntegerModel",
    "StatefulModel",
    "StepResult",
    "TrainedScores",
    "bias_random",
    "checked_samples",
    "hidden_activation",
    "integer_identity",
    "local_signal",
    "moved",
    "output_score",
    "pre_activation",
    "update_biases",
    "update_weights",
    "walk",
    "weight_random",
]


# Forward: the array, the bias unit and post-processing.


def pre_activation(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`z = W x + b`, with 14 fraction bits more than `x`.

    `x (n_in,)`, `weight (n_out, n_in)`, `bias (n_out,)`, integers of any width.
    """
    return weight.astype(np.int64) @ x.astype(np.int64) + (bias.astype(np.int64) << BIAS_LEFT_SHIFT)


def hidden_activation(z: np.ndarray, act_shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The leaky ReLU: `(a, neg)`, 8 bits with 4 fraction bits, and whether `z < 0` (bool)."""
    neg = z < 0
    return sat(rnd(np.where(neg, z >> SLOPE_SHIFT, z), act_shift), ACT_BITS), neg


def output_score(z: np.ndarray, act_shift: int) -> np.ndarray:
    """The output layer's scores: 20 bits, 9 fraction bits."""
    return sat(rnd(z, act_shift), SCORE_BITS)


# The signal of a hidden layer with scores of its own: units of `golden.signals`.


@dataclass(frozen=True)
class TrainedScores:
    """What a hidden layer trains of its scores: `kind` of `spec.rules.Rule.trains`, `codes` int32 `(rows, lanes)`,
    which are moved where they are, and `rate_shift` of the layer's weights (`Recipe.rate_shift`).
    """

    kind: str
    codes: np.ndarray
    rate_shift: int


def local_signal(
    a: np.ndarray,
    neg: np.ndarray,
    label: int,
    table: np.ndarray,
    fraction_bits: int,
    score_shift: int,
    own: TrainedScores | None = None,
    delta_of: Callable[..., np.ndarray] = hidden_delta,
) -> tuple[np.ndarray, np.ndarray, int]:
    """`(scores (K,), delta (n,), k)` of a hidden layer from its own scores, and `own`, what of them it trains, moved.

    `a`, `neg (n,)` as of `golden.fixed.hidden_activation`; the signal is the gradient times the norm, and `k` the
    norm's exponent. `delta_of`: a function of `golden.signals.HIDDEN_DELTAS`.
    """
    k = norm_exponent(sum_of_squares(a))
    shift = score_shift + k
    if own is None:
        scores = class_scores(a, table, fraction_bits)
        error = softmax_error(scores, label, shift)
        return scores, delta_of(error, scores, a, neg, table, fraction_bits), k
    if own.kind == "basis":
        table, fraction_bits = used(own.codes).T, USED_FRAC
        scores = class_scores(a, table, fraction_bits)
        error = back = softmax_error(scores, label, shift)
        gradient = np.multiply.outer(a, trained_error(error))
    else:
        v = vector_scores(a, table, fraction_bits)
        if own.kind == "factors":
            scores = factor_scores(v, own.codes)
            error = softmax_error(scores, label, shift)
            back, gradient = factor_errors(error, own.codes), (v * trained_error(error))[:, None]
        else:
            scores = matrix_scores(v, own.codes)
            error = softmax_error(scores, label, shift)
            back, gradient = matrix_errors(error, own.codes), np.multiply.outer(v, trained_error(error))
    delta = delta_of(error, scores, a, neg, table, fraction_bits, back)
    own.codes[...] = moved_trained(own.codes, gradient, trained_shift(own.rate_shift, k))
    return scores, delta, k


# Update: the array and the bias unit again.


def walk(machine: Machine, n_in: int, n_out: int) -> np.ndarray:
    """Where each weight finds its LFSR, `(n_out, n_in)`: steps after the state 1, from reset on.

    Weight `[j, i]` is in PE(i % R, j % C), whose LFSR starts at an offset of its own, and is updated
    in step `(j // C)·Rt + i // R` of its layer's update.
    """
    i, j = np.arange(n_in)[None, :], np.arange(n_out)[:, None]
    row_tiles = -(-n_in // machine.rows)
    step = (j // machine.cols) * row_tiles + i // machine.rows
    number = (i % machine.rows) * machine.cols + j % machine.cols
    return step + number * offset(machine, 1)


def weight_random(machine: Machine, n_in: int, n_out: int, update_steps: int) -> np.ndarray:
    """Each weight's random bits, `(n_out, n_in)`, in an update that begins after `update_steps`."""
    return random_bits(walk(machine, n_in, n_out) + update_steps, machine.fraction_bits)


def bias_random(machine: Machine, n_out: int, bias_steps: int) -> np.ndarray:
    """Each bias's random bits, `(n_out,)`, in an update that begins after `bias_steps`."""
    start = offset(machine, machine.pes) + bias_steps
    return random_bits(start + np.arange(n_out), machine.fraction_bits)


def moved(codes: np.ndarray, change: np.ndarray, random: np.ndarray, fraction_bits: int) -> np.ndarray:
    """`codes + change / 2^F`, rounded by `random`, saturated: int16, all of one shape."""
    total = (codes.astype(np.int64) << fraction_bits) + random + change
    return sat(total >> fraction_bits, WEIGHT_BITS).astype(np.int16)


def update_weights(
    weight: np.ndarray, shifted: np.ndarray, x: np.ndarray, random: np.ndarray, fraction_bits: int
) -> np.ndarray:
    """`W + shifted x^T / 2^F`, rounded by `random`, saturated: int16 `(n_out, n_in)`.

    `shifted (n_out,)` from `shift_delta`, `x (n_in,)` as it went forward, `random (n_out, n_in)`.
    """
    product = np.multiply.outer(shifted.astype(np.int64), x.astype(np.int64))
    return moved(weight, product, random, fraction_bits)


def update_biases(
    bias: np.ndarray, shifted: np.ndarray, bias_shift: int, random: np.ndarray, fraction_bits: int
) -> np.ndarray:
    """New biases, int16 `(n_out,)`, at the rate of a weight whose input is 1.0.

    `shifted`, `random (n_out,)`.
    """
    return moved(bias, shifted << bias_shift, random, fraction_bits)


# The model.


@dataclass(frozen=True)
class StepResult:
    """What one sample gave: the `prediction`, and each layer's class `scores`, int64 `(K,)`.

    The output layer always forms scores, a hidden layer where it trains on the sample by their error;
    they are None elsewhere.
    """

    prediction: int
    scores: tuple[np.ndarray | None, ...]


def integer_identity(network: Network, machine: Machine, train_hidden: bool) -> dict[str, str]:
    """What two runs of this arithmetic must share to reach bit-equal weights, in Verilog too.

    The rule is `frozen` where only the output layer learns.
    """
    rule = machine.learning
    widths = f"{machine.rows}x{machine.cols}, signal {machine.delta_bits} bits, random {machine.fraction_bits} bits"
    if network.windowed:
        widths += f", gradient {machine.psum_bits} bits"
    if rule.transposes:
        # The output layer's signal is another one too: two frozen trainings differ.
        widths += f", unshifted {machine.signal_bits} bits"
    identity = {
        "network": network_identity(network),
        "rule": rule.name if train_hidden or not rule.learns else "frozen",
        "arithmetic": "integer",
        "machine": widths,
    }
    if identity["rule"] not in ("lls", "frozen", "inference"):
        identity["rate_shift"] = str(network.recipe.rate_shift(rule.name))
    if rule.trains and train_hidden:
        shapes = trained_shapes(network, machine)
        identity["trained scores"] = " ".join([rule.name, *(f"{rows}x{lanes}" for rows, lanes in shapes)])
    return identity


def checked_samples(network: Network, x: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Samples, contiguous int8 `(N, features)`, and labels, int64 `(N,)`, `NO_LABEL` without any.

    Raises SpecError for another shape, codes that are not int8, and labels that are no class.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != network.features:
        raise SpecError("samples", f"must have the shape (N, {network.features})", x.shape)
    if x.dtype != np.int8:
        raise SpecError("samples", "must be int8 codes", str(x.dtype))
    if labels is None:
        return np.ascontiguousarray(x), np.full(len(x), NO_LABEL, dtype=np.int64)
    labels = np.asarray(labels)
    if labels.shape != (len(x),):
        raise SpecError("labels", f"must have the shape ({len(x)},), one a sample", labels.shape)
    if labels.dtype.kind not in "iu":
        raise SpecError("labels", "must be integers", str(labels.dtype))
    wrong = (labels < 0) | (labels >= network.classes)
    if wrong.any():
        index = int(np.argmax(wrong))
        rule = f"must be a class, 0 to {network.classes - 1}"
        raise SpecError(f"labels[{index}]", rule, int(labels[index]))
    return np.ascontiguousarray(x), labels.astype(np.int64)


class StatefulModel:
    """What models of integers share: two counters, that every random bit follows from, and state.

    A subclass holds the weights; here is what rules train of the scores: `trained`, int32, an array a hidden layer
    whose elements are `spec.scores.trained_shapes`' in their order, whatever its shape.
    `train_hidden=False` freezes the hidden layers, which then have none.
    """

    trained: list[np.ndarray]

    def __init__(self, network: Network, machine: Machine, train_hidden: bool = True) -> None:
        self.network = network
        self.machine = machine
        self.basis = score_basis(network, machine)
        self.trained = first_codes(network, machine) if train_hidden else []
        self._trained_shapes = trained_shapes(network, machine)[: len(self.trained)]
        self.counters = np.zeros(2, dtype=np.int64)
        self._identity = integer_identity(network, machine, train_hidden)

    @property
    def update_steps(self) -> int:
        """Update steps of the array since reset, modulo the LFSRs' period; each steps every PE's."""
        return int(self.counters[0] % PERIOD)

    @update_steps.setter
    def update_steps(self, steps: int) -> None:
        self.counters[0] = steps % PERIOD

    @property
    def bias_steps(self) -> int:
        """Steps of the bias unit's LFSR since reset, modulo its period: one a neuron, padding too."""
        return int(self.counters[1] % PERIOD)

    @bias_steps.setter
    def bias_steps(self, steps: int) -> None:
        self.counters[1] = steps % PERIOD

    def identity(self) -> dict[str, str]:
        """What another run must share to reach bit-equal weights (see `golden.train.Backend`)."""
        return dict(self._identity)

    def parameters(self) -> Parameters:
        """Copies of the parameters in layer order: int16 `(weight (n_out, n_in), bias (n_out,))`."""
        raise NotImplementedError

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters; the counters stay. SpecError if they are not codes of 16 bits."""
        raise NotImplementedError

    def trained_scores(self) -> list[np.ndarray]:
        """Copies of what is trained of the hidden layers' scores: int32 `(rows, lanes)`; none under other rules, or
        with frozen hidden layers.
        """
        pairs = zip(self.trained, self._trained_shapes, strict=True)
        return [np.array(codes.reshape(shape)) for codes, shape in pairs]

    def load_trained_scores(self, codes: Sequence[np.ndarray]) -> None:
        """Replaces what is trained of the hidden layers' scores. SpecError if it is not codes of 24 bits."""
        expected = self._trained_shapes
        if len(codes) != len(expected):
            raise SpecError("trained scores", f"must have {len(expected)} layers", len(codes))
        checked = [
            _checked_codes(name, shape, TRAINED_BITS, layer)
            for name, shape, layer in zip(self._trained_names(), expected, codes, strict=True)
        ]
        for kept, layer in zip(self.trained, checked, strict=True):
            kept[...] = layer.reshape(kept.shape)

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`; trains on it unless `label` is None or the rule `inference`."""
        raise NotImplementedError

    def infer(self, x: np.ndarray) -> StepResult:
        """One sample without training: int8 `(features,)`."""
        return self.step(x)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the next sample depends on: parameters int16, trained scores int32, counters int64."""
        state = {
            "update_steps": np.array(self.update_steps, dtype=np.int64),
            "bias_steps": np.array(self.bias_steps, dtype=np.int64),
        }
        for number, (weight, bias) in enumerate(self.parameters()):
            state[f"layer{number}_weight"], state[f"layer{number}_bias"] = weight, bias
        return state | dict(zip(self._trained_names(), self.trained_scores(), strict=True))

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from the state of any model with an equal identity; SpecError if it is not one."""
        layers = range(len(self.network.shapes))
        names, trained = {f"layer{n}_{part}" for n in layers for part in ("weight", "bias")}, self._trained_names()
        wrong = (names | set(trained) | {"update_steps", "bias_steps"}) ^ set(state)
        if wrong:
            raise SpecError("state", "has entries missing or unknown", ", ".join(sorted(wrong)))
        update_steps, bias_steps = int(state["update_steps"]), int(state["bias_steps"])
        if min(update_steps, bias_steps) < 0:
            raise SpecError("state", "must count 0 steps or more", (update_steps, bias_steps))
        self.load_parameters([(state[f"layer{n}_weight"], state[f"layer{n}_bias"]) for n in layers])
        self.load_trained_scores([state[name] for name in trained])
        self.update_steps, self.bias_steps = update_steps, bias_steps

    def _trained_names(self) -> list[str]:
        """What the state calls the trained scores, in layer order."""
        return [f"layer{number}_{self.machine.rule}" for number in range(len(self.trained))]

    def _own_scores(self, number: int) -> TrainedScores | None:
        """What a hidden layer trains of its scores, itself."""
        rule = self.machine.learning
        if not rule.trains:
            return None
        return TrainedScores(rule.trains, self.trained[number], self.network.recipe.rate_shift(rule.name))

    def _check_compiled(self) -> None:
        """Refuses a rule whose signal compiled models do not have."""
        if self.machine.rule in HIDDEN_DELTAS:
            raise SpecError("rule", "has no compiled form, only the plain models have it", self.machine.rule)

    def _check_learns(self) -> None:
        """Refuses training on a machine for inference."""
        if not self.machine.learning.learns:
            raise SpecError(f"machine {self.machine.name}", "cannot train: its rule is inference")

    def _checked_parameters(self, parameters: Parameters) -> Parameters:
        """Copies of the parameters as int16, after checking them."""
        expected = self.network.shapes
        if len(parameters) != len(expected):
            raise SpecError("parameters", f"must have {len(expected)} layers", len(parameters))
        copies = []
        for number, ((n_in, n_out), pair) in enumerate(zip(expected, parameters, strict=True)):
            shapes = {"weight": (n_out, n_in), "bias": (n_out,)}
            for (kind, shape), array in zip(shapes.items(), pair, strict=True):
                checked = _checked_codes(f"layer{number}_{kind}", shape, WEIGHT_BITS, array)
                copies.append(checked.astype(np.int16))
        return list(zip(copies[::2], copies[1::2], strict=True))


def _checked_codes(name: str, shape: tuple[int, ...], bits: int, array: np.ndarray) -> np.ndarray:
    """An array, after checking its shape and that it holds codes of so many bits."""
    array = np.asarray(array)
    if array.shape != shape:
        raise SpecError(name, f"must have the shape {shape}", array.shape)
    if array.dtype.kind not in "iu":
        raise SpecError(name, "must hold integer codes", str(array.dtype))
    if array.min() < -(1 << (bits - 1)) or array.max() >= 1 << (bits - 1):
        raise SpecError(name, f"must hold codes of {bits} bits")
    return array


class IntegerModel(StatefulModel):
    """A model with the bits of `docs/architecture.md` and `docs/rules.md`, by the machine's rule.

    SpecError when the network does not fit the machine; `seed` is that of the initial parameters.
    """

    def __init__(self, network: Network, machine: Machine, seed: int = 0, train_hidden: bool = True) -> None:
        super().__init__(network, machine, train_hidden)
        self.layers = compile_program(network, machine, train_hidden).layers
        self.tables = [self.basis.table(layer.n_out) for layer in self.layers]
        self._prepare()
        self.load_parameters(initial_codes(network.shapes, seed))

    def _prepare(self) -> None:
        """What a subclass does before the first parameters come."""


class FixedModel(IntegerModel):
    """The machine's arithmetic in plain NumPy.

    `weights` int16 `(n_out, n_in)` and `biases` int16 `(n_out,)`, in layer order.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def parameters(self) -> Parameters:
        """Copies of the parameters in layer order: int16 `(weight (n_out, n_in), bias (n_out,))`."""
        return [(w.copy(), b.copy()) for w, b in zip(self.weights, self.biases, strict=True)]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters; the counters stay. SpecError if they are not codes of 16 bits."""
        checked = self._checked_parameters(parameters)
        self.weights = [weight for weight, _ in checked]
        self.biases = [bias for _, bias in checked]

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`; trains on it unless `label` is None or the rule `inference`."""
        labels = None if label is None else np.array([label])
        return self._run(*checked_samples(self.network, np.asarray(x)[None], labels))[0]

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """Trains on samples int8 `(N, features)` in turn; predictions are from before each update.

        SpecError on a machine for inference.
        """
        self._check_learns()
        steps = self._run(*checked_samples(self.network, x, labels))
        return TrainReport(np.array([step.prediction for step in steps], dtype=np.int64))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 `(N,)`. Nothing is trained."""
        steps = self._run(*checked_samples(self.network, x, None))
        return np.array([step.prediction for step in steps], dtype=np.int64)

    def _run(self, x: np.ndarray, labels: np.ndarray) -> list[StepResult]:
        """Checked samples in turn."""
        return [self._sample(codes, int(label)) for codes, label in zip(x.astype(np.int64), labels, strict=True)]

    def _sample(self, x: np.ndarray, label: int) -> StepResult:
        """One sample, int64 `(features,)`; no training if `label` is `NO_LABEL`."""
        waits = self.machine.learning.waits
        scores: list[np.ndarray | None] = []
        inputs, slopes = [], []
        for number, layer in enumerate(self.layers[:-1]):
            z = pre_activation(x, self.weights[number], self.biases[number])
            a, neg = hidden_activation(z, layer.act_shift)
            inputs.append(x)
            slopes.append(neg)
            score = None
            if layer.train and label != NO_LABEL and not waits:
                score, delta, k = self._own_signal(number, a, neg, label)
                self._update(number, x, delta, layer.rate_shift + k)
            scores.append(score)
            x = a
        layer = self.layers[-1]
        output = output_score(pre_activation(x, self.weights[-1], self.biases[-1]), layer.act_shift)
        if (layer.train or layer.trains_below) and label != NO_LABEL:
            self._learn_back([*inputs, x], slopes, softmax_error(output, label, layer.score_shift))
        return StepResult(int(output.argmax()), (*scores, output))

    def _own_signal(
        self, number: int, a: np.ndarray, neg: np.ndarray, label: int
    ) -> tuple[np.ndarray | None, np.ndarray, int]:
        """`(scores (K,), delta (n,), k)` of a hidden layer that waits for no other."""
        table, bits = self.tables[number], self.basis.fraction_bits
        if not self.machine.learning.scores:
            return None, held(label_delta(label, table, bits, neg), a), 0
        own = self._own_scores(number)
        delta_of = part(HIDDEN_DELTAS, self.machine.learning)
        return local_signal(a, neg, label, table, bits, self.layers[number].score_shift, own, delta_of)

    def _learn_back(self, inputs: list[np.ndarray], slopes: list[np.ndarray], error: np.ndarray) -> None:
        """Updates the output layer from its error, then the layers before it that waited for it.

        `inputs` of all layers, `slopes` of the hidden ones.
        """
        back = self.machine.learning.transposes
        delta = output_back_delta(error) if back else output_delta(error)
        for number in reversed(range(len(self.layers))):
            layer, own = self.layers[number], delta
            if layer.trains_below:
                neg, table = slopes[number - 1], self.tables[number - 1]
                if back:
                    delta = back_delta(back_sums(own, self.weights[number]), neg)
                else:
                    fed_back = feedback_delta(error, table, self.basis.fraction_bits, neg)
                    delta = held(fed_back, inputs[number])
            if layer.train:
                self._update(number, inputs[number], own, layer.rate_shift)
            if not layer.trains_below:
                return

    def _update(self, number: int, x: np.ndarray, delta: np.ndarray, rate_shift: int) -> None:
        """Updates a layer from its input and signal, and counts the steps, those of padding too."""
        layer, machine = self.layers[number], self.machine
        bits = machine.fraction_bits
        shifted = shift_delta(delta, rate_shift, machine)
        random = weight_random(machine, layer.n_in, layer.n_out, self.update_steps)
        self.weights[number] = update_weights(self.weights[number], shifted, x, random, bits)
        random = bias_random(machine, layer.n_out, self.bias_steps)
        bias = update_biases(self.biases[number], shifted, layer.bias_shift, random, bits)
        self.biases[number] = bias
        self.update_steps += layer.steps
        self.bias_steps += layer.col_tiles * machine.cols
