"""Where backpropagation keeps what the columns make of a sample: its slope bits, its indices of the largest.

docs/rules.md, section 6.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.windowed.descriptor import descriptor_layout
from hdl.windowed.position_layout import position_layout
from hdl.windowed.raster import Raster
from spec.machine import Machine

__all__ = ["KeptWords", "held_inputs"]


def held_inputs(machine: Machine) -> dict[str, wiring.Member]:
    """Those inputs of `KeptWords` that are the sample's or the layer's."""
    layer = descriptor_layout(machine)
    return {
        "slope_base": In(machine.slope_addr_bits),
        "index_base": In(machine.index_addr_bits),
        **{name: In(layer[name].shape) for name in ("pool_latent", "width", "positions", "windows")},
    }


class KeptWords(wiring.Component):
    """Words ``base + jt·n + p``: n windows and the window's number, with `pool_latent` positions and y·width + x.

    Members
    -------
    valid, position, tile : In
        Positions in walk order, at most one a cycle, of column tiles 0, 1, …; the next sample begins with tile 0.
    slope_base, index_base : In
        The first words of the sample; held from its first position until the last one's words.
    pool_latent, width, positions, windows : In
        The layer's (`spec.windowed_program`): its next layer reads its latents; a map's row, its positions, its
        windows. Held likewise.
    slope_word, index_word : Out
        The position's, `LATENCY` cycles later; `index_word` means nothing with `pool_latent`.
    """

    LATENCY = 2

    valid: Signal
    position: data.View
    tile: Signal
    slope_base: Signal
    index_base: Signal
    pool_latent: Signal
    width: Signal
    positions: Signal
    windows: Signal
    slope_word: Signal
    index_word: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "valid": In(1),
                "position": In(position_layout(machine.max_side)),
                "tile": In(range(-(-machine.max_neurons // machine.cols))),
                **held_inputs(machine),
                "slope_word": Out(machine.slope_addr_bits),
                "index_word": Out(machine.index_addr_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        position = self.position
        m.submodules.raster = raster = Raster(self.machine)
        m.d.comb += [
            raster.valid.eq(self.valid),
            raster.width.eq(self.width),
            *(getattr(raster, name).eq(position[name]) for name in ("y", "x", "window_first")),
        ]
        place = Signal.like(position.window, reset_less=True)
        tile = Signal.like(self.tile, name="tile_before")
        n = Mux(self.pool_latent, self.positions, self.windows)
        m.d.sync += place.eq(Mux(self.pool_latent, raster.number, position.window))
        with m.If(self.valid):
            m.d.sync += tile.eq(self.tile)
        for base, word in ((self.slope_base, self.slope_word), (self.index_base, self.index_word)):
            # The column tile's first.
            first = Signal.like(word, name=f"{word.name}_first", reset_less=True)
            with m.If(self.valid & (self.tile == 0)):
                m.d.sync += first.eq(base)
            with m.Elif(self.valid & (self.tile != tile)):
                m.d.sync += first.eq(first + n)
            m.d.sync += word.eq(first + place)
        return m
