"""The learning-signal unit of direct feedback alignment: the output layer's error, through the basis, to all layers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed

from hdl.arith import delay_line, truncate
from hdl.class_lanes import ClassLanes
from hdl.dense.delta import DeltaQueue
from hdl.dense.error_signal import ErrorSignal
from spec.basis import Basis
from spec.machine import ERROR_BITS, Machine
from spec.timing import delta_latency

__all__ = ["FeedbackSignal"]


class FeedbackSignal(ErrorSignal):
    """The class lanes take the errors in the output layer's signal phase and keep them for the updates of all layers.

    Ports: `ErrorSignal`.

    Raises
    ------
    SpecError
        When `max_neurons` is less than `classes`.
    """

    LATENCY = delta_latency("dfa")

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        # A layer's padding may go C - 1 beyond the widest layer.
        self._lanes = ClassLanes(machine, basis, (machine.max_neurons + machine.cols).bit_length())
        # The difference of two numbers of lanes.bits + 1.
        self._gradient_bits = self._lanes.bits + 2
        super().__init__(machine, classes, DeltaQueue(machine, self._gradient_bits))

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = lanes = self._lanes
        index, issue, _, _, real = self._build(m)
        softmax, queue, slopes = self._softmax, self._queue, self._slopes
        assert isinstance(queue, DeltaQueue)

        addend = Signal(signed(ERROR_BITS), reset_less=True)
        subtrahend = Signal.like(lanes.offset, reset_less=True)
        gradient = Signal(signed(self._gradient_bits), reset_less=True)
        m.d.sync += [
            addend.eq(softmax.error),
            subtrahend.eq(lanes.offset),
            gradient.eq(truncate(lanes.weighted - subtrahend, len(gradient))),
        ]
        m.d.comb += [
            lanes.index.eq(index),
            lanes.hot.eq(softmax.error_strobe | (issue & self.is_output)),
            lanes.write.eq(softmax.error_strobe),
            lanes.addend.eq(addend),
            lanes.is_output.eq(self.is_output),
            lanes.clear.eq(self.go),
            slopes.read_addr.eq(self.b_base + index),
        ]
        latency = lanes.LATENCY + 1
        hidden = Mux(self.is_output, 0, slopes.read_data)
        m.d.comb += [
            queue.valid.eq(delay_line(m, issue, latency, "issued")[-1]),
            queue.real.eq(delay_line(m, real, latency, "real")[-1]),
            queue.g.eq(gradient),
            Cat(queue.neg, queue.saturated).eq(delay_line(m, hidden, latency - slopes.LATENCY, "hidden")[-1]),
        ]
        return m


assert FeedbackSignal.LATENCY == ClassLanes.LATENCY + 1 + DeltaQueue.LATENCY + DeltaQueue.QUEUE_LATENCY
