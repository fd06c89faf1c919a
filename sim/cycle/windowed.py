"""Closed forms of a training step of convolutions and batches, as the windowed datapath does it.

The phases, and where their cycles come from, are in ``docs/convolutions.md``, section 6; the forms themselves are in
``spec.windowed_timing``, the actions in ``sim.cycle.windowed_counts``. ``sim.cycle.windowed_stepped`` counts the same
by walking the steps one by one. A layer is set up once a batch, goes forward and forms its signal once a sample, and is
updated once a batch.
"""

from collections.abc import Iterator

from sim.cycle import windowed_bp
from sim.cycle import windowed_counts as count
from sim.cycle.counts import local_counts, local_macs, softmax
from sim.cycle.step import LayerStep, Step, multiplied
from sim.cycle.windowed_counts import Work
from spec.basis import Basis
from spec.machine import Machine
from spec.network import Network
from spec.windowed_program import WindowedProgram
from spec.windowed_timing import forward_cycles, setup_cycles, signal_cycles, update_cycles

__all__ = ["inference_step", "training_step"]


def training_step(machine: Machine, network: Network, program: WindowedProgram, rule: str, batch: int) -> Step:
    """A training step of ``batch`` samples, at most those of ``program``, the network's on the machine."""
    basis = Basis(network.basis, network.classes)
    if rule != "lls":
        return windowed_bp.training_step(machine, network, program, rule, batch)
    layers = []
    for number, work in enumerate(_works(machine, network, program, batch)):
        layer, trains = work.descriptor, bool(work.descriptor.train)
        cycles = _cycles(work, network.classes, trains)
        macs: dict[str, dict[str, int]] = {"forward": {"matrix": work.macs}, "signal": {}, "update": {}}
        counts = count.forward(work, first=number == 0)
        if trains:
            macs["update"] = {"matrix": work.macs}
            counts += softmax(network.classes) * batch
            counts += count.update(work, work.parts, summed=True)
            counts += count.local_memories(work)
            counts += count.bias_update(work, layer.windows, weighted=not layer.is_output)
            if not layer.is_output:
                counts += count.slope_weights(work)
                macs["signal"] = {part: batch * n for part, n in local_macs(layer.latents, network.classes).items()}
                if not layer.pool_latent:
                    counts += count.latent_sums(work, "signal")
                counts += local_counts(layer.latents, basis) * batch
        multiplications = multiplied(macs, network.basis)
        if trains:
            multiplications["update"] = batch * work.parts * work.geometry.weights
            multiplications["update"] += 0 if layer.is_output else batch * layer.latents
        layers.append(
            LayerStep(
                number, work.geometry.taps, layer.channels, cycles, macs, counts, multiplications,
                work.macs if trains else 0, layer.positions, layer.windows,
            )
        )  # fmt: skip
    return Step("lls", machine, network, program, tuple(layers), batch)


def inference_step(machine: Machine, network: Network, program: WindowedProgram) -> Step:
    """A sample without a label, which is a batch of its own."""
    layers = []
    for number, work in enumerate(_works(machine, network, program, 1)):
        layer = work.descriptor
        macs: dict[str, dict[str, int]] = {"forward": {"matrix": work.macs}, "signal": {}, "update": {}}
        counts = count.forward(work, first=number == 0)
        layers.append(
            LayerStep(
                number, work.geometry.taps, layer.channels, _cycles(work, network.classes, False), macs, counts,
                multiplied(macs, network.basis), 0, layer.positions, layer.windows,
            )
        )  # fmt: skip
    return Step("inference", machine, network, program, tuple(layers), 1)


def _works(machine: Machine, network: Network, program: WindowedProgram, batch: int) -> Iterator[Work]:
    """The layers' work for a batch."""
    for geometry, layer in zip(network.geometry, program.layers, strict=True):
        yield Work(machine, geometry, layer, batch)


def _cycles(work: Work, classes: int, trains: bool) -> dict[str, int]:
    """A layer's cycles by phase; ``trains``: samples have labels and the layer learns from them."""
    layer, machine, batch = work.descriptor, work.machine, work.batch
    return {
        "setup": setup_cycles(machine),
        "forward": batch * forward_cycles(layer, machine),
        "finish": 0,
        "signal": batch * signal_cycles(layer, classes, trains),
        "update": update_cycles(layer, machine, batch) if trains else 0,
    }
