"""The learning-signal unit of direct random target projection: hidden layers learn from the label alone."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed

from hdl.arith import delay_line
from hdl.basis import BasisEntries
from hdl.dense.delta import DeltaQueue
from hdl.dense.error_signal import ErrorSignal
from hdl.memory import DualPortMemory
from spec.basis import Basis
from spec.machine import ERROR_BITS, ERROR_FRAC, Machine
from spec.timing import delta_latency

__all__ = ["LabelSignal"]

# Twice an error, or 256 times an entry of the basis.
_GRADIENT_BITS = ERROR_BITS + 1


class LabelSignal(ErrorSignal):
    """A hidden layer's signal is made of its slope bits and the label's row of the basis; it has no signal phase.

    The output layer's errors wait in a memory for its update. Ports: `ErrorSignal`.

    Raises
    ------
    SpecError
        When `max_neurons` is less than `classes`.
    """

    LATENCY = delta_latency("drtp")

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        self._classes, self._basis = classes, basis
        super().__init__(machine, classes, DeltaQueue(machine, _GRADIENT_BITS))

    def elaborate(self, platform) -> Module:
        m = Module()
        index, issue, _, _, real = self._build(m)
        softmax, queue, slopes = self._softmax, self._queue, self._slopes
        assert isinstance(queue, DeltaQueue)
        m.submodules.basis = basis = BasisEntries(self._machine, self._basis, len(index))
        m.submodules.errors = errors = DualPortMemory(signed(ERROR_BITS), self._classes)
        m.d.comb += [
            errors.write_en.eq(delay_line(m, softmax.error_strobe, 1, "error")[-1]),
            errors.write_addr.eq(delay_line(m, index, 1, "class")[-1]),
            errors.write_data.eq(softmax.error),
            errors.read_addr.eq(index),
            basis.index.eq(index),
            slopes.read_addr.eq(index),
        ]

        entry = Array(basis.entries)[self.label]
        if self._basis.kind != "sine":
            entry = Mux(basis.zero, 0, Mux(entry, 1, -1))
        # Minus one, with an error's fraction bits; exact, for a basis has fewer.
        target = -(entry << (ERROR_FRAC - self._basis.fraction_bits))
        gradient = Signal(signed(_GRADIENT_BITS), reset_less=True)
        m.d.sync += gradient.eq(Mux(self.is_output, errors.read_data << 1, target))
        hidden = Mux(self.is_output, 0, slopes.read_data)
        m.d.comb += [
            queue.valid.eq(delay_line(m, issue, 2, "issued")[-1]),
            queue.real.eq(delay_line(m, real, 2, "real")[-1]),
            queue.g.eq(gradient),
            Cat(queue.neg, queue.saturated).eq(delay_line(m, hidden, 1, "hidden")[-1]),
        ]
        return m


assert LabelSignal.LATENCY == 2 + DeltaQueue.LATENCY + DeltaQueue.QUEUE_LATENCY
