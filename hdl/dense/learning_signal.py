"""The learning-signal unit: a layer's class scores, its errors, and one shifted signal a neuron."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.dense.delta import DeltaQueue, left_shift, signal_order
from hdl.signal_path import SignalPath
from hdl.softmax import SHIFT_BITS
from spec.basis import Basis
from spec.machine import ACT_BITS, SCORE_BITS, Machine
from spec.program import FIELDS
from spec.timing import DELTA_LATENCY

__all__ = ["LearningSignal"]

_SCORE_RATE = 20
"""What a hidden layer's `rate_shift - act_shift` lacks to the shift of the rate of its trained scores."""


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
        K + ARGMAX_TAIL; and those of `spec.timing.score_cycles`.
    prediction : Out
        Lowest class with the largest score; valid from the cycle after `done`.
    report_valid, report_score : Out
        All scores of the layer, in order, before the phase ends.
    act_shift : In
        With a trained part of the class scores, the layer's descriptor's.
    first_layer, host_... : see `SignalPath.ports`
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
    PROJECTS = True
    """Whether gradients lose their part along the activations; a rule's own unit may say otherwise."""

    start: Signal
    is_output: Signal
    n_out: Signal
    col_tiles: Signal
    score_shift: Signal
    rate_shift: Signal
    act_shift: Signal
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
        self.machine = machine
        # A layer's padding may go C - 1 beyond the widest layer.
        self._index_bits = (machine.max_neurons + machine.cols).bit_length()
        self._path = SignalPath(machine, classes, basis, self._index_bits, self.PROJECTS)
        softmax = self._path.softmax
        self._queue = DeltaQueue(machine, self._path.gradient_bits)
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
                "delta_fifo_level": Out(self._queue.level.shape()),
                "delta_pop": In(1),
                **({"act_shift": In(FIELDS["act_shift"].width)} if machine.learning.trains else {}),
                **self._path.ports,
            }
        )

    def elaborate(self, platform):
        machine = self.machine
        m = Module()
        softmax = self._path.softmax
        for name, block in self._path.submodules.items():
            m.submodules[name] = block
        m.submodules.queue = queue = self._queue

        # -- one index: forward, the scores' reading, the errors' writing, update --------------------
        index = Signal(self._index_bits)
        issue = Signal()
        rewind = Signal()
        m.d.comb += rewind.eq(self._path.rewind(self))
        with m.If(rewind):
            m.d.sync += index.eq(0)
        with m.Elif(self.in_valid | softmax.drain | self._path.error_strobe | issue):
            m.d.sync += index.eq(index + 1)
        gradient, neg = self._path.build(
            m,
            self,
            valid=self.in_valid,
            latent=self.in_a,
            kept=self.in_neg & ~self.is_output,
            score=self.in_score,
            index=index,
            rewind=rewind,
            issue=issue,
        )
        m.d.comb += [
            self.done.eq(softmax.done),
            self.prediction.eq(softmax.prediction),
            self.report_valid.eq(softmax.report_valid),
            self.report_score.eq(softmax.report_score),
        ]

        # -- update: T * C signals ----------------------------------------------------------------
        signal_order(m, machine, issue, self.delta_go, queue.room, self.col_tiles)
        shift = left_shift(m, machine, self.rate_shift + softmax.norm_shift)
        real = index < self.n_out
        if machine.learning.trains:
            self._path.train(
                m, self, start=self.start, latents=self.n_out, rate=self.rate_shift - self.act_shift + _SCORE_RATE,
                learn=issue & real & ~self.is_output,
            )  # fmt: skip
        m.d.comb += [
            queue.reserve.eq(issue),
            queue.valid.eq(delay_line(m, issue, SignalPath.LATENCY, "issued")[-1]),
            queue.g.eq(gradient),
            queue.neg.eq(
                delay_line(m, neg, SignalPath.LATENCY - SignalPath.KEPT_LATENCY, "neg")[-1]
            ),
            queue.real.eq(delay_line(m, real, SignalPath.LATENCY, "real")[-1]),
            queue.left_shift.eq(shift),
            self.delta_made.eq(queue.made),
            self.delta_value.eq(queue.value),
            self.delta_real.eq(queue.made_real),
            self.delta_fifo_data.eq(queue.head),
            self.delta_fifo_level.eq(queue.level),
            queue.pop.eq(self.delta_pop),
        ]
        return m


assert SHIFT_BITS == FIELDS["score_shift"].width
assert DELTA_LATENCY == SignalPath.LATENCY + DeltaQueue.LATENCY + DeltaQueue.QUEUE_LATENCY
