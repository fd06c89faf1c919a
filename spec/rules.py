"""The learning rules that a machine can be built for, and what each needs of the hardware.

``docs/rules.md`` has their arithmetic and their order of phases. A rule is a parameter of the machine
(:class:`spec.machine.Machine`, key ``rule``): one generator, one array, and nothing of a rule in a
machine that has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from spec.errors import SpecError

__all__ = ["BACK_BITS", "BACK_DROPPED", "BACK_FRAC", "RULES", "Rule", "add", "part"]

BACK_BITS = 12
"""A backpropagated signal, before its shift."""
BACK_FRAC = 11
"""Its fraction bits: it lies within -1 and 1."""
BACK_DROPPED = 3
"""The output layer's error loses so many of its 8 fraction bits: with them that of a certain class would never end."""


@dataclass(frozen=True)
class Rule:
    """What a rule needs.

    ``error`` is what a hidden layer's learning signal is made of:

    * ``own``: the error of the layer's own class scores, sent back through the basis that made them;
    * ``label``: the label alone, through the basis as fixed feedback;
    * ``output``: the output layer's error, through the basis as fixed feedback;
    * ``back``: the signal of the layer behind it, through that layer's weights;
    * ``none``: nothing is learned.

    ``trains``: what of the class scores of a hidden layer is trained besides its weights (:mod:`spec.scores`):

    * ``factors``: a factor a class;
    * ``matrix``: a matrix from basis vectors to classes;
    * ``basis``: the basis itself, a classifier on the layer's latents;
    * nothing, an empty string.

    ``rate_step``: how much larger the shift of the hidden layers' rate is than that of the output
    layer where the network's recipe says nothing of this rule.
    """

    name: str
    title: str
    error: str
    rate_step: int = 0
    trains: str = ""

    @property
    def learns(self) -> bool:
        """Whether weights change."""
        return self.error != "none"

    @property
    def scores(self) -> bool:
        """Whether hidden layers form class scores, and their signal a projection."""
        return self.error == "own"

    @property
    def basis(self) -> bool:
        """Whether hidden layers read the basis."""
        return self.error in ("own", "label", "output")

    @property
    def holds(self) -> bool:
        """Whether a hidden layer's signals that would push a saturated activation further are dropped."""
        return self.error in ("label", "output")

    @property
    def latents(self) -> bool:
        """Whether a machine for convolutions forms latents in every hidden layer, pooled or not."""
        return self.error in ("own", "label")

    @property
    def waits(self) -> bool:
        """Whether hidden layers are updated after the output layer, last to first.

        Until then all activations of a sample and a slope bit a neuron are kept.
        """
        return self.error in ("output", "back")

    @property
    def transposes(self) -> bool:
        """Whether the array also multiplies by the transposed weights."""
        return self.error == "back"


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("lls", "LLS", "own"),
        Rule("drtp", "direct random target projection", "label", 4),
        Rule("dfa", "direct feedback alignment", "output", 4),
        Rule("bp", "backpropagation", "back"),
        Rule("inference", "inference only", "none"),
        Rule("lls_m", "LLS-M: a trained factor a class", "own", trains="factors"),
        Rule("lls_mxm", "LLS-MxM: a trained matrix on the scores", "own", trains="matrix"),
        Rule("local_classifier", "local classifiers: a trained basis", "own", trains="basis"),
    )
}
"""By name."""

_Part = TypeVar("_Part")


def add(rule: Rule) -> None:
    """Makes a rule known that lives outside of the project (``docs/adding-a-rule.md``); VERSION has the next number.

    :class:`SpecError` for a name that is taken.
    """
    if rule.name in RULES:
        raise SpecError("rule", "must have a name of its own", rule.name)
    RULES[rule.name] = rule


def part(table: Mapping[str, _Part], rule: Rule) -> _Part:
    """What a rule has in a table of parts: by its name, else what all that learn from the same (``error``) share."""
    return table[rule.name] if rule.name in table else table[rule.error]
