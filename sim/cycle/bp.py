"""Backpropagation and direct feedback alignment on the same array: a model, no hardware yet.

Backpropagation (BP). Beyond the machine it needs: psum lanes that also run east, accumulators at the row ends, all
hidden layers' activations with a sign bit a neuron, and a memory of 8-bit deltas. It is taken at its best:

- the pass ``Wᵀδ`` walks the row tiles, and in each the column tiles, one step a cycle; row ends finish one a cycle,
  so the interval between row tiles is ``max(T, R)``. The first layer needs no such pass.
- its drain hides behind the update of the same layer, which follows at once: it costs ``(Rt-1)·max(T,R) + T`` cycles.
- deltas are there before the update that needs them, so an update does not wait ``DELTA_LATENCY`` for its first.
- the sign bits cost no energy, a descriptor is read again for every layer but the last.

Direct feedback alignment (DFA) sends the output error back through a fixed matrix, K products a neuron. It is made by
the learning-signal unit while the array updates, at no cycles of its own, and its matrix is taken to be of the same
kind as the network's basis, so that a table's bits favour neither rule. It too keeps all activations.
"""

from sim.cycle.counts import Counts, array_registers, entry_read, entry_sum, softmax
from sim.cycle.step import LayerStep
from spec.basis import Basis
from spec.machine import Machine
from spec.program import LayerDescriptor, Program
from spec.technology import weight_action
from spec.timing import DELTA_LATENCY, SETUP_CYCLES, SIGNAL_TAIL

__all__ = ["add_feedback", "add_transposed", "transposed_cycles"]


def transposed_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of a layer's pass ``Wᵀδ``."""
    interval = max(layer.col_tiles, machine.rows)
    return (layer.row_tiles - 1) * interval + layer.col_tiles


def add_transposed(machine: Machine, basis: Basis, program: Program, layers: list[LayerStep]) -> None:
    """Adds BP's learning signal to layers that have forward and update."""
    last = len(layers) - 1
    for step, layer in zip(layers, program.layers, strict=True):
        counts = step.counts
        if step.layer == last:
            step.cycles["signal"] += 3 * basis.classes + SIGNAL_TAIL
            counts += softmax(basis.classes)
        else:
            step.cycles["setup"] += SETUP_CYCLES
        if last > 0:
            step.cycles["update"] -= DELTA_LATENCY
        if step.layer > 0:
            step.cycles["signal"] += transposed_cycles(layer, machine)
            step.macs["signal"]["transposed weights"] = layer.n_in * layer.n_out
            counts += _transposed_counts(machine, layer)
            # Each delta is written once and read once more for the layer's own update.
            counts.add("signal", "delta memory", "activation_write", layer.n_in)
            counts.add("signal", "delta memory", "activation_read", layer.n_in)


def add_feedback(machine: Machine, basis: Basis, program: Program, layers: list[LayerStep]) -> None:
    """Adds DFA's learning signal to layers that have forward and update."""
    last = len(layers) - 1
    for step, layer in zip(layers, program.layers, strict=True):
        counts = step.counts
        if step.layer == last:
            step.cycles["signal"] += 3 * basis.classes + SIGNAL_TAIL
            counts += softmax(basis.classes)
            continue
        step.cycles["setup"] += SETUP_CYCLES
        step.cycles["update"] -= DELTA_LATENCY
        step.macs["signal"]["feedback"] = basis.classes * layer.n_out
        counts += entry_read(layer.n_out, basis) + entry_sum(layer.n_out, basis)


def _transposed_counts(machine: Machine, layer: LayerDescriptor) -> Counts:
    """The array's walk of ``Wᵀδ``: a delta a column and step, a psum a row."""
    counts, steps, pes = Counts(), layer.steps, machine.pes
    counts.add("signal", "multipliers", "multiply_8x16", steps * pes)
    counts.add("signal", "adders", "add_32", steps * (pes + machine.rows))
    counts.add("signal", "weight memory", weight_action(machine, "read"), steps * pes)
    counts.add("signal", "delta memory", "activation_read", steps * machine.cols)
    return counts + array_registers(machine, "signal", steps, machine.acc_bits * machine.rows)
