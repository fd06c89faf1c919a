"""A network: its input, its layers, the basis of its local losses and its training recipe."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise

from spec.errors import SpecError, check_choice, check_int, check_text, located
from spec.yaml_loader import check_keys, find_file, load_yaml

__all__ = ["BASES", "NO_LABEL", "FullyConnected", "Network", "Recipe", "load_network"]

BASES = ("square", "walsh", "sine")
"""The fixed matrices a hidden layer's class scores can be formed with."""
NO_LABEL = 255
"""The label of a sample that is only inferred; so a network has at most 255 classes."""


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected layer with bias; a leaky ReLU of slope 1/8 follows a hidden one."""

    neurons: int

    def __post_init__(self) -> None:
        check_int("neurons", self.neurons, 1, (1 << 16) - 1)


@dataclass(frozen=True)
class Recipe:
    """Learning rates and temperature as powers of two.

    A rate falls by half with each step of its shift. The temperature of a hidden layer's softmax is
    ``2**temperature_shift / (2 ln 2)``.
    """

    hidden_rate_shift: int
    output_rate_shift: int
    temperature_shift: int = 0

    def __post_init__(self) -> None:
        check_int("hidden_rate_shift", self.hidden_rate_shift, -8, 20)
        check_int("output_rate_shift", self.output_rate_shift, -8, 20)
        check_int("temperature_shift", self.temperature_shift, 0, 8)


@dataclass(frozen=True)
class Network:
    """A network, validated when it is made; the last layer is the output layer."""

    name: str
    input_shape: tuple[int, ...]
    classes: int
    basis: str
    layers: tuple[FullyConnected, ...]
    recipe: Recipe

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not isinstance(self.input_shape, tuple) or not 1 <= len(self.input_shape) <= 3:
            raise SpecError("input_shape", "must be a list of 1 to 3 sizes", self.input_shape)
        for index, size in enumerate(self.input_shape):
            check_int(f"input_shape[{index}]", size, 1, (1 << 16) - 1)
        check_int("classes", self.classes, 2, NO_LABEL)
        check_choice("basis", self.basis, BASES)
        if not isinstance(self.layers, tuple) or not self.layers:
            raise SpecError("layers", "must be a list of one layer or more", self.layers)
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, FullyConnected):
                raise SpecError(f"layers[{index}]", "must be a fully connected layer", layer)
        if self.layers[-1].neurons != self.classes:
            raise SpecError(
                f"layers[{len(self.layers) - 1}].neurons",
                f"must equal classes ({self.classes}) in the last layer",
                self.layers[-1].neurons,
            )
        if not isinstance(self.recipe, Recipe):
            raise SpecError("recipe", "must be a recipe", self.recipe)

    @property
    def features(self) -> int:
        """Inputs of the first layer."""
        return math.prod(self.input_shape)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """``(n_in, n_out)`` of each layer."""
        return tuple(pairwise((self.features, *(layer.neurons for layer in self.layers))))

    @property
    def macs(self) -> int:
        """Multiplications of a forward pass, without biases."""
        return sum(n_in * n_out for n_in, n_out in self.shapes)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum((n_in + 1) * n_out for n_in, n_out in self.shapes)


def load_network(name_or_path: str | os.PathLike[str]) -> Network:
    """Reads a preset (``digits``, ``mnist``, …) or a YAML file."""
    path = find_file("networks", name_or_path)
    values = load_yaml(path)
    with located(file=str(path)):
        check_keys(values, ("name", "input_shape", "classes", "basis", "layers", "recipe"))
        layers = []
        if not isinstance(values["layers"], list):
            raise SpecError("layers", "must be a list of layers", values["layers"])
        for index, layer in enumerate(values["layers"]):
            with located(path=f"layers[{index}]"):
                check_keys(layer, ("type", "neurons"))
                check_choice("type", layer["type"], ("fully_connected",))
                layers.append(FullyConnected(layer["neurons"]))
        with located(path="recipe"):
            check_keys(
                values["recipe"], ("hidden_rate_shift", "output_rate_shift"), ("temperature_shift",)
            )
            recipe = Recipe(**values["recipe"])
        shape = values["input_shape"]
        return Network(
            name=values["name"],
            input_shape=tuple(shape) if isinstance(shape, list) else shape,
            classes=values["classes"],
            basis=values["basis"],
            layers=tuple(layers),
            recipe=recipe,
        )
