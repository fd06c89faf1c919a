"""The biases of machines for convolutions, as far as a machine needs them that does not learn: read, and the host's."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out

from hdl.arith import delay_line
from hdl.memory import DualPortMemory
from spec.machine import WEIGHT_BITS, Machine

__all__ = ["BiasMemory"]


class BiasMemory(wiring.Component):
    """C banks of `bias_bank_depth` biases (s16); channel j of a layer is in bank j mod C, word b_base + j div C.

    Members
    -------
    read_addr, bias[c] : In, Out
        Forward. A word in cycle t; column c's bias is there in cycle t + 1 + c. A word every cycle.
    host_valid, host_addr, host_write, host_data, host_q : In, Out
        Not while biases are read. `host_addr` is word << col_bits | column; the word read is in `host_q` in the next
        cycle. With `host_write` too it is written.
    """

    LATENCY = 1
    """Cycles from `read_addr` to column 0's bias; column c's comes c cycles later."""

    read_addr: Signal
    bias: list[Signal]
    host_valid: Signal
    host_addr: Signal
    host_write: Signal
    host_data: Signal
    host_q: Signal

    def __init__(self, machine: Machine, own: dict[str, Member] | None = None):
        """`own`: ports that only a unit made of this has."""
        self.machine = machine
        word_bits = machine.bias_bank_addr_bits
        super().__init__(
            {
                "read_addr": In(word_bits),
                "bias": Out(signed(WEIGHT_BITS)).array(machine.cols),
                "host_valid": In(1),
                "host_addr": In(word_bits + machine.col_bits),
                "host_write": In(1),
                "host_data": In(signed(WEIGHT_BITS)),
                "host_q": Out(signed(WEIGHT_BITS)),
                **(own or {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        for bank in self._banks(m):
            m.d.comb += [
                bank.write_addr.eq(self.host_addr[self.machine.col_bits :]),
                bank.write_data.eq(self.host_data),
            ]
        return m

    def _banks(self, m: Module) -> list[DualPortMemory]:
        """Adds the banks, which lack the address and the data of a write."""
        machine = self.machine
        column, word = self.host_addr[: machine.col_bits], self.host_addr[machine.col_bits :]
        lines = delay_line(m, self.read_addr, machine.cols - 1, "read")
        banks = []
        for c in range(machine.cols):
            bank = DualPortMemory(signed(WEIGHT_BITS), machine.bias_bank_depth)
            m.submodules[f"bank_{c}"] = bank
            m.d.comb += [
                bank.read_addr.eq(Mux(self.host_valid, word, lines[c])),
                self.bias[c].eq(bank.read_data),
                bank.write_en.eq(self.host_valid & self.host_write & (column == c)),
            ]
            banks.append(bank)
        chosen = Signal(range(machine.cols), reset_less=True)
        m.d.sync += chosen.eq(column)
        m.d.comb += self.host_q.eq(Array(self.bias)[chosen])
        return banks
