"""Closed forms of a training step of fully connected layers at batch 1, as the dense datapath does it.

The phases, and where their cycles come from, are in ``docs/architecture.md``, section 2; the constants are in
``spec.timing``. ``sim.cycle.stepped`` counts the same by walking the steps one by one.
"""

from dataclasses import replace

from sim.cycle import bp
from sim.cycle.counts import Counts, array_registers, bias_pass, local_counts, local_macs, softmax
from sim.cycle.step import LayerStep, Step, multiplied
from spec.basis import Basis
from spec.machine import Machine
from spec.network import Network
from spec.program import LayerDescriptor, Program
from spec.technology import weight_action
from spec.timing import (
    ARGMAX_TAIL,
    FORWARD_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    UPDATE_TAIL,
    tile_interval,
)

__all__ = ["forward_cycles", "inference_step", "training_step", "update_cycles"]


def forward_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of a layer's ``forward``."""
    interval = tile_interval(layer.row_tiles, machine.cols)
    issue = (layer.col_tiles - 1) * interval + layer.row_tiles
    return issue + machine.rows + machine.cols + FORWARD_TAIL


def update_cycles(layer: LayerDescriptor, machine: Machine) -> int:
    """Cycles of a layer's ``update``, when it trains."""
    interval = tile_interval(layer.row_tiles, machine.cols)
    issue = (layer.col_tiles - 1) * interval + layer.row_tiles
    return issue + machine.rows + machine.cols + UPDATE_TAIL


def training_step(machine: Machine, network: Network, program: Program, rule: str) -> Step:
    """A training step; ``rule`` is ``lls``, ``bp`` or ``dfa``. ``program``: of the network on the machine."""
    if rule == "lls":
        return _local_step(machine, network, program)
    layers = []
    for number, layer in enumerate(program.layers):
        counts = _forward_counts(machine, layer, first=number == 0)
        cycles = {"setup": SETUP_CYCLES, "forward": forward_cycles(layer, machine), "finish": 0}
        cycles |= {"signal": 0, "update": update_cycles(layer, machine)}
        macs = {"forward": {"matrix": layer.n_in * layer.n_out}, "signal": {}}
        macs["update"] = {"matrix": layer.n_in * layer.n_out}
        counts += _update_counts(machine, layer)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts))
    basis = Basis(network.basis, network.classes)
    add = bp.add_transposed if rule == "bp" else bp.add_feedback
    add(machine, basis, program, layers)
    return _step(rule, machine, network, program, layers)


def inference_step(machine: Machine, network: Network, program: Program) -> Step:
    """A sample without a label."""
    layers = []
    for number, layer in enumerate(program.layers):
        cycles = {"setup": SETUP_CYCLES, "forward": forward_cycles(layer, machine), "finish": 0}
        cycles |= {"signal": network.classes + ARGMAX_TAIL if layer.is_output else 0, "update": 0}
        macs = {"forward": {"matrix": layer.n_in * layer.n_out}, "signal": {}, "update": {}}
        counts = _forward_counts(machine, layer, first=number == 0)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts))
    return _step("inference", machine, network, program, layers)


def _step(rule: str, machine: Machine, network: Network, program: Program, layers: list[LayerStep]) -> Step:
    """The step of these layers, whose MACs are complete."""
    done = (replace(layer, multiplications=multiplied(layer.macs, network.basis)) for layer in layers)
    return Step(rule, machine, network, program, tuple(done))


def _local_step(machine: Machine, network: Network, program: Program) -> Step:
    """LLS: each layer is forward, signal and update before the next one begins."""
    basis = Basis(network.basis, network.classes)
    K = network.classes
    layers = []
    for number, layer in enumerate(program.layers):
        counts = _forward_counts(machine, layer, first=number == 0)
        cycles = {"setup": SETUP_CYCLES, "forward": forward_cycles(layer, machine), "finish": 0}
        cycles |= {"signal": 0, "update": 0}
        macs: dict[str, dict[str, int]] = {"forward": {"matrix": layer.n_in * layer.n_out}}
        macs |= {"signal": {}, "update": {}}
        if layer.train:
            cycles["signal"] = 3 * K + SIGNAL_TAIL
            cycles["update"] = update_cycles(layer, machine)
            macs["update"] = {"matrix": layer.n_in * layer.n_out}
            counts += softmax(K)
            counts += _update_counts(machine, layer)
            if not layer.is_output:
                macs["signal"] = local_macs(layer.n_out, K)
                counts += local_counts(layer.n_out, basis)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts))
    return _step("lls", machine, network, program, layers)


def _forward_counts(machine: Machine, layer: LayerDescriptor, first: bool) -> Counts:
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


def _update_counts(machine: Machine, layer: LayerDescriptor) -> Counts:
    """The array's update walk: every weight of every tile is read, changed and written back."""
    counts, steps, pes = Counts(), layer.steps, machine.pes
    counts.add("update", "multipliers", "multiply_8x18", steps * pes)
    counts.add("update", "adders", "add_32", steps * pes)
    counts.add("update", "weight memory", weight_action(machine, "read"), steps * pes)
    counts.add("update", "weight memory", weight_action(machine, "write"), steps * pes)
    counts.add("update", "activation memory", "activation_read", steps * machine.rows)
    counts += array_registers(machine, "update", steps, 0)
    counts += bias_pass(machine, layer, "update")
    return counts
