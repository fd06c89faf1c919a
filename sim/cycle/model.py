"""Closed forms of a training step: cycles by phase, multiplications and actions, layer by layer.

The phases, and where their cycles come from, are in ``docs/architecture.md``, section 2; the constants are in
``spec.timing``. ``sim.cycle.stepped`` counts the same by walking the steps one by one.

Cycles are counted by what the sequencer does, actions and multiplications by what the work is *for*: the class scores
are formed while the sequencer is in ``forward``, but they are the learning signal's.
"""

from dataclasses import dataclass

from sim.cycle import bp
from sim.cycle.counts import (
    PURPOSES,
    Counts,
    array_registers,
    bias_pass,
    entry_read,
    entry_sum,
    softmax,
)
from spec.basis import Basis
from spec.errors import SpecError, check_choice
from spec.machine import Machine
from spec.network import Network
from spec.program import LayerDescriptor, Program, compile_program
from spec.technology import weight_action
from spec.timing import (
    ARGMAX_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    UPDATE_TAIL,
    tile_interval,
)

__all__ = [
    "CYCLE_PHASES",
    "LABELS",
    "RULES",
    "LayerStep",
    "Step",
    "forward_cycles",
    "inference_step",
    "training_step",
    "update_cycles",
]

RULES = ("lls", "bp", "dfa")
LABELS = {
    "lls": "closed form, equal to the RTL on every tested shape",
    "bp": "model, no hardware yet",
    "dfa": "model, no hardware yet",
}
"""What a rule's figures are."""
CYCLE_PHASES = ("setup", "forward", "signal", "update", "finish")
"""The phases of a step; ``wait`` is not one, since it depends on the host."""


@dataclass(frozen=True)
class LayerStep:
    """A layer's share of a step.

    ``cycles`` by phase; ``macs``: multiplications that the arithmetic needs, by purpose and part (padding is
    not among them); ``counts``: what the machine does, padding included.
    """

    layer: int
    n_in: int
    n_out: int
    cycles: dict[str, int]
    macs: dict[str, dict[str, int]]
    counts: Counts


@dataclass(frozen=True)
class Step:
    """One sample's way through the machine. ``useful_macs``: forward and weight gradient, as every rule needs."""

    rule: str
    machine: Machine
    network: Network
    program: Program
    layers: tuple[LayerStep, ...]
    useful_macs: int

    @property
    def cycles_by_phase(self) -> dict[str, int]:
        """Cycles of all layers by phase, with the step's one ``finish``."""
        total = {phase: sum(layer.cycles[phase] for layer in self.layers) for phase in CYCLE_PHASES}
        total["finish"] = FINISH_CYCLES
        return total

    @property
    def cycles(self) -> int:
        """Cycles of the step, ``wait`` apart."""
        return sum(self.cycles_by_phase.values())

    @property
    def macs_by_phase(self) -> dict[str, int]:
        """Multiplications by purpose: forward, learning signal, weight gradient."""
        return {purpose: sum(sum(layer.macs[purpose].values()) for layer in self.layers) for purpose in PURPOSES}

    @property
    def signal_macs(self) -> dict[str, int]:
        """The learning signal's multiplications by part."""
        parts: dict[str, int] = {}
        for layer in self.layers:
            for part, number in layer.macs["signal"].items():
                parts[part] = parts.get(part, 0) + number
        return parts

    @property
    def macs(self) -> int:
        """Multiplications of the whole step."""
        return sum(self.macs_by_phase.values())

    @property
    def utilization(self) -> float:
        """Useful MACs over those possible, R·C a cycle. For all rules alike: a learning signal's are not counted."""
        return self.useful_macs / (self.machine.pes * self.cycles)

    @property
    def counts(self) -> Counts:
        """All layers' actions."""
        total = Counts()
        for layer in self.layers:
            total += layer.counts
        return total


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


def training_step(machine: Machine, network: Network, rule: str = "lls", train_hidden: bool = True) -> Step:
    """A training step of batch 1.

    ``rule``: ``lls``, the machine as it is (``train_hidden=False``: its hidden layers are frozen), or ``bp``, ``dfa``:
    models of ``sim.cycle.bp``. Raises SpecError when the network does not fit the machine.
    """
    check_choice("rule", rule, RULES)
    if rule != "lls" and not train_hidden:
        raise SpecError("train_hidden", f"must be true for rule {rule}", train_hidden)
    program = compile_program(network, machine, train_hidden=train_hidden)
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
    return Step(rule, machine, network, program, tuple(layers), 2 * network.macs)


def inference_step(machine: Machine, network: Network) -> Step:
    """A sample without a label: forward, and a walk over the output layer's scores."""
    program = compile_program(network, machine)
    layers = []
    for number, layer in enumerate(program.layers):
        cycles = {"setup": SETUP_CYCLES, "forward": forward_cycles(layer, machine), "finish": 0}
        cycles |= {"signal": network.classes + ARGMAX_TAIL if layer.is_output else 0, "update": 0}
        macs = {"forward": {"matrix": layer.n_in * layer.n_out}, "signal": {}, "update": {}}
        counts = _forward_counts(machine, layer, first=number == 0)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts))
    return Step("inference", machine, network, program, tuple(layers), network.macs)


def _local_step(machine: Machine, network: Network, program: Program) -> Step:
    """LLS: each layer is forward, signal and update before the next one begins."""
    basis = Basis(network.basis, network.classes)
    K = network.classes
    layers, updated = [], 0
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
            updated += layer.n_in * layer.n_out
            counts += softmax(K)
            counts += _update_counts(machine, layer)
            if not layer.is_output:
                macs["signal"] = _local_macs(layer.n_out, K)
                counts += _local_counts(layer.n_out, basis)
        layers.append(LayerStep(number, layer.n_in, layer.n_out, cycles, macs, counts))
    return Step("lls", machine, network, program, tuple(layers), network.macs + updated)


def _local_macs(n: int, K: int) -> dict[str, int]:
    """Of a hidden layer's signal: class scores and ``G = Bᵀe``; the norm; the projection ``Σ e·s`` and ``q·a``."""
    return {"scores": K * n, "gradient": K * n, "norm": n, "projection": K + n}


def _local_counts(n: int, basis: Basis) -> Counts:
    """What a hidden layer's signal does: twice the basis, the norm, the projection, the latent memory."""
    counts = entry_read(2 * n, basis) + entry_sum(2 * n, basis)
    counts.add("signal", "signal arithmetic", "multiply_8x8", n)
    counts.add("signal", "signal arithmetic", "add_32", n + basis.classes)
    counts.add("signal", "signal arithmetic", "multiply_16x16", basis.classes + 1)
    counts.add("signal", "signal arithmetic", "multiply_8x16", n)
    counts.add("signal", "signal arithmetic", "add_16", n)
    counts.add("signal", "latent memory", "activation_write", n)
    counts.add("signal", "latent memory", "activation_read", n)
    return counts


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
