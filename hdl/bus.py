"""The bus: registers and memory windows, one request a cycle."""

from __future__ import annotations

from contextlib import nullcontext

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.lfsr import STATE_BITS
from spec.machine import WEIGHT_BITS, Machine
from spec.memory_map import (
    BIAS,
    ID_VALUE,
    PROGRAM,
    REGISTER_WINDOW,
    REGISTERS,
    WEIGHT,
    WINDOWED_REGISTERS,
    address_bits,
    offset_bits,
    register_bit,
    registers_of,
    version_value,
)
from spec.scores import TRAINED_BITS, lane_bits, row_bits
from spec.windowed_program import descriptor_kind

__all__ = ["Bus", "BusSignature"]

_OTHER_REGISTERS = ("ID", "VERSION", "CTRL", "STATUS", "CLEAR", "LAYERS", "INPUT_LENGTH",
                    "INPUT_WORDS", "ADVANCE_ARRAY", "ADVANCE_BIAS")  # fmt: skip
_RING_REGISTERS = ("INPUT_WORDS", "INPUT_SLOTS")
COUNTER_REGISTERS = tuple(name for name in REGISTERS if name not in _OTHER_REGISTERS)
"""Registers whose value comes from :class:`hdl.counters.Counters`."""


class BusSignature(wiring.Signature):
    """Requests `req_*` of `addr_bits` word addresses, and answers `rsp_*` to reads, in order.

    A request is taken in a cycle with `req_valid` and `req_ready`. Answers cannot be held up. As seen
    from the host's side.
    """

    def __init__(self, addr_bits: int):
        super().__init__(
            {
                "req_valid": Out(1),
                "req_ready": In(1),
                "req_write": Out(1),
                "req_addr": Out(addr_bits),
                "req_data": Out(32),
                "rsp_valid": In(1),
                "rsp_data": In(32),
            }
        )


