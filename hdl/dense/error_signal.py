"""What the learning-signal units share whose hidden layers have no class scores: they begin at the output's error."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out

from hdl.dense.delta import SignalQueue, left_shift, signal_order
from hdl.memory import DualPortMemory
from hdl.softmax import Softmax
from spec.errors import SpecError
from spec.machine import SCORE_BITS, Machine
from spec.program import FIELDS

__all__ = ["ErrorSignal"]


class ErrorSignal(wiring.Component):
    """The ports of such a unit, the output layer's softmax, and a layer's signals one by one into the queue.

    Members
    -------
    start : In
        A layer begins its forward phase.
    is_output, n_out, col_tiles, score_shift, rate_shift, label, train : In
        The layer's descriptor and the sample's label; constant from `start` on, the last two from
        `go` on, and from `delta_go` on until the layer is done with. n_out <= col_tiles * C.
    b_base : In, where the rule `waits`
        Of the layer's biases. Its slope bits are kept at the same addresses of a memory of their own.
    in_valid, in_neg, in_saturated, in_score : In
        The layer's neurons in order, without padding: sign of z and, where the rule `holds`, whether the
        activation is the largest or the smallest (hidden layers), score (output layer).
    go, done : In, Out
        The signal phase of the output layer, `go` not before the cycle after the last `in_valid`. `done`
        is its last cycle: 3K + PLAIN_SIGNAL_TAIL cycles, both ends counted, when `train` is set, else
        K + PLAIN_ARGMAX_TAIL.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores of the layer, in order, before the phase ends.
    delta_go : In
        Begins a layer's update phase, in the cycle after `done` or later.
    delta_made, delta_value, delta_real : Out
        Each shifted signal as it is made, one a cycle: `col_tiles` * C of them, in order, those from
        n_out on being padding (0, `delta_real` 0).
    delta_fifo_data, delta_fifo_level, delta_pop : Out, Out, In
        The same through a queue: the oldest value; how many there are; takes it in this cycle. The first is
        there `LATENCY` cycles after `delta_go`, and then one more each cycle, until the queue is full.
    """

    start: Signal
    is_output: Signal
    n_out: Signal
    col_tiles: Signal
    score_shift: Signal
    rate_shift: Signal
    b_base: Signal
    in_valid: Signal
    in_neg: Signal
    in_saturated: Signal
    in_score: Signal
    go: Signal
    label: Signal
    train: Signal
    done: Signal
    prediction: Signal
    report_valid: Signal
    report_score: Signal
    delta_go: Signal
    delta_made: Signal
    delta_value: Signal
    delta_real: Signal
    delta_fifo_data: Signal
    delta_fifo_level: Signal
    delta_pop: Signal

    def __init__(self, machine: Machine, classes: int, queue: SignalQueue, own: dict[str, Member] | None = None):
        """`own`: ports that only this unit has."""
        if machine.max_neurons < classes:
            raise SpecError("max_neurons", f"must be at least the number of classes, {classes}", machine.max_neurons)
        self._machine = machine
        self._softmax = softmax = Softmax(machine, classes)
        self._queue = queue
        # Those of a layer at work, or all hidden layers', which lie as their biases do.
        waits, holds = machine.learning.waits, machine.learning.holds
        self._slopes = DualPortMemory(1 + holds, machine.bias_depth if waits else machine.max_neurons)
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                "n_out": In(machine.max_neurons.bit_length()),
                "col_tiles": In((-(-machine.max_neurons // machine.cols)).bit_length()),
                "score_shift": In(FIELDS["score_shift"].width),
                "rate_shift": In(signed(FIELDS["rate_shift"].width)),
                **({"b_base": In(machine.bias_addr_bits)} if waits else {}),
                "in_valid": In(1),
                "in_neg": In(1),
                **({"in_saturated": In(1)} if holds else {}),
                "in_score": In(signed(SCORE_BITS)),
                "go": In(1),
                "label": In(softmax.label.shape()),
                "train": In(1),
                "done": Out(1),
                "prediction": Out(softmax.prediction.shape()),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
                "delta_go": In(1),
                "delta_made": Out(1),
                "delta_value": Out(signed(machine.delta_bits)),
                "delta_real": Out(1),
                "delta_fifo_data": Out(signed(machine.delta_bits)),
                "delta_fifo_level": Out(queue.level.shape()),
                "delta_pop": In(1),
                **(own or {}),
            }
        )

    def _build(self, m: Module) -> tuple[Signal, Signal, Signal, Signal, Value]:
        """Adds to `m` the softmax, the queue, but for its `valid, real` and signal, and the memory of slope bits, but
        for its reading.

        A word of the memory is `in_neg` and, above it, `in_saturated`. Returns `index`, the class of the
        softmax's `error_strobe` or the neuron of `issue`; `issue`: its signal is to be made; its column
        tile and column; and whether it is real.
        """
        m.submodules.softmax = softmax = self._softmax
        m.submodules.queue = queue = self._queue
        m.submodules.slopes = slopes = self._slopes
        m.d.comb += [
            softmax.start.eq(self.start),
            softmax.score_valid.eq(self.in_valid & self.is_output),
            softmax.score.eq(self.in_score),
            softmax.go.eq(self.go),
            softmax.train.eq(self.train),
            softmax.is_output.eq(self.is_output),
            softmax.label.eq(self.label),
            softmax.score_shift.eq(self.score_shift),
            self.done.eq(softmax.done),
            self.prediction.eq(softmax.prediction),
            self.report_valid.eq(softmax.report_valid),
            self.report_score.eq(softmax.report_score),
            slopes.write_en.eq(self.in_valid & ~self.is_output),
            slopes.write_data.eq(Cat(self.in_neg, self.in_saturated) if self._machine.learning.holds else self.in_neg),
        ]
        with m.If(self.start):
            m.d.sync += slopes.write_addr.eq(self.b_base if self._machine.learning.waits else 0)
        with m.Elif(self.in_valid):
            m.d.sync += slopes.write_addr.eq(slopes.write_addr + 1)

        # A layer's padding may go C - 1 beyond the widest layer.
        index = Signal((self._machine.max_neurons + self._machine.cols).bit_length())
        issue = Signal()
        tile, column, last = signal_order(m, self._machine, issue, self.delta_go, queue.room, self.col_tiles)
        with m.If(softmax.done | (issue & last)):
            m.d.sync += index.eq(0)
        with m.Elif(softmax.error_strobe | issue):
            m.d.sync += index.eq(index + 1)
        shift = left_shift(m, self._machine, self.rate_shift)
        m.d.comb += [
            queue.reserve.eq(issue),
            queue.left_shift.eq(shift),
            queue.pop.eq(self.delta_pop),
            self.delta_made.eq(queue.made),
            self.delta_value.eq(queue.value),
            self.delta_real.eq(queue.made_real),
            self.delta_fifo_data.eq(queue.head),
            self.delta_fifo_level.eq(queue.level),
        ]
        return index, issue, tile, column, index < self.n_out
