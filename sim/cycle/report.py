"""A step's figures as plain values for `metrics.json`, each key with its unit."""

from sim.cycle.energy import energy_by_component, energy_by_purpose, energy_table
from sim.cycle.memory import allocated_bytes, memory_by_batch, memory_bytes
from sim.cycle.step import Step
from spec.technology import Technology

__all__ = ["PURPOSE_NAMES", "UNITS", "accesses", "step_metrics"]

PURPOSE_NAMES = {
    "forward": "forward",
    "signal": "learning_signal",
    "update": "weight_gradient",
}
"""Purposes as reports call them."""

UNITS = {
    "rule": "the learning rule",
    "label": "what the figures are",
    "batch": "samples of the training step, which has one update; all other values are those of the whole step",
    "cycles": "clock cycles of one training step, waiting for the host apart",
    "cycles_by_phase": "clock cycles by what the sequencer does",
    "latency_us": "microseconds of one step at the machine's clock_mhz; null when the machine names no device",
    "macs": "multiplications with a sum that the usual form of one step's arithmetic needs, padding apart",
    "macs_by_phase": "of those, by what they are for; the class scores count as learning signal; "
    "the weight gradient counts one a weight, position and sample under every rule",
    "learning_signal_macs": "the learning signal's, by part; the gradient of trained parameters of class scores is "
    "among them",
    "multiplications_by_phase": "how many of the MACs are multiplied, by what they are for: sums over the signs of a "
    "basis are not, nor what meets no signal on bp's way back; in a weight gradient one a weight and learning signal, "
    "of which bp has one a value that the layer hands on, the others one a window (of 128 positions at most); the "
    "biases' are counted where they are products",
    "window_additions": "additions of 18 bits, of activations within a window, that stand for multiplications of the "
    "weight gradient; of a block of max-pooling bp adds the largest alone",
    "utilization": "0 to 1: multiplications of forward pass and weight gradient / (rows x columns x cycles)",
    "energy_pj": "picojoule of one step: actions times the technology's energy an action",
    "energy_by_phase_pj": "picojoule by what the work is for",
    "energy_by_component_pj": "picojoule by where it is spent",
    "peak_bytes": "bytes that a step keeps, alive at once",
    "memory_bytes": "of those, by purpose; sums of gradients are in registers of the array, and so in none",
    "memory_by_batch": "the same for other batches, by batch: as many bytes as would be needed, whether or not the "
    "machine has them",
    "allocated_bytes": "bytes of memory that the machine has",
    "accesses": "reads and writes of one step, by memory, in its own words "
    "(weights, biases 16 bits; activations, latents, deltas 8; a parameter of the score memory 3 of 8; basis table 1)",
    "layers": "of each layer: its inputs (taps of a convolution) and neurons (channels), positions of its map, windows "
    "of its map that have a learning signal a channel; its cycles, MACs, multiplications and utilization (0 to 1)",
    "technology": "the energy table, its node and what it leaves out",
}
"""What each key of :func:`step_metrics` is, with its unit."""


def accesses(step: Step) -> dict[str, dict[str, int]]:
    """Reads and writes by memory."""
    found: dict[str, dict[str, int]] = {}
    for (_, component, action), number in step.counts:
        kind = next((kind for kind in ("read", "write") if f"_{kind}" in action), None)
        if kind is not None:
            memory = found.setdefault(component, {"read": 0, "write": 0})
            memory[kind] += number
    return found


def step_metrics(step: Step, technology: Technology) -> dict:
    """Everything about a step, as JSON values; :data:`UNITS` says what each key is."""
    energy = energy_table(step.counts, technology)
    memory = memory_bytes(step)
    device = step.machine.device
    return {
        "rule": step.rule,
        "label": step.label,
        "batch": step.batch,
        "cycles": step.cycles,
        "cycles_by_phase": step.cycles_by_phase,
        "latency_us": step.cycles / device.clock_mhz if device else None,
        "macs": step.macs,
        "macs_by_phase": {PURPOSE_NAMES[p]: n for p, n in step.macs_by_phase.items()},
        "learning_signal_macs": step.signal_macs,
        "multiplications_by_phase": {PURPOSE_NAMES[p]: n for p, n in step.multiplications_by_phase.items()},
        "window_additions": step.window_additions,
        "utilization": step.utilization,
        "energy_pj": sum(energy.values()),
        "energy_by_phase_pj": {PURPOSE_NAMES[p]: pj for p, pj in energy_by_purpose(energy).items()},
        "energy_by_component_pj": energy_by_component(energy),
        "peak_bytes": sum(memory.values()),
        "memory_bytes": memory,
        "memory_by_batch": {str(batch): found for batch, found in memory_by_batch(step).items()},
        "allocated_bytes": allocated_bytes(step.machine, step.network),
        "accesses": accesses(step),
        "layers": [
            {
                "inputs": layer.n_in,
                "neurons": layer.n_out,
                "positions": layer.positions,
                "windows": layer.windows,
                "cycles_by_phase": {p: n for p, n in layer.cycles.items() if p != "finish"},
                "macs_by_phase": {PURPOSE_NAMES[p]: sum(parts.values()) for p, parts in layer.macs.items()},
                "multiplications_by_phase": {PURPOSE_NAMES[p]: n for p, n in layer.multiplications.items()},
                "utilization": layer.utilization(step.machine),
            }
            for layer in step.layers
        ],
        "technology": {
            "name": technology.name,
            "node": technology.node,
            "leakage": technology.leakage,
        },
    }
