"""The constants of the arithmetic of convolutions and mini-batches, for a network on a machine.

``docs/convolutions.md``, sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from spec.errors import SpecError, check_int, located
from spec.geometry import LayerGeometry
from spec.lfsr import STATE_BITS
from spec.machine import ACT_BITS, SCORE_FRAC, WEIGHT_BITS, WEIGHT_FRAC, Machine
from spec.network import FullyConnected, Network
from spec.rules import BACK_FRAC

__all__ = ["Windows", "WindowedLayer", "windowed_layers", "windows_of"]

COARSE = 4
"""The part of a fully connected layer's left shift that its inputs take: see ``coarse``."""
SLOPE_SHIFT = 3
"""A negative sum is multiplied by 1/8, or its gradient is not by 8."""


@dataclass(frozen=True)
class Windows:
    """The positions of a layer that are computed, ``height x width``, and how a ``grid`` of windows tiles them.

    A window, ``size`` positions but for the last of a row or column, has one learning signal.
    """

    height: int
    width: int
    size: tuple[int, int]
    grid: tuple[int, int]

    @property
    def positions(self) -> int:
        """Positions, P."""
        return self.height * self.width

    @property
    def count(self) -> int:
        """Windows, W."""
        return self.grid[0] * self.grid[1]


def windows_of(geometry: LayerGeometry, machine: Machine) -> Windows:
    """Latent windows; on a machine that backpropagates what one value that the layer hands on is made of.

    There, positions that max-pooling drops are not computed.
    """
    height, width, _ = geometry.output
    if not machine.learning.transposes or geometry.pool == "latent":
        return Windows(height, width, geometry.window, geometry.grid)
    if geometry.pool == "max":
        return Windows(height // 2 * 2, width // 2 * 2, (2, 2), (height // 2, width // 2))
    return Windows(height, width, (1, 1), (height, width))


@dataclass(frozen=True)
class WindowedLayer:
    """A layer's shifts. ``k`` is the exponent of a sample's norm, 0 in the output layer.

    A sum is shifted right by ``act_shift``, a class score by ``score_shift + k``; a signal left by
    ``coarse + clip(F - rate_shift - k - coarse, 0, left_max)``.
    """

    geometry: LayerGeometry
    act_shift: int
    score_shift: int
    rate_shift: int
    coarse: int
    left_max: int
    is_output: bool
    train: bool

    def __post_init__(self) -> None:
        # What the fields of a descriptor hold (spec.program); k <= 15 leaves 16 for score_shift.
        check_int("act_shift", self.act_shift, 1, 31)
        check_int("score_shift", self.score_shift, 0, 16)
        check_int("rate_shift", self.rate_shift, -32, 31)


def windowed_layers(
    network: Network, machine: Machine, train_hidden: bool = True
) -> tuple[WindowedLayer, ...]:
    """Each layer's constants; ``train_hidden=False`` freezes the hidden layers.

    :class:`SpecError` for a machine that cannot hold the network's sums of gradients.
    """
    if not machine.gradient_bits:
        rule = f"must not be 0 for convolutions and batches (network {network.name})"
        raise SpecError("gradient_bits", rule, machine.gradient_bits)
    recipe, rule, found = network.recipe, machine.learning, []
    spreads = [geometry.area_log2 if geometry.pool == "latent" else 0 for geometry in network.geometry]
    most = machine.delta_bits - machine.signal_bits
    for number, (layer, geometry) in enumerate(zip(network.layers, network.geometry, strict=True)):
        is_output = number == len(network.layers) - 1
        in_frac, act_frac = geometry.in_frac, geometry.act_frac
        if is_output:
            act_frac, score_shift = SCORE_FRAC, SCORE_FRAC
            rate = recipe.output_rate_shift + 10
        else:
            score_shift = recipe.temperature_shift
            # A window's own error moves its mean, by the norm of the latents; that of other layers is each pixel's, a
            # P-th of it.
            share = geometry.latent_shift - act_frac if rule.scores else geometry.positions_log2
            rate = recipe.rate_shift(rule.name) + 9 + share
        if rule.transposes:
            # A latent's pixels each have a 2^spread-th of its signal: of a layer's own, and in all those behind it,
            # where signals keep so many more fraction bits.
            shift = recipe.output_rate_shift if is_output else recipe.rate_shift(rule.name)
            rate = shift + BACK_FRAC + SLOPE_SHIFT + sum(spreads[number:])
        rate += in_frac - WEIGHT_FRAC
        # A signal may be shifted by delta_bits - 8, 10 in a multiplier of 18 bits. Above F = 16 that
        # is too little for a layer whose gradient is not a sum over many pixels.
        fine = machine.fraction_bits > STATE_BITS
        few = isinstance(layer, FullyConnected)
        if rule.transposes:
            few = geometry.pool != "latent" and machine.fraction_bits - rate > most
        coarse = COARSE if fine and few else 0
        with located(path=f"layers[{number}]"):
            if geometry.depthwise and machine.rows < machine.cols:
                rule = "needs a machine with as many rows as columns or more"
                raise SpecError("depthwise", rule, f"{machine.rows}x{machine.cols}")
            found.append(
                WindowedLayer(
                    geometry=geometry,
                    act_shift=WEIGHT_FRAC + in_frac - act_frac,
                    score_shift=score_shift,
                    rate_shift=rate,
                    coarse=coarse,
                    left_max=_left_max(geometry, machine, recipe.batch, coarse) if rule.learns else 0,
                    is_output=is_output,
                    train=rule.learns and (is_output or train_hidden),
                )
            )
    return tuple(found)


def _left_max(geometry: LayerGeometry, machine: Machine, batch: int, coarse: int) -> int:
    """The largest shift, beyond ``coarse``, with which no sum of gradients can overflow.

    A pixel adds ``x`` or ``8x`` to its window's sum, |x| <= 2^7 (a bias's input is 2^in_frac); a
    window's sum meets ``|d| <= 127``, or 2047 (``bp``; of a block that max-pooling takes the largest of, that pixel
    alone adds). So over all positions and samples, whatever their windows,
    ``|D| <= batch * positions * 8 * |d| * x * 2^left``, and so is every part of the sum. It starts
    from ``w * 2^F + rand``, within -2^(15+F) to 2^(15+F) - 1: n bits hold all from
    ``-2^(15+F) - |D|`` to ``2^(15+F) - 1 + |D|`` if and only if ``2^(15+F) + |D| <= 2^(n-1)``.
    """
    largest = max(1 << (ACT_BITS - 1), 1 << geometry.in_frac)
    windows, transposes = windows_of(geometry, machine), machine.learning.transposes
    adding = windows.count if transposes and geometry.pool == "max" else windows.positions
    signal = (1 << (machine.signal_bits - 1)) - 1
    change = (batch * adding * signal * largest) << (SLOPE_SHIFT + coarse)
    weight = 1 << (WEIGHT_BITS - 1 + machine.fraction_bits)
    room = (1 << (machine.psum_bits - 1)) - weight
    if change > room:
        needed = 1 + (weight + change - 1).bit_length()
        rule = f"needs gradient_bits of {needed} at batch {batch}; machine {machine.name} has"
        raise SpecError("positions", rule, machine.psum_bits)
    # change << left fits for left up to floor(log2(room / change)).
    return min(machine.delta_bits - machine.signal_bits, (room // change).bit_length() - 1)
