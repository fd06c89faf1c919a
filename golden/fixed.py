"""The bit-exact integer model of the machine, in plain NumPy: what the hardware computes, readably.

A training step is a walk over the layers. Each goes forward, then forms class scores from its own
output (a hidden layer as much as the last), compares their softmax with the label, turns the error
into a learning signal and updates its weights from that alone: no layer waits for another. The
functions stand in that order, each for one unit of the machine, so that a bench can check a unit by
itself; `FixedModel` strings them together and keeps the state.

Arrays are int64 codes unless said otherwise. Formats: weight s16, 14 fraction bits; pixel s8, 7;
hidden activation s8, 4; bias s16, 7 more than the layer's input; output score s20, 9; error s10, 8;
learning signal s8, 6 in a hidden layer and 7 in the output layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from golden.arith import msb, random_bits, rnd, sat
from golden.train import Parameters, TrainReport, initial_codes, network_identity
from spec.basis import Basis
from spec.errors import SpecError
from spec.lfsr import PERIOD, offset
from spec.machine import ACT_BITS, BIAS_LEFT_SHIFT, SCORE_BITS, WEIGHT_BITS, Machine
from spec.network import NO_LABEL, Network
from spec.program import compile_program
from spec.tables import EXP, RCP8, RCP9

__all__ = [
    "FixedModel",
    "IntegerModel",
    "StatefulModel",
    "StepResult",
    "bias_random",
    "checked_samples",
    "class_scores",
    "hidden_activation",
    "hidden_delta",
    "integer_identity",
    "moved",
    "norm_exponent",
    "output_delta",
    "output_score",
    "pre_activation",
    "shift_delta",
    "softmax",
    "softmax_error",
    "sum_of_squares",
    "update_biases",
    "update_weights",
    "walk",
    "weight_random",
]

SLOPE_SHIFT = 3
"""A negative pre-activation is divided by 8."""
SIGNAL_MAX = 127
ONE = 256
"""The probability 1."""

_EXP, _RCP9 = np.array(EXP, dtype=np.int64), np.array(RCP9, dtype=np.int64)


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


# The learning-signal unit.


def class_scores(a: np.ndarray, table: np.ndarray, fraction_bits: int) -> np.ndarray:
    """A hidden layer's scores `B a`, `(K,)`: 20 bits, in units of `a`.

    `a (n,)`; `table` int8 `(K, n)` with `fraction_bits` (see `spec.basis.Basis`).
    """
    return sat(rnd(table.astype(np.int64) @ a, fraction_bits), SCORE_BITS)


def sum_of_squares(a: np.ndarray) -> int:
    """The squared norm of the latents."""
    return int(a @ a)


def norm_exponent(ss: int) -> int:
    """`k`, with `2^k` about the square root of `ss`: the norm as a power of two."""
    return (msb(ss) + 1) >> 1


def softmax(score: np.ndarray, shift: int) -> np.ndarray:
    """Probabilities, `(K,)`, of base 2: 0…264 with 8 fraction bits, summing to about 256.

    The exponents are `score · 2^(9 - shift)`, 8 fraction bits, 16 bits; `shift` 0…31.
    """
    u = sat(rnd(score << 9, shift), 16)
    distance = u.max() - u
    whole, fraction = distance >> 8, distance & 255
    e = np.where(whole > 12, 0, _EXP[fraction >> 4] >> np.minimum(whole, 12))
    total = int(e.sum())
    top = msb(total)
    return rnd(e * _RCP9[(total >> (top - 4)) & 15], top + 1)


def softmax_error(score: np.ndarray, label: int, shift: int) -> np.ndarray:
    """`softmax - onehot(label)`, `(K,)`: 10 bits, 8 fraction bits."""
    e = softmax(score, shift)
    e[label] -= ONE
    return e


def hidden_delta(
    error: np.ndarray,
    score: np.ndarray,
    a: np.ndarray,
    neg: np.ndarray,
    table: np.ndarray,
    fraction_bits: int,
) -> np.ndarray:
    """A hidden layer's learning signal, `(n,)`: -127…127 with 6 fraction bits.

    It is the gradient times the norm: `B^T e` without its part along `a` (dividing by the norm makes
    the loss blind to the length of `a`), times the slope. `error`, `score (K,)`; `a`, `neg (n,)`;
    `table` int8 `(K, n)` with `fraction_bits`.
    """
    ss = sum_of_squares(a)
    top = msb(ss)
    along = sat(rnd(int(error @ score) << 1, norm_exponent(ss)), 16)
    quotient = sat(rnd(along * RCP8[(ss << 4 >> top) & 15], (top >> 1) + 2), 16)
    gradient = rnd(table.astype(np.int64).T @ error, fraction_bits) - rnd(quotient * a, 7)
    signal = rnd(gradient, 2)
    signal = np.where(neg, rnd(signal, SLOPE_SHIFT), signal)
    return np.clip(signal, -SIGNAL_MAX, SIGNAL_MAX)


def output_delta(error: np.ndarray) -> np.ndarray:
    """The output layer's learning signal, `(K,)`: -127…127 with 7 fraction bits."""
    return np.clip(rnd(error, 1), -SIGNAL_MAX, SIGNAL_MAX)


