"""The network in floating point: the equations, a trainer, and the baselines.

`forward` and `gradients` are the reference, float64, one line an equation (a layer's part is in
`golden.float_layer`, the rules' in `golden.rules`). `FloatBackend` trains with plain SGD on the
gradient summed over a mini-batch, in float32 unless told otherwise: by the same equations, or, for
fully connected layers at batch 1, through the compiled loops of `golden.float_dense`, tested equal to
them to float64 rounding.

The recipe's shifts set the float rates too: the machine leaves the factor `1/T` of a gradient out, so
its rate `2^-shift` is `T·2^-shift` here, of a gradient summed over pixels and samples. DFA and DRTP
take four times that in hidden layers: the machine's feedback is ±1, and the one here a fifth of it.
What a rule trains of its own, and the layers of forward-forward, have rates in proportion to those.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from golden.checkpoint import Parameters, named
from golden.data import Dataset
from golden.float_dense import RULE_CODES, train_forward_forward, train_samples
from golden.float_layer import SLOPE
from golden.rules import (
    DFA,
    RULES,
    ForwardForward,
    LocalLoss,
    Rule,
    forward,
    make_rule,
    saturation,
    signals,
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
from spec.geometry import LayerGeometry
from spec.network import Network

__all__ = [
    "FloatBackend",
    "default_rates",
    "float_baselines",
    "forward",
    "gradients",
    "signals",
]

INPUT_SCALE = 2.0**-7
"""Value of an input code's last bit."""
FEEDBACK_RATE = 4
"""The power of two next to sqrt(3 K) for K = 10: how much smaller than ±1 the feedback is."""
FORWARD_RATE = 1 / 8
"""Rate of hidden layers under forward-forward, in that of the output layer."""
OWN_RATE = 1 / 4
"""Rate of what a rule trains of its own, in that of the hidden layers."""
PREDICT_PIXELS = 4096
"""Pixels of a layer's output that a prediction holds at a time."""


def gradients(
    geometry: tuple[LayerGeometry, ...],
    parameters: Parameters,
    x: np.ndarray,
    labels: np.ndarray,
    rule: Rule,
) -> Parameters:
    """`(∂W, ∂b)` of each layer under `rule`, summed over the batch `x (N, features)`, labels `(N,)`."""
    return rule.gradients(geometry, parameters, x, labels).layers


def default_rates(network: Network, rule: str) -> tuple[float, float]:
    """Learning rates of the hidden layers and of the output layer, from the network's recipe.

    Raises SpecError for a rule that is not one of RULES.
    """
    check_choice("rule", rule, RULES)
    recipe = network.recipe
    output = temperature() * 2.0**-recipe.output_rate_shift
    if rule == "frozen":
        return 0.0, output
    if rule == "forward_forward":
        return output * FORWARD_RATE, output
    if rule in ("bp", "dfa", "drtp"):
        hidden = temperature() * 2.0 ** -recipe.rate_shift(rule)
        return hidden if rule == "bp" else FEEDBACK_RATE * hidden, output
    return temperature(recipe.temperature_shift) * 2.0**-recipe.hidden_rate_shift, output


