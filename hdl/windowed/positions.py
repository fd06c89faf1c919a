"""The walk over the positions of an output map: latent windows, in them 2x2 blocks, in them pixels."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Positions"]


class _Axis:
    """A coordinate and its offset in its window; each method gives the assignments of a move.

    Blocks and windows are cut by the map's edge, blocks by the window's too: what ends the larger
    ends the smaller.
    """

    def __init__(self, at: Signal, length: Signal, window: Signal, pool: Signal):
        name = at.name
        self.at, self.pool = at, pool
        self.length, self.window = length, window
        self.offset = Signal.like(at, name=f"{name}_offset")
        self.last = Signal.like(at, name=f"{name}_last")
        self.offset_last = Signal.like(at, name=f"{name}_offset_last")
        self.second = pool & self.offset[0]
        self.ends_map = at == self.last
        self.ends_window = self.ends_map | (self.offset == self.offset_last)
        self.ends_block = self.ends_window | ~pool | self.offset[0]

    def start(self) -> list:
        return [
            *self.to_map(), self.last.eq(self.length - 1), self.offset_last.eq(self.window - 1)
        ]  # fmt: skip

    def on(self) -> list:
        return [self.at.eq(self.at + 1), self.offset.eq(self.offset + 1)]

    def to_next_window(self) -> list:
        return [self.at.eq(self.at + 1), self.offset.eq(0)]

    def to_block(self) -> list:
        return [self.at.eq(self.at - self.second), self.offset.eq(self.offset - self.second)]

    def to_window(self) -> list:
        return [self.at.eq(self.at - self.offset), self.offset.eq(0)]

    def to_map(self) -> list:
        return [self.at.eq(0), self.offset.eq(0)]


class Positions(wiring.Component):
    """Walks a map's positions in walk order, one a cycle; after the last it begins again by itself.

    Six nested loops, each axis twice inside the other: x and y in the block, x and y of the block in
    the window, x and y of the window in the map. A step moves the innermost axis that has not ended.

    Members
    -------
    start : In, pulse
        Takes the sizes; the first position is visible in the next cycle. In the middle of a walk too.
    height, width, window_height, window_width : In
        Of the map and of a whole window, at least 1.
    pool : In
        Blocks are 2x2, else a position each. Held during a walk.
    step : In
        The next position is visible in the next cycle.
    y, x, window : Out, registers
        The position and its window's number, row by row.
    block_first, block_last, window_first, window_last, last : Out
        Of its block, of its window, of the map: a few gates behind registers.
    block_whole : Out, with `block_last`
        The block was not cut, so that max-pooling keeps it.
    """

    start: Signal
    height: Signal
    width: Signal
    window_height: Signal
    window_width: Signal
    pool: Signal
    step: Signal
    y: Signal
    x: Signal
    window: Signal
    block_first: Signal
    block_last: Signal
    block_whole: Signal
    window_first: Signal
    window_last: Signal
    last: Signal

    def __init__(self, max_side: int):
        """`max_side`: the largest height or width of a map."""
        sizes = ("height", "width", "window_height", "window_width")
        flags = ("block_first", "block_last", "block_whole", "window_first", "window_last", "last")
        super().__init__(
            {
                "start": In(1),
                **{name: In(range(max_side + 1)) for name in sizes},
                "pool": In(1),
                "step": In(1),
                "y": Out(range(max_side)),
                "x": Out(range(max_side)),
                "window": Out(range(max_side**2)),
                **{name: Out(1) for name in flags},
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        y = _Axis(self.y, self.height, self.window_height, self.pool)
        x = _Axis(self.x, self.width, self.window_width, self.pool)
        whole = y.offset[0] & x.offset[0]
        m.d.comb += [
            self.block_first.eq(~(y.second | x.second)),
            self.block_last.eq(y.ends_block & x.ends_block),
            self.block_whole.eq(~self.pool | whole),
            self.window_first.eq((y.offset == 0) & (x.offset == 0)),
            self.window_last.eq(y.ends_window & x.ends_window),
            self.last.eq(y.ends_map & x.ends_map),
        ]
        with m.If(self.step):
            with m.If(~x.ends_block):
                m.d.sync += x.on()
            with m.Elif(~y.ends_block):
                m.d.sync += [*x.to_block(), *y.on()]
            with m.Elif(~x.ends_window):
                m.d.sync += [*y.to_block(), *x.on()]
            with m.Elif(~y.ends_window):
                m.d.sync += [*x.to_window(), *y.on()]
            with m.Elif(~x.ends_map):
                m.d.sync += [*y.to_window(), *x.to_next_window()]
            with m.Elif(~y.ends_map):
                m.d.sync += [*x.to_map(), *y.to_next_window()]
            with m.Else():
                m.d.sync += [*x.to_map(), *y.to_map()]
            with m.If(self.window_last):
                m.d.sync += self.window.eq(Mux(self.last, 0, self.window + 1))
        with m.If(self.start):
            m.d.sync += [*y.start(), *x.start(), self.window.eq(0)]
        return m
