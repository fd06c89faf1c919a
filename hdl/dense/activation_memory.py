"""The activation memory: one bank a row, read with the array's skew."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.memory import DualPortMemory
from spec.machine import ACT_BITS, Machine

__all__ = ["ActivationMemory"]


class ActivationMemory(wiring.Component):
    """R banks of `activation_depth` words (s8); element i of a vector is in bank i mod R.

    * ``read_valid, read_addr, read_last``: cycle t; ``act[r]`` (s8, Verilog ports ``act__0`` ...)
      is bank r's word in cycle t + r + `LATENCY`. It is 0 where nothing was asked for, and in rows
      whose bit in ``row_mask`` is 0 when ``read_last`` was set (the last row tile). ``row_mask`` is
      taken in the cycle before the word appears.
    * ``write_valid, write_row, write_addr, write_data``: written in that cycle, always.
    * ``load_valid, load_row, load_addr, load_data``: written in that cycle if ``load_ready``, which
      is low while ``write_valid`` is high: the loader holds its word and waits.

    A word written in a cycle can be read by bank reads from the next cycle on; reading it in the
    same cycle gives no defined value.
    """

    LATENCY = 1

    read_valid: Signal
    read_addr: Signal
    read_last: Signal
    row_mask: Signal
    act: list[Signal]
    write_valid: Signal
    write_row: Signal
    write_addr: Signal
    write_data: Signal
    load_valid: Signal
    load_row: Signal
    load_addr: Signal
    load_data: Signal
    load_ready: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        addr_bits, row_bits = machine.activation_addr_bits, machine.row_bits
        super().__init__(
            {
                "read_valid": In(1),
                "read_addr": In(addr_bits),
                "read_last": In(1),
                "row_mask": In(machine.rows),
                "act": Out(signed(ACT_BITS)).array(machine.rows),
                "write_valid": In(1),
                "write_row": In(row_bits),
                "write_addr": In(addr_bits),
                "write_data": In(signed(ACT_BITS)),
                "load_valid": In(1),
                "load_row": In(row_bits),
                "load_addr": In(addr_bits),
                "load_data": In(signed(ACT_BITS)),
                "load_ready": Out(1),
            }
        )

    def elaborate(self, platform):
        rows = self.machine.rows
        m = Module()
        valid = delay_line(m, self.read_valid, rows - 1, "valid")
        last = delay_line(m, self.read_last, rows - 1, "last")
        addr = delay_line(m, self.read_addr, rows - 1, "addr")

        post = self.write_valid
        row = Signal.like(self.write_row)
        m.d.comb += [
            self.load_ready.eq(~post),
            row.eq(Mux(post, self.write_row, self.load_row)),
        ]
        for r in range(rows):
            m.submodules[f"bank_{r}"] = bank = DualPortMemory(
                signed(ACT_BITS), self.machine.activation_depth, block=True
            )
            shown = Signal(name=f"shown_{r}")
            m.d.sync += shown.eq(valid[r] & (~last[r] | self.row_mask[r]))
            m.d.comb += [
                bank.read_addr.eq(addr[r]),
                self.act[r].eq(Mux(shown, bank.read_data, 0)),
                bank.write_en.eq((post | self.load_valid) & (row == r)),
                bank.write_addr.eq(Mux(post, self.write_addr, self.load_addr)),
                bank.write_data.eq(Mux(post, self.write_data, self.load_data)),
            ]
        return m
