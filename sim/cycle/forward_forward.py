"""Forward-forward on the array of fully connected layers: a model at its best, no hardware yet.

The arithmetic is that of ``golden.rules.forward_forward``: the label is a part of the sample, a layer's input is
normalised, goodness is a mean of squares, and the wrong label to learn from is the best of the others. So a sample with
a label, K classes, H hidden layers, takes

- K forward passes, one a label. Labels differ in K inputs of the first layer, whose norm is the same for all of them:
  the sums over all other inputs are formed once and kept, and a label adds one input's weights, a row tile of them.
- No output layer, and no signal that waits: of a layer's input, output and goodness a signal is one product a neuron,
  made as the update needs it. ``signal`` is the walk over the K sums of goodness.
- Two updates of each hidden layer, of the label and of the wrong one: outputs of both are kept beside those of the pass
  at work, and are all made with the weights before the update.
- Normalisation: squares are summed as outputs pass; the factor is a layer's and a pass's, and is applied to the next
  layer's sums, a product a neuron.

An inference takes the same K passes: there is no cheaper one. The machine is that for ``drtp``, which has no part that
this does without but the output layer's softmax.
"""

from dataclasses import replace

from sim.cycle.counts import Counts
from sim.cycle.dense import forward_counts, forward_cycles, update_counts, update_cycles
from sim.cycle.step import LayerStep, Step
from spec.errors import SpecError
from spec.machine import ACT_BITS, WEIGHT_BITS, Machine
from spec.network import Network
from spec.program import Program, compile_program
from spec.timing import PLAIN_ARGMAX_TAIL, SETUP_CYCLES

__all__ = ["KEPT", "LABEL", "RULE", "memory_bytes", "training_step"]

RULE = "forward_forward"
LABEL = "model, no hardware yet"
KEPT = 3
"""Sets of hidden outputs: of the pass at work, of the label, and of the best wrong label so far."""


def training_step(machine: Machine, network: Network) -> Step:
    """A sample with a label, on the machine built for ``drtp``; the step has hidden layers alone.

    Raises SpecError for convolutions and batches, for a network without hidden layers, and for one that does not fit.
    """
    if machine.windowed or network.windowed or len(network.layers) < 2:
        raise SpecError("rule", "must be another for this machine and network: forward_forward takes fully connected "
                        "layers at batch 1, two or more", RULE)  # fmt: skip
    machine = machine.built_for("drtp")
    program = compile_program(network, machine)
    classes, layers = network.classes, []
    for number, layer in enumerate(program.layers[:-1]):
        first, last = number == 0, number == len(program.layers) - 2
        weights, n = layer.n_in * layer.n_out, layer.n_out
        label = replace(layer, row_tiles=1)  # the row tile that holds the label's input
        passes = 1 if first else classes
        forward = passes * forward_cycles(layer, machine) + (classes * forward_cycles(label, machine) if first else 0)
        counts = forward_counts(machine, layer, first) * passes
        if first:
            counts += forward_counts(machine, label, False) * classes + _kept_sums(machine, n, classes)
        counts += update_counts(machine, layer) * 2 + _signals(n, classes)
        layers.append(
            LayerStep(
                number,
                layer.n_in,
                n,
                {
                    # Once a visit, of which the updates of both labels are one.
                    "setup": SETUP_CYCLES * (passes + classes * first + 1),
                    "forward": forward,
                    "signal": classes + PLAIN_ARGMAX_TAIL if last else 0,
                    "update": 2 * update_cycles(layer, machine),
                    "finish": 0,
                },
                macs := {
                    "forward": {"matrix": passes * weights + classes * n * first},
                    "signal": {"goodness": classes * n, "normalisation": classes * n, "gradient": 2 * n},
                    "update": {"matrix": 2 * weights},
                },
                counts,
                {purpose: sum(parts.values()) for purpose, parts in macs.items()},
            )
        )
    return Step(RULE, machine, network, program, tuple(layers), label=LABEL)


def memory_bytes(step: Step, program: Program) -> dict[str, int]:
    """Bytes by purpose (``sim.cycle.memory.MEMORIES``): hidden layers' parameters, :data:`KEPT` sets of their outputs,
    and the first layer's sums.
    """
    machine, hidden = step.machine, program.layers[:-1]
    return {
        "weights": sum(layer.steps for layer in hidden) * machine.pes * WEIGHT_BITS // 8,
        "biases": sum(layer.n_out for layer in hidden) * WEIGHT_BITS // 8,
        "input buffers": 2 * program.input_words * machine.rows,
        "activations": KEPT * sum(-(-layer.n_out // machine.rows) * machine.rows * ACT_BITS // 8 for layer in hidden),
        "latents": -(-hidden[0].n_out * machine.acc_bits // 8),
    }


def _kept_sums(machine: Machine, n: int, classes: int) -> Counts:
    """The first layer's sums over all inputs but the label's: written once, read for each label."""
    counts, accesses = Counts(), -(-machine.acc_bits // 8) * n
    counts.add("forward", "latent memory", "activation_write", accesses)
    counts.add("forward", "latent memory", "activation_read", accesses * classes)
    return counts


def _signals(n: int, classes: int) -> Counts:
    """Goodness and norm of a layer in each pass, and two signals a neuron."""
    counts = Counts()
    counts.add("signal", "signal arithmetic", "multiply_8x8", classes * n)
    counts.add("signal", "signal arithmetic", "add_32", classes * n)
    counts.add("signal", "signal arithmetic", "multiply_8x16", (classes + 2) * n)
    # Outputs of the best wrong label so far are those of the pass at work until a better one comes: no copy.
    counts.add("signal", "activation memory", "activation_read", 2 * n)
    return counts
