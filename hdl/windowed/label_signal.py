"""The learning signal of direct random target projection: hidden layers learn from the label alone."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal

from hdl.basis import BasisEntries
from hdl.memory import DualPortMemory
from hdl.windowed.bias_unit import WINDOW_WEIGHT_BITS
from hdl.windowed.error_signal import ErrorSignal
from hdl.windowed.window_signal import clipped, late
from spec import windowed_timing
from spec.basis import Basis
from spec.machine import ACT_BITS, ERROR_FRAC, Machine
from spec.windowed import SLOPE_SHIFT

__all__ = ["LabelSignal"]

_LARGEST = (1 << (ACT_BITS - 1)) - 1


class LabelSignal(ErrorSignal):
    """Of a hidden layer's latents it keeps whether each is the largest code or the smallest, and its A'.

    A hidden layer's signal phase takes n + LABEL_TAIL cycles. Ports: `WindowSignal`.
    """

    LATENCY = ErrorSignal.ERROR_LATENCY
    """Cycles from a latent's asking to its shifted signal."""

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self._basis = basis
        super().__init__(machine, classes, basis)

    def elaborate(self, platform) -> Module:
        m = Module()
        machine = self.machine
        issue = Signal()
        index, counter, window_ends = self._order(m, self.start | self.go, issue, issue)
        final = issue & (counter == self.latents - 1)
        m.d.sync += issue.eq((self.go & self.train & ~self.is_output) | (issue & ~final))

        m.submodules.basis = basis = BasisEntries(machine, self._basis, machine.neuron_bits)
        m.submodules.latents = latents = DualPortMemory(2 + WINDOW_WEIGHT_BITS, machine.max_neurons)
        ends = Cat(self.latent == _LARGEST, self.latent == ~_LARGEST)
        m.d.comb += [
            basis.index.eq(index),
            latents.read_addr.eq(index),
            latents.write_en.eq(self.latent_valid),
            latents.write_addr.eq(index),
            latents.write_data.eq(Cat(ends, self.latent_weight)),
        ]

        entry = Array(basis.entries)[self.label]
        if self._basis.kind != "sine":
            entry = Mux(basis.zero, 0, Mux(entry, 1, -1))
        # Minus one, with an error's fraction bits; exact, for a basis has fewer.
        target = -(entry << (ERROR_FRAC - self._basis.fraction_bits))
        value = clipped(Mux(self.is_output, self._softmax.error << 1, target))
        # Weights move against d: a negative one raises a latent.
        largest, smallest = latents.read_data[0], latents.read_data[1]
        further = ~self.is_output & Mux(value[-1], largest, smallest)
        self._build(m, issue, final, window_ends, Mux(further, 0, value))
        weight = late(m, latents.read_data[2:], self.LATENCY - 1, "weight")
        m.d.comb += self.delta_weight.eq(Mux(self.is_output, 1 << SLOPE_SHIFT, weight))
        return m


# A cycle of `go`, then a latent a cycle.
assert windowed_timing.LABEL_TAIL == 1 + LabelSignal.LATENCY
