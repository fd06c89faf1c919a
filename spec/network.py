"""A network: its input, its layers, the basis of its local losses and its training recipe."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spec.errors import SpecError, check_choice, check_int, check_text, located
from spec.geometry import LayerGeometry, layer_geometry
from spec.machine import ACT_FRAC
from spec.rules import RULES
from spec.yaml_loader import check_keys, find_file, load_yaml

__all__ = [
    "BASES",
    "INPUTS",
    "NO_LABEL",
    "POOLS",
    "Convolution",
    "FullyConnected",
    "Network",
    "Recipe",
    "load_network",
]

BASES = ("square", "walsh", "sine")
"""The fixed matrices a hidden layer's class scores can be formed with."""
NO_LABEL = 255
"""The label of a sample that is only inferred; so a network has at most 255 classes."""
INPUTS = ("unsigned", "signed", "standardized")
"""Codes of a pixel: 0 to 127; or -128 to 127 with black at -128; or 32 a standard deviation from its
mean over the training set.
"""
POOLS = ("none", "max", "latent")
"""What the next layer reads: the map, the largest of each 2x2 block, or the latents."""


@dataclass(frozen=True)
class Convolution:
    """A convolution with bias and a leaky ReLU of slope 1/8.

    ``kernel`` (kh, kw); ``latent`` the grid (gh, gw) of windows that latents are made of, at most;
    ``padding`` zeros on each of the four sides; ``pool`` one of :data:`POOLS`. ``depthwise``: each
    channel reads its own input channel. Activations have ``activation_fraction`` fraction bits.
    """

    channels: int
    kernel: tuple[int, int]
    latent: tuple[int, int]
    stride: int = 1
    padding: int = 0
    pool: str = "none"
    depthwise: bool = False
    activation_fraction: int = ACT_FRAC

    def __post_init__(self) -> None:
        check_int("channels", self.channels, 1, (1 << 16) - 1)
        _check_pair("kernel", self.kernel, 5)
        _check_pair("latent", self.latent, (1 << 16) - 1)
        check_int("stride", self.stride, 1, 2)
        check_int("padding", self.padding, 0, 4)
        if self.padding >= min(self.kernel):
            raise SpecError("padding", f"must be less than the kernel {self.kernel}", self.padding)
        check_choice("pool", self.pool, POOLS)
        if not isinstance(self.depthwise, bool):
            raise SpecError("depthwise", "must be true or false", self.depthwise)
        check_int("activation_fraction", self.activation_fraction, 0, 7)

    def over(self, shape: tuple[int, ...], in_frac: int) -> LayerGeometry:
        """The layer's geometry; it reads ``(h, w, c)`` or ``(h, w)`` with ``in_frac``."""
        return LayerGeometry(
            input=(shape[0], shape[1], shape[2] if len(shape) > 2 else 1),
            channels=self.channels,
            in_frac=in_frac,
            act_frac=self.activation_fraction,
            kernel=self.kernel,
            latent=self.latent,
            stride=self.stride,
            padding=self.padding,
            pool=self.pool,
            depthwise=self.depthwise,
        )


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected layer with bias; a leaky ReLU of slope 1/8 follows a hidden one.

    It reads a map flattened. A hidden one's activations have ``activation_fraction`` fraction bits.
    """

    neurons: int
    activation_fraction: int = ACT_FRAC

    def __post_init__(self) -> None:
        check_int("neurons", self.neurons, 1, (1 << 16) - 1)
        check_int("activation_fraction", self.activation_fraction, 0, 7)

    def over(self, shape: tuple[int, ...], in_frac: int) -> LayerGeometry:
        """The layer's geometry; it reads a map of any ``shape`` with ``in_frac``."""
        return LayerGeometry(
            (1, 1, math.prod(shape)), self.neurons, in_frac, self.activation_fraction
        )


