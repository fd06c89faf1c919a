"""Latencies in clock cycles, the one source for the hardware and the cycle simulator.

The phases of a sample and their closed forms are in ``docs/architecture.md``, section 2. A block's
``LATENCY`` and the cycle simulator both refer to the constants here, so neither can drift alone.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ARGMAX_TAIL",
    "DELTA_LATENCY",
    "FINISH_CYCLES",
    "FORWARD_TAIL",
    "SETUP_CYCLES",
    "SIGNAL_TAIL",
    "UPDATE_TAIL",
    "Phase",
    "tile_interval",
]

SETUP_CYCLES = 6
"""A layer's ``setup``: a word of its descriptor a cycle, ``spec.program.DESCRIPTOR_WORDS``."""
FORWARD_TAIL = 7
"""``forward`` beyond the last step's way through the array: accumulator and post-processing."""
SIGNAL_TAIL = 30
"""``signal`` beyond the three walks over the classes: the lanes' reading, the softmax pipeline and its
reciprocal, the projection's quotient."""
ARGMAX_TAIL = 10
"""``signal`` of an inference beyond the one walk over the output layer's scores."""
DELTA_LATENCY = 12
"""From the first cycle of ``update`` to that in which the array can take the first shifted signal."""
UPDATE_TAIL = DELTA_LATENCY + 2
"""``update`` beyond the array's skew: the first step is issued when the first shifted signal can be
taken (the others follow one a cycle, as the columns take them), and the last PE has to write."""
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
