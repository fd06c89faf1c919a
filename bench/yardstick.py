"""What of the gap between LLS and backpropagation is the rule, and what is the way it is trained, in PyTorch.

`python -m bench.yardstick --data cifar10_subset.npz --setting reference --rule lls --epochs 20 --seed 0 --out DIR`

A setting is everything but the rule. `reference` is that of LLS's paper and its public code (Apolinario, Roy and Roy,
arXiv 2405.15868): batch normalisation, leaky ReLU, batch 128, T = 1/2, images mirrored at random, and AdamW without a
schedule (Defazio and others, "The Road Less Scheduled", arXiv 2405.15682). `machine` is what `entrain train --backend
float` does: the network's recipe, plain SGD, nothing normalised. The others take one thing away from the first or add
one to the second. Initial weights are those of `golden.train.initial_parameters`, the order of samples that of
`golden.train.epoch_order`, so `machine` follows `entrain train --backend float` until rounding parts them.

`R` runs, which may differ in seed, basis, rate and temperature, train at once along a first axis of every tensor: maps
are `(R, C, N, H, W)` for N samples, and all weights of all layers are one row of P numbers a run, `(R, P)`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from golden.data import Dataset, load_dataset
from golden.float_model import INPUT_SCALE, default_rates
from golden.rules import DFA, RULES, basis_matrix, make_rule, temperature
from golden.train import Epoch, Progress, epoch_order, initial_parameters
from sim.cli.common import Parser, option
from spec.errors import SpecError, check_choice, check_int, check_number
from spec.geometry import LayerGeometry
from spec.network import Network, load_network

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as missing:
    if missing.name != "torch" or __name__ != "__main__":
        raise
    print("error: the yardstick needs PyTorch: python -m pip install torch", file=sys.stderr)
    sys.exit(2)

__all__ = ["SETTINGS", "Run", "Setting", "Trainer", "main"]

STREAM_MIRROR = 5
"""Random stream of a seed; `golden.train` and `golden.rules` have others."""
STATISTICS_SAMPLES, CALIBRATION_SAMPLES, PREDICT_SAMPLES = 1000, 256, 250
NORM_EPSILON = 1e-5
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8
HALVINGS = (0.5, 0.7, 0.85)
MOMENTUM = 7 / 8
MEAN_SQUARE_SHIFT = 4


@dataclass(frozen=True)
class Setting:
    """How a network is trained, whatever the rule.

    `normalise`: `none`; `batch`, over samples and pixels; `power`, a power of two a channel, the one nearest to the
    root of a running mean square. `optimizer`: `sgd`, or `adamw` without a schedule. `batch`, `temperature` (of LLS),
    `gain` (of initial weights), `rate`: None for the network's recipe, `output_temperature`: None for the machine's.
    `momentum`: m, which divides the rate by 1/(1-m). `clip`: largest weight. `halvings`: the rate is halved after these
    parts of all epochs. `calibrate`: initial weights are scaled until every channel's sums have root mean square 1.
    `average`: what is tested has the mean of the weights after this many epochs, the last ones. `mirror`: half of the
    training images are mirrored, others in each epoch. `standardise`: inputs have mean 0 and deviation 1 in each
    channel, else they are the machine's codes.
    """

    normalise: str = "none"
    optimizer: str = "sgd"
    batch: int | None = None
    slope: float = 1 / 8
    temperature: float | None = None
    output_temperature: float | None = None
    gain: float | None = None
    rate: float | None = None
    momentum: float = 0.0
    clip: float | None = None
    halvings: tuple[float, ...] = ()
    calibrate: bool = False
    average: int = 1
    mirror: bool = False
    standardise: bool = False


_MACHINE = Setting()
_REFERENCE = Setting(
    normalise="batch",
    optimizer="adamw",
    batch=128,
    slope=0.01,
    temperature=0.5,
    output_temperature=1.0,
    gain=1.0,
    rate=5e-3,
    mirror=True,
    standardise=True,
)
SETTINGS = {
    "reference": _REFERENCE,
    "reference-no-mirror": replace(_REFERENCE, mirror=False),
    "reference-no-batchnorm": replace(_REFERENCE, normalise="none"),
    "reference-power": replace(_REFERENCE, normalise="power"),
    "reference-sgd": replace(_REFERENCE, optimizer="sgd", rate=2.0**-9),
    "machine": _MACHINE,
    "machine-batchnorm": replace(_MACHINE, normalise="batch"),
    "machine-power": replace(_MACHINE, normalise="power"),
    "machine-adamw": replace(_MACHINE, optimizer="adamw", rate=1e-3),
    "machine-clip": replace(_MACHINE, clip=0.25),
    "machine-halvings": replace(_MACHINE, halvings=HALVINGS),
    "machine-momentum": replace(_MACHINE, momentum=MOMENTUM),
    "machine-calibrate": replace(_MACHINE, calibrate=True),
    "machine-average": replace(_MACHINE, average=5),
    "machine-mirror": replace(_MACHINE, mirror=True),
}


@dataclass(frozen=True)
class Run:
    """What runs that train together may differ in. `rate` multiplies the setting's, `temperature` replaces it."""

    seed: int = 0
    basis: str = "square"
    rate: float = 1.0
    temperature: float | None = None


