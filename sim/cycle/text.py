"""How a comparison writes numbers and names rules and networks."""

from spec.network import Network

__all__ = ["NAMES", "number", "sizes", "times"]

NAMES = {
    "lls": "LLS",
    "lls_m": "LLS-M",
    "lls_mxm": "LLS-MxM",
    "local_classifier": "local classifier",
    "drtp": "DRTP",
    "dfa": "DFA",
    "bp": "BP",
    "inference": "inference",
}
"""Rules as reports call them, in the order in which people meet them: kin beside each other, what learns nothing last.

`spec.rules.RULES` numbers them for the hardware, as they came.
"""
LONGEST = 9
"""Layers whose sizes are written out."""


def number(value: float) -> str:
    """Exact where it is whole or large, else four figures."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def times(value: float, base: float) -> str:
    """A multiple of ``base``; a dash where that is nothing."""
    return f"{value / base:.2f}x" if base else "–"


def sizes(network: Network) -> str:
    """A network in a title: input and neurons; of a map its shape, and the channels of convolutions behind a c."""
    if not network.windowed:
        return "-".join(str(n) for n in (network.features, *(n for _, n in network.shapes)))
    shape = "x".join(str(n) for n in network.input_shape)
    if len(network.layers) > LONGEST:
        return f"{shape}, {len(network.layers)} layers"
    kinds = (("c" if layer.positions > 1 else "") + str(layer.channels) for layer in network.geometry)
    return "-".join((shape, *kinds))
