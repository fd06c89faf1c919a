"""A scan shell: every port of the core behind five pins.

A core has some 150 port bits, more than small packages have pins, and pins that are not constrained spoil a
timing figure. The shell puts a register on every port bit: ``si`` shifts a frame in, ``load`` hands the frame to the
core's inputs for one cycle and captures its outputs, which then shift out on ``so``. So every path that the
timing report sees is a path between registers, as in a design that uses the core.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ScanShell"]


class ScanShell(wiring.Component):
    """Wraps ``core`` (any component whose ports are signals or structures).

    Latency: a frame is applied in the cycle after ``load``; its outputs are captured at the end of that cycle.

    Members
    -------
    si : 1 bit, In
        Serial input, one bit a cycle, first bit ends up in the last port bit.
    load : 1 bit, In
        Applies the frame for one cycle. Between frames all inputs of the core are 0.
    so : 1 bit, Out
        Serial output of the captured outputs, lowest bit first.
    """

    def __init__(self, core: wiring.Component):
        self._core = core
        super().__init__({"si": In(1), "load": In(1), "so": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        core: Any = self._core
        m.submodules.core = core
        inputs, outputs = [], []
        for _, member, value in core.signature.flatten(core):
            (inputs if member.flow == In else outputs).append(value)
        into, out_of = Cat(*inputs), Cat(*outputs)
        frame, applied = Signal(len(into)), Signal(len(into))
        capture, captured = Signal(), Signal(len(out_of))
        m.d.sync += [
            frame.eq(Cat(frame[1:], self.si)),
            applied.eq(0),
            capture.eq(self.load),
            captured.eq(captured >> 1),
        ]
        with m.If(self.load):
            m.d.sync += applied.eq(frame)
        with m.If(capture):
            m.d.sync += captured.eq(out_of)
        m.d.comb += [into.eq(applied), self.so.eq(captured[0])]
        return m