@dataclass(frozen=True)
class Recipe:
    """Learning rates and temperature as powers of two.

    A rate falls by half with each step of its shift. The temperature of a hidden layer's softmax is
    ``2**temperature_shift / (2 ln 2)``. Parameters change once for ``batch`` samples, and start
    within ``±2**gain_shift / sqrt(taps)``. ``hidden_rate_shift`` is that of LLS; ``rate_shifts`` may name
    other rules with theirs, as pairs.
    """

    hidden_rate_shift: int
    output_rate_shift: int
    temperature_shift: int = 0
    batch: int = 1
    gain_shift: int = 0
    rate_shifts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_int("hidden_rate_shift", self.hidden_rate_shift, -8, 20)
        check_int("output_rate_shift", self.output_rate_shift, -8, 20)
        check_int("temperature_shift", self.temperature_shift, 0, 8)
        check_int("batch", self.batch, 1, 128)
        check_int("gain_shift", self.gain_shift, 0, 2)
        others = tuple(name for name, rule in RULES.items() if rule.learns and name != "lls")
        for rule, shift in self.rate_shifts:
            check_choice("rate_shifts", rule, others)
            check_int(f"rate_shifts.{rule}", shift, -8, 20)

    def rate_shift(self, rule: str) -> int:
        """The shift of the hidden layers' rate under a rule of :data:`spec.rules.RULES`."""
        needs = RULES[rule]
        usual = self.hidden_rate_shift if needs.scores else self.output_rate_shift + needs.rate_step
        return dict(self.rate_shifts).get(rule, usual)


@dataclass(frozen=True)
class Network:
    """A network, validated when it is made; the last layer is the output layer.

    ``input_shape`` is height, width and channels, the last, or the last two, left out if there is
    only one; ``input`` one of :data:`INPUTS`.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    basis: str
    layers: tuple[Convolution | FullyConnected, ...]
    recipe: Recipe
    input: str = "unsigned"

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not isinstance(self.input_shape, tuple) or not 1 <= len(self.input_shape) <= 3:
            raise SpecError("input_shape", "must be a list of 1 to 3 sizes", self.input_shape)
        for index, size in enumerate(self.input_shape):
            check_int(f"input_shape[{index}]", size, 1, (1 << 16) - 1)
        check_int("classes", self.classes, 2, NO_LABEL)
        check_choice("basis", self.basis, BASES)
        check_choice("input", self.input, INPUTS)
        if not isinstance(self.recipe, Recipe):
            raise SpecError("recipe", "must be a recipe", self.recipe)
        self._check_layers()
        _ = self.geometry

    def _check_layers(self) -> None:
        """Which layers may follow which; whether their maps fit is :mod:`spec.geometry`'s."""
        if not isinstance(self.layers, tuple) or not self.layers:
            raise SpecError("layers", "must be a list of one layer or more", self.layers)
        flat = False
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, Convolution | FullyConnected):
                raise SpecError(f"layers[{index}]", "must be a layer", layer)
            if flat and isinstance(layer, Convolution):
                rule = "must be fully connected, as the layer before it is"
                raise SpecError(f"layers[{index}]", rule, layer)
            flat = isinstance(layer, FullyConnected)
        last = self.layers[-1]
        where = f"layers[{len(self.layers) - 1}]"
        if not isinstance(last, FullyConnected):
            raise SpecError(where, "must be fully connected, as the last layer", last)
        if last.neurons != self.classes:
            raise SpecError(
                f"{where}.neurons",
                f"must equal classes ({self.classes}) in the last layer",
                last.neurons,
            )
        if isinstance(self.layers[0], Convolution) and len(self.input_shape) < 2:
            rule = "must have a height and a width before a convolution"
            raise SpecError("input_shape", rule, self.input_shape)
        if not self.windowed:
            self._check_plain()

    def _check_plain(self) -> None:
        """What the arithmetic of ``docs/architecture.md`` fixes; nothing is left without effect."""
        what = "without convolutions or batches"
        for index, layer in enumerate(self.layers):
            if layer.activation_fraction != ACT_FRAC:
                where = f"layers[{index}].activation_fraction"
                raise SpecError(where, f"must be {ACT_FRAC} {what}", layer.activation_fraction)
        if self.recipe.gain_shift:
            raise SpecError("recipe.gain_shift", f"must be 0 {what}", self.recipe.gain_shift)

    @property
    def features(self) -> int:
        """Elements of a sample."""
        return math.prod(self.input_shape)

    @property
    def windowed(self) -> bool:
        """Whether its arithmetic is that of ``docs/convolutions.md``."""
        convolutions = any(isinstance(layer, Convolution) for layer in self.layers)
        return convolutions or self.recipe.batch > 1

    @cached_property
    def geometry(self) -> tuple[LayerGeometry, ...]:
        """Maps, windows and formats of each layer."""
        return layer_geometry(self)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """``(taps, channels)`` of each layer's weights: ``(n_in, n_out)`` if fully connected."""
        return tuple((layer.taps, layer.channels) for layer in self.geometry)

    @property
    def macs(self) -> int:
        """Multiplications of a forward pass, without biases; those by padding count."""
        return sum(layer.macs for layer in self.geometry)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(layer.weights + layer.channels for layer in self.geometry)


