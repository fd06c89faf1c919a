"""Latencies in clock cycles, the one source for the hardware and the cycle simulator.

The phases of a sample and their closed forms are in ``docs/architecture.md``, section 2. A block's
``LATENCY`` and the cycle simulator both refer to the constants here, so neither can drift alone.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ARGMAX_TAIL",
    "BACK_TAIL",
    "DELTA_LATENCY",
    "FINISH_CYCLES",
    "FORWARD_TAIL",
    "PLAIN_ARGMAX_TAIL",
    "PLAIN_SIGNAL_TAIL",
    "SETUP_CYCLES",
    "SIGNAL_TAIL",
    "UPDATE_TAIL",
    "Phase",
    "delta_latency",
    "score_cycles",
    "tile_interval",
    "update_tail",
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
PLAIN_SIGNAL_TAIL = 14
"""``signal`` of the output layer in a machine whose hidden layers form no scores: no lanes to read, no projection."""
PLAIN_ARGMAX_TAIL = 1
"""``signal`` of an inference in such a machine."""
BACK_TAIL = 0
"""The way back through a layer (rule ``bp``) beyond its steps."""
DELTA_LATENCY = 12
"""From the first cycle of ``update`` to that in which the array can take the first shifted signal."""
_DELTA_LATENCY = {"drtp": 7, "bp": 5}
_SCORE_TAILS = {"": (0, 0), "factors": (2, 2), "matrix": (2, 4), "basis": (0, 0)}
"""By what is trained of the class scores: the cycles that a layer's ``signal`` has more than under ``lls``, that of an
inference; beyond the walks over the rows of a matrix."""
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


def delta_latency(rule: str) -> int:
    """``DELTA_LATENCY`` of the unit that makes the signals of a learning rule."""
    return _DELTA_LATENCY.get(rule, DELTA_LATENCY)


def score_cycles(trains: str, vectors: int) -> tuple[int, int]:
    """What a trained part of the class scores (``spec.rules.Rule.trains``) adds to a ``signal``, and to that of an
    inference, in every layer that has one; ``vectors`` are the rows of a matrix.

    Errors go back through a matrix as scores came through it, a row a cycle.
    """
    trained, inferred = _SCORE_TAILS[trains]
    walks = vectors if trains == "matrix" else 0
    return trained + 2 * walks, inferred + walks


def update_tail(rule: str) -> int:
    """``UPDATE_TAIL`` under a learning rule."""
    return delta_latency(rule) + UPDATE_TAIL - DELTA_LATENCY
