"""The activation memory as elements: R consecutive ones a read, up to C a write, from any element on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.memory import DualPortMemory
from spec.machine import ACT_BITS, Machine

__all__ = ["MapMemory", "element_bits", "rotated"]


def element_bits(machine: Machine) -> int:
    """Bits of an element's address: its word, below it its bank."""
    if machine.rows & (machine.rows - 1) or machine.cols > machine.rows:
        shape = f"{machine.rows}x{machine.cols}"
        raise ValueError(f"maps need rows that are a power of two and no more columns, not {shape}")
    return machine.activation_addr_bits + machine.row_bits


def rotated(values: Sequence[Value], amount: Iterable[Value], unit: int = 1) -> list[Value]:
    """Element i is `values[(i + unit·amount) % len(values)]`; a negative `unit` turns them back."""
    for bit in amount:
        values = [Mux(bit, values[(i + unit) % len(values)], v) for i, v in enumerate(values)]
        unit *= 2
    return list(values)


class MapMemory(wiring.Component):
    """R banks of `activation_depth` words (s8); element e is in bank e mod R, word e div R.

    * ``read_addr[b], rotation, mask[r]``: cycle t, a word address a bank; ``act[r]`` (s8) is the word
      of bank (rotation + r) mod R in cycle t + `LATENCY` + r, or 0 where ``mask[r]`` is 0: a reader
      that asks for nothing masks all. The rotation takes two cycles, since block RAM is slow.
    * ``write_valid, write_element, write_count, write_data[i]``: cycle t; element
      ``write_element + i`` becomes ``write_data[i]`` for i < ``write_count`` (at most C).
    * ``load_valid, load_element, load_data``: one element, taken if ``load_ready``, which is low while
      ``write_valid`` is high: the loader holds it and waits.

    Reads of cycle t + `WRITE_LATENCY` and later give what was written in cycle t, earlier ones nothing
    defined.
    """

    LATENCY = 3
    WRITE_LATENCY = 2

    read_addr: list[Signal]
    rotation: Signal
    mask: Signal
    act: list[Signal]
    write_valid: Signal
    write_element: Signal
    write_count: Signal
    write_data: list[Signal]
    load_valid: Signal
    load_element: Signal
    load_data: Signal
    load_ready: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        rows, cols = machine.rows, machine.cols
        super().__init__(
            {
                "read_addr": In(machine.activation_addr_bits).array(rows),
                "rotation": In(machine.row_bits),
                "mask": In(rows),
                "act": Out(signed(ACT_BITS)).array(rows),
                "write_valid": In(1),
                "write_element": In(element_bits(machine)),
                "write_count": In(range(cols + 1)),
                "write_data": In(signed(ACT_BITS)).array(cols),
                "load_valid": In(1),
                "load_element": In(element_bits(machine)),
                "load_data": In(signed(ACT_BITS)),
                "load_ready": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        banks = []
        for b in range(self.machine.rows):
            bank = DualPortMemory(signed(ACT_BITS), self.machine.activation_depth, block=True)
            m.submodules[f"bank_{b}"] = bank
            m.d.comb += bank.read_addr.eq(self.read_addr[b])
            banks.append(bank)
        self._write(m, banks)
        self._read(m, [bank.read_data for bank in banks])
        return m

    def _read(self, m: Module, words: list[Value]) -> None:
        """A cycle for the memory, one for the rotation's largest part, one for the rest and the mask."""
        rows = self.machine.rows
        rotation = delay_line(m, self.rotation, 2, "rotation")
        mask = delay_line(m, self.mask, 2, "mask")[2]
        halves = rotated(words, rotation[1][-1:], rows // 2)
        turned = [Signal(signed(ACT_BITS), name=f"turned_{r}") for r in range(rows)]
        m.d.sync += [register.eq(half) for register, half in zip(turned, halves, strict=True)]
        for r, word in enumerate(rotated(turned, rotation[2][:-1])):
            shown = Mux(mask[r], word, 0)
            m.d.comb += self.act[r].eq(delay_line(m, shown, r + 1, f"act_{r}")[-1])

    def _write(self, m: Module, banks: list[DualPortMemory]) -> None:
        """The loader's element is a vector of one. A cycle for the rotation, one for the memory."""
        rows, row_bits = self.machine.rows, self.machine.row_bits
        vector = self.write_valid
        element = Mux(vector, self.write_element, self.load_element)
        count = Mux(vector, self.write_count, self.load_valid)
        first = Mux(vector, self.write_data[0], self.load_data)
        lanes = [Cat(first, count > 0)]
        lanes += [Cat(data, count > i) for i, data in enumerate(self.write_data) if i]
        lanes += [Cat(first, 0)] * (rows - len(lanes))
        m.d.comb += self.load_ready.eq(~vector)

        word, next_word = (Signal(self.machine.activation_addr_bits, name=n) for n in ("word", "next_word"))
        m.d.sync += [word.eq(element[row_bits:]), next_word.eq(element[row_bits:] + 1)]
        for b, lane in enumerate(rotated(lanes, element[:row_bits], -1)):
            later, enable = Signal(name=f"later_{b}"), Signal(name=f"enable_{b}")
            data = Signal(signed(ACT_BITS), name=f"data_{b}")
            m.d.sync += [later.eq(element[:row_bits] > b if b < rows - 1 else 0), Cat(data, enable).eq(lane)]
            m.d.comb += [
                banks[b].write_addr.eq(Mux(later, next_word, word)),
                banks[b].write_data.eq(data),
                banks[b].write_en.eq(enable),
            ]
