"""A position of an output map on its way with its results: where it is, what begins and ends there."""

from __future__ import annotations

from amaranth.lib import data

__all__ = ["position_layout"]


def position_layout(max_side: int) -> data.StructLayout:
    """As :class:`hdl.windowed.positions.Positions` gives them, for maps of at most `max_side` rows and columns.

    ``y, x``; ``window``, the number of its latent window; ``block_first, block_last`` (of a 2x2 block, or of the
    position if the layer does not max-pool), with the latter ``block_whole``; ``window_first, window_last``.
    """
    flags = ("block_first", "block_last", "block_whole", "window_first", "window_last")
    return data.StructLayout(
        {
            "y": range(max_side),
            "x": range(max_side),
            "window": range(max_side**2),
            **{name: 1 for name in flags},
        }
    )
