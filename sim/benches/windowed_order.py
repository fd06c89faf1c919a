"""The order in which the positions of a map are walked, as docs/convolutions.md, section 6, has it."""

from dataclasses import dataclass

__all__ = ["Position", "walk_order"]

BLOCK = 2
"""Side of a max-pooling block."""


@dataclass(frozen=True)
class Position:
    """A position in walk order, and what it begins and ends."""

    y: int
    x: int
    window: int
    block_first: bool
    block_last: bool
    block_whole: bool
    window_first: bool
    window_last: bool
    last: bool


def walk_order(size: tuple[int, int], window: tuple[int, int], pool: bool) -> list[Position]:
    """The positions of a map of `size`: windows in raster order, in them blocks, in them positions."""
    (height, width), (wh, ww) = size, window
    side = BLOCK if pool else 1
    found = []
    number = 0
    for top in range(0, height, wh):
        for left in range(0, width, ww):
            bottom, right = min(top + wh, height), min(left + ww, width)
            inside = []
            for block_y in range(top, bottom, side):
                for block_x in range(left, right, side):
                    ys, xs = range(block_y, min(block_y + side, bottom)), range(block_x, min(block_x + side, right))
                    block = [(y, x) for y in ys for x in xs]
                    inside += [(at, at == block[0], at == block[-1], len(block) == side * side) for at in block]
            for index, ((y, x), first, last, whole) in enumerate(inside):
                ends = index == len(inside) - 1
                everything = ends and bottom == height and right == width
                found.append(Position(y, x, number, first, last, whole, index == 0, ends, everything))
            number += 1
    return found
