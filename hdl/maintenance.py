"""What the host may ask of the array between samples: words of the weight memories, and to advance."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.dense.array import Array
from hdl.op import Op
from hdl.windowed.array import WindowArray
from spec.lfsr import STATE_BITS
from spec.machine import WEIGHT_BITS, Machine

__all__ = ["Maintenance"]


class Maintenance(wiring.Component):
    """Issues single HOST_READ and HOST_WRITE steps, and series of UPDATE steps that change nothing.

    All of it waits until `waiting`, and `busy` keeps the next sample from beginning meanwhile. A word
    takes R + C + 6 cycles; the weights of a whole machine need no more hardware than that.

    Members
    -------
    waiting : In
        No sample is being worked on, and the array is empty but for what this block put into it.
    weight_valid, weight_write, row, col, word, data : In
        A request, held until `weight_done` (a pulse, its last cycle).
    read_valid, read_data : Out
        The word, once, while the request of a read is still held.
    advance_array, advance_bias : In, pulses
        Take `advance_count`; not while the same is `advancing`.
    advancing_array, advancing_bias : Out
        An advance is under way, or waits. Never in a machine that does not learn: it has no LFSRs.
    busy : Out
        Any of this is under way, or waits.
    step_valid, step_op, step_addr, step_first, step_last : Out
        To the array, whose activations are 0 in UPDATE steps. With `gradient_bits` each of those is a
        tile of its own (`step_first`, `step_last`), of one window: an LFSR steps once a tile there.
    host_row, host_col, host_data, result_valid, result_data
        To and from the array.
    bias_advance : Out
        One step of the bias unit's LFSR.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        super().__init__(
            {
                "waiting": In(1),
                "weight_valid": In(1),
                "weight_write": In(1),
                "row": In(machine.row_bits),
                "col": In(machine.col_bits),
                "word": In(machine.weight_addr_bits),
                "data": In(signed(WEIGHT_BITS)),
                "weight_done": Out(1),
                "read_valid": Out(1),
                "read_data": Out(signed(WEIGHT_BITS)),
                "advance_array": In(1),
                "advance_bias": In(1),
                "advance_count": In(STATE_BITS),
                "advancing_array": Out(1),
                "advancing_bias": Out(1),
                "busy": Out(1),
                "step_valid": Out(1),
                "step_op": Out(Op),
                "step_addr": Out(machine.weight_addr_bits),
                "step_first": Out(1),
                "step_last": Out(1),
                "host_row": Out(machine.row_bits),
                "host_col": Out(machine.col_bits),
                "host_data": Out(signed(WEIGHT_BITS)),
                "result_valid": In(1),
                "result_data": In(signed(machine.acc_bits)),
                "bias_advance": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine = self._machine
        # Cycles until the array is empty again and the host operands may change.
        drain = machine.rows + machine.cols + (WindowArray if machine.windowed else Array).LATENCY
        flight = Signal(range(drain + 1))
        issued = Signal()  # this request's step is in flight
        array_left, bias_left = Signal(STATE_BITS), Signal(STATE_BITS)
        address = Signal(machine.weight_addr_bits)
        learns = machine.learning.learns

        m.d.comb += [
            self.host_row.eq(self.row),
            self.host_col.eq(self.col),
            self.host_data.eq(self.data),
            self.weight_done.eq(issued & (flight == 0)),
            self.read_valid.eq(issued & self.result_valid),
            self.read_data.eq(self.result_data >> machine.random_bits),
            *([self.advancing_array.eq(array_left != 0), self.advancing_bias.eq(bias_left != 0)] if learns else []),
            self.busy.eq(
                self.weight_valid | self.advancing_array | self.advancing_bias | (flight != 0)
            ),
        ]
        with m.If(flight != 0):
            m.d.sync += flight.eq(flight - 1)
        with m.If(self.weight_done):
            m.d.sync += issued.eq(0)

        with m.If(self.waiting):
            ready = self.weight_valid & ~issued & (flight == 0)
            if learns:
                m.d.comb += self.bias_advance.eq(self.advancing_bias)
                with m.If(self.advancing_array):
                    # `weight_depth` is at least 5 for this: steps in flight share no address, so each
                    # writes back the word that it read.
                    m.d.comb += [
                        self.step_valid.eq(1),
                        self.step_op.eq(Op.UPDATE),
                        self.step_addr.eq(address),
                    ]
                    if machine.windowed:
                        m.d.comb += [self.step_first.eq(1), self.step_last.eq(1)]
                    m.d.sync += [array_left.eq(array_left - 1), address.eq(address + 1)]
            with m.Elif(ready) if learns else m.If(ready):
                m.d.comb += [
                    self.step_valid.eq(1),
                    self.step_first.eq(1),
                    self.step_last.eq(1),
                    self.step_addr.eq(self.word),
                ]
                with m.If(self.weight_write):
                    m.d.comb += self.step_op.eq(Op.HOST_WRITE)
                with m.Else():
                    m.d.comb += self.step_op.eq(Op.HOST_READ)
                m.d.sync += issued.eq(1)
        with m.If(self.step_valid):
            m.d.sync += flight.eq(drain)
        if not learns:
            return m
        with m.If(self.bias_advance):
            m.d.sync += bias_left.eq(bias_left - 1)
        with m.If(self.advance_array):
            m.d.sync += array_left.eq(self.advance_count)
        with m.If(self.advance_bias):
            m.d.sync += bias_left.eq(self.advance_count)
        return m
