"""What the host can read about the past: cycles by phase, steps, samples."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.lfsr import PERIOD
from spec.memory_map import REGISTERS
from spec.timing import Phase

__all__ = ["Counters"]

_CLEARED = ("SAMPLES", "FORWARD_STEPS", *(f"CYCLES_{phase.name}" for phase in Phase))
_PERIODIC = ("UPDATE_STEPS", "BIAS_STEPS")


class Counters(wiring.Component):
    """One output a counter register of the address map, named like it, as wide as it.

    Counters that `clear` returns to 0 wrap at 2^32; `UPDATE_STEPS` and `BIAS_STEPS` count since reset
    modulo the LFSR's period, which is all that a later `ADVANCE` needs. An event counts in the cycle
    after it; an event in the cycle of `clear` is lost.

    Members
    -------
    phase : In
        A Phase; its counter counts every cycle.
    forward_step, update_step, bias_step, sample_done, clear : In
    """

    def __init__(self):
        events = ("forward_step", "update_step", "bias_step", "sample_done", "clear")
        outputs = {name: Out(REGISTERS[name].width) for name in (*_CLEARED, *_PERIODIC)}
        super().__init__({"phase": In(3), **{name: In(1) for name in events}, **outputs})

    def elaborate(self, platform) -> Module:
        m = Module()
        events = {"SAMPLES": self.sample_done, "FORWARD_STEPS": self.forward_step}
        events |= {f"CYCLES_{phase.name}": self.phase == phase for phase in Phase}
        for name, event in events.items():
            counter = getattr(self, name)
            with m.If(self.clear):
                m.d.sync += counter.eq(0)
            with m.Elif(event):
                m.d.sync += counter.eq(counter + 1)
        steps: dict[str, Signal] = {"UPDATE_STEPS": self.update_step, "BIAS_STEPS": self.bias_step}
        for name, step in steps.items():
            counter = getattr(self, name)
            with m.If(step):
                m.d.sync += counter.eq(Mux(counter == PERIOD - 1, 0, counter + 1))
        return m
