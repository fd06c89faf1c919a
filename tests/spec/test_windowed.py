"""The constants of the arithmetic of convolutions and batches: by hand, and at their limits."""

from __future__ import annotations

import dataclasses
import random

import pytest

from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe, load_network
from spec.windowed import windowed_layers

SMALLCONV = load_machine("smallconv")


def network(*layers: Convolution | FullyConnected, batch: int = 1, rate: int = 6, side: int = 8) -> Network:
    """The layers, over ``(side, side, 2)``, and an output layer."""
    recipe = Recipe(rate, 7, batch=batch)
    return Network("n", (side, side, 2), 3, "square", (*layers, FullyConnected(3)), recipe)


def test_smallconv_by_hand() -> None:
    """Its inputs have 7, 5, 4, 6 and 4 fraction bits, its latents are shifted by 4, 4, 2 and 0."""
    smallconv = dataclasses.replace(load_network("smallconv-cifar10"), recipe=Recipe(6, 7, 1))
    layers = windowed_layers(smallconv, SMALLCONV)
    assert [layer.act_shift for layer in layers] == [
        14 + 7 - 5, 14 + 5 - 4, 14 + 4 - 4, 14 + 6 - 4, 14 + 4 - 9
    ]  # fmt: skip
    assert [layer.score_shift for layer in layers] == [1, 1, 1, 1, 9]
    assert [layer.rate_shift for layer in layers] == [
        6 + 9 + 7 + 4 - 5 - 14, 6 + 9 + 5 + 4 - 4 - 14, 6 + 9 + 4 + 2 - 4 - 14, 6 + 9 + 6 - 4 - 14, 7 + 10 + 4 - 14
    ]  # fmt: skip
    assert [layer.coarse for layer in layers] == [0, 0, 0, 4, 4]
    assert [layer.left_max for layer in layers] == [10] * 5
    assert [layer.is_output for layer in layers] == [False] * 4 + [True]
    assert all(layer.train for layer in layers)
    assert [layer.geometry for layer in layers] == list(smallconv.geometry)
    frozen = windowed_layers(smallconv, SMALLCONV, train_hidden=False)
    assert [layer.train for layer in frozen] == [False] * 4 + [True]


def test_coarse_only_above_the_random_bits_of_an_lfsr() -> None:
    """With 16 fraction bits or fewer, the signal's own shift reaches far enough."""
    for bits, coarse in ((16, 0), (17, 4)):
        machine = dataclasses.replace(SMALLCONV, fraction_bits=bits)
        layers = windowed_layers(load_network("conv-small"), machine)
        assert [layer.coarse for layer in layers] == [0, 0, coarse, coarse]


def fits(machine: Machine, changes: int) -> bool:
    """Whether a weight at either end and a change of this magnitude fit the partial sum."""
    bits, limit = machine.fraction_bits, 1 << (machine.psum_bits - 1)
    return (32767 << bits) + (1 << bits) - 1 + changes < limit and (-32768 << bits) - changes >= -limit


def test_left_max_is_the_largest_that_cannot_overflow() -> None:
    """Every pixel of every sample of a batch at its worst: one shift more, and the sum would not fit."""
    rng = random.Random(1)
    reasons = set()
    for _ in range(300):
        machine = dataclasses.replace(
            SMALLCONV,
            delta_bits=rng.randint(8, 18),
            fraction_bits=rng.randint(1, 24),
            gradient_bits=rng.randint(32, 50),
        )
        side, batch = rng.randint(1, 40), rng.randint(1, 128)
        net = network(Convolution(2, (1, 1), (rng.randint(1, 5), 2)), FullyConnected(4), side=side, batch=batch)
        try:
            layers = windowed_layers(net, machine)
        except SpecError:
            coarse = 4 if machine.fraction_bits > 16 else 0
            worst = batch * 8 * 128 * 127
            assert not fits(machine, worst * side * side) or not fits(machine, worst << coarse)
            reasons.add("refused")
            continue
        for layer in layers:
            worst = sum(batch * 127 * (128 << 3) for _ in range(layer.geometry.positions))
            left = layer.coarse + layer.left_max
            assert 0 <= layer.left_max <= machine.delta_bits - 8
            assert fits(machine, worst << left)
            reason = "sum" if not fits(machine, worst << left + 1) else "signal"
            assert reason == "sum" or layer.left_max == machine.delta_bits - 8
            reasons.add(reason)
    assert reasons == {"refused", "sum", "signal"}


def test_a_bias_has_the_input_of_its_layer() -> None:
    """Latents of 9 fraction bits: a bias's input is 512, four times what an activation can be."""
    first = Convolution(2, (1, 1), (1, 1), pool="latent", activation_fraction=7)
    machine = dataclasses.replace(SMALLCONV, gradient_bits=38)
    layer = windowed_layers(network(first, batch=128), machine)[1]
    assert layer.geometry.in_frac == 9
    left = layer.coarse + layer.left_max
    worst = 128 * 8 * 512 * 127
    assert fits(machine, worst << left) and not fits(machine, worst << left + 1)


def test_refused() -> None:
    """What a machine cannot hold, each with the value and what would do."""
    large = network(Convolution(2, (1, 1), (1, 1)), side=64, batch=128)
    narrow = dataclasses.replace(SMALLCONV, gradient_bits=36)
    wide = dataclasses.replace(SMALLCONV, gradient_bits=38)
    cases = [
        (
            load_network("conv-small"),
            load_machine("digits"),
            "gradient_bits: must not be 0 for convolutions and batches (network conv-small), got 0",
        ),
        (
            large,
            narrow,
            "layers[0].positions: needs gradient_bits of 38 at batch 128; machine smallconv has, got 37",
        ),
        (
            network(Convolution(2, (3, 3), (1, 1), depthwise=True)),
            dataclasses.replace(SMALLCONV, rows=4),
            "layers[0].depthwise: needs a machine with as many rows as columns or more, got '4x8'",
        ),
        (
            network(Convolution(2, (1, 1), (1, 1), activation_fraction=0), side=128, rate=20),
            dataclasses.replace(SMALLCONV, gradient_bits=60),
            "layers[0].rate_shift: must be an integer from -32 to 31, got 34",
        ),
    ]
    for net, machine, message in cases:
        with pytest.raises(SpecError) as caught:
            windowed_layers(net, machine)
        assert str(caught.value) == message
    assert windowed_layers(large, wide)[0].left_max == 0
    square = dataclasses.replace(SMALLCONV, rows=8)
    windowed_layers(network(Convolution(2, (3, 3), (1, 1), depthwise=True)), square)


def test_gradient_bits_widen_the_partial_sum() -> None:
    """Never narrow it; the accumulator is at least as wide."""
    plain = load_machine("mnist")
    assert dataclasses.replace(plain, gradient_bits=24).psum_bits == plain.psum_bits > 24
    for bits in (36, 44, 64):
        machine = dataclasses.replace(plain, gradient_bits=bits)
        assert machine.psum_bits == bits <= machine.acc_bits
