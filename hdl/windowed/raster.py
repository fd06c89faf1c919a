"""The number of a position in its map, row by row, whatever the order in which positions come."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.machine import Machine

__all__ = ["Raster"]


class Raster(wiring.Component):
    """``y·width + x`` without a product, of positions that come window by window, in a window row by row.

    Members
    -------
    valid, y, x, window_first : In
        The next position, as :class:`~hdl.windowed.positions.Positions` has it. A map may follow another at once.
    width : In
        Of the map. Held.
    number : Out
        The position's, in the same cycle.
    """

    valid: Signal
    y: Signal
    x: Signal
    window_first: Signal
    width: Signal
    number: Signal

    def __init__(self, machine: Machine):
        side = range(machine.max_side)
        super().__init__(
            {
                "valid": In(1),
                "y": In(side),
                "x": In(side),
                "window_first": In(1),
                "width": In(range(machine.max_side + 1)),
                "number": Out(range(machine.max_side**2)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # Of the first position of the last one's row, and of its window's first row.
        row, top = Signal.like(self.number), Signal.like(self.number)
        odd = Signal()  # the last one's row
        begins = Signal.like(self.number)
        with m.If(self.y == 0):
            m.d.comb += begins.eq(0)
        with m.Elif(self.window_first & (self.x != 0)):
            m.d.comb += begins.eq(top)
        with m.Else():
            m.d.comb += begins.eq(row + Mux(self.y[:1] != odd, self.width, 0))
        with m.If(self.valid):
            m.d.sync += [row.eq(begins), odd.eq(self.y[:1])]
            with m.If(self.window_first):
                m.d.sync += top.eq(begins)
        m.d.comb += self.number.eq(begins + self.x)
        return m
