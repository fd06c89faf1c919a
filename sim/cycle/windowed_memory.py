"""Bytes that a training step of convolutions and batches keeps, by purpose: a function of the batch.

What a rule needs with the padding of its placement on an array of this shape; not what the machine has, so a batch may
be larger than any that would fit. All of it is alive at once. No rule keeps a gradient: its sum is in the PE's register
of partial sums while the batch passes, so weights cost the same under every rule. A few registers a class and a column
are left out, alike for every rule. See :func:`windowed_memory_bytes` for each purpose.
"""

import math
from collections.abc import Sequence

from sim.cycle.counts import kept_bits, trained_bytes
from sim.cycle.windowed_bp import blocks
from sim.cycle.windowed_counts import WEIGHT_BITS_OF_LATENT
from spec import layout
from spec.basis import Basis
from spec.errors import check_choice
from spec.geometry import LayerGeometry
from spec.machine import ACT_BITS, ERROR_BITS, WEIGHT_BITS, Machine
from spec.network import Network
from spec.rules import RULES
from spec.scores import score_basis

__all__ = ["INDEX_BITS", "windowed_memory_bytes"]

INDEX_BITS = 2
"""Which of a 2x2 block was the largest."""


def windowed_memory_bytes(network: Network, machine: Machine, rule: str, batch: int) -> dict[str, int]:
    """Bytes by purpose of a step of a rule of ``spec.rules.RULES`` with ``batch`` samples.

    - ``weights``: words of all PEs. ``biases``: with the sums of a layer's bias gradients, when a batch has several
      samples; DFA adds a tile's up in the update, in registers.
    - ``input buffers``: two batches of samples, one being loaded.
    - ``activations``: maps as the next layer reads them, after pooling, with the pitch of their rows: two layers' (the
      one being read, the one being written), of a rule that waits every hidden layer's.
    - ``slopes``: a bit a position of one layer, all columns of its tiles; DFA: of all layers. BP keeps a bit a signal
      of every hidden layer, and behind max-pooling, where only a block's largest has a signal, 2 more for its place.
    - ``latents``: the learning-signal unit's, of one sample, each with its bias's weight: LLS the latents, DRTP whether
      each is saturated, and where. ``basis table``: of the layer with the most latents; none where it is trained.
    - ``trained scores``: parameters of all hidden layers' class scores, 24 bits each.
    - ``deltas``: shifted signals of one layer, one a window and channel, of all columns of its tiles; DFA: and all
      samples' errors. BP keeps 8-bit signals, pooled, of the two layers between which they are passed.
    """
    check_choice("rule", rule, RULES)
    needs = RULES[rule]
    trained = machine.built_for(rule) if needs.trains else machine
    basis = score_basis(network, trained)
    layers, hidden = network.geometry, network.geometry[:-1]
    R, C = machine.rows, machine.cols
    tiles = [-(-layer.channels // C) for layer in layers]
    maps = [layout.words(layer, R) * R for layer in layers[1:]]
    words = sum(count * layout.steps(layer, R) for count, layer in zip(tiles, layers, strict=True))
    summed = needs.learns and needs.error != "output" and batch > 1
    sums = max(layer.channels for layer in layers) * machine.psum_bits if summed else 0
    found = {
        "weights": words * machine.pes * WEIGHT_BITS // 8,
        "biases": sum(tiles) * C * WEIGHT_BITS // 8 + _bytes(sums),
        "input buffers": 2 * batch * layout.words(layers[0], R) * R,
        # Even and odd hidden layers share a slot each, unless all are kept.
        "activations": batch * (sum(maps) if needs.waits else _in_turn(maps)),
        "slopes": 0,
        "latents": 0,
        "basis table": 0,
        "trained scores": trained_bytes(network, trained) if needs.trains else 0,
        "deltas": 0,
    }
    if needs.transposes:
        found["slopes"] = sum(_bytes(batch * _mask_bits(layer)) for layer in hidden)
        found["deltas"] = batch * _largest_neighbours([math.prod(layer.input) for layer in layers[1:]], network.classes)
    elif needs.learns:
        slopes = [count * C * layer.positions for count, layer in zip(tiles, layers, strict=True)]
        signals = (count * C * layer.windows for count, layer in zip(tiles, layers, strict=True))
        latents = max((layer.latents for layer in hidden), default=0)
        found["slopes"] = _bytes(batch * (sum(slopes) if needs.waits else max(slopes)))
        found["deltas"] = _bytes(batch * max(signals) * machine.delta_bits)
        if needs.trains != "basis":
            found["basis table"] = _table(basis, latents)
        if needs.waits:
            found["deltas"] += _bytes(batch * network.classes * ERROR_BITS)
        if needs.latents:
            kept = ACT_BITS if needs.scores else kept_bits(needs)
            found["latents"] = _bytes(latents * (kept + WEIGHT_BITS_OF_LATENT))
    return found


def _in_turn(sizes: Sequence[int]) -> int:
    """What two places hold when layers use them in turn."""
    return sum(max(sizes[parity::2], default=0) for parity in (0, 1))


def _mask_bits(layer: LayerGeometry) -> int:
    """Bits that BP keeps of a hidden layer's map to send signals back through slope and pooling."""
    if layer.pool == "max":
        return blocks(layer) * layer.channels * (1 + INDEX_BITS)
    return layer.positions * layer.channels


def _largest_neighbours(sizes: Sequence[int], classes: int) -> int:
    """Bytes of signals between two layers: those that one has got and those that it passes on."""
    own = [*sizes, classes]
    return max((a + b for a, b in zip(own, own[1:], strict=False)), default=classes)


def _table(basis: Basis, entries: int) -> int:
    """Bytes of the basis, or feedback, for so many latents; Walsh rows are computed."""
    return 0 if basis.kind == "walsh" else _bytes(entries * basis.classes * basis.entry_bits)


def _bytes(bits: int) -> int:
    """Bits as whole bytes."""
    return -(-bits // 8)
