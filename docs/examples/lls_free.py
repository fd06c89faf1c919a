"""A rule in one file: LLS without the projection of its normalisation. See docs/adding-a-rule.md.

The loss of a layer does not change with the length of its latents, and so its gradient has no part along them. What if
that part is left in? Three products of 16 bits and n of 8 x 16 a layer are saved; what it costs is to be measured:

    python docs/examples/lls_free.py
"""

from dataclasses import replace

import numpy as np

from golden.arith import rnd
from golden.data import load_digits
from golden.fixed import FixedModel
from golden.signals import HIDDEN_DELTAS, SIGNAL_MAX, SLOPE_SHIFT
from golden.windowed import WindowedModel
from hdl.dense import core as dense
from hdl.dense import learning_signal
from hdl.windowed import core as windowed
from hdl.windowed import learning_signal as windowed_signal
from sim.cycle.counts import LOCAL_COSTS, Counts, local_counts, local_macs
from sim.cycle.model import training_step
from sim.rtl.backend import RtlBackend
from spec.machine import Machine, load_machine
from spec.network import Network, load_network
from spec.rules import Rule, add

# What it is: a name, a title, and what a hidden layer learns from. Its order of phases, what is kept, its cycles and
# its recipe's rate are those of all rules that learn from their own scores.
RULE = Rule("lls_free", "LLS without the projection", "own")


# Golden: the signal of a hidden layer, in the place of `golden.signals.hidden_delta`.
def free_delta(
    error: np.ndarray,
    score: np.ndarray,
    a: np.ndarray,
    neg: np.ndarray,
    table: np.ndarray,
    fraction_bits: int,
    back: np.ndarray | None = None,
) -> np.ndarray:
    """`(n,)`, -127…127 with 6 fraction bits: `B^T e` as it is, times the slope. Arguments as of `hidden_delta`."""
    gradient = rnd(table.astype(np.int64).T @ (error if back is None else back), fraction_bits)
    signal = rnd(gradient, 2)
    return np.clip(np.where(neg, rnd(signal, SLOPE_SHIFT), signal), -SIGNAL_MAX, SIGNAL_MAX)


# Hardware: the learning-signal unit of each datapath. Without a reader the quotient's registers vanish in synthesis.
class FreeSignal(learning_signal.LearningSignal):
    """Of fully connected layers at batch 1."""

    PROJECTS = False


class FreeWindowSignal(windowed_signal.LearningSignal):
    """Of convolutions and batches."""

    PROJECTS = False


# Simulator: what a hidden layer's signal multiplies and does.
def free_cost(network: Network, machine: Machine, number: int) -> tuple[dict[str, int], Counts]:
    """That of `lls` without the products of `q` and the latents. The sum of errors and scores is still formed."""
    n = network.geometry[number].latents
    macs, counts = local_macs(network, machine, number), local_counts(network, machine, number)
    for action in ("multiply_8x16", "add_16"):
        counts.add("signal", "signal arithmetic", action, -n)
    return macs | {"projection": macs["projection"] - n}, counts


def register() -> None:
    """Makes the rule known to all of the packages; once."""
    add(RULE)
    HIDDEN_DELTAS[RULE.name] = free_delta
    dense.SIGNAL_UNITS[RULE.name] = FreeSignal
    windowed.SIGNAL_UNITS[RULE.name] = FreeWindowSignal
    LOCAL_COSTS[RULE.name] = free_cost


def check(machine: Machine, network: Network, x: np.ndarray, labels: np.ndarray) -> None:
    """Trains the plain model and the compiled Verilog; weights, biases and cycles must be equal."""
    plain = WindowedModel if network.windowed else FixedModel
    model, verilog = plain(network, machine), RtlBackend(network, machine)
    model.train(x, labels)
    cycles = verilog.train(x, labels).cycles
    pairs = zip(model.parameters(), verilog.parameters(), strict=True)
    assert all(np.array_equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True)), "weights differ"
    expected = len(x) // network.recipe.batch * training_step(machine, network).cycles
    assert cycles == expected, f"{cycles} cycles, the simulator has {expected}"
    print(f"{machine.rule}: {len(x)} samples, weights and {cycles:,} cycles equal to the model's and the simulator's")


def main() -> None:
    """Bits and cycles on both datapaths, 2x2, then what the projection is worth on digits."""
    register()
    data, network = load_digits(), load_network("digits")
    small = replace(network, layers=(replace(network.layers[0], neurons=6), network.layers[-1]))
    tiny = replace(load_machine("ice40up5k"), device=None, rule=RULE.name)
    check(tiny, small, data.x_train[:60], data.y_train[:60])
    batched = replace(small, recipe=replace(small.recipe, batch=4))
    summing = replace(tiny, gradient_bits=40, max_batch=4, activation_depth=512, result_fifo_depth=128)
    check(summing, batched, data.x_train[:60], data.y_train[:60])
    for rule in ("lls", RULE.name):
        machine = replace(load_machine("digits"), rule=rule)
        model = FixedModel(network, machine)
        for _ in range(2):
            model.train(data.x_train, data.y_train)
        right = (model.predict(data.x_test) == data.y_test).mean()
        step = training_step(machine, network)
        print(f"{rule:10}digits, 2 epochs: {100 * right:.2f} %; {step.signal_macs['projection']:,} MACs of projection")


if __name__ == "__main__":
    main()
