"""The basis in hardware: all K entries of a latent a cycle, from a table or from parity."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from spec.basis import Basis
from spec.machine import Machine

__all__ = ["BasisEntries"]

# A smaller table is left to the synthesizer, which makes it of LUTs.
_BLOCK_BITS = 1024


class BasisEntries(wiring.Component):
    """Entries B[0...K-1, index], `LATENCY` cycles after `index`; an index every cycle.

    Members
    -------
    index : In
        Latent, `index_bits` wide; entries are defined below `max_neurons`.
    entries : Out, an array of K
        `square`, `walsh`: one bit, 1 for +1 and 0 for -1. `sine`: s8, 7 fraction bits.
    zero : Out
        All entries are 0, whatever `entries` says (which is then 0): latent 0 of `square`.
    """

    LATENCY = 1

    index: Signal
    entries: list[Signal]
    zero: Signal

    def __init__(self, machine: Machine, basis: Basis, index_bits: int):
        self.machine = machine
        self.basis = basis
        entry = signed(basis.entry_bits) if basis.kind == "sine" else unsigned(1)
        super().__init__(
            {
                "index": In(index_bits),
                "entries": Out(entry).array(basis.classes),
                "zero": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.basis.kind == "walsh":
            for c, entry in enumerate(self.entries):
                mask = Const(self.basis.walsh_mask(c) % (1 << len(self.index)), len(self.index))
                m.d.sync += entry.eq(~(self.index & mask).xor())
            return m

        neurons, bits = self.machine.max_neurons, self.basis.entry_bits
        words = []
        for column in self.basis.table(neurons).T.tolist():
            codes = column if self.basis.kind == "sine" else [entry > 0 for entry in column]
            words.append(sum((code % (1 << bits)) << (bits * c) for c, code in enumerate(codes)))
        address_bits = ceil_log2(neurons)
        width = bits * self.basis.classes
        # Filled up to a power of two, so that an index past the end (padding) is no undefined read.
        big = width << address_bits >= _BLOCK_BITS
        m.submodules.table = table = memory.Memory(
            shape=width, depth=1 << address_bits, init=words,
            attrs={"rom_style": "block"} if big else {},
        )  # fmt: skip
        port = table.read_port()
        m.d.comb += port.addr.eq(self.index)
        for c, entry in enumerate(self.entries):
            m.d.comb += entry.eq(port.data[bits * c : bits * (c + 1)])
        if self.basis.kind == "square":
            m.d.sync += self.zero.eq(self.index == 0)
        return m
