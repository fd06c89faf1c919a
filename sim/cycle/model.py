"""Closed forms of a training step: cycles by phase, multiplications and actions, layer by layer.

``sim.cycle.dense`` holds those of fully connected layers at batch 1, ``sim.cycle.windowed`` those of convolutions and
batches, ``sim.cycle.forward_forward`` a rule without hardware; this module chooses. ``sim.cycle.stepped`` and
``sim.cycle.windowed_stepped`` count the same by walking the steps one by one.
"""

from dataclasses import replace

from sim.cycle import dense, forward_forward, windowed
from sim.cycle.step import CYCLE_PHASES, LayerStep, Step
from spec.errors import check_choice, check_int
from spec.machine import Machine
from spec.network import Network
from spec.program import Program, program_for
from spec.rules import RULES

__all__ = ["CYCLE_PHASES", "LayerStep", "Step", "inference_step", "of_batch", "training_step"]

MAX_BATCH = 128
"""The largest batch of a recipe."""


def training_step(
    machine: Machine,
    network: Network,
    rule: str | None = None,
    train_hidden: bool = True,
    batch: int | None = None,
) -> Step:
    """A training step of ``batch`` samples, those of the network's recipe if not said otherwise.

    A smaller batch than the recipe's is one that the samples did not fill. ``train_hidden=False``: the hidden layers
    are frozen. ``rule``: that of a machine built otherwise alike, the machine's own if not said otherwise, a name of
    ``spec.rules.RULES``, or ``forward_forward``, a model; of the step of an ``inference`` machine nothing is learned.
    Raises SpecError when the network does not fit the machine of that rule.
    """
    rule = machine.rule if rule is None else rule
    check_choice("rule", rule, (*RULES, forward_forward.RULE))
    if rule == forward_forward.RULE:
        return forward_forward.training_step(machine, of_batch(network, batch)[0])
    machine = machine.built_for(rule)
    network, samples = of_batch(network, batch)
    program = program_for(network, machine, train_hidden)
    if isinstance(program, Program):
        return dense.training_step(machine, network, program)
    return windowed.training_step(machine, network, program, samples)


def inference_step(machine: Machine, network: Network) -> Step:
    """A sample without a label: forward, and a walk over the output layer's scores."""
    program = program_for(network, machine)
    if isinstance(program, Program):
        return dense.inference_step(machine, network, program)
    return windowed.inference_step(machine, network, program)


def of_batch(network: Network, batch: int | None) -> tuple[Network, int]:
    """The network with a recipe for ``batch`` samples or more, and the samples of a step."""
    if batch is None:
        return network, network.recipe.batch
    check_int("batch", batch, 1, MAX_BATCH)
    if batch > network.recipe.batch:
        network = replace(network, recipe=replace(network.recipe, batch=batch))
    return network, batch
