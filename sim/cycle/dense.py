"""Closed forms of a step of fully connected layers at batch 1, as the dense datapath does it under each learning rule.

The phases, and where their cycles come from, are in ``docs/architecture.md`` and ``docs/rules.md``, section 2; the
constants are in ``spec.timing``. ``sim.cycle.stepped`` counts the same by walking the steps one by one.
"""

from sim.cycle.counts import (
    LOCAL_COSTS,
    Counts,
    array_registers,
    bias_pass,
    entry_read,
    entry_sum,
    neuron_bits,
    row_read,
    softmax,
)
from sim.cycle.step import LayerStep, Step, multiplied
from spec.basis import Basis
from spec.machine import Machine
from spec.network import Network
from spec.program import LayerDescriptor, Program
from spec.rules import RULES, part
from spec.technology import weight_action
from spec.timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FORWARD_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    score_cycles,
    tile_interval,
    update_tail,
)

__all__ = [
    "back_cycles",
    "forward_counts",
    "forward_cycles",
    "inference_step",
    "training_step",
    "update_counts",
    "update_cycles",
]


def forward_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of a layer's ``forward``."""
    return _walk_cycles(layer, machine) + FORWARD_TAIL


def update_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of a layer's ``update``, when it trains."""
    return _walk_cycles(layer, machine) + update_tail(machine.rule)


def back_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of the way back through a layer: row ends finish one a cycle, and its drain is not waited for."""
    interval = max(layer.col_tiles, machine.rows)
    return (layer.row_tiles - 1) * interval + layer.col_tiles + BACK_TAIL


def training_step(machine: Machine, network: Network, program: Program) -> Step:
    """A sample with a label, under the machine's rule. ``program``: of the network on the machine."""
    return _step(machine.rule, machine, network, program)


def inference_step(machine: Machine, network: Network, program: Program) -> Step:
    """A sample without a label."""
    return _step("inference", machine, network, program)


def _step(rule: str, machine: Machine, network: Network, program: Program) -> Step:
    """What the machine does under its own rule, or without a label (``inference``)."""
    learning, learns = machine.learning, RULES[rule].learns
    layers = []
    for number, layer in enumerate(program.layers):
        trains = learns and bool(layer.train)
        goes_back = trains and learning.transposes and bool(layer.trains_below)
        returns = learns and not layer.is_output and bool(program.layers[number + 1].trains_below)
        weights = layer.n_in * layer.n_out
        cycles = {
            "setup": SETUP_CYCLES * (1 + returns),
            "forward": forward_cycles(layer, machine),
            "signal": _signal_cycles(layer, machine, network.classes, trains),
            "update": update_cycles(layer, machine) if trains else 0,
            "finish": 0,
        }
        macs: dict[str, dict[str, int]] = {"forward": {"matrix": weights}, "signal": {}, "update": {}}
        counts = forward_counts(machine, layer, first=number == 0)
        if trains:
            macs["update"] = {"matrix": weights}
            counts += update_counts(machine, layer)
            if layer.is_output:
                counts += _error_counts(machine, network.classes)
            else:
                parts, work = _hidden_signal(machine, network, number)
                macs["signal"] |= parts
                counts += work
        if goes_back:
            cycles["signal"] += back_cycles(layer, machine)
            macs["signal"]["transposed weights"] = weights
            counts += _back_counts(machine, layer)
        multiplications = multiplied(macs, network.basis)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts, multiplications))
    return Step(rule, machine, network, program, tuple(layers))


def _walk_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """From a layer's first step to the last one's arrival in the last PE."""
    issue = (layer.col_tiles - 1) * tile_interval(layer.row_tiles, machine.cols) + layer.row_tiles
    return issue + machine.rows + machine.cols


def _signal_cycles(layer: LayerDescriptor, machine: Machine, classes: int, trains: bool) -> int:
    """Walks over the classes: three for errors, one for the largest score."""
    scores = machine.learning.scores
    trained, inferred = score_cycles(machine.learning.trains, machine.vectors or classes)
    if trains and (layer.is_output or scores):
        return 3 * classes + (SIGNAL_TAIL + trained if scores else PLAIN_SIGNAL_TAIL)
    if layer.is_output:
        return classes + (ARGMAX_TAIL + inferred if scores else PLAIN_ARGMAX_TAIL)
    return 0


