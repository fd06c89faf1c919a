"""A block small enough to trust, on which the runner and the streams are tested themselves."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Accumulator"]


class Accumulator(wiring.Component):
    """Adds up a stream of 8-bit numbers; the running sum (16 bits, wraps) is the output stream.

    The input ``fault`` makes it lose one result (1), give one twice (2) or give a wrong one (3), to
    show that the scoreboard notices. The combinational output ``echo`` is the input's payload plus
    one.
    """

    def __init__(self, machine: object):
        del machine
        super().__init__(
            {
                "inputs": In(stream.Signature(8)),
                "outputs": Out(stream.Signature(16)),
                "fault": In(2),
                "echo": Out(9),
            }
        )

    def elaborate(self, platform):
        """One register; takes a number whenever its own output is free."""
        m = Module()
        inputs, outputs = self.inputs, self.outputs
        count = Signal(8)
        spoil = Signal()
        again = Signal()
        free = ~outputs.valid | outputs.ready
        m.d.comb += [
            spoil.eq(count == 7),
            inputs.ready.eq(free & ~again),
            self.echo.eq(inputs.payload + 1),
        ]
        with m.If(free):
            m.d.sync += [outputs.valid.eq(again), again.eq(0)]
        with m.If(inputs.ready & inputs.valid):
            m.d.sync += [
                count.eq(count + 1),
                again.eq(spoil & (self.fault == 2)),
                outputs.valid.eq(~(spoil & (self.fault == 1))),
                outputs.payload.eq((outputs.payload + inputs.payload) ^ (spoil & (self.fault == 3))),
            ]
        return m
