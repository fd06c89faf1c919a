"""The fixed matrices that turn a hidden layer's activations into class scores.

``sine`` and ``square`` sample ``sin(f_c * i)`` with ``f = linspace(50, 512, K)`` radians a step.
The product ``f_c * i`` is rounded once to float64, and ``fmod`` by the float64 nearest to 2*pi is
exact; a sign then depends on one comparison with pi, not on a mathematics library. ``sine`` needs
``sin`` of the reduced argument, so its table rests on the library's rounding, and the hashes of
both are pinned by a test. ``walsh`` is integer and needs no table in hardware.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spec.errors import check_choice, check_int
from spec.network import BASES, NO_LABEL

__all__ = ["WALSH_STEP", "Basis", "basis_frequencies", "reduced_arguments"]

WALSH_STEP = 157
"""Class ``c`` has the Walsh row ``157 * (c + 1)``: odd, so that rows differ as long as they can."""

_LOWEST, _HIGHEST = 50.0, 512.0


def basis_frequencies(classes: int) -> npt.NDArray[np.float64]:
    """``linspace(50, 512, classes)``, radians a step: float64 ``(classes,)``."""
    return np.linspace(_LOWEST, _HIGHEST, classes, dtype=np.float64)


def reduced_arguments(classes: int, n: int) -> npt.NDArray[np.float64]:
    """``f_c * i`` reduced to ``[0, 2*pi)``: float64 ``(classes, n)``."""
    arguments = np.multiply.outer(basis_frequencies(classes), np.arange(n, dtype=np.float64))
    return np.fmod(arguments, 2 * math.pi)


@dataclass(frozen=True)
class Basis:
    """The basis of a network: ``kind`` is ``square``, ``walsh`` or ``sine``."""

    kind: str
    classes: int

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, BASES)
        check_int("classes", self.classes, 2, NO_LABEL)

    @property
    def fraction_bits(self) -> int:
        """Fraction bits of an entry: 7 for ``sine``, else 0."""
        return 7 if self.kind == "sine" else 0

    @property
    def entry_bits(self) -> int:
        """Bits stored an entry: 8 for ``sine``, else the sign alone."""
        return 8 if self.kind == "sine" else 1

    def walsh_mask(self, c: int) -> int:
        """The row of class ``c``: its entry at ``i`` is the parity of ``mask & i``."""
        return WALSH_STEP * (c + 1)

    def table(self, n: int) -> npt.NDArray[np.int8]:
        """All entries: int8 ``(classes, n)``.

        ``square``: -1 where the reduced argument is above pi, else +1, and 0 at ``i = 0``.
        ``walsh``: +1 for even parity, -1 for odd.
        ``sine``: ``round(127 sin)``, half away from zero.
        """
        check_int("n", n, 1, 1 << 16)
        if self.kind == "walsh":
            masks = WALSH_STEP * np.arange(1, self.classes + 1, dtype=np.int64)
            bits = np.bitwise_and.outer(masks, np.arange(n, dtype=np.int64))
            for shift in (16, 8, 4, 2, 1):
                bits ^= bits >> shift
            return (1 - 2 * (bits & 1)).astype(np.int8)
        reduced = reduced_arguments(self.classes, n)
        if self.kind == "sine":
            scaled = 127 * np.array([[math.sin(x) for x in row] for row in reduced.tolist()])
            return np.copysign(np.floor(np.abs(scaled) + 0.5), scaled).astype(np.int8)
        signs = np.where(reduced > math.pi, -1, 1).astype(np.int8)
        signs[:, 0] = 0
        return signs

    def sha256(self, n: int) -> str:
        """SHA-256 (hex) of ``table(n)``, row by row, one byte an entry in two's complement."""
        return hashlib.sha256(self.table(n).tobytes()).hexdigest()