def forward_counts(machine: Machine, layer: LayerDescriptor, first: bool) -> Counts:
    """The array's forward walk; the first layer's input is counted as it is loaded."""
    counts, steps, pes = Counts(), layer.steps, machine.pes
    counts.add("forward", "multipliers", "multiply_8x16", steps * pes)
    counts.add("forward", "adders", "add_32", steps * (pes + machine.cols))
    counts.add("forward", "weight memory", weight_action(machine, "read"), steps * pes)
    counts.add("forward", "activation memory", "activation_read", steps * machine.rows)
    counts += array_registers(machine, "forward", steps, machine.acc_bits * machine.cols)
    counts += bias_pass(machine, layer, "forward")
    written = (layer.n_in if first else 0) + (0 if layer.is_output else layer.n_out)
    counts.add("forward", "activation memory", "activation_write", written)
    return counts


def update_counts(machine: Machine, layer: LayerDescriptor) -> Counts:
    """The array's update walk: every weight of every tile is read, changed and written back."""
    counts, steps, pes = Counts(), layer.steps, machine.pes
    counts.add("update", "multipliers", "multiply_8x18", steps * pes)
    counts.add("update", "adders", "add_32", steps * pes)
    counts.add("update", "weight memory", weight_action(machine, "read"), steps * pes)
    counts.add("update", "weight memory", weight_action(machine, "write"), steps * pes)
    counts.add("update", "activation memory", "activation_read", steps * machine.rows)
    counts += array_registers(machine, "update", steps, 0)
    counts += bias_pass(machine, layer, "update")
    if machine.learning.transposes:
        counts.add("signal", "delta memory", "activation_read", layer.col_tiles * machine.cols * _bytes(machine))
    return counts


def _error_counts(machine: Machine, classes: int) -> Counts:
    """The output layer's errors, which backpropagation keeps as its signals."""
    counts = softmax(classes)
    if machine.learning.transposes:
        counts.add("signal", "delta memory", "activation_write", classes * _bytes(machine))
    return counts


def _hidden_signal(machine: Machine, network: Network, number: int) -> tuple[dict[str, int], Counts]:
    """MACs by part, and actions, of the signals of hidden layer ``number``.

    Those of the way back are with the layer that it leads through.
    """
    rule, basis, n = machine.learning, Basis(network.basis, network.classes), network.geometry[number].latents
    if rule.scores:
        return part(LOCAL_COSTS, rule)(network, machine, number)
    kept = neuron_bits(n, rule)
    if rule.error == "output":
        return {"feedback": n * basis.classes}, kept + entry_read(n, basis) + entry_sum(n, basis)
    return {}, kept + row_read(n, basis) if rule.error == "label" else kept


def _back_counts(machine: Machine, layer: LayerDescriptor) -> Counts:
    """The array's walk of ``Wᵀδ``: a signal a column and step, a psum a row; of a sum a signal is written."""
    counts, steps, pes = Counts(), layer.steps, machine.pes
    # A technology prices by the product of the widths, and 12 x 16 bits are 8 x 16 and 8 x 8.
    counts.add("signal", "multipliers", "multiply_8x16", steps * pes)
    counts.add("signal", "multipliers", "multiply_8x8", steps * pes)
    counts.add("signal", "adders", "add_32", steps * (pes + machine.rows))
    counts.add("signal", "weight memory", weight_action(machine, "read"), steps * pes)
    counts.add("signal", "delta memory", "activation_read", steps * machine.cols * _bytes(machine))
    counts.add("signal", "delta memory", "activation_write", layer.n_in * _bytes(machine))
    return counts + array_registers(machine, "signal", steps, machine.back_sum_bits * machine.rows)


def _bytes(machine: Machine) -> int:
    """Accesses of 8 bits that a kept signal takes."""
    return -(-machine.signal_bits // 8)
