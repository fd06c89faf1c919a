"""Backpropagation (BP) on the windowed array: a model at its best, no hardware yet.

- The pass ``Wᵀδ`` uses the weights where they are: PE(t % R, j % C) multiplies them with channel j's signal, and psums
  run east, to accumulators at the row ends. Every word of every PE meets every position once, a step a cycle:
  ``T·S·P`` cycles a sample, in any kernel, stride and padding. The bound is MACs/(R·C); it is reached to
  ``taps·N/(T·S·R·C)``, as far as forward and update reach theirs (depthwise too), without an interval and without a
  drain, which hides behind the next sample or the update. The first layer needs no such pass.
- Samples of a hidden layer go forward without a drain between them, and without LLS's interval, since nothing leaves a
  column one by one.
- Max-pooling leaves one signal in a 2x2 block of a channel. It is sent to where the largest was by a kept index of 2
  bits; the other three are zeros, for which multipliers and adders rest, but their cycles pass: in another channel
  another position is the largest. Signals are kept pooled. Indices and slope bits cost no energy.
- The weight gradient's sum stays in the PE as LLS's does, so a weight is read and written once a batch. It has a
  product a signal: a position, or a block, or, where the next layer reads latents and so a window's pixels share a
  signal, a window, as LLS has it.
- A layer's descriptor is read again on the way back, the output layer's apart.
"""

import math

from sim.cycle import windowed_counts as count
from sim.cycle.counts import softmax
from sim.cycle.step import LayerStep, Step, multiplied
from sim.cycle.windowed_counts import Work
from spec.geometry import LayerGeometry
from spec.machine import Machine
from spec.network import Network
from spec.windowed_program import WindowedProgram
from spec.windowed_timing import forward_cycles, setup_cycles, signal_cycles, update_cycles

__all__ = ["blocks", "streamed_cycles", "training_step", "transposed_cycles"]


def training_step(machine: Machine, network: Network, program: WindowedProgram, batch: int) -> Step:
    """``batch`` samples with labels; ``machine`` and ``program`` are those for LLS."""
    layers = []
    for number, (geometry, layer) in enumerate(zip(network.geometry, program.layers, strict=True)):
        work, output = Work(machine, geometry, layer, batch), bool(layer.is_output)
        counts = count.forward(work, first=number == 0)
        macs = {"forward": {"matrix": work.macs}, "signal": {}, "update": {"matrix": work.macs}}
        cycles = {"finish": 0, "signal": 0, "update": update_cycles(layer, machine, batch)}
        if output:
            cycles |= {"setup": setup_cycles(machine), "forward": batch * forward_cycles(layer, machine)}
            cycles["signal"] = batch * signal_cycles(layer, machine, network.classes, True)
            counts += softmax(network.classes) * batch
        else:
            cycles |= {"setup": 2 * setup_cycles(machine), "forward": streamed_cycles(work)}
        # How many of a channel's signals of a sample differ from zero, and from their neighbours.
        present, distinct, summed = geometry.positions, geometry.positions, False
        if geometry.pool == "max":
            present = distinct = blocks(geometry)
        elif geometry.pool == "latent":
            distinct, summed = work.parts, True
        if number > 0:
            cycles["signal"] += transposed_cycles(work)
            macs["signal"] = {"transposed weights": work.macs}
            counts += count.transposed(work, present)
            counts.add("signal", "delta memory", "activation_write", batch * math.prod(geometry.input))
        counts += count.update(work, distinct, summed)
        counts.add("update", "delta memory", "activation_read", batch * work.tiles * distinct * machine.cols)
        counts += count.bias_update(work, present, weighted=False)
        multiplications = multiplied(macs, network.basis)
        multiplications["update"] = batch * distinct * geometry.weights
        if number > 0:
            multiplications["signal"] = batch * present * geometry.weights
        layers.append(
            LayerStep(
                number, geometry.taps, layer.channels, cycles, macs, counts, multiplications,
                work.macs if summed else 0, layer.positions, layer.windows,
            )
        )  # fmt: skip
    return Step("bp", machine, network, program, tuple(layers), batch)


def transposed_cycles(work: Work) -> int:
    """Cycles of a layer's pass ``Wᵀδ``: its steps."""
    return work.steps


def streamed_cycles(work: Work) -> int:
    """Cycles of a hidden layer's forward passes, sample after sample with one drain.

    Only where latents leave the columns does LLS's interval hold.
    """
    layer, machine = work.descriptor, work.machine
    interval = layer.interval if layer.pool_latent else layer.steps
    positions = layer.col_tiles * layer.positions
    one = forward_cycles(layer, machine) - (positions - 1) * (layer.interval - interval)
    return one + (work.batch - 1) * positions * interval


def blocks(geometry: LayerGeometry) -> int:
    """Whole 2x2 blocks of a map."""
    return (geometry.output[0] // 2) * (geometry.output[1] // 2)
