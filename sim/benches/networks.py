"""Networks and machines for the tests of the whole windowed core: corner shapes, and random ones that fit."""

from dataclasses import replace
from typing import Any

import numpy as np

from spec.errors import SpecError
from spec.machine import INPUT_FRAC, Machine
from spec.network import Convolution, FullyConnected, Network, Recipe
from spec.program import program_for

__all__ = [
    "BACK_DESIGNS",
    "NARROW",
    "RULE_DESIGNS",
    "back_networks",
    "conv",
    "network",
    "random_network",
    "windowed_machine",
]

MAX_SIDE = 16
_MACHINE = Machine(
    name="windowed", rows=2, cols=2, weight_depth=1024, activation_depth=1024, max_neurons=256, max_fan_in=512,
    bias_depth=128, max_layers=6, delta_bits=18, fraction_bits=20, result_fifo_depth=256, gradient_bits=44,
    max_batch=4, max_side=MAX_SIDE, slope_depth=2048, signal_depth=512,
)  # fmt: skip


_BACK_DEPTHS = {"activation_depth": 2048, "slope_depth": 4096, "signal_depth": 2048, "index_depth": 1024}


def windowed_machine(rows: int, cols: int, rule: str = "lls", **changes) -> Machine:
    """Room for every network of the tests, and small enough to compile fast."""
    depths = _BACK_DEPTHS if rule == "bp" else {}
    return replace(_MACHINE, name=f"w{rows}x{cols}", rows=rows, cols=cols, rule=rule, **depths, **changes)


NARROW = windowed_machine(4, 2, delta_bits=16, fraction_bits=17, gradient_bits=40)
"""Narrow operands of a 16-bit multiplier, and random bits just above the LFSR's 16."""
RULE_DESIGNS: dict[str, tuple[Machine, int, str]] = {
    "drtp": (windowed_machine(2, 2, rule="drtp"), 3, "walsh"),
    "dfa": (replace(NARROW, rule="dfa"), 3, "sine"),
    "bp": (windowed_machine(4, 2, rule="bp", delta_bits=16, fraction_bits=17, gradient_bits=40), 3, "square"),
    "inference": (windowed_machine(2, 1, rule="inference"), 3, "square"),
    "lls_m": (windowed_machine(2, 2, rule="lls_m"), 3, "sine"),
    "local_classifier": (windowed_machine(2, 2, rule="local_classifier", classifier_depth=300), 3, "square"),
}
"""A small machine for each rule but ``lls`` and ``lls_mxm``, with classes and basis: one compiled design each."""
BACK_DESIGNS: list[tuple[Machine, int, str]] = [
    (windowed_machine(1, 1, rule="bp", weight_depth=2048, fraction_bits=12, gradient_bits=34), 2, "square"),
    (windowed_machine(4, 4, rule="bp"), 10, "square"),
]
"""Further arrays that backpropagate: one without any skew and with few random bits, and a square one."""


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


def back_networks(rows: int, classes: int) -> dict[str, Network]:
    """What the way back meets, by name: each of its loops cut, odd maps, all kinds of pooling and of kernels, layers
    with and without a slope bit a position; in batches of 1 to 4. A kernel reads whole words of ``rows``."""
    wide, deep = rows, 2 * rows
    found = {
        "fully connected": network((11,), 7, 5, batch=4),
        "classifier alone": network((3, 3, 2), batch=2),
        "one input": network((1,), 2, batch=3),
        "a visit a tile": network((1, 1, 2), conv(5, 1), 7),
        "max, odd": network((7, 5, 2), conv(wide, 3, 2, padding=1, pool="max"), conv(3, 2, 1), batch=2),
        "max behind max": network(
            (10, 7, 1), conv(wide, 3, padding=1, pool="max"), conv(wide + 1, 3, padding=1, pool="max"), 4, batch=3
        ),
        "two row tiles": network((4, 5, 1), conv(deep, (1, 2)), conv(3, 3, padding=1, pool="max"), batch=2),
        "stride 2": network((7, 8, 2), conv(wide, 3, padding=1), conv(5, 3, stride=2, padding=1), batch=2),
        "stride 2, 1x1": network((6, 5, 3), conv(3, 1, 2), conv(4, 1, 1, stride=2), 3, batch=2),
        "stride 2 behind max": network(
            (9, 12, 1), conv(wide, 3, pool="max"), conv(wide, (3, 2), stride=2, padding=1), conv(2, (2, 1)), batch=2
        ),
        "5x5": network((5, 6, 1), conv(wide, 1), conv(3, 5, 2, padding=2, pool="max"), batch=2),
        "2x3": network((5, 6, 1), conv(wide, 2), conv(3, (2, 3)), batch=2),
        "more padding than map": network((1, 1, 2), conv(wide, 5, padding=4), conv(2, 5, padding=4), batch=2),
        "depthwise": network(
            (5, 4, 2), conv(5, 1), conv(5, 3, 2, padding=1, depthwise=True, pool="max"), conv(3, 1), batch=2
        ),
        "depthwise, stride 2": network(
            (6, 5, 3), conv(3, 1, pool="none"), conv(3, (3, 2), stride=2, padding=1, depthwise=True), 4, batch=4
        ),
        "latent": network((6, 6, 2), conv(wide, 3, 2, padding=1, pool="latent"), conv(4, 2), 5, batch=2),
        "latent behind latent": network(
            (9, 8, 1), conv(wide, 3, 4, padding=1, pool="latent"), conv(3, 3, 2, padding=1, pool="latent"), batch=2
        ),
        "latent behind max": network(
            (8, 8, 1), conv(wide, 3, padding=1, pool="max"), conv(4, 3, 2, padding=1, pool="latent"), 5, batch=2
        ),
        "window of 169": network((13, 13, 1), conv(2, 1), conv(2, 1, pool="latent")),
        "fractions": network(
            (5, 5, 1), conv(wide, 3, padding=1, activation_fraction=7), conv(3, 3, activation_fraction=0), batch=2
        ),
        "fast": network((5, 5, 1), conv(wide, 3), conv(3, 3), 4, batch=2, rate_shifts=(("bp", 0),)),
        "slow": network((5, 5, 1), conv(wide, 3, pool="max"), 4, batch=2, rate_shifts=(("bp", 12),)),
    }  # fmt: skip
    last = FullyConnected(classes)
    return {
        name: replace(net, name=name, classes=classes, layers=(*net.layers[:-1], last)) for name, net in found.items()
    }


def random_network(rng: np.random.Generator, machine: Machine, classes: int, basis: str) -> Network:
    """A network that the machine runs, of any shape that the description allows, and a rate for the machine's rule."""
    while True:
        try:
            found = _draw(rng, classes, basis, machine.rows if machine.learning.transposes else 0)
            if found.windowed:
                if machine.learning.learns and machine.rule != "lls":
                    rates = ((machine.rule, int(rng.integers(0, 10))),)
                    found = replace(found, recipe=replace(found.recipe, rate_shifts=rates))
                program_for(found, machine)
                return found
        except SpecError:
            continue


def _draw(rng: np.random.Generator, classes: int, basis: str, word: int) -> Network:
    """``word``: channels that kernels can read if it is not 0."""

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
            shape[2] if depthwise else word * number(1, 2) if word and pick(True, True, False) else number(1, 11),
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
