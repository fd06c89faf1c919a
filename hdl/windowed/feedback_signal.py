"""The learning signal of direct feedback alignment: the output layer's errors, through the basis, to all layers."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib.wiring import In

from hdl.arith import delay_line, truncate
from hdl.class_lanes import ClassLanes
from hdl.memory import DualPortMemory
from hdl.windowed.error_signal import ErrorSignal
from hdl.windowed.window_signal import clipped
from spec import windowed_timing
from spec.basis import Basis
from spec.machine import ERROR_BITS, Machine

__all__ = ["FeedbackSignal"]


class FeedbackSignal(ErrorSignal):
    """Keeps the errors of a batch's samples; the class lanes take those of one in each signal phase of a hidden layer.

    Such a phase takes K + n + FEEDBACK_TAIL cycles. Ports: `WindowSignal`, and

    layer_start : In, pulse
        A layer's first sample begins, forward or, on the way back, with its `go`. Samples come in the same order.
    """

    LATENCY = ClassLanes.LATENCY + ErrorSignal.ERROR_LATENCY
    """Cycles from a latent's asking to its shifted signal."""

    layer_start: Signal

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self._classes = classes
        self._lanes = ClassLanes(machine, basis, machine.neuron_bits)
        super().__init__(machine, classes, basis, {"layer_start": In(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = lanes = self._lanes
        softmax = self._softmax

        # -- the sample's errors into the lanes, then its latents, one a cycle -----------------------------------------
        index = Signal(self.machine.neuron_bits)
        loading, loaded, issue = Signal(), Signal(), Signal()
        window = Signal.like(self.windows)  # how many of a channel have begun
        window_ends = window == self.windows
        load_final = loading & (index == self._classes - 1)
        final = issue & (index == self.latents - 1)
        m.d.sync += [
            loading.eq((self.go & self.train & ~self.is_output) | (loading & ~load_final)),
            # The lanes' write needs a cycle more than their reading.
            loaded.eq(load_final),
            issue.eq(loaded | (issue & ~final)),
        ]
        with m.If(self.go | load_final):
            m.d.sync += [index.eq(0), window.eq(0)]
        with m.Elif(loading | issue):
            m.d.sync += index.eq(index + 1)
            with m.If(issue):
                m.d.sync += window.eq(Mux(window_ends, 1, window + 1))

        # -- the batch's errors: written as they are made, read as lanes are loaded ------------------------------------
        depth = self.machine.max_batch * self._classes
        m.submodules.errors = errors = DualPortMemory(signed(ERROR_BITS), depth)
        place = Signal(range(depth))
        made = delay_line(m, softmax.error_strobe, 1, "error")[-1]
        m.d.comb += [
            errors.write_en.eq(made),
            errors.write_addr.eq(place),
            errors.write_data.eq(softmax.error),
            errors.read_addr.eq(place),
        ]
        with m.If(self.layer_start):
            m.d.sync += place.eq(0)
        with m.Elif(made | loading):
            m.d.sync += place.eq(place + 1)

        # -- gradients -------------------------------------------------------------------------------------------------
        addend = Signal(signed(ERROR_BITS), reset_less=True)
        subtrahend = Signal.like(lanes.offset, reset_less=True)
        gradient = Signal(signed(lanes.bits + 2), reset_less=True)  # the difference of two numbers of lanes.bits + 1
        m.d.sync += [
            addend.eq(errors.read_data),
            subtrahend.eq(lanes.offset),
            gradient.eq(truncate(lanes.weighted - subtrahend, len(gradient))),
        ]
        m.d.comb += [
            lanes.index.eq(index),
            lanes.hot.eq(loading),
            lanes.write.eq(loading),
            lanes.addend.eq(addend),
            lanes.clear.eq(self.go),
        ]
        # A gradient is there one cycle after the lanes' sum, as an error is after its strobe.
        issued, last, channel_ends = (
            delay_line(m, flag, lanes.LATENCY, name)[-1]
            for flag, name in ((issue, "issued"), (final, "last"), (window_ends, "channel_ends"))
        )
        self._build(m, issued, last, channel_ends, clipped(Mux(self.is_output, softmax.error << 1, gradient)))
        return m


assert ClassLanes.WRITE_LATENCY == 2
# A cycle of `go`, K errors, one for the last to be there, n latents.
assert windowed_timing.FEEDBACK_TAIL == 1 + ClassLanes.WRITE_LATENCY - 1 + FeedbackSignal.LATENCY
