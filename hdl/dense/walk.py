"""The walk over a layer's tiles: one step of the array a cycle, row tiles fastest or, on the way back, column tiles."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
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

    With rule ``bp`` also

    back : In
        Taken at `start`: column tiles are walked fastest, `col_tiles` steps a row tile, whose first and
        last ones are marked; row tiles begin max(col_tiles, R) cycles apart. `read_addr` means nothing.
    step_back, step_tile : Out
        A step of such a walk, constant during a walk; the number of its column tile.
    """

    def __init__(self, machine: Machine):
        self._rows, self._cols = machine.rows, machine.cols
        self._transposes = machine.learning.transposes
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
                **({"back": In(1), "step_back": Out(1), "step_tile": Out(col_bits)} if self._transposes else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # `inner` steps a tile, `outer` tiles: column tiles of row tiles, or the other way round.
        inner, outer, least = self.row_tiles, self.col_tiles, self._cols
        if self._transposes:
            inner = Mux(self.back, self.col_tiles, self.row_tiles)
            outer = Mux(self.back, self.row_tiles, self.col_tiles)
            least = Mux(self.back, self._rows, self._cols)
        slot = Signal(range(max(1 << len(inner), self._rows * self._transposes, self._cols)))
        tile = Signal(len(outer))
        last_step, last_slot, last_tile = Signal.like(slot), Signal.like(slot), Signal.like(tile)
        walking, issuing = Signal(), Signal()
        steps_last = inner > least

        m.d.comb += [
            self.step_valid.eq(issuing),
            self.step_first.eq(slot == 0),
            self.step_last.eq(slot == last_step),
            self.finishing.eq(issuing & self.step_last & (tile == last_tile)),
        ]
        # A row tile's steps are as many words apart as there are row tiles, and one from the last row tile's.
        stride: Value | int = 1
        row_addr, next_row = Signal.like(self.step_addr), Signal.like(self.step_addr)
        if self._transposes:
            stride = Mux(self.step_back, self.row_tiles, 1)
            m.d.comb += [next_row.eq(row_addr + 1), self.step_tile.eq(slot)]
        with m.If(walking):
            m.d.sync += slot.eq(slot + 1)
            with m.If(issuing):
                m.d.sync += [
                    self.step_addr.eq(self.step_addr + stride),
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
                if self._transposes:
                    with m.If(self.step_back):
                        m.d.sync += [self.step_addr.eq(next_row), row_addr.eq(next_row)]
            with m.If(self.finishing):
                m.d.sync += [walking.eq(0), issuing.eq(0)]
        with m.If(self.start):
            m.d.sync += [
                last_step.eq(inner - 1),
                last_slot.eq(Mux(steps_last, inner - 1, least - 1)),
                last_tile.eq(outer - 1),
                slot.eq(0),
                tile.eq(0),
                walking.eq(1),
                issuing.eq(1),
                self.step_addr.eq(self.w_base),
                self.read_addr.eq(self.x_base),
            ]
            if self._transposes:
                m.d.sync += [self.step_back.eq(self.back), row_addr.eq(self.w_base)]
        return m
