"""Trained classifiers in place of the basis: what the class lanes are where the rule trains all of it."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.class_lanes import ClassLanes
from hdl.feed import link
from hdl.score_lanes import ScoreLanes
from hdl.score_memory import FINE_BITS, host_ports, pass_host
from spec.machine import ACT_BITS, ERROR_BITS, SCORE_BITS, Machine

__all__ = ["LocalClassifier"]


class LocalClassifier(wiring.Component):
    """`ClassLanes` whose entries are the rows of a score memory, a latent's each; `hot` goes through the classes in
    order, whatever `index` says: as many readings as errors were written, or as there are classes.

    Members
    -------
    index, hot, write, addend, is_output, clear, weighted, offset : see `ClassLanes`
        A hot reading of a hidden layer gives a saturated score (s20). `addend` counts with `hot` alone.
    value, learn : In
        The latent of an operation without `hot`, in the cycle after it; and whether, being a reading, it also changes
        the latent's entries.
    fine, coarse, layer_start, first_layer, size, host_... : see `ScoreLanes`
    """

    LATENCY = ClassLanes.LATENCY

    index: Signal
    hot: Signal
    write: Signal
    addend: Signal
    is_output: Signal
    clear: Signal
    weighted: Signal
    offset: Signal
    value: Signal
    learn: Signal
    fine: Signal
    coarse: Signal
    layer_start: Signal
    first_layer: Signal
    size: Signal

    def __init__(self, machine: Machine, classes: int, index_bits: int):
        self._machine = machine
        self.addend_bits = ERROR_BITS
        self._lanes = lanes = ScoreLanes(machine, classes, classes, ACT_BITS, machine.max_neurons, index_bits)
        self.bits = max(SCORE_BITS, len(lanes.weighted)) - 1
        super().__init__(
            {
                "index": In(index_bits),
                "hot": In(1),
                "write": In(1),
                "addend": In(signed(self.addend_bits)),
                "is_output": In(1),
                "clear": In(1),
                "weighted": Out(signed(self.bits + 1)),
                "offset": Out(signed(1)),
                "value": In(signed(ACT_BITS)),
                "learn": In(1),
                "fine": In(FINE_BITS),
                "coarse": In(2),
                "layer_start": In(1),
                "first_layer": In(1),
                "size": In(lanes.size.shape()),
                **host_ports(machine),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lanes = lanes = self._lanes
        entered = delay_line(m, self.hot & self.write, 2, "entered")[-1]
        reads = delay_line(m, self.hot & ~self.write, self.LATENCY, "reads")
        first = Mux(self.is_output, lanes.first_error << 1, lanes.first_score)
        m.d.comb += [
            *link(lanes, self, "index", "learn", "value", "clear", "fine", "coarse"),
            *link(lanes, self, "layer_start", "first_layer", "size"),
            *pass_host(self, lanes, self._machine),
            lanes.gather.eq(self.write & ~self.hot),
            lanes.shift.eq(entered | reads[-2]),
            lanes.error.eq(self.addend),
            self.weighted.eq(Mux(reads[-1], first, lanes.weighted)),
        ]
        return m


assert LocalClassifier.LATENCY == ScoreLanes.LATENCY
# A score is read when all latents are in the lanes.
assert ScoreLanes.GATHER_LATENCY <= LocalClassifier.LATENCY
