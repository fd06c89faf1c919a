"""The shapes of a network's layers: maps, kernels, latent windows, and what follows from them.

Maps are height, width, channel. A fully connected layer is a convolution of kernel 1x1 over one
pixel, so whatever walks a network needs one kind of layer (``docs/convolutions.md``, section 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spec.errors import SpecError, located
from spec.machine import INPUT_FRAC

if TYPE_CHECKING:
    from spec.network import Network

__all__ = ["LayerGeometry", "layer_geometry"]

LATENT_EXTRA_BITS = 2
"""Fraction bits that a latent has more than the activations it is the mean of."""
LARGEST = (1 << 16) - 1
"""Most taps, positions or latents of a layer."""


@dataclass(frozen=True)
class LayerGeometry:
    """One layer.

    ``input`` is ``(height, width, channels)``, ``channels`` those it makes, ``kernel`` and
    ``latent`` (the grid of windows asked for) ``(height, width)``; ``in_frac`` and ``act_frac`` are
    the fraction bits of what it reads and makes; ``stride``, ``padding``, ``pool`` and ``depthwise``
    as in :class:`spec.network.Convolution`. The defaults are a fully connected layer's.
    :class:`SpecError` for a map that becomes empty, or is too large for the machine's counters.
    """

    input: tuple[int, int, int]
    channels: int
    in_frac: int
    act_frac: int
    kernel: tuple[int, int] = (1, 1)
    latent: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    pool: str = "none"
    depthwise: bool = False

    def __post_init__(self) -> None:
        height, width, channels = self.output
        if min(height, width) < 1:
            read = f"{self.input[0]}x{self.input[1]} with {self.padding} of padding"
            raise SpecError("kernel", f"must fit into the map it reads, {read}", self.kernel)
        if self.pool == "max" and min(height, width) < 2:
            raise SpecError("pool", "must not be max where the map is smaller than 2x2", (height, width))
        if self.depthwise and channels != self.input[2]:
            raise SpecError("channels", f"must be those read, {self.input[2]}, if depthwise", channels)
        # Counters and addresses have 16 bits; fewer latents than 2^16 also bound the norm (see
        # Machine.max_neurons).
        for what in ("taps", "positions", "latents"):
            if getattr(self, what) > LARGEST:
                raise SpecError(what, f"must not exceed {LARGEST}", getattr(self, what))

    @cached_property
    def output(self) -> tuple[int, int, int]:
        """The map it makes, before pooling: height, width, channels."""
        height, width = (
            (self.input[axis] + 2 * self.padding - self.kernel[axis]) // self.stride + 1 for axis in (0, 1)
        )
        return height, width, self.channels

    @cached_property
    def window(self) -> tuple[int, int]:
        """Height and width of a latent window; the last ones may be cut by the map's edge."""
        # The 2x2 blocks of max-pooling each lie within one window, so that the hardware needs one
        # register for the largest so far and one for the window's sum.
        whole = 2 if self.pool == "max" else 1
        height, width = (-(-self.output[axis] // self.latent[axis]) for axis in (0, 1))
        return height + -height % whole, width + -width % whole

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return -(-self.output[0] // self.window[0]), -(-self.output[1] // self.window[1])

    @property
    def taps(self) -> int:
        """Weights of a channel: kernel positions times channels read (one if depthwise).

        Tap ``(ky*kw + kx)*c + ci`` weighs input channel ``ci``; depthwise ``ky*kw + kx``.
        """
        return math.prod(self.kernel) * (1 if self.depthwise else self.input[2])

    @property
    def positions(self) -> int:
        """Pixels of the output map, P."""
        return self.output[0] * self.output[1]

    @property
    def positions_log2(self) -> int:
        """``round(log2(positions))``, as :attr:`area_log2`."""
        return (self.positions**2).bit_length() // 2

    @property
    def windows(self) -> int:
        """Latent windows of a channel."""
        return math.prod(self.grid)

    @property
    def latents(self) -> int:
        """Latents of the layer, which class scores are formed from: ``channel*windows + window``."""
        return self.windows * self.channels

    @property
    def area_log2(self) -> int:
        """``round(log2(pixels of a window))``: m where 2^(2m-1) <= pixels^2 < 2^(2m+1)."""
        return (math.prod(self.window) ** 2).bit_length() // 2

    @property
    def latent_shift(self) -> int:
        """By how much a window's sum is shifted to become a latent of 8 bits."""
        return max(0, self.area_log2 - LATENT_EXTRA_BITS)

    @property
    def next_input(self) -> tuple[int, int, int]:
        """The map that the next layer reads."""
        height, width, channels = self.output
        if self.pool == "latent":
            return (*self.grid, channels)
        if self.pool == "max":
            return (height // 2, width // 2, channels)
        return self.output

    @property
    def next_frac(self) -> int:
        """Fraction bits of what the next layer reads."""
        extra = self.area_log2 - self.latent_shift if self.pool == "latent" else 0
        return self.act_frac + extra

    @property
    def macs(self) -> int:
        """Multiplications of a forward pass, without biases; padding counts."""
        return self.positions * self.weights

    @property
    def weights(self) -> int:
        """Weights, without biases."""
        return self.taps * self.channels

    @cached_property
    def window_of(self) -> npt.NDArray[np.int64]:
        """Each position's window, ``wy * grid width + wx``: int64 ``(positions,)``, read-only."""
        rows = np.arange(self.output[0]) // self.window[0]
        columns = np.arange(self.output[1]) // self.window[1]
        windows = (rows[:, None] * self.grid[1] + columns).reshape(-1)
        windows.flags.writeable = False
        return windows


def layer_geometry(network: Network) -> tuple[LayerGeometry, ...]:
    """The geometry of every layer; :class:`SpecError` where a map becomes empty."""
    layers: list[LayerGeometry] = []
    shape, in_frac = network.input_shape, INPUT_FRAC
    for index, layer in enumerate(network.layers):
        with located(path=f"layers[{index}]"):
            geometry = layer.over(shape, in_frac)
        layers.append(geometry)
        shape, in_frac = geometry.next_input, geometry.next_frac
    return tuple(layers)
