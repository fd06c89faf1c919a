"""The walk over a layer's tiles: one step of the array a cycle, row tiles fastest."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.machine import Machine

__all__ = ["TileWalk", "tile_count_bits"]


def tile_count_bits(machine: Machine) -> tuple[int, int]:
    """Widths that hold any layer's `row_tiles` and `col_tiles`."""
    row_tiles = -(-machine.max_fan_in // machine.rows)
    col_tiles = -(-machine.max_neurons // machine.cols)
    return row_tiles.bit_length(), col_tiles.bit_length()


class TileWalk(wiring.Component):
    """Issues `row_tiles` steps a column tile; column tiles begin max(row_tiles, C) cycles apart.

    The first step is issued in the cycle after `start`, the last one (T-1)·I + Rt - 1 cycles later,
    where `finishing` is set. Nothing holds a walk up.

    Members
    -------
    start : In, pulse
        Takes the four parameters; not during a walk.
    row_tiles, col_tiles, x_base, w_base : In
        Tile counts, at least 1; word addresses in the activation and weight memories.
    step_valid, step_addr, step_first, step_last, read_addr : Out
        A step: its weight address, whether it is a column tile's first or last, its activations'.
    finishing : Out
        The walk's last step is being issued.
    """

    def __init__(self, machine: Machine):
        self._cols = machine.cols
        row_bits, col_bits = tile_count_bits(machine)
        super().__init__(
            {
                "start": In(1),
                "row_tiles": In(row_bits),
                "col_tiles": In(col_bits),
                "x_base": In(machine.activation_addr_bits),
                "w_base": In(machine.weight_addr_bits),
                "step_valid": Out(1),
                "step_addr": Out(machine.weight_addr_bits),
                "step_first": Out(1),
                "step_last": Out(1),
                "read_addr": Out(machine.activation_addr_bits),
                "finishing": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        slot = Signal(range(max(1 << len(self.row_tiles), self._cols)))
        tile = Signal.like(self.col_tiles)
        last_step, last_slot, last_tile = Signal.like(slot), Signal.like(slot), Signal.like(tile)
        walking, issuing = Signal(), Signal()
        rows_first = self.row_tiles > self._cols

        m.d.comb += [
            self.step_valid.eq(issuing),
            self.step_first.eq(slot == 0),
            self.step_last.eq(slot == last_step),
            self.finishing.eq(issuing & self.step_last & (tile == last_tile)),
        ]
        with m.If(walking):
            m.d.sync += slot.eq(slot + 1)
            with m.If(issuing):
                m.d.sync += [
                    self.step_addr.eq(self.step_addr + 1),
                    self.read_addr.eq(self.read_addr + 1),
                ]
                with m.If(self.step_last):
                    m.d.sync += issuing.eq(0)
            # The next tile's first slot follows, be it after the last step or after idle slots.
            with m.If(slot == last_slot):
                m.d.sync += [
                    slot.eq(0),
                    issuing.eq(1),
                    tile.eq(tile + 1),
                    self.read_addr.eq(self.x_base),
                ]
            with m.If(self.finishing):
                m.d.sync += [walking.eq(0), issuing.eq(0)]
        with m.If(self.start):
            m.d.sync += [
                last_step.eq(self.row_tiles - 1),
                last_slot.eq(Mux(rows_first, self.row_tiles - 1, self._cols - 1)),
                last_tile.eq(self.col_tiles - 1),
                slot.eq(0),
                tile.eq(0),
                walking.eq(1),
                issuing.eq(1),
                self.step_addr.eq(self.w_base),
                self.read_addr.eq(self.x_base),
            ]
        return m