class Trainer:
    """`R` runs of a network under one rule and setting."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        setting: Setting,
        rule: str,
        runs: Sequence[Run],
        epochs: int,
        device: str = "cpu",
    ):
        """Raises SpecError for a rule that is not one of RULES, and for depthwise layers."""
        check_choice("rule", rule, RULES)
        if any(layer.depthwise for layer in network.geometry):
            raise SpecError(f"network {network.name}", "must have no depthwise convolutions")
        recipe = network.recipe
        self.network, self.setting, self.rule, self.epochs = network, setting, rule, epochs
        self.runs, self.batch = list(runs), recipe.batch if setting.batch is None else setting.batch
        self.samples = len(dataset.y_train)
        self._device, self._graph = torch.device(device), None
        gain = 2.0**recipe.gain_shift if setting.gain is None else setting.gain
        whole = temperature(recipe.temperature_shift) if setting.temperature is None else setting.temperature
        temperatures = [whole if run.temperature is None else run.temperature for run in self.runs]
        self._temperature = self._tensor(temperatures)[:, None, None]
        self._output_temperature = temperature() if setting.output_temperature is None else setting.output_temperature
        self._load(dataset)
        self._matrices = self._local_matrices()
        hidden = network.geometry[:-1]
        self._mean_squares = [torch.zeros(len(self.runs), layer.channels, device=self._device) for layer in hidden]
        flat, self._rates = self._initial(gain, temperatures)
        if setting.calibrate:
            self._calibrate(flat)
        self.optimizer = AdamW(flat) if setting.optimizer == "adamw" else SGD(flat, setting.momentum)
        self._kept: list[torch.Tensor] = []
        self._classes = torch.arange(network.classes, device=self._device)
        self._scale = torch.ones((), device=self._device)
        self._picked = torch.zeros(len(self.runs), self.batch, dtype=torch.int64, device=self._device)
        self._mirrored = torch.zeros(len(self.runs), self.samples, dtype=torch.bool, device=self._device)
        self._right = torch.zeros(len(self.runs), device=self._device)

    def train_epoch(self, epoch: int, seen: Callable[[int], None] | None = None) -> list[float]:
        """Trains an epoch (from 0); percent of its samples that each run had right before their update. `seen` is told
        of samples as they are done.
        """
        orders = np.stack([epoch_order(run.seed, epoch, self.samples) for run in self.runs])
        order = torch.from_numpy(orders).to(self._device)
        self._scale.fill_(0.5 ** sum(epoch >= part * self.epochs for part in self.setting.halvings))
        self._right.zero_()
        if self.setting.mirror:
            draws = [np.random.RandomState([STREAM_MIRROR, run.seed, epoch]) for run in self.runs]
            self._mirrored.copy_(torch.from_numpy(np.stack([draw.rand(self.samples) < 0.5 for draw in draws])))
        for start in range(0, self.samples, self.batch):
            picked = order[:, start : start + self.batch]
            if self._device.type == "cuda" and picked.shape[1] == self.batch:
                self._replay(picked)
            else:
                self._step(picked)
            if seen is not None:
                seen(min(self.samples, start + self.batch))
        self._kept = [*self._kept, self.optimizer.weights().clone()][-self.setting.average :]
        return (100 * self._right / self.samples).tolist()

    def test(self) -> list[float]:
        """Percent of test samples that each run has right.

        Batch normalisation takes its means and deviations from the first training samples with the weights of now.
        """
        with torch.no_grad():
            flat = torch.stack(self._kept).mean(dim=0) if self._kept else self.optimizer.weights()
            statistics: list[tuple] = []
            if self.setting.normalise == "batch":
                first = self._x[:STATISTICS_SAMPLES].expand(len(self.runs), -1, -1, -1, -1)
                self._forward(flat, first.transpose(1, 2), found=statistics)
            right = torch.zeros(len(self.runs), device=self._device)
            for start in range(0, len(self._x_test), PREDICT_SAMPLES):
                part = slice(start, start + PREDICT_SAMPLES)
                x = self._x_test[part].expand(len(self.runs), -1, -1, -1, -1).transpose(1, 2)
                scores = self._forward(flat, x, fixed=statistics)[1]
                right += (scores.argmax(dim=-1) == self._y_test[part]).sum(dim=1)
            return (100 * right / len(self._x_test)).tolist()

    def parameters(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """`(weight (R, N, taps), bias (R, N))` of each layer, float32."""
        layers = self._layers(self.optimizer.weights().cpu())
        return [(weight.numpy().copy(), bias.numpy().copy()) for weight, bias, *_ in layers]

    def _load(self, dataset: Dataset) -> None:
        """Samples `(count, C, h, w)` and labels, on the device."""
        height, width, channels = self.network.geometry[0].input
        parts = [part.reshape(-1, height, width, channels) * INPUT_SCALE for part in (dataset.x_train, dataset.x_test)]
        if self.setting.standardise:
            mean, deviation = parts[0].mean(axis=(0, 1, 2)), parts[0].std(axis=(0, 1, 2))
            parts = [(part - mean) / np.where(deviation > 0, deviation, 1) for part in parts]
        self._x, self._x_test = (self._tensor(part.transpose(0, 3, 1, 2)) for part in parts)
        self._y, self._y_test = (torch.from_numpy(y).to(self._device) for y in (dataset.y_train, dataset.y_test))

    def _local_matrices(self) -> list[torch.Tensor]:
        """Of each hidden layer, what its rule needs: LLS's basis `(R, K, n)`, DFA's feedback `(R, K, H·W·C)`."""
        found: list[list[np.ndarray]] = []
        for run in self.runs:
            if self.rule == "lls":
                classes, hidden = self.network.classes, self.network.geometry[:-1]
                found.append([basis_matrix(run.basis, classes, layer.latents) for layer in hidden])
            elif self.rule == "dfa":
                rule = make_rule("dfa", self.network, run.seed)
                assert isinstance(rule, DFA)
                found.append(list(rule.feedback))
        return [self._tensor(np.stack(of_runs)) for of_runs in zip(*found, strict=True)]

    def _initial(self, gain: float, temperatures: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and rates, both `(R, P)`: of each layer weights, biases and, if a batch is normalised, gains.

        The bias is then added behind the normalisation, and begins with 0; before it, it would have no effect.
        """
        recipe, setting, rows, rates = self.network.recipe, self.setting, [], []
        for run, T in zip(self.runs, temperatures, strict=True):
            hidden_rate, output_rate = default_rates(self.network, self.rule)
            if setting.rate is not None:
                hidden_rate, output_rate = setting.rate * (self.rule != "frozen"), setting.rate
            elif self.rule == "lls":
                hidden_rate = T * 2.0**-recipe.hidden_rate_shift
            layers, sizes = [], []
            for weight, bias in initial_parameters(self.network.shapes, run.seed):
                layers.append([gain * weight.ravel(), gain * bias])
                if setting.normalise == "batch" and len(layers) < len(self.network.shapes):
                    layers[-1][1:] = [np.zeros(len(bias)), np.ones(len(bias))]
                sizes.append(sum(map(len, layers[-1])))
            rows.append(np.concatenate([part for layer in layers for part in layer]))
            rate = np.full(len(rows[-1]), hidden_rate)
            rate[-sizes[-1] :] = output_rate
            rates.append(rate * run.rate * (1 - setting.momentum))
        return self._tensor(np.stack(rows)), self._tensor(np.stack(rates))

    def _layers(self, flat: torch.Tensor) -> list[list[torch.Tensor]]:
        """Views of `flat (R, P)`: of each layer weight `(R, N, taps)`, bias `(R, N)`, if normalised gain `(R, N)`."""
        shapes: list[tuple[int, ...]] = []
        for number, (taps, channels) in enumerate(self.network.shapes):
            last = number == len(self.network.shapes) - 1
            gains = 1 if self.setting.normalise == "batch" and not last else 0
            shapes += [(channels, taps), *[(channels,)] * (1 + gains)]
        parts = iter(zip(flat.split([math.prod(shape) for shape in shapes], dim=1), shapes, strict=True))
        found: list[list[torch.Tensor]] = []
        for part, shape in parts:
            view = part.reshape(len(flat), *shape)
            if len(shape) == 2:
                found.append([])
            found[-1].append(view)
        return found

    def _calibrate(self, flat: torch.Tensor) -> None:
        """Scales hidden weights and biases in place until every channel's sums have root mean square 1."""
        x = self._x[:CALIBRATION_SAMPLES].expand(len(self.runs), -1, -1, -1, -1).transpose(1, 2)
        for (weight, bias, *_), layer in zip(self._layers(flat)[:-1], self.network.geometry, strict=False):
            size = sums(x, weight, layer).add(bias[:, :, None, None, None]).square().mean(dim=(2, 3, 4)).sqrt()
            weight /= size[:, :, None]
            bias /= size
            z = sums(x, weight, layer) + bias[:, :, None, None, None]
            x = next_map(functional.leaky_relu(z, self.setting.slope), layer)

    def _step(self, picked: torch.Tensor) -> None:
        """An update with the samples of these numbers, `(R, N)`."""
        x, labels = self._x[picked], self._y[picked]
        if self.setting.mirror:
            mirrored = self._mirrored.gather(1, picked)[:, :, None, None, None]
            x = torch.where(mirrored, x.flip(-1), x)
        flat = self.optimizer.point().requires_grad_()
        outputs, scores = self._forward(flat, x.transpose(1, 2))
        loss = self._loss(outputs, scores, labels)
        (gradient,) = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            self.optimizer.step(gradient, self._rates * self._scale)
            if self.setting.clip is not None:
                self.optimizer.weights().clamp_(-self.setting.clip, self.setting.clip)
            self._right += (scores.argmax(dim=-1) == labels).sum(dim=1)

    def _replay(self, picked: torch.Tensor) -> None:
        """`_step` of a whole batch as a CUDA graph, since a step is hundreds of small kernels."""
        self._picked.copy_(picked)
        if self._graph is None:
            state = [*self.optimizer.state, *self._mean_squares, self._right]
            before = [tensor.clone() for tensor in state]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step(self._picked)
            torch.cuda.current_stream().wait_stream(stream)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step(self._picked)
        self._graph.replay()

    def _forward(
        self,
        flat: torch.Tensor,
        x: torch.Tensor,
        found: list | None = None,
        fixed: list | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Outputs `y (R, C, N, H, W)` of the hidden layers, scores `(R, N, K)`, of maps `(R, C, N, h, w)`.

        A layer's input is cut off from what made it, except under BP. Statistics of a normalised batch are appended to
        `found`, or taken from `fixed`.
        """
        outputs: list[torch.Tensor] = []
        layers = self._layers(flat)
        for number, ((weight, bias, *gain), layer) in enumerate(zip(layers, self.network.geometry, strict=True)):
            z = sums(x, weight, layer)
            if number < len(layers) - 1:
                if self.setting.normalise == "batch":
                    moments = fixed[number] if fixed else torch.var_mean(z, dim=(2, 3, 4), correction=0, keepdim=True)
                    if found is not None:
                        found.append(moments)
                    scale = gain[0][:, :, None, None, None] * (moments[0] + NORM_EPSILON).rsqrt()
                    z = (z - moments[1]) * scale
                elif self.setting.normalise == "power":
                    z = z * self._power(number, z.detach())[:, :, None, None, None]
            z = z + bias[:, :, None, None, None]
            if number == len(layers) - 1:
                return outputs, z.flatten(2).transpose(1, 2)
            outputs.append(functional.leaky_relu(z, self.setting.slope))
            x = next_map(outputs[-1] if self.rule == "bp" else outputs[-1].detach(), layer)
        raise AssertionError("a network ends in a layer")

    def _power(self, number: int, z: torch.Tensor) -> torch.Tensor:
        """The power of two nearest to 1 over each channel's root mean square, `(R, C)`, which training follows."""
        running = self._mean_squares[number]
        if torch.is_grad_enabled():
            now = z.square().mean(dim=(2, 3, 4))
            weight = torch.where(running > 0, 2.0**-MEAN_SQUARE_SHIFT, 1.0)
            running.lerp_(now, weight)
        return torch.exp2(-torch.round(0.5 * torch.log2(running + 1e-20)))

    def _loss(self, outputs: list[torch.Tensor], scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The losses of all runs and layers added up: each parameter's gradient is that of its own."""
        targets = (labels[..., None] == self._classes).to(scores.dtype)
        loss = cross_entropy(scores / self._output_temperature, targets)
        if self.rule == "lls":
            for y, C, layer in zip(outputs, self._matrices, self.network.geometry, strict=False):
                latents = functional.normalize(window_means(y, layer), dim=-1)
                loss = loss + cross_entropy(latents @ C.transpose(1, 2) / self._temperature, targets)
        elif self.rule == "dfa":
            with torch.no_grad():
                T = self._output_temperature
                error = (torch.softmax(scores / T, dim=-1) - targets) / T
            for y, F in zip(outputs, self._matrices, strict=True):
                loss = loss + ((error @ F) * y.permute(0, 2, 3, 4, 1).flatten(2)).sum()
        return loss

    def _tensor(self, values: object) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32, device=self._device)


class SGD:
    """Plain SGD, or with momentum `m`: `v ← m v + g`, `w ← w - rate v`."""

    def __init__(self, flat: torch.Tensor, momentum: float = 0.0):
        self._weights, self._momentum = flat, momentum
        self.state = [flat, torch.zeros_like(flat)] if momentum else [flat]

    def point(self) -> torch.Tensor:
        """Where the gradient is wanted, a new tensor."""
        return self._weights.clone()

    def step(self, gradient: torch.Tensor, rate: torch.Tensor) -> None:
        """One update."""
        if self._momentum:
            gradient = self.state[1].mul_(self._momentum).add_(gradient)
        self._weights.sub_(rate * gradient)

    def weights(self) -> torch.Tensor:
        """What is tested."""
        return self._weights


class AdamW:
    """Schedule-free AdamW (arXiv 2405.15682, algorithm 1) without decay of weights and without warm-up:

    `y = (1-β₁) z + β₁ x`, `g = ∇(y)`, `v ← β₂ v + (1-β₂) g²`, `z ← z - rate g/(sqrt(v/(1-β₂ᵗ)) + ε)`,
    `x ← (1-c) x + c z` with `c = 1/t` as the rate does not change. x is tested.
    """

    def __init__(self, flat: torch.Tensor):
        self._z, self._x, self._v = flat.clone(), flat.clone(), torch.zeros_like(flat)
        # Float64: 0.999^t is close to 1.
        self._t = torch.zeros((), dtype=torch.float64, device=flat.device)
        self.state = [self._z, self._x, self._v, self._t]

    def point(self) -> torch.Tensor:
        """Where the gradient is wanted, a new tensor: y."""
        return torch.lerp(self._z, self._x, BETA1)

    def step(self, gradient: torch.Tensor, rate: torch.Tensor) -> None:
        """One update."""
        self._t += 1
        self._v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        unbiased = self._v / (1 - BETA2**self._t).float()
        self._z.sub_(rate * gradient / (unbiased.sqrt() + ADAM_EPSILON))
        self._x.lerp_(self._z, (1 / self._t).float())

    def weights(self) -> torch.Tensor:
        """What is tested."""
        return self._x


def sums(x: torch.Tensor, weight: torch.Tensor, layer: LayerGeometry) -> torch.Tensor:
    """`Σ_t w[j, t] x[p, t]`, `(R, C, N, H, W)`, of maps `x (R, c, N, h, w)` and weights `(R, C, taps)`."""
    runs, _, samples, *_ = x.shape
    height, width, channels = layer.input
    if x.shape[1] != channels:
        # What a fully connected layer reads is a map, in the order row, column, channel.
        x = x.permute(0, 3, 4, 1, 2).reshape(runs, channels, samples, height, width)
    if layer.kernel != (1, 1) or layer.stride != 1 or layer.padding:
        (kh, kw), pad = layer.kernel, layer.padding
        padded = functional.pad(x, (pad, pad, pad, pad)) if pad else x
        x = padded.unfold(3, kh, layer.stride).unfold(4, kw, layer.stride).permute(0, 5, 6, 1, 2, 3, 4)
    z = weight @ x.reshape(runs, layer.taps, -1)
    return z.reshape(runs, layer.channels, samples, *layer.output[:2])


def window_means(y: torch.Tensor, layer: LayerGeometry) -> torch.Tensor:
    """Latents `(R, N, n)` of an output `(R, C, N, H, W)`, as in `golden.float_layer`: by channel, row, column."""
    return _averages(y, layer).permute(0, 2, 1, 3, 4).flatten(2)


def next_map(y: torch.Tensor, layer: LayerGeometry) -> torch.Tensor:
    """What the next layer reads, `(R, C, N, h, w)`."""
    if layer.pool == "latent":
        return _averages(y, layer)
    if layer.pool == "max":
        return functional.max_pool2d(y.flatten(0, 1), 2).unflatten(0, y.shape[:2])
    return y


def _averages(y: torch.Tensor, layer: LayerGeometry) -> torch.Tensor:
    """Windows' sums over `2^area_log2`: `(R, C, N, gh, gw)`."""
    if layer.window == (1, 1):
        return y
    divisor = 1 << layer.area_log2
    means = functional.avg_pool2d(y.flatten(0, 1), layer.window, ceil_mode=True, divisor_override=divisor)
    return means.unflatten(0, y.shape[:2])


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed over all; `scores` and one-hot `targets` `(R, N, K)`."""
    return -(torch.log_softmax(scores, dim=-1) * targets).sum()


def main() -> int:
    """Trains, prints and writes `metrics.json`; 2 for bad input."""
    parser = Parser(
        prog="python -m bench.yardstick",
        description="Train a network in PyTorch as LLS's paper does, as the machine does, or in between.",
        epilog="settings: " + ", ".join(SETTINGS),
    )
    parser.add_argument("--data", required=True, help="data set: a .npz or IDX files; a colour image is 32x32x3")
    parser.add_argument("--network", default="smallconv-cifar10", help="preset or file (default: %(default)s)")
    parser.add_argument("--setting", default="reference", help="all but the rule; see below (default: %(default)s)")
    parser.add_argument("--rule", default="lls", help=f"{', '.join(RULES)} (default: %(default)s)")
    parser.add_argument("--basis", default="square", help="of LLS: square, walsh, sine, cosine (default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="of LLS (default: the setting's)")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies the setting's rates (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    arguments = parser.parse_args()
    try:
        metrics = measure(arguments)
        path = arguments.out / "metrics.json"
        path.write_text(json.dumps(metrics, indent=2) + "\n")
    except (SpecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"test accuracy   {metrics['test_accuracy']:.2f} %  ({metrics['setting']}, {metrics['rule']})")
    print(f"written: {path}")
    return 0


def measure(arguments: argparse.Namespace) -> dict:
    """Trains one run; what was reached after every epoch. SpecError for what cannot be trained."""
    check_choice("--setting", arguments.setting, SETTINGS)
    check_choice("--rule", arguments.rule, RULES)
    check_choice("--basis", arguments.basis, ("square", "walsh", "sine", "cosine"))
    check_int("--epochs", arguments.epochs, 1, 10**6)
    check_int("--seed", arguments.seed, 0, 2**32 - 1)
    check_number("--rate", arguments.rate, 1e-6, 1e6)
    if arguments.temperature is not None:
        check_number("--temperature", arguments.temperature, 1e-3, 1e3)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("--device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device", "must be cpu where PyTorch finds no GPU", device)
    with option("--network", "networks"):
        network = load_network(arguments.network)
    setting = SETTINGS[arguments.setting]
    run = Run(arguments.seed, arguments.basis, arguments.rate, arguments.temperature)
    dataset = load_dataset(arguments.data, network)
    trainer = Trainer(network, dataset, setting, arguments.rule, [run], arguments.epochs, device)
    # Before the training, so that a folder which cannot be written is found out now.
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError("--out", f"must be a folder: {arguments.out} ({error.strerror})") from None
    progress, history = Progress(), []
    total = arguments.epochs * trainer.samples
    progress.start(0)
    for epoch in range(arguments.epochs):

        def seen(done: int, before: int = epoch * trainer.samples) -> None:
            progress.update(before + done, total, before // trainer.samples, arguments.epochs, 0, 0)

        (trained,) = trainer.train_epoch(epoch, seen)
        (tested,) = trainer.test()
        history.append({"epoch": epoch + 1, "train_accuracy": trained, "test_accuracy": tested})
        progress.epoch(Epoch(epoch + 1, trained, tested, "", None), arguments.epochs)
    return {
        "network": network.name,
        "data": dataset.name,
        "setting": arguments.setting,
        "rule": arguments.rule,
        **asdict(run),
        "epochs": arguments.epochs,
        "setting_values": asdict(setting),
        "test_accuracy": history[-1]["test_accuracy"],
        "best_test_accuracy": max(entry["test_accuracy"] for entry in history),
        "history": history,
        "torch_version": torch.__version__,
        "device": device,
    }


if __name__ == "__main__":
    sys.exit(main())