class Bus(wiring.Component):
    """Decodes requests by the address map of `spec.memory_map`.

    A request waits in one register until it can be done: at once for registers and the program, in
    `wait` for biases, weights and scores, so that their words are those of a sample boundary. Requests behind
    it wait too, which keeps answers in order. A register's or bias' answer comes two cycles after the
    request (if `wait` is on), a weight's R + col + 8 cycles after it, a trained parameter's six cycles after it.
    Reading what can only be written answers 0; writing what can only be read does nothing.

    Members
    -------
    bus : In, BusSignature
    enable, scores, layers, input_length, input_words : Out
        Fields of the registers CTRL, LAYERS, INPUT_LENGTH, INPUT_WORDS.
    idle, bad_label, bad_length : In
        Bits of STATUS.
    clear_counters, clear_errors : Out, pulses
    program_write, program_addr, program_data : Out
        To the sequencer.
    waiting : In; hold : Out
        The sequencer is in `wait`; it must not begin a sample, because a request needs it to wait or
        changes the program in this cycle.
    bias_valid, bias_addr, bias_write, bias_data : Out; bias_q : In
        To the bias unit; `bias_q` belongs to the address of the cycle before.
    weight_valid, weight_write, row, col, word, weight_data : Out; weight_done, read_valid, read_data : In
    advance_array, advance_bias, advance_count : Out; advancing_array, advancing_bias : In
        To the maintenance block. An advance asked for during one of its kind waits for its end.
    CYCLES_..., ... : In
        One a counter register.

    A machine that trains a part of the class scores has also

    score_valid, score_write, score_row, score_lane, score_data : Out; score_done, score_q : In
        To what has the parameters: `hdl.score_memory.host_ports`.

    A machine with `gradient_bits` has also

    batch, input_slots, input_row, input_gap : Out
        The registers BATCH, INPUT_SLOTS, INPUT_ROW, INPUT_GAP.
    restarting, restart : Out
        INPUT_SLOTS or INPUT_WORDS is being written, for which the input ring begins anew: no packet is
        to be taken. Such a write waits for `wait`, as weights do; `restart` pulses in its last cycle.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        self._layer_addr_bits = (machine.max_layers * descriptor_kind(machine).spacing() - 1).bit_length()
        elements = machine.activation_addr_bits + machine.row_bits  # a number of the memory's
        windowed = {
            "batch": Out(range(machine.max_batch + 1), init=WINDOWED_REGISTERS["BATCH"].reset),  # pyright: ignore[reportCallIssue]
            "input_slots": Out(range(2 * machine.max_batch + 1)),
            "input_row": Out(elements),
            "input_gap": Out(range(machine.rows)),
            "restarting": Out(1),
            "restart": Out(1),
        }
        trained = {
            "score_valid": Out(1),
            "score_write": Out(1),
            "score_row": Out(row_bits(machine)),
            **({"score_lane": Out(lane_bits(machine))} if lane_bits(machine) else {}),
            "score_data": Out(signed(TRAINED_BITS)),
            "score_done": In(1),
            "score_q": In(signed(TRAINED_BITS)),
        }
        super().__init__(
            {
                "bus": In(BusSignature(address_bits(machine))),
                "enable": Out(1),
                "scores": Out(1),
                "layers": Out(machine.max_layers.bit_length()),
                "input_length": Out(elements if machine.windowed else machine.max_fan_in.bit_length()),
                "input_words": Out(machine.activation_addr_bits),
                "idle": In(1),
                "bad_label": In(1),
                "bad_length": In(1),
                "clear_counters": Out(1),
                "clear_errors": Out(1),
                "program_write": Out(1),
                "program_addr": Out(self._layer_addr_bits),
                "program_data": Out(32),
                "waiting": In(1),
                "hold": Out(1),
                "bias_valid": Out(1),
                "bias_addr": Out(
                    machine.bias_bank_addr_bits + machine.col_bits if machine.windowed else machine.bias_addr_bits
                ),
                "bias_write": Out(1),
                "bias_data": Out(signed(WEIGHT_BITS)),
                "bias_q": In(signed(WEIGHT_BITS)),
                "weight_valid": Out(1),
                "weight_write": Out(1),
                "row": Out(machine.row_bits),
                "col": Out(machine.col_bits),
                "word": Out(machine.weight_addr_bits),
                "weight_data": Out(signed(WEIGHT_BITS)),
                "weight_done": In(1),
                "read_valid": In(1),
                "read_data": In(signed(WEIGHT_BITS)),
                "advance_array": Out(1),
                "advance_bias": Out(1),
                "advance_count": Out(STATE_BITS),
                "advancing_array": In(1),
                "advancing_bias": In(1),
                **{name: In(REGISTERS[name].width) for name in COUNTER_REGISTERS},
                **(windowed if machine.windowed else {}),
                **(trained if machine.learning.trains else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine = self._machine
        bits = offset_bits(machine)

        pending, write = Signal(), Signal()
        window = Signal(2)
        offset, written = Signal(bits), Signal(32)
        done = Signal()
        m.d.comb += self.bus.req_ready.eq(~pending | done)
        with m.If(done):
            m.d.sync += pending.eq(0)
        with m.If(self.bus.req_valid & self.bus.req_ready):
            m.d.sync += [
                pending.eq(1),
                write.eq(self.bus.req_write),
                Cat(offset, window).eq(self.bus.req_addr),
                written.eq(self.bus.req_data),
            ]

        # Fields of the waiting request.
        low = machine.col_bits
        m.d.comb += [
            self.program_addr.eq(offset),
            self.program_data.eq(written),
            self.bias_addr.eq(offset),
            self.bias_data.eq(written),
            self.col.eq(offset[:low]),
            self.row.eq(offset[low : low + machine.row_bits]),
            self.word.eq(offset[low + machine.row_bits :]),
            self.weight_data.eq(written),
            self.weight_write.eq(write),
            self.advance_count.eq(written),
        ]

        if machine.learning.trains:
            lane = lane_bits(machine)
            m.d.comb += [
                self.score_write.eq(write),
                self.score_row.eq(offset[lane:]),
                *([self.score_lane.eq(offset[:lane])] if lane else []),
                self.score_data.eq(written),
            ]

        answer, from_bias = Signal(32), Signal()
        answering = Signal()
        m.d.comb += self.bus.rsp_data.eq(Mux(from_bias, self.bias_q, answer))
        m.d.sync += [self.bus.rsp_valid.eq(answering), from_bias.eq(0)]

        with m.If(pending):
            with m.Switch(window):
                with m.Case(REGISTER_WINDOW.select):
                    with m.If(~offset[-1]) if machine.learning.trains else nullcontext():
                        self._registers(m, offset, written, write, done, answer)
                        m.d.comb += answering.eq(done & ~write)
                    if machine.learning.trains:
                        with m.Else():
                            m.d.comb += [
                                self.score_valid.eq(self.waiting),
                                done.eq(self.score_done),
                                answering.eq(done & ~write),
                                self.hold.eq(1),
                            ]
                            m.d.sync += answer.eq(self.score_q)
                with m.Case(PROGRAM.select):
                    m.d.comb += [
                        done.eq(1),
                        answering.eq(~write),
                        self.program_write.eq(write),
                        self.hold.eq(1),
                    ]
                    m.d.sync += answer.eq(0)
                with m.Case(BIAS.select):
                    m.d.comb += [
                        done.eq(self.waiting),
                        answering.eq(done & ~write),
                        self.bias_valid.eq(done),
                        self.bias_write.eq(done & write),
                        self.hold.eq(1),
                    ]
                    m.d.sync += from_bias.eq(1)
                with m.Case(WEIGHT.select):
                    m.d.comb += [
                        self.weight_valid.eq(1),
                        done.eq(self.weight_done),
                        answering.eq(self.read_valid),
                        self.hold.eq(1),
                    ]
                    m.d.sync += answer.eq(self.read_data)
        return m

    def _registers(self, m: Module, offset, written, write, done, answer) -> None:
        """A request to a register, in the cycle in which it is done."""
        registers = registers_of(self._machine)
        writable = {
            name: Cat(self.enable, self.scores) if name == "CTRL" else getattr(self, name.lower())
            for name, register in registers.items()
            if register.access == "rw"
        }
        readable = {
            "ID": ID_VALUE,
            "VERSION": version_value(self._machine),
            "STATUS": Cat(self.idle, self.bad_label, self.bad_length),
            **writable,
            **{name: getattr(self, name) for name in COUNTER_REGISTERS},
        }
        started = {
            "ADVANCE_ARRAY": (self.advance_array, self.advancing_array),
            "ADVANCE_BIAS": (self.advance_bias, self.advancing_bias),
        }
        m.d.comb += done.eq(1)
        m.d.sync += answer.eq(0)
        with m.Switch(offset):
            for register in registers.values():
                with m.Case(register.address):
                    if register.name in readable:
                        m.d.sync += answer.eq(readable[register.name])
                    if self._machine.windowed and register.name in _RING_REGISTERS:
                        with m.If(write):
                            m.d.comb += [
                                self.hold.eq(1),
                                self.restarting.eq(1),
                                done.eq(self.waiting),
                                self.restart.eq(self.waiting),
                            ]
                            with m.If(self.waiting):
                                m.d.sync += writable[register.name].eq(written)
                    elif register.name in writable:
                        with m.If(write):
                            m.d.sync += writable[register.name].eq(written)
                    if register.name == "CLEAR":
                        m.d.comb += [
                            self.clear_counters.eq(
                                write & written[register_bit("CLEAR", "counters")]
                            ),
                            self.clear_errors.eq(write & written[register_bit("CLEAR", "errors")]),
                        ]
                    if register.name in started:
                        start, advancing = started[register.name]
                        m.d.comb += [done.eq(~(write & advancing)), start.eq(write & ~advancing)]
