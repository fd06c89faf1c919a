"""The array of machines that sum gradients: R x C PEs, their control delay line, the accumulators.

docs/convolutions.md, section 6; docs/rules.md, sections 3 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import Lfsr, delay_line
from hdl.dense.pe import Pe, word_lsb
from hdl.op import Op
from hdl.verilog import make
from hdl.windowed.pe import WindowPe, lane_bits, west_bits
from spec.lfsr import SEQUENCE, offset
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.windowed import COARSE

__all__ = ["WindowArray"]


class WindowArray(wiring.Component):
    """R x C PEs; a step (one word of every PE) a cycle. In an update a step is a position of a tile:
    one address, walked window by window. Cycles count from t, a step's own:

    ============================  ======================  ============================================
    ``step_valid, _op, _addr``    t                       any steps may follow each other, but for what
                                                          WRITE_LATENCY says; the address stays for an
                                                          update's tile
    ``step_first, _last``         t                       FORWARD: of a position's steps; host: 1;
                                                          UPDATE, in steps with `step_window_last`: of
                                                          a tile's windows
    ``step_window_first, _last``  t                       UPDATE: of a window's positions
    ``step_diagonal``             t                       UPDATE: only PEs with r = c write (depthwise)
    ``neg[c]``                    t + c                   UPDATE: the position's slope is 1/8
    ``delta[c]``                  t + c                   signed(`delta_bits`), in UPDATE steps with
                                                          `step_window_last`: multiplies the window
    ``act[r]``                    t + r + 1               s8 (Verilog ports ``act__0`` ...)
    ``result_valid[c], _data[c]`` t_last + R + c          signed(`acc_bits`), column c's total of a
                                  + LATENCY               FORWARD position; of a HOST_READ, in column
                                                          `host_col` alone, the word << random_bits
                                                          and noise below
    ============================  ======================  ============================================

    A machine that does not learn has no `step_window_first` and none of the ports below it down to `delta`, nor
    `coarse`; its PEs are those of the other datapath. A host's word has no noise below it there.

    With rule ``bp`` a step may be one of the way back, W^T times `delta`, summed along the rows:

    ============================  ======================  ============================================
    ``step_back``                 t                       with `step_op` FORWARD; first and last are
                                                          those of a row tile; depthwise words beside
                                                          the diagonal are 0
    ``delta[c]``                  t + c                   in these steps too: column c's factor, within
                                                          `back_bits`
    ``skip[c]``                   t + c                   UPDATE: the activation is not added
    ``back_valid, back_data``     t_last + r + C          signed(`back_sum_bits`), row r's total of a
                                  + LATENCY               row tile; there is no ``result_valid``
    ============================  ======================  ============================================

    Rows finish one a cycle, in order: the last steps of row tiles are at least R cycles apart, which `check`
    asserts too.

    * ``coarse``: acts enter shifted left by 4 in UPDATE. Stable while update steps are under way;
      machines of up to 16 fraction bits do not look at it.
    * ``host_row, host_col, host_data`` (s16): stable from a host operation's step to R + C + 5
      cycles later; host steps may follow each other every cycle only where these are the same.

    A window holds up to 128 positions (8 with `coarse`), a tile any number of windows: their sums
    wait in cycles without a step, but not while another operation passes. A tile's last window is
    written; with `check`, a step that reads the word too early fails an assertion in simulation. An
    LFSR steps once a tile: an UPDATE step that is a tile of its own, with act = 0, does no more.
    """

    LATENCY = WindowPe.LATENCY + 1
    """Column c's total of a position is visible R + c + LATENCY cycles after its last step."""
    WRITE_LATENCY = WindowPe.LATENCY + 1
    """A word that a step writes can be read by a step this many cycles later."""

    step_valid: Signal
    step_op: Value
    step_addr: Signal
    step_first: Signal
    step_last: Signal
    step_window_first: Signal
    step_window_last: Signal
    step_diagonal: Signal
    act: list[Signal]
    neg: Signal
    delta: list[Signal]
    coarse: Signal
    host_row: Signal
    host_col: Signal
    host_data: Signal
    result_valid: Signal
    result_data: list[Signal]
    step_back: Signal
    skip: Signal
    back_valid: Signal
    back_data: Signal

    def __init__(self, machine: Machine, *, check: bool = False):
        self.machine = machine
        self.check = check
        flags = ("window_first", "window_last", "diagonal")
        learns, transposes = machine.learning.learns, machine.learning.transposes
        updating = {
            "neg": In(machine.cols),
            "delta": In(signed(machine.delta_bits)).array(machine.cols),
            "coarse": In(1),
        }
        transposing = {
            "step_back": In(1),
            "skip": In(machine.cols),
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
                **({f"step_{name}": In(1) for name in flags} if learns else {}),
                "act": In(signed(ACT_BITS)).array(machine.rows),
                **(updating if learns else {}),
                "host_row": In(machine.row_bits),
                "host_col": In(machine.col_bits),
                "host_data": In(signed(WEIGHT_BITS)),
                "result_valid": Out(machine.cols),
                "result_data": Out(signed(machine.acc_bits)).array(machine.cols),
                **(transposing if transposes else {}),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        rows, cols, learns = machine.rows, machine.cols, machine.learning.learns
        transposes = machine.learning.transposes
        m = Module()

        # The delay line, decoded at its head: a tap drives its diagonal as it is.
        def line(value: Value, length: int, name: str) -> list[Value]:
            head = Signal(name=name)
            m.d.comb += head.eq(self.step_valid & value)
            return delay_line(m, head, length, name)

        diagonals = rows + cols - 2  # the last PE's
        column_tap = rows + WindowPe.LATENCY - 1  # column 0's sum is at the foot of its lane
        read_tap = column_tap + cols - 1
        is_forward: Value = self.step_op == Op.FORWARD
        back: list[Value] = []
        if transposes:
            back = line(is_forward & self.step_back, read_tap, "back")
            is_forward = is_forward & ~self.step_back
        forward = line(is_forward, read_tap, "forward")
        update = line(self.step_op == Op.UPDATE, diagonals + 2, "update") if learns else []
        host_read = line(self.step_op == Op.HOST_READ, read_tap, "host_read")
        host_write = line(self.step_op == Op.HOST_WRITE, diagonals + 4, "host_write")
        window_first, add, load, store, store_off = self._windows(line, diagonals) if learns else ([],) * 5
        addr = delay_line(m, self.step_addr, diagonals + 4, "addr")
        first = delay_line(m, self.step_first, read_tap, "first")
        total = line(is_forward & self.step_last, read_tap + 1, "total")

        # The lanes' edges. A host operation puts a 1 on the chosen row and column and 0 elsewhere,
        # so that the product is 1 in one PE. Where no step passes, a window's sum gets a 0.
        act_lanes, neg_lanes, delta_lanes, psum_lanes, skip_lanes = [], [], [], [], []
        for r in range(rows):
            lane = Signal(signed(lane_bits(machine)), name=f"act_lane_{r}")
            with m.If(host_read[r + 1] | host_write[r + 1]):
                m.d.comb += lane.eq(self.host_row == r)
            if learns:
                with m.Elif(update[r + 1] & self.coarse & (lane_bits(machine) > ACT_BITS)):
                    m.d.comb += lane.eq(self.act[r] << COARSE)
            with m.Elif(update[r + 1] | forward[r + 1] if learns else forward[r + 1]):
                m.d.comb += lane.eq(self.act[r])
            act_lanes.append(lane)
        for c in range(cols):
            delta = Signal(signed(machine.lane_bits), name=f"delta_{c}", reset_less=True)
            host = host_read[c] | host_write[c]
            if learns:
                neg = Signal(name=f"neg_{c}", reset_less=True)
                m.d.sync += neg.eq(self.neg[c] | ~update[c])
                neg_lanes.append(neg)
            if transposes:
                skip = Signal(name=f"skip_{c}", reset_less=True)
                m.d.sync += skip.eq(self.skip[c] & update[c])
                skip_lanes.append(skip)
            with m.If(host):
                m.d.sync += delta.eq(self.host_col == c)
            if learns:
                with m.Else():
                    # 0 but where a window ends, so that one of the multiplier's operands rests in between.
                    enters = (update[c] | back[c] if transposes else update[c]) & add[c]
                    m.d.sync += delta.eq(Mux(enters, self.delta[c], 0))
            word = Signal(signed(machine.psum_bits), name=f"psum_lane_{c}")
            datum = Cat(Const(0, word_lsb(machine)), self.host_data).as_signed()
            with m.If(host_write[c + WindowPe.LATENCY - 1]):
                m.d.comb += word.eq(datum)
            delta_lanes.append(delta)
            psum_lanes.append(word)

        rows_out: list[Value] = []
        for r in range(rows):
            west: Value = Const(0, 1)
            for c in range(cols):
                d = r + c
                if learns:
                    init = int(SEQUENCE[offset(machine, r * cols + c)])
                    m.submodules[f"lfsr_{r}_{c}"] = lfsr = Lfsr(init)
                    pe, m.submodules[f"pe_{r}_{c}"] = make(platform, "window_pe", lambda: WindowPe(machine))
                    m.d.comb += [
                        lfsr.step.eq(load[d + 3]),
                        pe.random.eq(lfsr.state[-len(pe.random) :]),
                    ]
                else:
                    pe, m.submodules[f"pe_{r}_{c}"] = make(platform, "pe", lambda: Pe(machine))
                updating = [
                    pe.window_first.eq(window_first[d + 1]),
                    pe.add.eq(add[d + 2]),
                    pe.update.eq(update[d + 2]),
                    pe.load.eq(load[d + 2]),
                    pe.host_read.eq(host_read[d + 2]),
                    pe.store.eq((store if r == c else store_off)[d + 3]),
                ] if learns else []  # fmt: skip
                if transposes:
                    m.d.comb += [
                        pe.skip_in.eq(skip_lanes[c]),
                        pe.back.eq(back[d + 1]),
                        pe.west.eq(back[d + 2]),
                        pe.psum_west.eq(west),
                    ]
                    skip_lanes[c], west = pe.skip_out, pe.psum_out[: west_bits(machine)].as_signed()
                m.d.comb += [
                    pe.read_addr.eq(addr[d]),
                    pe.forward.eq(forward[d + 1] if learns else forward[d + 1] | host_read[d + 1]),
                    *updating,
                    pe.host_write.eq(host_write[d + 3]),
                    pe.write_addr.eq(addr[d + 4]),
                    pe.act_in.eq(act_lanes[r]),
                    *([pe.neg_in.eq(neg_lanes[c])] if learns else []),
                    pe.delta_in.eq(delta_lanes[c]),
                    pe.psum_in.eq(psum_lanes[c]),
                ]
                if learns:
                    neg_lanes[c] = pe.neg_out
                act_lanes[r], delta_lanes[c], psum_lanes[c] = pe.act_out, pe.delta_out, pe.psum_out
            rows_out.append(west)

        # Accumulators: at most (max_fan_in + 1) * 2^22 in magnitude, or a partial sum: acc_bits. A
        # total moves on in one cycle, as the next position's first step may follow.
        for c in range(cols):
            acc = Signal(signed(machine.acc_bits), name=f"acc_{c}", reset_less=True)
            result = Signal(signed(machine.acc_bits), name=f"result_{c}", reset_less=True)
            tap = column_tap + c
            with m.If(forward[tap] | host_read[tap]):
                m.d.sync += acc.eq(Mux(first[tap], 0, acc) + psum_lanes[c])
            host = Signal(name=f"host_total_{c}")
            m.d.sync += [
                host.eq(host_read[tap] & (self.host_col == c)),
                self.result_valid[c].eq(total[tap + 1] | host),
                result.eq(acc),
            ]
            m.d.comb += self.result_data[c].eq(result)

        if transposes:
            self._sum_rows(m, back, first, rows_out)

        if self.check:
            reads = [taps[0] for taps in (load, forward, back, host_read) if taps]
            self._check(m, reduce(or_, reads), addr, store, host_write)
        return m

    def _windows(self, line: Callable[[Value, int, str], list[Value]], diagonals: int) -> tuple[list[Value], ...]:
        """What an update has to know of windows, as delay lines."""
        is_update, apply = self.step_op == Op.UPDATE, self.step_window_last
        last = is_update & apply & self.step_last
        return (
            line(~is_update | self.step_window_first, diagonals + 1, "window_first"),
            line(~is_update | apply, diagonals + 2, "add"),
            line(is_update & apply & self.step_first, diagonals + 3, "load"),
            line(last, diagonals + 4, "store"),
            line(last & ~self.step_diagonal, diagonals + 3, "store_off"),
        )

    def _sum_rows(self, m: Module, back: list[Value], first: list[Value], psums: list[Value]) -> None:
        """The accumulators at the rows' ends. One row is done at a time, so an OR is all the multiplexer needed."""
        rows = self.machine.rows
        tap = self.machine.cols + WindowPe.LATENCY - 1  # row 0's sum is at the end of its row
        total = delay_line(m, back[0] & self.step_last, tap + rows, "row_total")
        results = []
        for r, psum in enumerate(psums):
            acc = Signal(signed(self.machine.back_sum_bits), name=f"row_acc_{r}", reset_less=True)
            with m.If(back[tap + r]):
                m.d.sync += acc.eq(Mux(first[tap + r], 0, acc) + psum)
            results.append(Mux(total[tap + r + 1], acc, 0))
        m.d.sync += [
            self.back_valid.eq(Cat(total[tap + 1 :]).any()),
            self.back_data.eq(reduce(or_, results)),
        ]
        if self.check:
            for age in range(1, rows):
                m.d.sync += Assert(~(total[0] & total[age]), f"a row tile ends {age} cycles after the one before it")

    def _check(self, m: Module, reads: Value, addr, store, host_write):
        """Asserts that no step reads an address that an earlier step has still to write."""
        writes = [a | b for a, b in zip(store, host_write, strict=True)] if store else host_write
        for age in range(1, self.WRITE_LATENCY):
            in_flight = writes[age] & (addr[age] == addr[0])
            m.d.sync += Assert(
                ~(reads & in_flight),
                f"a step reads an address that the step {age} before it has still to write",
            )
