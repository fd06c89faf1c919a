"""Bytes that a training step keeps, by purpose.

What a rule needs on this machine with the padding that its placement brings; not what the machine has: that
is fixed when it is built (``allocated_bytes``). All of it is alive at once, so the peak is the sum. A few
registers a class (scores, errors) are left out, alike for every rule. ``sim.cycle.windowed_memory`` has the bytes of
convolutions and batches.
"""

from sim.cycle import forward_forward
from sim.cycle.counts import kept_bits, score_memory_bytes, trained_bytes
from sim.cycle.step import Step
from sim.cycle.windowed_counts import INDEX_BITS
from sim.cycle.windowed_memory import windowed_memory_bytes
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.network import Network
from spec.program import Program
from spec.rules import RULES
from spec.scores import score_basis

__all__ = [
    "LARGE_BATCH",
    "MEMORIES",
    "allocated_bytes",
    "delta_queue_depth",
    "memory_by_batch",
    "memory_bytes",
    "peak_bytes",
]

MEMORIES = (
    "weights",
    "biases",
    "input buffers",
    "activations",
    "slopes",
    "latents",
    "basis table",
    "trained scores",
    "deltas",
)
"""Purposes."""
LARGE_BATCH = 128
"""The batch at which the paper's claim about memory was measured."""


def memory_bytes(step: Step) -> dict[str, int]:
    """Bytes by purpose, for the batch of the step."""
    if isinstance(step.program, Program):
        if step.rule == forward_forward.RULE:
            return dict.fromkeys(MEMORIES, 0) | forward_forward.memory_bytes(step, step.program)
        return _dense_bytes(step, step.program)
    return windowed_memory_bytes(step.network, step.machine, step.rule, step.batch)


def memory_by_batch(step: Step) -> dict[int, dict[str, int]]:
    """Bytes by purpose at batch 1, at the step's batch and at ``LARGE_BATCH``: what fits on the machine or not."""
    if isinstance(step.program, Program):
        return {1: memory_bytes(step)}
    batches = sorted({1, step.batch, LARGE_BATCH})
    return {batch: windowed_memory_bytes(step.network, step.machine, step.rule, batch) for batch in batches}


def peak_bytes(step: Step) -> int:
    """Bytes in all."""
    return sum(memory_bytes(step).values())


def allocated_bytes(machine: Machine, network: Network) -> dict[str, int]:
    """Bytes that the machine has: PE memories, biases, activation banks; slope bits and signals; trained parameters of
    the class scores, whose words follow from the network's classes.

    A machine for convolutions that does not learn lacks slope bits and signals, a rule that trains none of its scores
    the last; under BP slope bits are with indices.
    """
    biases = machine.bias_bank_depth * machine.cols if machine.windowed else machine.bias_depth
    found = {
        "weights": machine.pes * machine.weight_depth * WEIGHT_BITS // 8,
        "biases": biases * WEIGHT_BITS // 8,
        "activation banks": machine.rows * machine.activation_depth * ACT_BITS // 8,
    }
    if machine.windowed and machine.learning.learns:
        transposes = machine.learning.transposes
        indices = machine.index_depth * INDEX_BITS if transposes else 0
        found["slopes"] = _bytes((machine.slope_depth + indices) * machine.cols)
        width = machine.signal_bits if transposes else machine.delta_bits
        found["signals"] = _bytes(machine.signal_depth * machine.cols * width)
    if machine.learning.trains:
        found["trained scores"] = score_memory_bytes(network, machine)
    return found


def delta_queue_depth(machine: Machine) -> int:
    """Shifted signals that the learning-signal unit's queue holds: two a column and what is on its way, rounded up."""
    return 1 << (max(2 * machine.cols + 8, 16) - 1).bit_length()


def _dense_bytes(step: Step, program: Program) -> dict[str, int]:
    """Bytes by purpose of fully connected layers at batch 1.

    ``activations``: two layers' (the one being read, the one being written), of a rule that waits every hidden layer's.
    ``slopes``: what is kept of a neuron beside its activation (``kept_bits``), of those that are to be updated; LLS
    keeps it with its ``latents``, the learning-signal unit's copy of the layer being trained, 9 bits each. ``trained
    scores``: of all hidden layers, 24 bits a parameter; they stand for the basis where that is trained. ``deltas``:
    the FIFO of shifted signals; for BP also the signals of the two layers between which they are passed, in two halves
    of C banks.
    """
    machine, network, layers = step.machine, step.network, program.layers
    rule, basis = RULES[step.rule], score_basis(network, machine)
    hidden = [layer.n_out for layer in layers if not layer.is_output]
    banks = [_padded(n, machine.rows) for n in hidden]
    largest = max(hidden, default=0)
    found = {
        "weights": sum(layer.steps for layer in layers) * machine.pes * WEIGHT_BITS // 8,
        "biases": sum(layer.n_out for layer in layers) * WEIGHT_BITS // 8,
        "input buffers": 2 * program.input_words * machine.rows,
        "activations": sum(banks) if rule.waits else _in_turn(banks),
        "slopes": 0,
        "latents": 0,
        "basis table": 0,
        "trained scores": trained_bytes(network, machine) if rule.trains else 0,
        "deltas": _bytes(delta_queue_depth(machine) * machine.delta_bits) if rule.learns else 0,
    }
    if rule.scores:
        found["latents"] = _bytes(largest * (ACT_BITS + 1))
    elif rule.learns:
        found["slopes"] = _bytes((sum(hidden) if rule.waits else largest) * kept_bits(rule))
    if rule.basis and rule.trains != "basis" and basis.kind != "walsh":
        found["basis table"] = _bytes(largest * basis.classes * basis.entry_bits)
    if rule.transposes:
        signals = _in_turn([_padded(layer.n_out, machine.cols) for layer in layers])
        found["deltas"] += _bytes(signals * machine.signal_bits)
    return {name: found[name] for name in MEMORIES}


def _in_turn(sizes: list[int]) -> int:
    """What two places hold when layers use them in turn."""
    return sum(max(sizes[parity::2], default=0) for parity in (0, 1))


def _padded(n: int, banks: int) -> int:
    """Elements of ``n`` placed in so many banks."""
    return -(-n // banks) * banks


def _bytes(bits: int) -> int:
    """Bits as whole bytes."""
    return -(-bits // 8)
