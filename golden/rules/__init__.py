"""Learning rules in float64, as equations: what each says about a hidden layer's learning signal.

A layer computes `z = w * x + b`, a convolution (a matrix product where the map is one pixel); a
hidden one then `y = f(z)` with a leaky ReLU, and its pooling makes the next layer's input of `y`.
The output layer is a plain linear classifier, `e = ∂L/∂z = (softmax(z/T) - onehot)/T` of its own
cross-entropy. A rule gives `δ = ∂(its loss)/∂z` for every hidden layer; all else is common, in
`golden.float_layer` and `base`. Forward-forward alone has other passes, and no use for the output.

`local` has the rules with a loss in each layer, `feedback` those that send the output's error or the
label through fixed matrices, `output` backpropagation and the frozen control.

Shapes: a batch is `(N, n)`, of maps `(N, H, W, C)`. Losses are summed over the batch, so a batch of
one is batch 1. Signals have the precision of the forward pass.
"""

import numpy as np

from golden.rules.base import (
    Gradients,
    Rule,
    Trace,
    cross_entropy,
    forward,
    output_error,
    saturation,
    signals,
    softmax,
    temperature,
)
from golden.rules.feedback import DFA, DRTP, random_feedback
from golden.rules.forward_forward import ForwardForward
from golden.rules.local import (
    LLS,
    LLSM,
    LLSMxM,
    LocalClassifier,
    LocalLoss,
    basis_matrix,
    local_gradient,
    local_scores,
    score_gradient,
)
from golden.rules.output import BackPropagation, Frozen
from spec.errors import SpecError, check_choice, check_int
from spec.network import FullyConnected, Network

__all__ = [
    "DFA",
    "DRTP",
    "LLS",
    "LLSM",
    "RULES",
    "BackPropagation",
    "ForwardForward",
    "Frozen",
    "Gradients",
    "LLSMxM",
    "LocalClassifier",
    "LocalLoss",
    "Rule",
    "Trace",
    "basis_matrix",
    "cross_entropy",
    "forward",
    "local_gradient",
    "local_scores",
    "make_rule",
    "output_error",
    "saturation",
    "score_gradient",
    "signals",
    "softmax",
    "temperature",
]

LOCAL = ("lls", "lls_m", "lls_mxm", "local_classifier")
RULES = (*LOCAL, "dfa", "drtp", "bp", "forward_forward", "frozen")
STREAM_CLASSIFIER = 3
"""Random stream of a seed; `golden.train` and `feedback` have others."""


def make_rule(
    name: str,
    network: Network,
    seed: int = 0,
    basis: str | None = None,
    dtype: type | np.dtype = np.float64,
    *,
    vectors: int | None = None,
) -> Rule:
    """The rule of that name for a network, its matrices in the precision `dtype`; `seed` draws the
    feedback of DFA and DRTP. `basis` replaces the network's for a local loss; `random` is one of
    them for `local_classifier`. `vectors`, 2…K, is the number of basis vectors of `lls_mxm`, all K
    unless told otherwise.
    """
    check_choice("rule", name, RULES)
    if vectors is not None and name != "lls_mxm":
        raise SpecError("vectors", f"must not be given for rule {name}, which mixes none", vectors)
    if basis is not None and name not in LOCAL:
        raise SpecError("basis", f"must not be given for rule {name}, which has none", basis)
    if name in LOCAL:
        kinds = ("square", "walsh", "sine", "cosine")
        kind = network.basis if basis is None else basis
        check_choice("basis", kind, (*kinds, "random") if name == "local_classifier" else kinds)
        count = network.classes if vectors is None else vectors
        check_int("vectors", count, 2, network.classes)
        random = np.random.RandomState([STREAM_CLASSIFIER, seed])
        bases = [
            # The variance of a square basis.
            random.uniform(-(3**0.5), 3**0.5, (count, layer.latents))
            if kind == "random"
            else basis_matrix(kind, count, layer.latents)
            for layer in network.geometry[:-1]
        ]
        bases = [C.astype(dtype, copy=False) for C in bases]
        T = temperature(network.recipe.temperature_shift)
        if name == "lls_mxm":
            return LLSMxM(bases, network.classes, T)
        return {"lls": LLS, "lls_m": LLSM, "local_classifier": LocalClassifier}[name](bases, T)
    if name in ("dfa", "drtp"):
        feedback = [F.astype(dtype) for F in random_feedback(network, seed)]
        return DFA(feedback) if name == "dfa" else DRTP(feedback)
    if name == "forward_forward":
        if len(network.layers) < 2 or not all(isinstance(n, FullyConnected) for n in network.layers):
            raise SpecError("rule", "must have hidden layers, all fully connected, for this", name)
        if network.features <= network.classes:
            raise SpecError("rule", "must have more inputs than classes for this", name)
        return ForwardForward(network.classes)
    return BackPropagation() if name == "bp" else Frozen()
