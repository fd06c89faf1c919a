"""Latencies in clock cycles, the one source for the hardware and the cycle simulator.

The phases of a sample and their closed forms are in ``docs/architecture.md``, section 2. A block's
``LATENCY`` and the cycle simulator both refer to the constants here, so neither can drift alone.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ARGMAX_TAIL",
    "FINISH_CYCLES",
    "FORWARD_TAIL",
    "SETUP_CYCLES",
    "SIGNAL_TAIL",
    "UPDATE_LEAD",
    "UPDATE_TAIL",
    "Phase",
    "tile_interval",
]

# Provisional until the blocks exist; the sequencer and the cycle simulator read them from here.
SETUP_CYCLES = 6
"""A layer's ``setup``: a word of its descriptor a cycle, ``spec.program.DESCRIPTOR_WORDS``."""
FORWARD_TAIL = 12
"""``forward`` beyond the last step's way through the array: accumulator and post-processing."""
SIGNAL_TAIL = 24
"""``signal`` beyond the three walks over the classes: the softmax pipeline and its reciprocal."""
ARGMAX_TAIL = 4
"""``signal`` of an inference beyond the one walk over the output layer's scores."""
UPDATE_LEAD = 10
"""Cycles of ``update`` before its first step: until the first shifted signal is made. A part of
``UPDATE_TAIL``."""
UPDATE_TAIL = 12
"""``update`` beyond the array's own latency: the first shifted signal has to be made."""
FINISH_CYCLES = 1
"""``finish``: the summary beat enters the result FIFO."""


class Phase(IntEnum):
    """What the sequencer is doing; the code is the core's ``phase`` output (3 bits)."""

    WAIT = 0
    SETUP = 1
    FORWARD = 2
    SIGNAL = 3
    UPDATE = 4
    FINISH = 5


def tile_interval(row_tiles: int, cols: int) -> int:
    """Cycles from one column tile's first step to the next one's, in forward and update.

    At least ``cols``: one post-processing pipeline takes one column's result a cycle.
    """
    return max(row_tiles, cols)
