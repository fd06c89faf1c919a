"""Bytes that a training step of convolutions and batches keeps, by purpose: a function of the batch.

What a rule needs with the padding of its placement on an array of this shape; not what the machine has, so a batch may
be larger than any that would fit. All of it is alive at once. No rule keeps a gradient: its sum is in the PE's register
of partial sums while the batch passes, so weights cost the same under every rule. A few registers a class and a column
are left out, alike for every rule. See :func:`windowed_memory_bytes` for each purpose.
"""

from collections.abc import Sequence

from sim.cycle.counts import kept_bits, trained_bytes
from sim.cycle.windowed_counts import INDEX_BITS, WEIGHT_BITS_OF_LATENT
from spec import layout
from spec.basis import Basis
from spec.errors import check_choice
from spec.machine import ACT_BITS, ERROR_BITS, WEIGHT_BITS, Machine
from spec.network import Network
from spec.rules import RULES
from spec.scores import score_basis
from spec.windowed import windows_of

__all__ = ["windowed_memory_bytes"]


def windowed_memory_bytes(network: Network, machine: Machine, rule: str, batch: int) -> dict[str, int]:
    """Bytes by purpose of a step of a rule of ``spec.rules.RULES`` with ``batch`` samples.

    - ``weights``: words of all PEs. ``biases``: with the sums of a layer's bias gradients, when a batch has several
      samples; DFA and BP add a tile's up in the update, in registers.
    - ``input buffers``: two batches of samples, one being loaded.
    - ``activations``: maps as the next layer reads them, after pooling, with the pitch of their rows: two layers' (the
      one being read, the one being written), of a rule that waits every hidden layer's.
    - ``slopes``: a bit a position of one layer, all columns of its tiles; DFA and BP: of all layers. Of a layer that
      max-pools BP keeps that of a block's largest alone, and 2 more for its place.
    - ``latents``: the learning-signal unit's, of one sample, each with its bias's weight: LLS the latents, DRTP whether
      each is saturated, and where. ``basis table``: of the layer with the most latents; none where it is trained.
    - ``trained scores``: parameters of all hidden layers' class scores, 24 bits each.
    - ``deltas``: shifted signals of one layer, one a window and channel, of all columns of its tiles; DFA: and all
      samples' errors. BP keeps signals of 12 bits, one a value that is handed on, of the two layers between which they
      are passed.
    """
    check_choice("rule", rule, RULES)
    machine, needs = machine.built_for(rule), RULES[rule]
    basis = score_basis(network, machine)
    layers, hidden = network.geometry, network.geometry[:-1]
    R, C = machine.rows, machine.cols
    tiles = [-(-layer.channels // C) for layer in layers]
    maps = [layout.words(layer, R) * R for layer in layers[1:]]
    words = sum(count * layout.steps(layer, R) for count, layer in zip(tiles, layers, strict=True))
    summed = needs.learns and not needs.waits and batch > 1
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
        "trained scores": trained_bytes(network, machine) if needs.trains else 0,
        "deltas": 0,
    }
    if needs.learns:
        windows = [windows_of(layer, machine) for layer in layers]
        chosen = [needs.transposes and layer.pool == "max" for layer in layers]
        signals = [count * C * of.count for count, of in zip(tiles, windows, strict=True)]
        slopes = [
            size * (1 + INDEX_BITS) if one else count * C * of.positions
            for count, of, size, one in zip(tiles, windows, signals, chosen, strict=True)
        ]
        found["slopes"] = _bytes(batch * (sum(slopes) if needs.waits else max(slopes)))
        if needs.transposes:
            found["deltas"] = _bytes(batch * _in_turn(signals) * machine.signal_bits)
            return found
        latents = max((layer.latents for layer in hidden), default=0)
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


def _table(basis: Basis, entries: int) -> int:
    """Bytes of the basis, or feedback, for so many latents; Walsh rows are computed."""
    return 0 if basis.kind == "walsh" else _bytes(entries * basis.classes * basis.entry_bits)


def _bytes(bits: int) -> int:
    """Bits as whole bytes."""
    return -(-bits // 8)
