"""The learning-signal unit: a layer's class scores, its errors, and one shifted signal a neuron."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.arith import delay_line, saturate, truncate
from hdl.class_lanes import ClassLanes, score_bits
from hdl.dense.delta import DeltaQueue
from hdl.memory import DualPortMemory
from hdl.softmax import QUOTIENT_BITS, SHIFT_BITS, Softmax
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import ACT_BITS, ERROR_BITS, SCORE_BITS, Machine
from spec.program import FIELDS
from spec.timing import DELTA_LATENCY

__all__ = ["LearningSignal"]

# The projection's product has 7 fraction bits more than the gradient.
_PROJECTION_SHIFT = 7
# Cycles from an operation on the lanes to the first multiplication that has to meet its result.
_LATENT_DELAY = ClassLanes.LATENCY - 4


class LearningSignal(wiring.Component):
    """Follows a layer through its phases: forward (`in_*`), signal (`go`), update (`delta_go`).

    Members
    -------
    start : In
        A layer begins; clears scores and norm.
    is_output, n_out, col_tiles, score_shift, rate_shift, label, train : In
        The layer's descriptor and the sample's label; constant from `start` on, the last two from
        `go` on, until the layer is done with. n_out <= col_tiles * C.
    in_valid, in_a, in_neg, in_score : In
        The layer's neurons in order, without padding: activation and sign of z (hidden layers),
        score (output layer).
    go, done : In, Out
        The signal phase, `go` not before the cycle after the last `in_valid`. `done` is its last
        cycle: 3K + SIGNAL_TAIL cycles, both ends counted, when `train` is set, else
        K + ARGMAX_TAIL.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores of the layer, in order, before the phase ends.
    delta_go : In
        Begins the update phase, in the cycle after `done` or later.
    delta_made, delta_value, delta_real : Out
        Each shifted signal as it is made, one a cycle: `col_tiles` * C of them, in order, those from
        n_out on being padding (0, `delta_real` 0).
    delta_fifo_data, delta_fifo_level, delta_pop : Out, Out, In
        The same through a queue: the oldest value; how many there are; takes it in this cycle.
        The first is there `LATENCY` cycles after `delta_go`, and then one more each cycle, until the
        queue is full.
    """

    LATENCY = DELTA_LATENCY

    start: Signal
    is_output: Signal
    n_out: Signal
    col_tiles: Signal
    score_shift: Signal
    rate_shift: Signal
    in_valid: Signal
    in_a: Signal
    in_neg: Signal
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

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        if basis.classes != classes:
            raise SpecError("basis.classes", f"must equal classes ({classes})", basis.classes)
        if machine.max_neurons < classes:
            raise SpecError(
                "max_neurons", f"must be at least the number of classes, {classes}",
                machine.max_neurons,
            )  # fmt: skip
        self.machine = machine
        # A layer's padding may go C - 1 beyond the widest layer.
        self._index_bits = (machine.max_neurons + machine.cols).bit_length()
        self._lanes = ClassLanes(machine, basis, self._index_bits)
        # q * a is at most 2^15 * 2^7; the class sum has lanes.bits + 1 bits.
        self._gradient_bits = 2 + max(QUOTIENT_BITS + 1, self._lanes.bits + 1)
        self._softmax = Softmax(machine, classes)
        self._queue = DeltaQueue(machine, self._gradient_bits)
        super().__init__(
            {
                "start": In(1),
                "is_output": In(1),
                "n_out": In(machine.max_neurons.bit_length()),
                "col_tiles": In((-(-machine.max_neurons // machine.cols)).bit_length()),
                "score_shift": In(FIELDS["score_shift"].width),
                "rate_shift": In(signed(FIELDS["rate_shift"].width)),
                "in_valid": In(1),
                "in_a": In(signed(ACT_BITS)),
                "in_neg": In(1),
                "in_score": In(signed(SCORE_BITS)),
                "go": In(1),
                "label": In(self._softmax.label.shape()),
                "train": In(1),
                "done": Out(1),
                "prediction": Out(self._softmax.prediction.shape()),
                "report_valid": Out(1),
                "report_score": Out(signed(SCORE_BITS)),
                "delta_go": In(1),
                "delta_made": Out(1),
                "delta_value": Out(signed(machine.delta_bits)),
                "delta_real": Out(1),
                "delta_fifo_data": Out(signed(machine.delta_bits)),
                "delta_fifo_level": Out(self._queue.level.shape()),
                "delta_pop": In(1),
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        m = Module()
        m.submodules.lanes = lanes = self._lanes
        m.submodules.softmax = softmax = self._softmax
        m.submodules.queue = queue = self._queue

        # -- one index: forward, the scores' reading, the errors' writing, update --------------------
        index = Signal(self._index_bits)
        issue = Signal()
        rewind = Signal()
        m.d.comb += rewind.eq(self.start | self.go | softmax.clear | softmax.done)
        with m.If(rewind):
            m.d.sync += index.eq(0)
        with m.Elif(self.in_valid | softmax.drain | softmax.error_strobe | issue):
            m.d.sync += index.eq(index + 1)
        forward = Signal()
        with m.If(self.start | self.go):
            m.d.sync += forward.eq(self.start)

        # -- class lanes ------------------------------------------------------------------------
        activation = Signal(signed(ACT_BITS), reset_less=True)
        addend = Signal(signed(ERROR_BITS), reset_less=True)
        m.d.sync += [
            activation.eq(self.in_a),
            addend.eq(Mux(forward, activation, softmax.error)),
        ]
        m.d.comb += [
            lanes.index.eq(index),
            lanes.hot.eq(softmax.drain | softmax.error_strobe | (issue & self.is_output)),
            lanes.write.eq(self.in_valid | softmax.error_strobe),
            lanes.addend.eq(addend),
            lanes.is_output.eq(self.is_output),
            lanes.clear.eq(self.start | softmax.clear),
        ]

        # -- latents; one multiplier for their squares and for the projection -----------------------
        latent = data.StructLayout({"a": signed(ACT_BITS), "neg": 1})
        m.submodules.latents = latents = DualPortMemory(
            latent.size, 1 << ceil_log2(machine.max_neurons)
        )
        kept = data.View(latent, latents.read_data)
        asked = delay_line(m, issue, _LATENT_DELAY, "asked")[-1]
        with m.If(rewind):
            m.d.sync += latents.read_addr.eq(0)
        with m.Elif(asked):
            m.d.sync += latents.read_addr.eq(latents.read_addr + 1)
        x = Signal(signed(ACT_BITS), reset_less=True)
        y = Signal(signed(QUOTIENT_BITS), reset_less=True)
        product = Signal(signed(ACT_BITS + QUOTIENT_BITS), reset_less=True)
        m.d.comb += [
            latents.write_en.eq(self.in_valid),
            latents.write_addr.eq(index),
            latents.write_data.eq(Cat(self.in_a, self.in_neg & ~self.is_output)),
        ]
        m.d.sync += [
            x.eq(Mux(forward, activation, kept.a)),
            y.eq(Mux(forward, activation, softmax.quotient)),
            product.eq(x * y),
        ]

        norm = Signal(machine.norm_bits)
        squared = delay_line(m, self.in_valid, 3, "squared")[-1]
        with m.If(self.start):
            m.d.sync += norm.eq(0)
        with m.Elif(squared):
            m.d.sync += norm.eq(norm + product[: 2 * ACT_BITS - 1])

        # -- scores and gradients: what the lanes give, less their offset and the projection ---------
        # The quotient is 0 while scores are read and in the output layer.
        offset = Cat(Const(1 << (_PROJECTION_SHIFT - 1), _PROJECTION_SHIFT), lanes.offset)
        projected = (product + offset.as_signed()) >> _PROJECTION_SHIFT
        subtrahend = Signal(projected.shape(), reset_less=True)
        result = Signal(signed(self._gradient_bits), reset_less=True)
        m.d.sync += [
            subtrahend.eq(projected),
            result.eq(truncate(lanes.weighted - subtrahend, len(result))),
        ]

        # -- errors -----------------------------------------------------------------------------
        drained = delay_line(m, softmax.drain, lanes.LATENCY + 1, "drained")[-1]
        hidden_score = saturate(truncate(result, score_bits(machine)), SCORE_BITS)
        m.d.comb += [
            softmax.start.eq(self.start),
            softmax.score_valid.eq(Mux(self.is_output, self.in_valid, drained)),
            softmax.score.eq(Mux(self.is_output, self.in_score, hidden_score)),
            softmax.go.eq(self.go),
            softmax.train.eq(self.train),
            softmax.is_output.eq(self.is_output),
            softmax.label.eq(self.label),
            softmax.score_shift.eq(self.score_shift),
            softmax.norm.eq(norm),
            self.done.eq(softmax.done),
            self.prediction.eq(softmax.prediction),
            self.report_valid.eq(softmax.report_valid),
            self.report_score.eq(softmax.report_score),
        ]

        # -- update: T * C signals ----------------------------------------------------------------
        making = Signal()
        column = Signal(range(machine.cols))
        tile = Signal.like(self.col_tiles)
        following = Signal.like(tile)
        last_column = column == machine.cols - 1
        last = last_column & (following == self.col_tiles)
        m.d.comb += [
            issue.eq((self.delta_go | making) & queue.room),
            following.eq(tile + 1),
        ]
        m.d.sync += making.eq((self.delta_go | making) & ~(issue & last))
        with m.If(issue):
            m.d.sync += column.eq(Mux(last_column, 0, column + 1))
            with m.If(last_column):
                m.d.sync += tile.eq(Mux(last, 0, following))

        # rate_shift + k is what the shifted signal lacks to F; it cannot shift right, nor too far.
        most = machine.delta_bits - ACT_BITS
        rate = Signal(signed(FIELDS["rate_shift"].width + 1), reset_less=True)
        left = Signal(signed(len(rate) + 1))
        left_shift = Signal.like(queue.left_shift, reset_less=True)
        m.d.comb += left.eq(machine.fraction_bits - rate)
        m.d.sync += [
            rate.eq(self.rate_shift + softmax.norm_shift),
            left_shift.eq(Mux(left < 0, 0, Mux(left > most, most, left))),
        ]

        real = index < self.n_out
        m.d.comb += [
            queue.reserve.eq(issue),
            queue.valid.eq(delay_line(m, issue, lanes.LATENCY + 1, "issued")[-1]),
            queue.g.eq(result),
            queue.neg.eq(
                delay_line(m, kept.neg, lanes.LATENCY - _LATENT_DELAY, "neg")[-1]
            ),
            queue.real.eq(delay_line(m, real, lanes.LATENCY + 1, "real")[-1]),
            queue.left_shift.eq(left_shift),
            self.delta_made.eq(queue.made),
            self.delta_value.eq(queue.value),
            self.delta_real.eq(queue.made_real),
            self.delta_fifo_data.eq(queue.head),
            self.delta_fifo_level.eq(queue.level),
            queue.pop.eq(self.delta_pop),
        ]
        return m


assert SHIFT_BITS == FIELDS["score_shift"].width
assert DELTA_LATENCY == ClassLanes.LATENCY + 1 + DeltaQueue.LATENCY + DeltaQueue.QUEUE_LATENCY
