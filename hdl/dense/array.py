"""The array: R x C PEs, the control delay line that skews them, and the accumulators at its edges."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import Lfsr, delay_line
from hdl.dense.pe import Pe, word_lsb
from hdl.op import Op
from hdl.verilog import make
from spec.lfsr import SEQUENCE, offset
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.rules import BACK_BITS

__all__ = ["Array"]


class Array(wiring.Component):
    """R x C PEs; a step (one word of every PE) a cycle. Cycles count from t, a step's own:

    * ``step_valid, step_op, step_addr, step_first, step_last``: cycle t; first and last of a tile.
    * ``act[r]`` (s8, Verilog ports ``act__0`` ...): cycle t + r + 1.
    * ``delta_pop``: combinational, in cycle t + c of a tile's first UPDATE step, in which column c
      takes ``delta`` (signed, `delta_bits`) and holds it for the tile. A machine that does not
      learn has neither.
    * ``result_valid, result_data`` (signed, `acc_bits`): column c's total of a FORWARD tile in
      cycle t_last + R + c + `LATENCY`; nothing for UPDATE and HOST_WRITE. A HOST_READ gives one
      result, in the cycle of column ``host_col``: its word is result_data >> random_bits.
    * ``host_row, host_col, host_data`` (s16): stable from a host operation's step to R + C + 5
      cycles later. Host steps have first = last = 1 and may follow each other every cycle only
      where these are the same.

    With rule ``bp`` a step may be one of the way back, W^T times `back_delta`, summed along the rows:

    * ``step_back``: cycle t, with `step_op` FORWARD; first and last are those of a row tile then.
    * ``back_delta[c]`` (signed, BACK_BITS): cycle t + c + 1.
    * ``back_valid, back_data`` (signed, `back_sum_bits`): row r's total of a row tile in cycle
      t_last + r + C + `LATENCY`; there is no ``result_valid``.

    Tiles' first steps must be at least C cycles apart, row tiles' R cycles, so that one result and one
    delta a cycle suffice. A word that a step writes can be read by steps from t + 5 on; with `check`, a
    step that comes too early fails an assertion in simulation. UPDATE steps with act = 0 leave all
    weights as they are and step the LFSRs: repeated addresses then do no harm, but `check` refuses them.
    """

    LATENCY = Pe.LATENCY + 1
    """Column c's total of a tile is visible R + c + LATENCY cycles after the tile's last step."""
    WRITE_LATENCY = Pe.LATENCY + 1
    """A word that a step writes can be read by a step this many cycles later."""

    step_valid: Signal
    step_op: Value
    step_addr: Signal
    step_first: Signal
    step_last: Signal
    act: list[Signal]
    delta: Signal
    delta_pop: Signal
    host_row: Signal
    host_col: Signal
    host_data: Signal
    result_valid: Signal
    result_data: Signal
    step_back: Signal
    back_delta: list[Signal]
    back_valid: Signal
    back_data: Signal

    def __init__(self, machine: Machine, *, check: bool = False):
        self.machine = machine
        self.check = check
        rule = machine.learning
        learning = {"delta": In(signed(machine.lane_bits)), "delta_pop": Out(1)}
        transposing = {
            "step_back": In(1),
            "back_delta": In(signed(BACK_BITS)).array(machine.cols),
            "back_valid": Out(1),
            "back_data": Out(signed(machine.back_sum_bits)),
        }
        super().__init__(
            {
                "step_valid": In(1),
                "step_op": In(Op),
                "step_addr": In(machine.weight_addr_bits),
                "step_first": In(1),
                "step_last": In(1),
                "act": In(signed(ACT_BITS)).array(machine.rows),
                **(learning if rule.learns else {}),
                "host_row": In(machine.row_bits),
                "host_col": In(machine.col_bits),
                "host_data": In(signed(WEIGHT_BITS)),
                "result_valid": Out(1),
                "result_data": Out(signed(machine.acc_bits)),
                **(transposing if rule.transposes else {}),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        rows, cols, rule = machine.rows, machine.cols, machine.learning
        m = Module()

        # The delay line, one-hot by operation: a tap drives its diagonal without decoding.
        def steps(op: Op, kind: Value | None = None, name: str = "") -> Value:
            step = Signal(name=f"step_{name or op.name.lower()}")
            chosen = self.step_valid & (self.step_op == op)
            m.d.comb += step.eq(chosen if kind is None else chosen & kind)
            return step

        total_tap = rows + Pe.LATENCY  # column 0's total is in its accumulator
        write_tap = rows + cols - 2 + Pe.LATENCY  # the last PE writes
        going_forward = ~self.step_back if rule.transposes else None
        forward = delay_line(m, steps(Op.FORWARD, going_forward), total_tap + cols - 2, "forward")
        update = delay_line(m, steps(Op.UPDATE), write_tap, "update") if rule.learns else None
        host_read = delay_line(m, steps(Op.HOST_READ), total_tap + cols - 1, "host_read")
        host_write = delay_line(m, steps(Op.HOST_WRITE), write_tap, "host_write")
        addr = delay_line(m, self.step_addr, write_tap, "addr")
        first = delay_line(m, self.step_first, total_tap + cols - 2, "first")
        total = delay_line(m, forward[0] & self.step_last, total_tap + cols - 1, "total")
        back = None
        if rule.transposes:
            back = delay_line(m, steps(Op.FORWARD, self.step_back, "back"), total_tap + cols - 2, "back")

        # The lanes' edges. A host operation puts a 1 on the chosen row and column and 0 elsewhere,
        # so that the product is 1 in one PE.
        act_lanes = []
        for r in range(rows):
            lane = Signal(signed(ACT_BITS), name=f"act_lane_{r}")
            host = host_read[r + 1] | host_write[r + 1]
            m.d.comb += lane.eq(Mux(host, self.host_row == r, self.act[r]))
            act_lanes.append(lane)
        delta_lanes, psum_lanes, takes = [], [], []
        for c in range(cols):
            held = Signal(signed(machine.lane_bits), name=f"delta_{c}", reset_less=True)
            if update:
                take = update[c] & first[c]
                with m.If(take):
                    m.d.sync += held.eq(self.delta)
                takes.append(take)
            host = host_read[c] | host_write[c]
            with m.Elif(host) if update else m.If(host):
                m.d.sync += held.eq(self.host_col == c)
            delta_lanes.append(Mux(back[c + 1], self.back_delta[c], held) if back else held)
            word = Signal(signed(machine.psum_bits), name=f"psum_lane_{c}")
            datum = Cat(Const(0, word_lsb(machine)), self.host_data).as_signed()
            with m.If(host_write[c + Pe.LATENCY - 1]):
                m.d.comb += word.eq(datum)
            psum_lanes.append(word)
        if update:
            m.d.comb += self.delta_pop.eq(Cat(takes).any())

        rows_out: list[Value] = []
        for r in range(rows):
            west: Value = Const(0, 1)
            for c in range(cols):
                d = r + c
                pe, m.submodules[f"pe_{r}_{c}"] = make(platform, "pe", lambda: Pe(machine))
                if update:
                    init = int(SEQUENCE[offset(machine, r * cols + c)])
                    m.submodules[f"lfsr_{r}_{c}"] = lfsr = Lfsr(init)
                    m.d.comb += [
                        lfsr.step.eq(update[d + 3]),
                        pe.random.eq(lfsr.state[-machine.random_bits :]),
                    ]
                if back:
                    m.d.comb += [
                        pe.back.eq(back[d + 1]),
                        pe.west.eq(back[d + 2]),
                        pe.psum_west.eq(west),
                    ]
                m.d.comb += [
                    pe.read_addr.eq(addr[d]),
                    pe.forward.eq(forward[d + 1] if update else forward[d + 1] | host_read[d + 1]),
                    *([pe.update.eq(update[d + 2])] if update else []),
                    *([pe.host_read.eq(host_read[d + 2])] if update else []),
                    pe.host_write.eq(host_write[d + 3]),
                    pe.write_addr.eq(addr[d + 4]),
                    pe.act_in.eq(act_lanes[r]),
                    pe.delta_in.eq(delta_lanes[c]),
                    pe.psum_in.eq(psum_lanes[c]),
                ]
                act_lanes[r], delta_lanes[c], psum_lanes[c] = pe.act_out, pe.delta_out, pe.psum_out
                west = pe.psum_out
            rows_out.append(west)

        # Accumulators. Columns finish in different cycles, so an OR is all the multiplexer needed.
        results, valids = [], []
        for c in range(cols):
            acc = Signal(signed(machine.acc_bits), name=f"acc_{c}", reset_less=True)
            tap = total_tap + c
            with m.If(forward[tap - 1] | host_read[tap - 1]):
                m.d.sync += acc.eq(Mux(first[tap - 1], 0, acc) + psum_lanes[c])
            valid = total[tap] | (host_read[tap] & (self.host_col == c))
            results.append(Mux(valid, acc, 0))
            valids.append(valid)
        m.d.sync += [
            self.result_valid.eq(Cat(valids).any()),
            self.result_data.eq(reduce(or_, results)),
        ]
        if back:
            self._sum_rows(m, back, first, rows_out)

        if self.check:
            self._check(m, addr, update or [Const(0, 1)] * len(host_write), host_write)
        return m

    def _sum_rows(self, m: Module, back: list[Value], first: list[Value], psums: list[Value]) -> None:
        """The accumulators at the rows' ends, as those of the columns: rows finish one a cycle, in order."""
        rows, cols = self.machine.rows, self.machine.cols
        tap = cols + Pe.LATENCY  # row 0's total is in its accumulator
        total = delay_line(m, back[0] & self.step_last, tap + rows - 1, "row_total")
        results = []
        for r, psum in enumerate(psums):
            acc = Signal(signed(self.machine.back_sum_bits), name=f"row_acc_{r}", reset_less=True)
            with m.If(back[tap + r - 1]):
                m.d.sync += acc.eq(Mux(first[tap + r - 1], 0, acc) + psum)
            results.append(Mux(total[tap + r], acc, 0))
        m.d.sync += [
            self.back_valid.eq(Cat(total[tap:]).any()),
            self.back_data.eq(reduce(or_, results)),
        ]

    def _check(self, m: Module, addr: list[Value], update: list[Value], host_write: list[Value]):
        """Asserts that no step reads an address that an earlier step has still to write."""
        for age in range(1, self.WRITE_LATENCY):
            in_flight = (update[age] | host_write[age]) & (addr[age] == addr[0])
            m.d.sync += Assert(
                ~(self.step_valid & in_flight),
                f"a step reads an address that the step {age} before it has still to write",
            )
