"""A step's figures as plain values for `metrics.json`, each key with its unit."""

from sim.cycle.energy import energy_by_component, energy_by_purpose, energy_table
from sim.cycle.memory import allocated_bytes, memory_bytes
from sim.cycle.model import LABELS, Step
from spec.technology import Technology

__all__ = ["PURPOSE_NAMES", "UNITS", "accesses", "step_metrics"]

PURPOSE_NAMES = {
    "forward": "forward",
    "signal": "learning_signal",
    "update": "weight_gradient",
}
"""Purposes as reports call them."""

UNITS = {
    "rule": "lls, bp or dfa",
    "label": "what the figures are: equal to the RTL, or a model without hardware",
    "cycles": "clock cycles of one training step of batch 1, waiting for the host apart",
    "cycles_by_phase": "clock cycles by what the sequencer does",
    "latency_us": "microseconds of one step at the machine's clock_mhz; null when the machine names no device",
    "macs": "multiplications with a sum that the arithmetic of one step needs, padding apart",
    "macs_by_phase": "of those, by what they are for; the class scores count as learning signal",
    "learning_signal_macs": "the learning signal's, by part",
    "utilization": "0 to 1: multiplications of forward pass and weight gradient / (rows x columns x cycles)",
    "energy_pj": "picojoule of one step: actions times the technology's energy an action",
    "energy_by_phase_pj": "picojoule by what the work is for",
    "energy_by_component_pj": "picojoule by where it is spent",
    "peak_bytes": "bytes that a step keeps, alive at once",
    "memory_bytes": "of those, by purpose",
    "allocated_bytes": "bytes of memory that the machine has",
    "accesses": "reads and writes of one step, by memory, in its own words "
    "(weights, biases 16 bits; activations, latents, deltas 8; basis table 1 bit)",
    "layers": "cycles and multiplications of each layer, with its inputs and neurons",
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
        "label": LABELS[step.rule],
        "cycles": step.cycles,
        "cycles_by_phase": step.cycles_by_phase,
        "latency_us": step.cycles / device.clock_mhz if device else None,
        "macs": step.macs,
        "macs_by_phase": {PURPOSE_NAMES[p]: n for p, n in step.macs_by_phase.items()},
        "learning_signal_macs": step.signal_macs,
        "utilization": step.utilization,
        "energy_pj": sum(energy.values()),
        "energy_by_phase_pj": {PURPOSE_NAMES[p]: pj for p, pj in energy_by_purpose(energy).items()},
        "energy_by_component_pj": energy_by_component(energy),
        "peak_bytes": sum(memory.values()),
        "memory_bytes": memory,
        "allocated_bytes": allocated_bytes(step.machine),
        "accesses": accesses(step),
        "layers": [
            {
                "inputs": layer.n_in,
                "neurons": layer.n_out,
                "cycles_by_phase": {p: n for p, n in layer.cycles.items() if p != "finish"},
                "macs_by_phase": {PURPOSE_NAMES[p]: sum(parts.values()) for p, parts in layer.macs.items()},
            }
            for layer in step.layers
        ],
        "technology": {
            "name": technology.name,
            "node": technology.node,
            "leakage": technology.leakage,
        },
    }
