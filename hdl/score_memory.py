"""The trained parameters of class scores: a memory of rows, a host's way to them, and by how much they change."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out
from amaranth.utils import ceil_log2

from hdl.arith import delay_line, round_shift, truncate
from hdl.feed import feed
from hdl.memory import DualPortMemory
from spec.machine import ERROR_BITS, Machine
from spec.scores import TRAINED_BITS, lane_bits, lanes, row_bits, rows

__all__ = [
    "FINE_BITS",
    "STEP_ERROR_BITS",
    "ScoreMemory",
    "changed",
    "host_from_bus",
    "host_ports",
    "pass_host",
    "step_error",
    "step_shift",
]

FINE_BITS = 3
"""Of the shift of a step, 0 to 31: so much is made up for by a shift of one factor to the left, the rest is a choice of
four."""
_ERROR_SHIFT = 2
STEP_ERROR_BITS = ERROR_BITS - _ERROR_SHIFT + (1 << FINE_BITS) - 1
"""A rounded error and a shift of up to 7."""
_AMOUNT_BITS = 5
_ADDRESS_LATENCY = 1


def host_ports(machine: Machine) -> dict[str, Member]:
    """`host_valid, host_write, host_row, host_lane, host_data` : In; `host_done, host_q` : Out.

    A host's access, between samples only: held until `host_done`, in whose cycle `host_q` has the word read. There is
    no `host_lane` where a row is one word.
    """
    lane = {"host_lane": In(lane_bits(machine))} if lane_bits(machine) else {}
    return {
        "host_valid": In(1),
        "host_write": In(1),
        "host_row": In(row_bits(machine)),
        **lane,
        "host_data": In(signed(TRAINED_BITS)),
        "host_done": Out(1),
        "host_q": Out(signed(TRAINED_BITS)),
    }


def pass_host(outer: wiring.Component, inner: wiring.Component, machine: Machine) -> list[Any]:
    """The host's access to `outer` is one to `inner`."""
    wires = []
    for name, member in host_ports(machine).items():
        sink, source = (inner, outer) if member.flow == In else (outer, inner)
        wires.append(getattr(sink, name).eq(getattr(source, name)))
    return wires


def host_from_bus(unit: Any, bus: Any) -> list[Any]:
    """The bus's requests to SCORE are the host's access to `unit`."""
    return [
        unit.host_valid.eq(bus.score_valid),
        unit.host_write.eq(bus.score_write),
        unit.host_row.eq(bus.score_row),
        *feed(unit, host_lane=getattr(bus, "score_lane", 0)),
        unit.host_data.eq(bus.score_data),
        bus.score_done.eq(unit.host_done),
        bus.score_q.eq(unit.host_q),
    ]


def step_shift(m: Module, rate: Value, norm_shift: Value) -> tuple[Value, Value]:
    """s = clip(`rate` + `norm_shift`, 0, 31), two cycles later: what its lower bits lack to 7, and its upper ones."""
    total = Signal((rate + norm_shift).shape(), name="step_total")
    amount = Signal(_AMOUNT_BITS, name="step_amount")
    most = (1 << _AMOUNT_BITS) - 1
    m.d.sync += [total.eq(rate + norm_shift), amount.eq(Mux(total < 0, 0, Mux(total > most, most, total)))]
    return ~amount[:FINE_BITS], amount[FINE_BITS:]


def step_error(error: Value, fine: Value) -> Value:
    """rnd(`error` >> 2) << `fine`, signed(STEP_ERROR_BITS): what a step is made of."""
    return truncate(truncate(round_shift(error, _ERROR_SHIFT), ERROR_BITS - _ERROR_SHIFT) << fine, STEP_ERROR_BITS)


def changed(word: Value, product: Value, coarse: Value) -> Value:
    """`word` - rnd((x * e' << 10) >> s), exact; `product` is x * `step_error`, e' << (7 - s % 8); `coarse` s // 8."""
    # With a bit that rounds: 2 w - floor(2 d) is halved to w - rnd(d).
    return ((word << 1) - ((product << 4) >> (coarse << FINE_BITS))) >> 1


class ScoreMemory(wiring.Component):
    """Rows of `lanes` words (s24), all layers' one after another; a row read and another written a cycle.

    Members
    -------
    layer_start, first_layer, size : In
        A layer of the program begins, one after the other, and whether it is the first one; its rows, held from then
        on. It is the next cycle's `index` that counts from its first row.
    index, row : In, Out
        A row of the layer; its words, one a lane, `LATENCY` cycles later.
    write, written : In
        The row asked for `WRITE_LATENCY` cycles before becomes `written`. Where nothing is learned that has to be the
        row as it is: a host's write replaces one word of it.
    host_... : see `host_ports`
        Takes `WRITE_LATENCY` + 1 cycles.
    """

    LATENCY = 3
    WRITE_LATENCY = 4

    layer_start: Signal
    first_layer: Signal
    size: Signal
    index: Signal
    row: list[Signal]
    write: Signal
    written: list[Signal]
    host_valid: Signal
    host_write: Signal
    host_row: Signal
    host_lane: Signal
    host_data: Signal
    host_done: Signal
    host_q: Signal

    def __init__(self, machine: Machine, classes: int, vectors: int, index_bits: int):
        self._lanes = lanes(machine, classes)
        # Filled up to a power of two, so that an index past the end (padding) is no undefined read.
        self._depth = 1 << ceil_log2(rows(machine, classes, vectors))
        super().__init__(
            {
                "layer_start": In(1),
                "first_layer": In(1),
                "size": In(range(machine.max_neurons + 1)),
                "index": In(index_bits),
                "row": Out(signed(TRAINED_BITS)).array(self._lanes),
                "write": In(1),
                "written": In(signed(TRAINED_BITS)).array(self._lanes),
                **host_ports(machine),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.parameters = parameters = DualPortMemory(TRAINED_BITS * self._lanes, self._depth)
        first, size = Signal.like(parameters.read_addr), Signal.like(self.size)
        with m.If(self.layer_start):
            m.d.sync += [first.eq(Mux(self.first_layer, 0, first + size)), size.eq(self.size)]

        address = Signal.like(parameters.read_addr)
        m.d.sync += address.eq(Mux(self.host_valid, self.host_row, first + self.index))
        m.d.comb += parameters.read_addr.eq(address)
        asked = delay_line(m, address, self.WRITE_LATENCY - _ADDRESS_LATENCY, "asked")[-1]
        time = Signal(range(self.WRITE_LATENCY + 1))
        m.d.sync += self.host_done.eq(time == self.WRITE_LATENCY - 1)  # a register, as the bus decides much on it
        with m.If(self.host_valid):
            m.d.sync += time.eq(Mux(self.host_done, 0, time + 1))
        merged = []
        for c in range(self._lanes):
            m.d.sync += self.row[c].eq(parameters.read_data[TRAINED_BITS * c : TRAINED_BITS * (c + 1)])
            chosen = self.host_valid & (self.host_lane == c) if self._lanes > 1 else self.host_valid
            merged.append(Mux(chosen, self.host_data, self.written[c]))
        m.d.comb += [
            self.host_q.eq(Array(self.row)[self.host_lane] if self._lanes > 1 else self.row[0]),
            parameters.write_en.eq(self.write | (self.host_done & self.host_write)),
            parameters.write_addr.eq(asked),
            parameters.write_data.eq(Cat(*merged)),
        ]
        return m


assert ScoreMemory.WRITE_LATENCY > ScoreMemory.LATENCY