def load_network(name_or_path: str | os.PathLike[str]) -> Network:
    """Reads a preset (``digits``, ``mnist``, …) or a YAML file."""
    path = find_file("networks", name_or_path)
    values = load_yaml(path)
    with located(file=str(path)):
        check_keys(
            values, ("name", "input_shape", "classes", "basis", "layers", "recipe"), ("input",)
        )
        if not isinstance(values["layers"], list):
            raise SpecError("layers", "must be a list of layers", values["layers"])
        shape = values["input_shape"]
        shape = tuple(shape) if isinstance(shape, list) else shape
        # What a depthwise convolution reads, and so computes; 1 for what will be refused anyway.
        channels = shape[2] if isinstance(shape, tuple) and len(shape) == 3 else 1
        layers = []
        for index, layer in enumerate(values["layers"]):
            with located(path=f"layers[{index}]"):
                layers.append(_read_layer(layer, channels))
            if isinstance(layers[-1], Convolution):
                channels = layers[-1].channels
        with located(path="recipe"):
            check_keys(
                values["recipe"],
                ("hidden_rate_shift", "output_rate_shift"),
                ("temperature_shift", "batch", "gain_shift", "rate_shifts"),
            )
            recipe = _read_recipe(values["recipe"])
        return Network(
            name=values["name"],
            input_shape=shape,
            classes=values["classes"],
            basis=values["basis"],
            layers=tuple(layers),
            recipe=recipe,
            input=values.get("input", "unsigned"),
        )


def _read_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from its mapping."""
    shifts = values.get("rate_shifts", {})
    if not isinstance(shifts, dict):
        raise SpecError("rate_shifts", "must be a mapping of rules to shifts", shifts)
    return Recipe(**{**values, "rate_shifts": tuple(shifts.items())})


_CONVOLUTION_OPTIONS = ("stride", "padding", "pool", "activation_fraction")
_LAYER_KEYS = {
    "fully_connected": (("type", "neurons"), ("activation_fraction",)),
    "convolution": (("type", "channels", "kernel", "latent"), _CONVOLUTION_OPTIONS),
    "depthwise_convolution": (("type", "kernel", "latent"), _CONVOLUTION_OPTIONS),
}


def _read_layer(values: Any, channels: int) -> Convolution | FullyConnected:
    """A layer from its mapping; ``channels`` is what a depthwise convolution has."""
    if not isinstance(values, dict):
        raise SpecError("", "must be a mapping with type", values)
    kind = values.get("type", "")
    check_choice("type", kind, _LAYER_KEYS)
    check_keys(values, *_LAYER_KEYS[kind])
    options = {key: value for key, value in values.items() if key != "type"}
    if kind == "fully_connected":
        return FullyConnected(**options)
    if kind == "depthwise_convolution":
        options |= {"channels": channels, "depthwise": True}
    for key in ("kernel", "latent"):
        size = options[key]
        options[key] = tuple(size) if isinstance(size, list) else (size, size)
    return Convolution(**options)


def _check_pair(key: str, value: Any, high: int) -> None:
    """Refuses ``value`` unless it is a height and a width of 1 to ``high``."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise SpecError(key, "must be a height and a width", value)
    for index, size in enumerate(value):
        check_int(f"{key}[{index}]", size, 1, high)
