"""Networks and machines for the tests of the whole windowed core: corner shapes, and random ones that fit."""

from dataclasses import replace
from typing import Any

import numpy as np

from spec.errors import SpecError
from spec.machine import INPUT_FRAC, Machine
from spec.network import Convolution, FullyConnected, Network, Recipe
from spec.program import program_for

__all__ = ["NARROW", "RULE_DESIGNS", "conv", "network", "random_network", "windowed_machine"]

MAX_SIDE = 16
_MACHINE = Machine(
    name="windowed", rows=2, cols=2, weight_depth=1024, activation_depth=1024, max_neurons=256, max_fan_in=512,
    bias_depth=128, max_layers=6, delta_bits=18, fraction_bits=20, result_fifo_depth=256, gradient_bits=44,
    max_batch=4, max_side=MAX_SIDE, slope_depth=2048, signal_depth=512,
)  # fmt: skip


def windowed_machine(rows: int, cols: int, **changes) -> Machine:
    """Room for every network of the tests, and small enough to compile fast."""
    return replace(_MACHINE, name=f"w{rows}x{cols}", rows=rows, cols=cols, **changes)


NARROW = windowed_machine(4, 2, delta_bits=16, fraction_bits=17, gradient_bits=40)
"""Narrow operands of a 16-bit multiplier, and random bits just above the LFSR's 16."""
RULE_DESIGNS: dict[str, tuple[Machine, int, str]] = {
    "drtp": (windowed_machine(2, 2, rule="drtp"), 3, "walsh"),
    "dfa": (replace(NARROW, rule="dfa"), 3, "sine"),
    "inference": (windowed_machine(2, 1, rule="inference"), 3, "square"),
    "lls_m": (windowed_machine(2, 2, rule="lls_m"), 3, "sine"),
    "local_classifier": (windowed_machine(2, 2, rule="local_classifier", classifier_depth=300), 3, "square"),
}
"""A small machine for each rule but ``lls`` and ``lls_mxm``, with classes and basis: one compiled design each."""


def conv(channels: int, kernel: int | tuple[int, int], latent: int | tuple[int, int] = 1, **options) -> Convolution:
    """A convolution; one number for a square kernel or grid."""
    kernel, latent = ((size, size) if isinstance(size, int) else size for size in (kernel, latent))
    return Convolution(channels, kernel, latent, **options)


def network(
    shape: tuple[int, ...],
    *layers: Convolution | FullyConnected | int,
    classes: int = 3,
    basis: str = "square",
    **recipe: Any,
) -> Network:
    """Convolutions, then fully connected layers by their sizes; the classifier of ``classes`` is added."""
    made = [FullyConnected(layer) if isinstance(layer, int) else layer for layer in layers]
    return Network(
        name="n",
        input_shape=shape,
        classes=classes,
        basis=basis,
        layers=(*made, FullyConnected(classes)),
        recipe=Recipe(**{"hidden_rate_shift": 6, "output_rate_shift": 6, "gain_shift": 1, **recipe}),
    )


def random_network(rng: np.random.Generator, machine: Machine, classes: int, basis: str) -> Network:
    """A network that the machine runs, of any shape that the description allows, and a rate for the machine's rule."""
    while True:
        try:
            found = _draw(rng, classes, basis)
            if found.windowed:
                if machine.learning.learns and machine.rule != "lls":
                    rates = ((machine.rule, int(rng.integers(0, 10))),)
                    found = replace(found, recipe=replace(found.recipe, rate_shifts=rates))
                program_for(found, machine)
                return found
        except SpecError:
            continue


def _draw(rng: np.random.Generator, classes: int, basis: str) -> Network:
    def pick(*values):
        return values[rng.integers(len(values))]

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    shape: tuple[int, ...] = (number(1, 12), number(1, 12), number(1, 5))
    first = shape
    layers: list[Convolution | FullyConnected] = []
    for _ in range(pick(0, 1, 1, 2, 2, 3)):
        kernel = (number(1, min(5, shape[0] + 2)), number(1, min(5, shape[1] + 2)))
        depthwise = shape[2] > 1 and pick(False, False, True)
        layer = Convolution(
            shape[2] if depthwise else number(1, 11),
            kernel,
            (number(1, 4), number(1, 4)),
            stride=number(1, 2),
            padding=number(0, min(2, min(kernel) - 1)),
            pool=pick("none", "max", "latent"),
            depthwise=depthwise,
            activation_fraction=number(2, 6),
        )
        layers.append(layer)
        shape = layer.over(shape, INPUT_FRAC).next_input
    for _ in range(number(0, 2)):
        layers.append(FullyConnected(number(1, 20), number(2, 6)))
    recipe = Recipe(
        hidden_rate_shift=number(2, 8),
        output_rate_shift=number(3, 9),
        temperature_shift=number(0, 2),
        batch=pick(1, 2, 3, 4),
        gain_shift=number(0, 2),
    )
    return Network("random", first, classes, basis, (*layers, FullyConnected(classes)), recipe)
