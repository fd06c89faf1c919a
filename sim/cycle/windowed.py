"""Closed forms of a step of convolutions and batches, as the windowed datapath does it under each learning rule.

The phases, and where their cycles come from, are in ``docs/convolutions.md``, section 6, and ``docs/rules.md``,
sections 5 and 6; the forms themselves are in ``spec.windowed_timing``, the actions in ``sim.cycle.windowed_counts``.
``sim.cycle.windowed_stepped`` counts the same by walking the steps one by one. A layer goes forward and forms its
signal once a sample, and is updated once a batch, as is the way back through it; it is set up once a batch, twice where
it waits for the output layer's errors.
"""

from sim.cycle import windowed_counts as count
from sim.cycle.counts import LOCAL_COSTS, Counts, entry_read, entry_sum, neuron_bits, row_read, softmax
from sim.cycle.step import LayerStep, Step, multiplied
from sim.cycle.windowed_counts import Work
from spec.basis import Basis
from spec.machine import Machine
from spec.network import Network
from spec.rules import RULES, part
from spec.windowed_program import BackDescriptor, WindowedProgram
from spec.windowed_timing import back_cycles, forward_cycles, setup_cycles, signal_cycles, update_cycles

__all__ = ["inference_step", "training_step"]


def training_step(machine: Machine, network: Network, program: WindowedProgram, batch: int) -> Step:
    """``batch`` samples with labels, at most those of ``program``, under the machine's rule.

    ``program``: of the network on the machine.
    """
    return _step(machine.rule, machine, network, program, batch)


def inference_step(machine: Machine, network: Network, program: WindowedProgram) -> Step:
    """A sample without a label, which is a batch of its own."""
    return _step("inference", machine, network, program, 1)


def _step(rule: str, machine: Machine, network: Network, program: WindowedProgram, batch: int) -> Step:
    """What the machine does under its own rule, or without labels (``inference``)."""
    learning, learns, layers = machine.learning, RULES[rule].learns, []
    for number, (geometry, layer) in enumerate(zip(network.geometry, program.layers, strict=True)):
        work = Work(machine, geometry, layer, batch)
        trains = learns and bool(layer.train)
        waits = trains and learning.waits and not layer.is_output
        cycles = {
            "setup": setup_cycles(machine) * (1 + waits),
            "forward": batch * forward_cycles(layer, machine),
            "finish": 0,
            "signal": batch * signal_cycles(layer, machine, network.classes, learns),
            "update": update_cycles(layer, machine, batch) if trains else 0,
        }
        macs: dict[str, dict[str, int]] = {"forward": {"matrix": work.macs}, "signal": {}, "update": {}}
        counts = count.forward(work, first=number == 0)
        if trains:
            macs["update"] = {"matrix": work.macs}
            counts += count.update(work)
            counts += count.local_memories(work)
            counts += count.tile_biases(work) if learning.waits else count.bias_update(work)
            if layer.is_output or learning.scores:
                counts += softmax(network.classes) * batch
            if learning.transposes:
                if layer.is_output:
                    counts += count.kept_signals(work, network.classes)
            elif not layer.is_output:
                parts, found = _hidden_signal(work, network, number)
                macs["signal"] = {part: batch * n for part, n in parts.items()}
                counts += found
            elif learning.waits:
                counts += count.kept_errors(work, network.classes, "write")
        multiplications = multiplied(macs, network.basis)
        if trains:
            multiplications["update"] = batch * work.parts * geometry.weights
            multiplications["update"] += 0 if layer.is_output or learning.waits else batch * layer.latents
        if trains and isinstance(layer, BackDescriptor) and layer.trains_below:
            cycles["signal"] += back_cycles(layer, machine, batch)
            macs["signal"] = {"transposed weights": work.macs}
            multiplications["signal"] = work.back_products
            counts += count.back(work)
        layers.append(
            LayerStep(
                number, geometry.taps, layer.channels, cycles, macs, counts, multiplications,
                batch * work.adding * geometry.weights if trains else 0, layer.positions, layer.windows,
            )
        )  # fmt: skip
    return Step(rule, machine, network, program, tuple(layers), batch)


def _hidden_signal(work: Work, network: Network, number: int) -> tuple[dict[str, int], Counts]:
    """MACs by part of a sample, and actions of all samples, of the signals of hidden layer ``number``, one a latent."""
    rule, n, batch = work.machine.learning, work.descriptor.latents, work.batch
    basis = Basis(network.basis, network.classes)
    if rule.waits:
        counts = count.kept_errors(work, basis.classes, "read")
        return {"feedback": n * basis.classes}, counts + (entry_read(n, basis) + entry_sum(n, basis)) * batch
    counts = count.slope_weights(work)
    if not work.descriptor.pool_latent:
        counts += count.latent_sums(work, "signal")
    if rule.scores:
        macs, own = part(LOCAL_COSTS, rule)(network, work.machine, number)
        return macs, counts + own * batch
    return {}, counts + (neuron_bits(n, rule) + row_read(n, basis)) * batch
