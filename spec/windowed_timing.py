"""Cycles of the phases of the datapath for convolutions and batches, the one source for hardware and simulator.

The closed forms are those of ``docs/convolutions.md``, section 6. A block's ``LATENCY`` and the cycle
simulator both refer to the constants here, so neither can drift alone.
"""

from __future__ import annotations

from collections import Counter

from spec.machine import Machine
from spec.timing import ARGMAX_TAIL, PLAIN_ARGMAX_TAIL, score_cycles
from spec.windowed_program import BackDescriptor, WindowedDescriptor, descriptor_kind

__all__ = [
    "ARGMAX_TAIL",
    "BACK_TAIL",
    "FEEDBACK_TAIL",
    "FINISH_CYCLES",
    "FORWARD_TAIL",
    "LABEL_TAIL",
    "PLAIN_ARGMAX_TAIL",
    "PLAIN_SIGNAL_TAIL",
    "SETUP_TAIL",
    "SIGNAL_TAIL",
    "UPDATE_TAIL",
    "back_cycles",
    "finish_cycles",
    "forward_cycles",
    "setup_cycles",
    "signal_cycles",
    "update_cycles",
]

SETUP_TAIL = 0
"""``setup`` beyond the descriptor's words and a cycle a row of the array, in which rows count to their first taps."""
FORWARD_TAIL = 19
"""``forward`` beyond the last step's way through the array: taps, memory, columns, the last latents."""
SIGNAL_TAIL = 39
"""``signal`` beyond the three walks over the classes and the one over the latents."""
PLAIN_SIGNAL_TAIL = 16
"""``signal`` of the output layer in a machine whose hidden layers form no scores, beyond the three walks over the
classes."""
LABEL_TAIL = 4
"""``signal`` of a hidden layer under ``drtp`` beyond the walk over the latents."""
FEEDBACK_TAIL = 11
"""``signal`` of a hidden layer under ``dfa`` beyond the walks over the sample's errors and the latents."""
BACK_TAIL = 13
"""The way back through a layer (``bp``) beyond its steps, of a batch: what they made is on its way when it ends."""
UPDATE_TAIL = 9
"""``update`` beyond the last position's way through the array: taps, memory, and the last PE has to write."""
FINISH_CYCLES = 1
"""``finish`` of a sample: its summary enters the result FIFO."""


def setup_cycles(machine: Machine) -> int:
    """Cycles of a layer's ``setup``."""
    return descriptor_kind(machine).words() + machine.rows + SETUP_TAIL


def forward_cycles(descriptor: WindowedDescriptor, machine: Machine) -> int:
    """Cycles of ``forward``, a layer and sample: positions follow one another after ``interval`` cycles."""
    positions = descriptor.col_tiles * descriptor.positions
    skew = machine.rows + machine.cols
    return (positions - 1) * descriptor.interval + descriptor.steps + skew + FORWARD_TAIL


def signal_cycles(descriptor: WindowedDescriptor, machine: Machine, classes: int, trains: bool) -> int:
    """Cycles of ``signal``, a layer and sample; ``trains``: the sample has a label.

    A frozen layer has none, nor has a hidden layer without a label, or one under ``bp``, for which see
    :func:`back_cycles`.
    """
    rule = machine.learning
    trained, inferred = score_cycles(rule.trains, machine.vectors or classes)
    if not (trains and descriptor.train):
        tail = inferred + ARGMAX_TAIL if rule.scores else PLAIN_ARGMAX_TAIL
        return classes + tail if descriptor.is_output else 0
    if rule.scores:
        return 3 * classes + descriptor.latents + SIGNAL_TAIL + trained
    if descriptor.is_output:
        return 3 * classes + PLAIN_SIGNAL_TAIL
    if rule.transposes:
        return 0
    return descriptor.latents + (classes + FEEDBACK_TAIL if rule.waits else LABEL_TAIL)


def back_cycles(descriptor: BackDescriptor, machine: Machine, batch: int) -> int:
    """Cycles of the way back through a layer, once for a batch of ``batch`` labelled samples: part of its ``signal``.

    Of every position that the layer reads, and of its row tiles, the rows' sums leave one a cycle.
    """
    if not descriptor.trains_below:
        return 0
    deep = 1 if descriptor.depthwise else descriptor.col_tiles
    down, across = (
        Counter(_met(place + descriptor.padding, kernel, descriptor.stride) for place in range(side))
        for side, kernel in (
            (descriptor.input_height, descriptor.kernel_height), (descriptor.input_width, descriptor.kernel_width)
        )
    )  # fmt: skip
    tile = sum(
        places_down * places_across * max(deep * ky * kx, machine.rows)
        for ky, places_down in down.items()
        for kx, places_across in across.items()
    )
    return batch * descriptor.row_tiles * tile + BACK_TAIL


def _met(place: int, kernel: int, stride: int) -> int:
    """How many of a kernel's rows or columns meet a place (``padding`` counted in) at any position; 1 for none."""
    return max(1, -(-(kernel - place % stride) // stride))


def update_cycles(descriptor: WindowedDescriptor, machine: Machine, batch: int) -> int:
    """Cycles of a layer's ``update``, once for a batch of ``batch`` samples with labels; 0 where it is frozen.

    Where the rule waits, column tiles begin ``cols`` cycles apart at least, as their biases end one a cycle.
    """
    if not descriptor.train:
        return 0
    visits = descriptor.steps * batch * descriptor.positions
    interval = max(visits, machine.cols if machine.learning.waits else 0)
    return (descriptor.col_tiles - 1) * interval + visits + machine.rows + machine.cols + UPDATE_TAIL


def finish_cycles(batch: int) -> int:
    """Cycles of ``finish``, once for a batch of ``batch`` samples."""
    return batch * FINISH_CYCLES
