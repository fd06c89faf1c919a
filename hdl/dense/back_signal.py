"""The learning-signal unit of backpropagation: the output's error, and what the array makes of it, layer by layer."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import In, Out

from hdl.arith import clip_symmetric, delay_line, round_shift
from hdl.dense.delta import CLIP_LATENCY, SignalQueue, clipped_slope
from hdl.dense.error_signal import ErrorSignal
from hdl.dense.signal_memory import SignalMemory
from spec.machine import ERROR_FRAC, WEIGHT_FRAC, Machine
from spec.rules import BACK_BITS, BACK_DROPPED, BACK_FRAC
from spec.timing import delta_latency

__all__ = ["BackSignal"]


class BackSignal(ErrorSignal):
    """Signals (signed, BACK_BITS) wait in a memory of two halves: a layer's is read while that below it is written.

    Members beyond those of `ErrorSignal`
    -------------------------------------
    n_in : In
        Of the layer's descriptor. The biases of the layer before it stand before its own, at `b_base` - n_in.
    half : In
        Changes from layer to layer.
    back_start : In
        The way back through a layer begins; not before `done`.
    step_valid, step_tile, step_last : In
        A step of it; the first not before the next cycle, its row totals at least 3 cycles after `back_start`.
    back_delta : Out, an array of C
        Column c's signal for the step, c + 1 cycles after it; 0 for columns beyond the layer.
    back_valid, back_data : In
        Row totals, in order: `n_in` of the layer before, and what lies beyond them in the last row tile, which is
        dropped. The signals that they become can be used `SUM_LATENCY` cycles after the last of them.

    Raises
    ------
    SpecError
        When `max_neurons` is less than `classes`.
    """

    LATENCY = delta_latency("bp")
    SUM_LATENCY = CLIP_LATENCY + 1

    n_in: Signal
    half: Signal
    back_start: Signal
    step_valid: Signal
    step_tile: Signal
    step_last: Signal
    back_delta: list[Signal]
    back_valid: Signal
    back_data: Signal

    def __init__(self, machine: Machine, classes: int):
        self._signals = SignalMemory(machine)
        super().__init__(
            machine,
            classes,
            SignalQueue(machine),
            {
                "n_in": In(machine.max_fan_in.bit_length()),
                "half": In(1),
                "back_start": In(1),
                "step_valid": In(1),
                "step_tile": In(self._signals.step_tile.shape()),
                "step_last": In(1),
                "back_delta": Out(signed(BACK_BITS)).array(machine.cols),
                "back_valid": In(1),
                "back_data": In(signed(machine.back_sum_bits)),
            },
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.signals = signals = self._signals
        _, issue, tile, column, real = self._build(m)
        softmax, queue, slopes = self._softmax, self._queue, self._slopes

        # Row totals: those of real neurons meet their slope bits, which the memory is too slow to hand over at once.
        left = Signal.like(self.n_in)
        summed = Signal()
        addr = Signal.like(slopes.read_addr)
        start = delay_line(m, self.back_start, 1, "start")[-1]  # the sequencer decides late in its cycle
        neg = Signal(reset_less=True)
        m.d.comb += [summed.eq(self.back_valid & (left != 0)), slopes.read_addr.eq(addr + summed)]
        m.d.sync += [left.eq(left - summed), addr.eq(slopes.read_addr), neg.eq(slopes.read_data)]
        with m.If(start):
            m.d.sync += [left.eq(self.n_in), addr.eq(self.b_base - self.n_in)]
        below = clipped_slope(m, self.back_data, WEIGHT_FRAC, neg, BACK_BITS)
        below_valid = delay_line(m, summed, CLIP_LATENCY, "summed")[-1]

        # 6 fraction bits of the error: finer, what the softmax's tables leave of a certain class never ends.
        rounded = round_shift(softmax.error, BACK_DROPPED)
        error = Cat(Const(0, BACK_FRAC - ERROR_FRAC + BACK_DROPPED), rounded).as_signed()
        error_valid = delay_line(m, softmax.error_strobe, 1, "error")[-1]
        m.d.comb += [
            signals.half.eq(self.half),
            signals.write_start.eq(self.go | start),
            signals.write_valid.eq(error_valid | below_valid),
            signals.write_below.eq(below_valid),
            signals.write_data.eq(Mux(below_valid, below, clip_symmetric(error, BACK_BITS))),
            signals.step_valid.eq(self.step_valid),
            signals.step_tile.eq(self.step_tile),
            signals.step_last.eq(self.step_last),
            *(self.back_delta[c].eq(signals.back_delta[c]) for c in range(self._machine.cols)),
            signals.read_tile.eq(tile),
            signals.read_column.eq(column),
        ]
        m.d.comb += [
            queue.valid.eq(delay_line(m, issue, signals.READ_LATENCY, "issued")[-1]),
            queue.real.eq(delay_line(m, real, signals.READ_LATENCY, "real")[-1]),
            queue.delta.eq(signals.read_data),
        ]
        return m


assert BackSignal.LATENCY == SignalMemory.READ_LATENCY + SignalQueue.LATENCY + SignalQueue.QUEUE_LATENCY