def shift_delta(delta: np.ndarray, rate_shift: int, machine: Machine) -> np.ndarray:
    """`-delta`, shifted to where the rate `2^-rate_shift` puts it: `delta_bits` bits.

    In a hidden layer `rate_shift` includes the norm's exponent, which divides by the norm.
    """
    left = min(max(machine.fraction_bits - rate_shift, 0), machine.delta_bits - ACT_BITS)
    return -delta << left


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

    Scores are formed in every layer that trains on the sample, and in the output layer always; they
    are None elsewhere.
    """

    prediction: int
    scores: tuple[np.ndarray | None, ...]


def integer_identity(network: Network, machine: Machine, train_hidden: bool) -> dict[str, str]:
    """What two runs of this arithmetic must share to reach bit-equal weights, in Verilog too."""
    return {
        "network": network_identity(network),
        "rule": "lls" if train_hidden else "frozen",
        "arithmetic": "integer",
        "machine": f"{machine.rows}x{machine.cols}, signal {machine.delta_bits} bits, "
        f"random {machine.fraction_bits} bits" + (f", gradient {machine.psum_bits} bits" if network.windowed else ""),
    }


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

    A subclass holds the parameters. `train_hidden=False` freezes the hidden layers.
    """

    def __init__(self, network: Network, machine: Machine, train_hidden: bool = True) -> None:
        self.network = network
        self.machine = machine
        self.basis = Basis(network.basis, network.classes)
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

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`; trains on it unless `label` is None."""
        raise NotImplementedError

    def infer(self, x: np.ndarray) -> StepResult:
        """One sample without training: int8 `(features,)`."""
        return self.step(x)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the next sample depends on: parameters int16, counters int64."""
        state = {
            "update_steps": np.array(self.update_steps, dtype=np.int64),
            "bias_steps": np.array(self.bias_steps, dtype=np.int64),
        }
        for number, (weight, bias) in enumerate(self.parameters()):
            state[f"layer{number}_weight"], state[f"layer{number}_bias"] = weight, bias
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from the state of any model with an equal identity; SpecError if it is not one."""
        layers = range(len(self.network.shapes))
        names = {f"layer{n}_{part}" for n in layers for part in ("weight", "bias")}
        wrong = (names | {"update_steps", "bias_steps"}) ^ set(state)
        if wrong:
            raise SpecError("state", "has entries missing or unknown", ", ".join(sorted(wrong)))
        update_steps, bias_steps = int(state["update_steps"]), int(state["bias_steps"])
        if min(update_steps, bias_steps) < 0:
            raise SpecError("state", "must count 0 steps or more", (update_steps, bias_steps))
        self.load_parameters([(state[f"layer{n}_weight"], state[f"layer{n}_bias"]) for n in layers])
        self.update_steps, self.bias_steps = update_steps, bias_steps

    def _checked_parameters(self, parameters: Parameters) -> Parameters:
        """Copies of the parameters as int16, after checking them."""
        expected = self.network.shapes
        if len(parameters) != len(expected):
            raise SpecError("parameters", f"must have {len(expected)} layers", len(parameters))
        copies = []
        for number, ((n_in, n_out), pair) in enumerate(zip(expected, parameters, strict=True)):
            shapes = {"weight": (n_out, n_in), "bias": (n_out,)}
            for (part, shape), array in zip(shapes.items(), pair, strict=True):
                name, array = f"layer{number}_{part}", np.asarray(array)
                if array.shape != shape:
                    raise SpecError(name, f"must have the shape {shape}", array.shape)
                if array.dtype.kind not in "iu":
                    raise SpecError(name, "must hold integer codes", str(array.dtype))
                if array.min() < -(1 << 15) or array.max() >= 1 << 15:
                    raise SpecError(name, "must hold codes of 16 bits")
                copies.append(array.astype(np.int16))
        return list(zip(copies[::2], copies[1::2], strict=True))


class IntegerModel(StatefulModel):
    """A model with the bits of `docs/architecture.md`.

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
        """One sample, int8 `(features,)`; trains on it unless `label` is None."""
        labels = None if label is None else np.array([label])
        return self._run(*checked_samples(self.network, np.asarray(x)[None], labels))[0]

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """Trains on samples int8 `(N, features)` in turn; predictions are from before each update."""
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
        scores: list[np.ndarray | None] = []
        for number, layer in enumerate(self.layers[:-1]):
            z = pre_activation(x, self.weights[number], self.biases[number])
            a, neg = hidden_activation(z, layer.act_shift)
            score = None
            if layer.train and label != NO_LABEL:
                table, bits = self.tables[number], self.basis.fraction_bits
                k = norm_exponent(sum_of_squares(a))
                score = class_scores(a, table, bits)
                error = softmax_error(score, label, layer.score_shift + k)
                delta = hidden_delta(error, score, a, neg, table, bits)
                self._update(number, x, delta, layer.rate_shift + k)
            scores.append(score)
            x = a
        layer = self.layers[-1]
        output = output_score(pre_activation(x, self.weights[-1], self.biases[-1]), layer.act_shift)
        if layer.train and label != NO_LABEL:
            delta = output_delta(softmax_error(output, label, layer.score_shift))
            self._update(len(self.layers) - 1, x, delta, layer.rate_shift)
        return StepResult(int(output.argmax()), (*scores, output))

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
