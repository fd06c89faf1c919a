"""Where a layer's activations go: numbers what leaves post-processing, and drops the padding."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.machine import Machine

__all__ = ["Writeback"]


class Writeback(wiring.Component):
    """Follows a layer's outputs, which come in neuron order, one a cycle at most.

    Members
    -------
    start : In, pulse
        A layer begins: takes `n_out` and `a_base`.
    valid : In
        Post-processing's output is valid in this cycle.
    real : Out
        The same, for neurons below `n_out` only.
    row, addr : Out
        Bank and word of this neuron's activation: j mod R, a_base + j // R.
    """

    def __init__(self, machine: Machine):
        self._rows = machine.rows
        super().__init__(
            {
                "start": In(1),
                "n_out": In(machine.max_neurons.bit_length()),
                "a_base": In(machine.activation_addr_bits),
                "valid": In(1),
                "real": Out(1),
                "row": Out(machine.row_bits),
                "addr": Out(machine.activation_addr_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        left = Signal.like(self.n_out)
        m.d.comb += self.real.eq(self.valid & (left != 0))
        with m.If(self.start):
            m.d.sync += [left.eq(self.n_out), self.row.eq(0), self.addr.eq(self.a_base)]
        with m.Elif(self.real):
            m.d.sync += left.eq(left - 1)
            with m.If(self.row == self._rows - 1):
                m.d.sync += [self.row.eq(0), self.addr.eq(self.addr + 1)]
            with m.Else():
                m.d.sync += self.row.eq(self.row + 1)
        return m
