"""Where what a layer makes is written: a vector of a position's channels, or latents one by one, as a map."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.windowed.map_memory import element_bits
from hdl.windowed.position_layout import position_layout
from spec.machine import ACT_BITS, Machine

__all__ = ["Writer"]


class Writer(wiring.Component):
    """From :class:`hdl.windowed.columns.Columns` to the write port of :class:`hdl.windowed.map_memory.MapMemory`.

    Channel ``jt·C + c`` of pixel (y, x) becomes element ``base + y·a_pitch + x·next_channels + jt·C + c``, modulo the
    memory.

    Members
    -------
    base, a_pitch, next_channels : In
        The first element of the sample's map, elements from row to row and from pixel to pixel.
    max_pool, pool_latent, is_output : In
        The pixel is half the position's y and x, rounded down; the pixels are windows, and latents are written, not the
        map; nothing is written. These six from the first `map_valid` or `latent_valid` of a forward to `LATENCY`
        cycles behind its last.
    map_valid, map_data[c], map_position, map_tile, map_channels : In
        Cycle t: the first `map_channels` of C activations.
    latent_valid, latent, latent_column, latent_window, latent_y, latent_tile : In
        Cycle t: column by column from 0 on, window by window from 0 on, whatever the gaps; a tile is followed by any
        other. `latent_y`: a row of the map that no window of another row of the grid has, as its last position's.
    write_valid, write_element, write_count, write_data[i] : Out
        Cycle t + `LATENCY`: element ``write_element + i`` for i < `write_count`, which is 1 for a latent.
    """

    LATENCY = 2

    base: Signal
    a_pitch: Signal
    next_channels: Signal
    max_pool: Signal
    pool_latent: Signal
    is_output: Signal
    map_valid: Signal
    map_data: list[Signal]
    map_position: data.View
    map_tile: Signal
    map_channels: Signal
    latent_valid: Signal
    latent: Signal
    latent_column: Signal
    latent_window: Signal
    latent_y: Signal
    latent_tile: Signal
    write_valid: Signal
    write_element: Signal
    write_count: Signal
    write_data: list[Signal]

    def __init__(self, machine: Machine):
        self.machine = machine
        layout = position_layout(machine.max_side)
        tile = range(-(-machine.max_neurons // machine.cols))
        super().__init__(
            {
                "base": In(element_bits(machine)),
                "a_pitch": In(element_bits(machine)),
                "next_channels": In(range(machine.max_neurons + 1)),
                "max_pool": In(1),
                "pool_latent": In(1),
                "is_output": In(1),
                "map_valid": In(1),
                "map_data": In(signed(ACT_BITS)).array(machine.cols),
                "map_position": In(layout),
                "map_tile": In(tile),
                "map_channels": In(range(machine.cols + 1)),
                "latent_valid": In(1),
                "latent": In(signed(ACT_BITS)),
                "latent_column": In(range(machine.cols)),
                "latent_window": In(layout["window"].shape),
                "latent_y": In(layout["y"].shape),
                "latent_tile": In(tile),
                "write_valid": Out(1),
                "write_element": Out(element_bits(machine)),
                "write_count": Out(range(machine.cols + 1)),
                "write_data": Out(signed(ACT_BITS)).array(machine.cols),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = element_bits(self.machine)

        # t + 1: the pixel's row and column as elements, what is in front of its channel.
        down, right, start = (Signal(bits, name=n, reset_less=True) for n in ("down", "right", "start"))
        y, x = self.map_position.y, self.map_position.x
        m.d.sync += [
            down.eq(Mux(self.max_pool, y >> 1, y) * self.a_pitch),
            right.eq(Mux(self.max_pool, x >> 1, x) * self.next_channels),
            start.eq(self.base + self.map_tile * self.machine.cols),
        ]
        window = self._window(m)
        column = Signal.like(self.latent_column, reset_less=True)
        m.d.sync += column.eq(self.latent_column)

        # t + 2: the element; a window's first, and the column.
        m.d.sync += self.write_element.eq(Mux(self.pool_latent, window + column, down + right + start))
        count = Mux(self.pool_latent, 1, self.map_channels)
        asked = ~self.is_output & Mux(self.pool_latent, self.latent_valid, self.map_valid)
        m.d.comb += [
            self.write_valid.eq(delay_line(m, asked, self.LATENCY, "valid")[-1]),
            self.write_count.eq(delay_line(m, count, self.LATENCY, "count")[-1]),
        ]
        for c, value in enumerate(self.map_data):
            shown = value if c else Mux(self.pool_latent, self.latent, value)
            m.d.comb += self.write_data[c].eq(delay_line(m, shown, self.LATENCY, f"data_{c}")[-1])
        return m

    def _window(self, m: Module) -> Signal:
        """The first element of a latent's window, a cycle later: a window follows its left neighbour or begins a row.

        So the grid's width need not be known.
        """
        bits = element_bits(self.machine)
        window, row = (Signal(bits, name=n, reset_less=True) for n in ("window", "row"))
        y = Signal.like(self.latent_y, reset_less=True)
        begins = self.latent_valid & (self.latent_column == 0)
        map_begins = self.latent_window == 0
        row_begins = map_begins | (self.latent_y != y)
        channel = self.latent_tile * self.machine.cols
        total = Signal(bits, name="next_window")
        m.d.comb += total.eq(
            Mux(map_begins, self.base, Mux(row_begins, row, window))
            + Mux(map_begins, channel, Mux(row_begins, self.a_pitch, self.next_channels))
        )
        with m.If(begins):
            m.d.sync += [window.eq(total), y.eq(self.latent_y)]
            with m.If(row_begins):
                m.d.sync += row.eq(total)
        return window
