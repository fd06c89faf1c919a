"""What rules that train a part of the class scores keep for each hidden layer: its shape, formats and first values.

``docs/rules.md``, section 7. The parameters of a layer are a matrix of rows and lanes: of ``lls_m`` a factor a class,
a row each, in one lane; of ``lls_mxm`` a row a basis vector, of ``local_classifier`` a row a latent, in both a lane a
class. The layers' rows follow one another in one memory, whose word is a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import Machine
from spec.network import Network

__all__ = [
    "BACK_ERROR_BITS",
    "RATE_STEP",
    "TRAINED_BITS",
    "TRAINED_FRAC",
    "USED_BITS",
    "USED_FRAC",
    "VECTOR_BITS",
    "basis_vectors",
    "first_codes",
    "lane_bits",
    "lanes",
    "row_bits",
    "rows",
    "score_basis",
    "trained_shapes",
]

TRAINED_BITS = 24
"""A trained parameter: signed, -8 to 8."""
TRAINED_FRAC = 20
USED_BITS = 16
"""What products take of it: its upper bits."""
USED_FRAC = TRAINED_FRAC - (TRAINED_BITS - USED_BITS)
VECTOR_BITS = 18
"""The score of a basis vector, before a factor or a matrix: an operand of an 18-bit multiplier."""
BACK_ERROR_BITS = 12
"""An error on its way back through a factor or a matrix: 8 fraction bits."""
RATE_STEP = 2
"""How much larger the shift of the parameters' rate is than that of the hidden layers' weights."""

_CLASS_BITS = 8


def basis_vectors(machine: Machine, classes: int) -> int:
    """Vectors of the basis on a machine: one a class, but as many as the machine says under ``lls_mxm``."""
    return machine.vectors if machine.learning.trains == "matrix" and machine.vectors else classes


def score_basis(network: Network, machine: Machine) -> Basis:
    """The basis of a network's scores on a machine; under ``lls_mxm`` it may have fewer vectors than classes.

    :class:`SpecError` for more.
    """
    count = basis_vectors(machine, network.classes)
    if count > network.classes:
        rule = f"must be at most the {network.classes} classes of network {network.name}, or 0 for as many"
        raise SpecError("vectors", rule, count)
    return Basis(network.basis, count)


def lanes(machine: Machine, classes: int) -> int:
    """Parameters of a row: one, or one a class."""
    return 1 if machine.learning.trains == "factors" else classes


def rows(machine: Machine, classes: int, vectors: int) -> int:
    """Rows of the memory: those of as many layers as a program may have, or ``classifier_depth``."""
    kind = machine.learning.trains
    if kind == "basis":
        return machine.classifier_depth
    return machine.max_layers * (vectors if kind == "matrix" else classes)


def lane_bits(machine: Machine) -> int:
    """Bits of a lane's number in a host's address."""
    return 0 if machine.learning.trains == "factors" else _CLASS_BITS


def row_bits(machine: Machine) -> int:
    """Bits of a row's number in a host's address, the same for any number of classes."""
    if machine.learning.trains == "basis":
        return (machine.classifier_depth - 1).bit_length()
    return (machine.max_layers - 1).bit_length() + _CLASS_BITS


def trained_shapes(network: Network, machine: Machine) -> tuple[tuple[int, int], ...]:
    """Rows and lanes of each hidden layer, in layer order; none under rules that train nothing of their scores."""
    kind, count = machine.learning.trains, lanes(machine, network.classes)
    if not kind:
        return ()
    vectors = score_basis(network, machine).classes
    return tuple(
        ({"factors": network.classes, "matrix": vectors, "basis": geometry.latents}[kind], count)
        for geometry in network.geometry[:-1]
    )


def first_codes(network: Network, machine: Machine) -> list[npt.NDArray[np.int32]]:
    """What training starts from, int32 of :func:`trained_shapes`: factors of 1; class k reads vector ``k mod I``; the
    network's basis.
    """
    kind, one = machine.learning.trains, 1 << TRAINED_FRAC
    basis, found = score_basis(network, machine), []
    for number, shape in enumerate(trained_shapes(network, machine)):
        codes = np.zeros(shape, np.int32)
        if kind == "factors":
            codes[:] = one
        elif kind == "matrix":
            codes[np.arange(shape[1]) % shape[0], np.arange(shape[1])] = one
        else:
            table = basis.table(network.geometry[number].latents)
            codes[:] = table.T.astype(np.int32) << (TRAINED_FRAC - basis.fraction_bits)
        found.append(codes)
    return found
