"""The bit-exact trainer beside PyTorch: time a training sample, one CPU thread each.

Both train the same network on the same samples, in batches of the network's recipe, in turns of a few
hundred, so that whatever else the computer does meets both. PyTorch runs what one would write for it:
`nn.Sequential` of `Linear` or `Conv2d`, `LeakyReLU` and pooling, cross-entropy, plain SGD, float32,
backpropagation. The samples are noise in every pixel with labels at random: the dearest case for the
compiled model of fully connected layers, which skips a neuron without an error and has none to skip here.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from golden.data import load_dataset
from golden.fast import FastModel
from golden.windowed_fast import FastWindowedModel
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import Network, load_network

__all__ = ["main"]

SEED = 0


def main() -> int:
    """Measures, prints a table and writes `metrics.json`; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time a training sample of the bit-exact model and of PyTorch, one thread each.",
    )
    parser.add_argument("--network", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--machine", default="mnist", help="preset or file (default: %(default)s)")
    parser.add_argument("--data", help="data set to train on instead of noise: a .npz or IDX files")
    parser.add_argument("--rounds", type=int, default=10, help="turns each (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=300, help="samples a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    arguments = parser.parse_args()
    try:
        for name in ("rounds", "samples"):
            if getattr(arguments, name) < 1:
                raise SpecError(f"--{name}", "must be 1 or more", getattr(arguments, name))
        metrics = measure(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / "metrics.json"
        path.write_text(json.dumps(metrics, indent=2) + "\n")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("error: the comparison needs PyTorch: python -m pip install torch", file=sys.stderr)
        return 2
    except (SpecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'':24}{'median':>10}{'fastest':>10}   µs a training sample")
    for key, name in (("entrain", "entrain, bit-exact"), ("torch", "PyTorch, float32")):
        times = metrics[f"{key}_microseconds"]
        print(f"{name:24}{statistics.median(times):10.1f}{min(times):10.1f}")
    print(f"PyTorch takes {metrics['torch_over_entrain']:.2f} times as long (medians)")
    print(f"written: {path}")
    return 0


def measure(arguments: argparse.Namespace) -> dict:
    """Both trainers in turns: microseconds a sample of every turn, and what was measured."""
    import torch

    torch.set_num_threads(1)
    network = load_network(arguments.network)
    turns = arguments.rounds + 1
    x, labels = samples(network, arguments.data, turns * arguments.samples)
    trainer = FastWindowedModel if network.windowed else FastModel
    model = trainer(network, load_machine(arguments.machine), SEED)
    trainers: dict[str, Callable[[slice], object]] = {
        "entrain": lambda part: model.train(x[part], labels[part]),
        "torch": torch_trainer(network, x, labels),
    }
    print(
        f"{network.name}, {'noise' if arguments.data is None else arguments.data}: "
        f"{arguments.rounds} turns of {arguments.samples} samples each, one thread"
    )
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(turns):
        part = slice(turn * arguments.samples, (turn + 1) * arguments.samples)
        for name, train in trainers.items():
            began = time.perf_counter()
            train(part)
            times[name].append((time.perf_counter() - began) / arguments.samples * 1e6)
    # The first turn compiles, allocates and warms the caches.
    times = {name: values[1:] for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "network": network.name,
        "shapes": network.shapes,
        "data": arguments.data or "noise",
        "samples_a_turn": arguments.samples,
        "batch": network.recipe.batch,
        "entrain_microseconds": times["entrain"],
        "torch_microseconds": times["torch"],
        "torch_over_entrain": medians["torch"] / medians["entrain"],
        "torch_version": torch.__version__,
        "cpu_count": os.cpu_count(),
    }


def samples(network: Network, data: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples, int8 `(count, features)` and int64 `(count,)`: noise, or a data set's first."""
    if data is None:
        rng = np.random.default_rng(SEED)
        x = rng.integers(0, 128, (count, network.features)).astype(np.int8)
        return x, rng.integers(0, network.classes, count)
    dataset = load_dataset(data, network)
    picked = np.arange(count) % len(dataset.y_train)
    return dataset.x_train[picked], dataset.y_train[picked]


def torch_trainer(network: Network, x: np.ndarray, labels: np.ndarray) -> Callable[[slice], None]:
    """A PyTorch model of the network, as a function that trains it on a part of the samples."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    pictures = False
    for layer in network.geometry:
        if layer.positions > 1:
            pictures = True
            groups = layer.channels if layer.depthwise else 1
            layers.append(
                nn.Conv2d(layer.input[2], layer.channels, layer.kernel, layer.stride, layer.padding, groups=groups)
            )
        else:
            if layers and pictures:
                layers.append(nn.Flatten())
            pictures = False
            layers.append(nn.Linear(layer.taps, layer.channels))
        layers.append(nn.LeakyReLU(1 / 8))
        if layer.pool == "max":
            layers.append(nn.MaxPool2d(2))
        elif layer.pool == "latent":
            layers.append(nn.AdaptiveAvgPool2d(layer.grid))
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.CrossEntropyLoss()
    inputs = torch.from_numpy(x.astype(np.float32) / 128)
    if network.windowed:
        height, width, channels = network.geometry[0].input
        inputs = inputs.reshape(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels)
    batch = network.recipe.batch

    def train(part: slice) -> None:
        for i in range(part.start, part.stop, batch):
            rows = slice(i, min(i + batch, part.stop))
            optimizer.zero_grad()
            loss(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()

    return train


if __name__ == "__main__":
    sys.exit(main())
