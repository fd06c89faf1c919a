"""The network in floating point: the equations, a trainer of them that is fast at batch 1, and the
baselines.

`forward` and `gradients` are the reference, float64, one line an equation (the rules' part is in
`golden.rules`). `FloatBackend` trains with plain SGD at batch 1 through compiled loops, tested
equal to the reference to float64 rounding; it runs in float32 unless told otherwise.

The recipe's shifts set the float rates too: the machine leaves the factor `1/T` of a gradient out, so
its rate `2^-shift` is `T·2^-shift` here. BP takes the output layer's rate for every layer. DFA takes
a quarter of it in hidden layers: its feedback is larger than the weights it stands for, and at the
full rate it is 7 points worse on MNIST after an epoch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

from golden.checkpoint import Parameters
from golden.data import Dataset
from golden.rules import (
    DFA,
    LLS,
    RULES,
    SLOPE,
    Rule,
    Trace,
    leaky_relu,
    make_rule,
    output_error,
    temperature,
)
from golden.train import (
    Progress,
    TrainReport,
    TrainResult,
    initial_parameters,
    network_identity,
    train_epochs,
)
from spec.errors import SpecError, check_choice
from spec.network import Network

__all__ = ["FloatBackend", "default_rates", "float_baselines", "forward", "gradients"]

INPUT_SCALE = 2.0**-7
"""Value of an input code's last bit."""
PREDICT_ROWS = 4096
"""Rows of a prediction held in float at a time."""
FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that loops become vector instructions; infinities and NaN keep their
meaning.
"""
RULE_CODES = {name: code for code, name in enumerate(RULES)}


def forward(parameters: Parameters, x: np.ndarray, slope: float = SLOPE) -> Trace:
    """The forward pass of `x`, `(n,)` or `(N, n)`, in the precision of the parameters."""
    inputs, pre = [x], []
    for index, (weight, bias) in enumerate(parameters):
        pre.append(inputs[-1] @ weight.T + bias)
        if index < len(parameters) - 1:
            inputs.append(leaky_relu(pre[-1], slope).astype(weight.dtype, copy=False))
    return Trace(inputs, pre)


def gradients(
    parameters: Parameters, x: np.ndarray, labels: np.ndarray, rule: Rule, slope: float = SLOPE
) -> Parameters:
    """`(∂W, ∂b)` of each layer under `rule`, summed over the batch.

    x: `(n,)` with a scalar label, or `(N, n)` with labels `(N,)`.
    """
    trace = forward(parameters, x, slope)
    error = output_error(trace.pre[-1], labels, temperature())
    signals = [*rule.signals(parameters, trace, error, labels), error]
    pairs = [
        (np.atleast_2d(delta), np.atleast_2d(inputs))
        for delta, inputs in zip(signals, trace.inputs, strict=True)
    ]
    return [(delta.T @ inputs, delta.sum(axis=0)) for delta, inputs in pairs]


def default_rates(network: Network, rule: str) -> tuple[float, float]:
    """Learning rates of the hidden layers and of the output layer, from the network's recipe.

    Raises SpecError for a rule that is not one of RULES.
    """
    check_choice("rule", rule, RULES)
    recipe = network.recipe
    output = temperature() * 2.0**-recipe.output_rate_shift
    if rule == "lls":
        return temperature(recipe.temperature_shift) * 2.0**-recipe.hidden_rate_shift, output
    return {"bp": output, "dfa": output / 4, "frozen": 0.0}[rule], output


class FloatBackend:
    """A float network as a `golden.train.Backend`: plain SGD, batch 1, inputs `code/128`."""

    def __init__(
        self,
        network: Network,
        rule: str = "lls",
        seed: int = 0,
        *,
        basis: str | None = None,
        hidden_rate: float | None = None,
        output_rate: float | None = None,
        dtype: type = np.float32,
    ):
        """`seed` draws the initial weights (and DFA's feedback); rates default to `default_rates`.

        `basis` replaces the network's, and may be `cosine` too. `dtype`: float32 or float64.
        Raises SpecError for a rule that is not one of RULES.
        """
        self._network = network
        self._rule = make_rule(rule, network, seed, basis)
        self._basis = network.basis if basis is None else basis
        self._seed = seed
        self._dtype = np.dtype(dtype)
        rates = default_rates(network, rule)
        self.hidden_rate = rates[0] if hidden_rate is None else hidden_rate
        self.output_rate = rates[1] if output_rate is None else output_rate
        if isinstance(self._rule, LLS):
            matrices: Sequence[np.ndarray] = self._rule.bases
        elif isinstance(self._rule, DFA):
            matrices = self._rule.feedback
        else:
            matrices = [np.zeros((1, 1)) for _ in network.shapes]
        # One matrix more than hidden layers, as an empty tuple would have no type.
        matrices = [*matrices[: len(network.shapes) - 1], np.zeros((1, 1))]
        self._matrices = tuple(np.ascontiguousarray(m, self._dtype) for m in matrices)
        self.load_parameters(initial_parameters(network.shapes, seed))

    @property
    def network(self) -> Network:
        """What is trained."""
        return self._network

    @property
    def rule(self) -> Rule:
        """The rule, for the reference equations."""
        return self._rule

    def identity(self) -> dict[str, str]:
        """See `golden.train.Backend`."""
        identity = {
            "network": network_identity(self._network),
            "rule": self._rule.name,
            "arithmetic": self._dtype.name,
            "rates": f"{self.hidden_rate!r} {self.output_rate!r}",
        }
        if self._rule.name == "lls":
            identity["basis"] = self._basis
        if self._rule.name == "dfa":
            identity["feedback"] = f"seed {self._seed}"
        return identity

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """One update a sample; see `golden.train.Backend`.

        Raises SpecError for samples or labels that do not fit: the compiled loop checks nothing.
        """
        x, labels = np.asarray(x), np.asarray(labels)
        if x.ndim != 2 or x.shape[1] != self._network.features or labels.shape != x.shape[:1]:
            rule = f"must be (N, {self._network.features}) with N labels"
            raise SpecError("samples", rule, (x.shape, labels.shape))
        if labels.size and not 0 <= labels.min() <= labels.max() < self._network.classes:
            rule = f"must lie in 0…{self._network.classes - 1}"
            raise SpecError("labels", rule, [int(labels.min()), int(labels.max())])
        recipe = self._network.recipe
        constants = np.array(
            [
                SLOPE,
                1 / temperature(),
                1 / temperature(recipe.temperature_shift),
                self.hidden_rate,
                self.output_rate,
            ],
            self._dtype,
        )
        predictions = np.empty(len(labels), np.int64)
        widest = max(max(shape) for shape in self._network.shapes)
        scratch = np.zeros((3, len(self._weights) + 1, widest), self._dtype)
        _train(
            RULE_CODES[self._rule.name],
            self._weights,
            self._biases,
            self._matrices,
            constants,
            self._scale(x),
            np.ascontiguousarray(labels, np.int64),
            predictions,
            scratch,
        )
        return TrainReport(predictions)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Class of each row, int64 `(N,)`."""
        predictions = np.empty(len(x), np.int64)
        parameters = list(zip(self._weights, self._biases, strict=True))
        for start in range(0, len(x), PREDICT_ROWS):
            rows = slice(start, start + PREDICT_ROWS)
            predictions[rows] = forward(parameters, self._scale(x[rows])).pre[-1].argmax(axis=1)
        return predictions

    def parameters(self) -> Parameters:
        """Copies, in the backend's precision."""
        return [(w.copy(), b.copy()) for w, b in zip(self._weights, self._biases, strict=True)]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces weights and biases; raises SpecError for a shape that is not the network's."""
        shapes = [(w.shape, b.shape) for w, b in parameters]
        expected = [((n_out, n_in), (n_out,)) for n_in, n_out in self._network.shapes]
        if shapes != expected:
            raise SpecError("parameters", f"must have the shapes {expected}", shapes)
        self._weights = tuple(np.array(w, self._dtype, order="C") for w, _ in parameters)
        self._biases = tuple(np.array(b, self._dtype, order="C") for _, b in parameters)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters; SGD has no other state."""
        state = {}
        for index, (weight, bias) in enumerate(self.parameters()):
            state[f"layer{index}_weight"], state[f"layer{index}_bias"] = weight, bias
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave."""
        layers = range(len(self._network.shapes))
        self.load_parameters([(state[f"layer{i}_weight"], state[f"layer{i}_bias"]) for i in layers])

    def _scale(self, x: np.ndarray) -> np.ndarray:
        """Codes as floats."""
        return np.ascontiguousarray(x, self._dtype) * self._dtype.type(INPUT_SCALE)


def float_baselines(
    network: Network,
    dataset: Dataset,
    epochs: int,
    seeds: Sequence[int] = (0, 1, 2),
    rules: Sequence[str] = RULES,
    progress: Progress | None = None,
) -> dict[str, list[TrainResult]]:
    """Trains the float network under each rule from each seed: `{rule: [a result a seed]}`."""
    progress = Progress() if progress is None else progress
    results: dict[str, list[TrainResult]] = {}
    for rule in rules:
        for seed in seeds:
            progress.line(f"float {rule}, seed {seed}")
            backend = FloatBackend(network, rule, seed)
            result = train_epochs(backend, dataset, epochs, seed, progress=progress)
            results.setdefault(rule, []).append(result)
    return results


@njit(fastmath=FAST_MATH, cache=True, inline="never")
def _dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(fastmath=FAST_MATH, cache=True, inline="never")
def _add_scaled(target, factor, a):
    for i in range(target.size):
        target[i] += factor * a[i]


@njit(cache=True)
def _error(scores, label, inverse_temperature, error):
    """`error = (softmax(scores/T) - onehot)/T`; the index of the first largest score."""
    best = 0
    for c in range(1, scores.size):
        if scores[c] > scores[best]:
            best = c
    total = scores.dtype.type(0)
    for c in range(scores.size):
        error[c] = np.exp((scores[c] - scores[best]) * inverse_temperature)
        total += error[c]
    for c in range(scores.size):
        error[c] *= inverse_temperature / total
    error[label] -= inverse_temperature
    return best


@njit(cache=True)
def _train(rule, weights, biases, matrices, constants, x, labels, predictions, scratch):
    """SGD over samples in order; `scratch` (3, layers + 1, widest): activations, signals, class
    scores.
    """
    slope, inverse_output, inverse_hidden, hidden_rate, output_rate = constants
    layers = len(weights)
    values, signals, small = scratch
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for n in range(labels.size):
        values[0, : x.shape[1]] = x[n]
        for layer in range(layers):
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                z = _dot(weights[layer][j], values[layer, :n_in]) + biases[layer][j]
                if z < zero and layer < layers - 1:
                    z *= slope
                values[layer + 1, j] = z
        classes = biases[layers - 1].size
        error = signals[layers - 1, :classes]
        predictions[n] = _error(values[layers, :classes], labels[n], inverse_output, error)

        for layer in range(layers - 2, -1, -1):
            width = biases[layer].size
            a = values[layer + 1, :width]
            delta = signals[layer, :width]
            delta[:] = zero
            if rule == 0:
                norm = np.sqrt(_dot(a, a))
                if norm > zero:
                    scores, local = small[0, :classes], small[1, :classes]
                    for c in range(classes):
                        scores[c] = _dot(matrices[layer][c], a) / norm
                    _error(scores, labels[n], inverse_hidden, local)
                    for c in range(classes):
                        _add_scaled(delta, local[c] / norm, matrices[layer][c])
                    _add_scaled(delta, -_dot(local, scores) / (norm * norm), a)
            elif rule == 1:
                for j in range(biases[layer + 1].size):
                    _add_scaled(delta, signals[layer + 1, j], weights[layer + 1][j])
            elif rule == 2:
                for c in range(classes):
                    _add_scaled(delta, error[c], matrices[layer][c])
            for i in range(width):
                # f keeps the sign, so y tells z < 0.
                delta[i] *= slope if a[i] < zero else one

        for layer in range(layers):
            if rule == 3 and layer < layers - 1:
                continue
            rate = hidden_rate if layer < layers - 1 else output_rate
            n_out, n_in = weights[layer].shape
            for j in range(n_out):
                step = -rate * signals[layer, j]
                _add_scaled(weights[layer][j], step, values[layer, :n_in])
                biases[layer][j] += step