class FloatBackend:
    """A float network as a `golden.train.Backend`: plain SGD, inputs `code/128`."""

    def __init__(
        self,
        network: Network,
        rule: str = "lls",
        seed: int = 0,
        *,
        basis: str | None = None,
        vectors: int | None = None,
        hidden_rate: float | None = None,
        output_rate: float | None = None,
        own_rate: float | None = None,
        dtype: type = np.float32,
    ):
        """`seed` draws the initial weights (and the feedback); rates default to `default_rates`,
        and `own_rate`, of what the rule trains of its own, to OWN_RATE of the hidden layers'.

        `basis` and `vectors` are those of `make_rule`. `dtype`: float32 or float64. Raises SpecError
        for a rule that is not one of RULES, or not for this network.
        """
        self._network = network
        self._rule = make_rule(rule, network, seed, basis, dtype, vectors=vectors)
        self._basis = network.basis if basis is None else basis
        self._seed = seed
        self._dtype = np.dtype(dtype)
        rates = default_rates(network, rule)
        self.hidden_rate = rates[0] if hidden_rate is None else hidden_rate
        self.output_rate = rates[1] if output_rate is None else output_rate
        self.own_rate = OWN_RATE * self.hidden_rate if own_rate is None else own_rate
        gain = 2.0**network.recipe.gain_shift
        initial = initial_parameters(network.shapes, seed)
        self.load_parameters([(gain * weight, gain * bias) for weight, bias in initial])

    @property
    def network(self) -> Network:
        """What is trained."""
        return self._network

    @property
    def batch(self) -> int:
        """Samples an update; those left at the end of a call of `train` are a shorter batch."""
        return self._network.recipe.batch

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
        if isinstance(self._rule, LocalLoss):
            identity["basis"] = self._basis
        if isinstance(self._rule, DFA):
            identity["feedback"] = f"seed {self._seed}"
        if self._rule.own:
            shapes = " ".join("x".join(map(str, own.shape)) for own in self._rule.own.values())
            identity["own parameters"] = f"{shapes}, rate {self.own_rate!r}"
        return identity

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """One update a batch; see `golden.train.Backend`.

        Raises SpecError for samples or labels that do not fit: the compiled loops check nothing.
        """
        x, labels = np.asarray(x), np.asarray(labels)
        if x.ndim != 2 or x.shape[1] != self._network.features or labels.shape != x.shape[:1]:
            rule = f"must be (N, {self._network.features}) with N labels"
            raise SpecError("samples", rule, (x.shape, labels.shape))
        if labels.size and not 0 <= labels.min() <= labels.max() < self._network.classes:
            rule = f"must lie in 0…{self._network.classes - 1}"
            raise SpecError("labels", rule, [int(labels.min()), int(labels.max())])
        labels = np.ascontiguousarray(labels, np.int64)
        if not self._network.windowed:
            return TrainReport(self._train_samples(self._scale(x), labels))
        parts = [slice(start, start + self.batch) for start in range(0, len(x), self.batch)]
        found = [self._train_batch(self._scale(x[part]), labels[part]) for part in parts]
        return TrainReport(np.concatenate([np.empty(0, np.int64), *found]))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Class of each row, int64 `(N,)`."""
        predictions = np.empty(len(x), np.int64)
        geometry, parameters = self._network.geometry, self._views()
        step = max(1, PREDICT_PIXELS // max(layer.positions for layer in geometry))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            scores = self._rule.scores(geometry, parameters, self._scale(x[rows]))
            predictions[rows] = scores.argmax(axis=1)
        return predictions

    def parameters(self) -> Parameters:
        """Copies, in the backend's precision."""
        return [(weight.copy(), bias.copy()) for weight, bias in self._views()]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces weights and biases; raises SpecError for a shape that is not the network's."""
        shapes = [(w.shape, b.shape) for w, b in parameters]
        expected = [((n_out, n_in), (n_out,)) for n_in, n_out in self._network.shapes]
        if shapes != expected:
            raise SpecError("parameters", f"must have the shapes {expected}", shapes)
        self._weights = tuple(np.array(w, self._dtype, order="C") for w, _ in parameters)
        self._biases = tuple(np.array(b, self._dtype, order="C") for _, b in parameters)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters, and the rule's own; SGD has no other state."""
        return named(self.parameters()) | {name: own.copy() for name, own in self._rule.own.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave."""
        layers = range(len(self._network.shapes))
        self.load_parameters([(state[f"layer{i}_weight"], state[f"layer{i}_bias"]) for i in layers])
        for name, own in self._rule.own.items():
            if state[name].shape != own.shape:
                raise SpecError(name, f"must have the shape {own.shape}", state[name].shape)
            own[...] = state[name]

    def _train_batch(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One update by the equations; the predictions before it."""
        parameters = self._views()
        found = self._rule.gradients(self._network.geometry, parameters, x, labels)
        rates = [self.hidden_rate] * (len(parameters) - 1) + [self.output_rate]
        for rate, pair, steps in zip(rates, parameters, found.layers, strict=True):
            for array, step in zip(pair, steps, strict=True):
                array -= rate * step
        for name, step in found.own.items():
            self._rule.own[name] -= self.own_rate * step
        return found.scores.argmax(axis=1)

    def _train_samples(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """An update a sample through the compiled loops, for fully connected layers; the predictions
        before each.
        """
        rule, layers = self._rule, len(self._weights)
        predictions = np.empty(len(labels), np.int64)
        widest = max(max(shape) for shape in self._network.shapes)
        if isinstance(rule, ForwardForward):
            constants = SLOPE, rule.threshold, rule.sharpness, rule.strength, self.hidden_rate
            train_forward_forward(
                self._weights,
                self._biases,
                np.array(constants, self._dtype),
                x,
                labels,
                predictions,
                np.zeros((rule.classes, layers, widest), self._dtype),
            )
            return predictions
        # One matrix more than hidden layers, as an empty tuple would have no type.
        unused = np.zeros((1, 1), self._dtype)
        own = [np.atleast_2d(array) for array in rule.own.values()] or [unused] * (layers - 1)
        matrices = [unused] * (layers - 1)
        if rule.name == "local_classifier":
            matrices = own
        elif isinstance(rule, LocalLoss):
            matrices = rule.bases
        elif isinstance(rule, DFA):
            matrices = rule.feedback
        temperature_shift = self._network.recipe.temperature_shift
        inverse = 1 / temperature(), 1 / temperature(temperature_shift)
        rates = self.hidden_rate, self.output_rate, self.own_rate
        train_samples(
            RULE_CODES[rule.name],
            self._weights,
            self._biases,
            (*matrices, unused),
            (*own, unused),
            np.array([saturation(layer) for layer in self._network.geometry], self._dtype),
            np.array([SLOPE, *inverse, *rates], self._dtype),
            x,
            labels,
            predictions,
            np.zeros((4, layers + 1, widest), self._dtype),
        )
        return predictions

    def _views(self) -> Parameters:
        """The parameters themselves."""
        return list(zip(self._weights, self._biases, strict=True))

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
