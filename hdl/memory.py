"""A memory with one read and one write port that becomes block RAM without helper logic."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Shape, ShapeLike, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["DualPortMemory"]


class DualPortMemory(wiring.Component):
    """`depth` words of `shape`; a word asked for in one cycle is in `read_data` in the next.

    A word read in the cycle in which it is written is the old one in simulation and unspecified in
    hardware: users must not rely on it. Contents start as 0 in simulation.

    `no_rw_check` tells Yosys so; without it every block RAM gets comparators and bypass registers.
    `block` asks for block RAM where the words are few enough for look-up tables.
    """

    LATENCY = 1

    read_addr: Signal
    read_data: Signal
    write_en: Signal
    write_addr: Signal
    write_data: Signal

    def __init__(self, shape: ShapeLike, depth: int, *, block: bool = False):
        self.depth = depth
        self.block = block
        self._shape = Shape.cast(shape)
        addr_bits = ceil_log2(depth)
        super().__init__(
            {
                "read_addr": In(addr_bits),
                "read_data": Out(self._shape),
                "write_en": In(1),
                "write_addr": In(addr_bits),
                "write_data": In(self._shape),
            }
        )

    def elaborate(self, platform):
        m = Module()
        attrs: dict[str, Any] = {"no_rw_check": 1}
        if self.block:
            attrs["ram_style"] = "block"
        m.submodules.words = words = memory.Memory(
            shape=self._shape, depth=self.depth, init=[], attrs=attrs
        )
        read = words.read_port()
        write = words.write_port()
        m.d.comb += [
            read.addr.eq(self.read_addr),
            self.read_data.eq(read.data),
            write.en.eq(self.write_en),
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
        ]
        return m
