"""Fixed-point formats: ``sQ2.14`` is signed, 2 integer bits with the sign, 14 fraction bits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spec.errors import SpecError, check_int

__all__ = ["QFormat", "signed_bits"]

_PATTERN = re.compile(r"([su])Q(\d{1,2})\.(\d{1,2})")


def signed_bits(magnitude: int) -> int:
    """Bits of the narrowest two's complement number that holds ``-magnitude … +magnitude``."""
    return magnitude.bit_length() + 1


@dataclass(frozen=True)
class QFormat:
    """A code of ``bits`` bits that stands for ``code / 2**fraction_bits``.

    ``integer_bits`` counts the sign bit of a signed format.
    """

    integer_bits: int
    fraction_bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        check_int("integer_bits", self.integer_bits, 0, 64)
        check_int("fraction_bits", self.fraction_bits, 0, 64)
        if not isinstance(self.signed, bool):
            raise SpecError("signed", "must be true or false", self.signed)
        if self.bits < 1 + self.signed:
            raise SpecError("Q format", f"needs {1 + self.signed} bits or more", self.bits)

    @classmethod
    def parse(cls, text: str) -> QFormat:
        """Reads ``sQ2.14`` or ``uQ0.8``; :class:`SpecError` for anything else."""
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SpecError("Q format", "must be written like sQ2.14 or uQ0.8", text)
        return cls(int(match[2]), int(match[3]), match[1] == "s")

    @property
    def bits(self) -> int:
        """Width of the code, sign bit included."""
        return self.integer_bits + self.fraction_bits

    @property
    def min_code(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max_code(self) -> int:
        """Largest code."""
        return (1 << (self.bits - self.signed)) - 1

    def __str__(self) -> str:
        return f"{'s' if self.signed else 'u'}Q{self.integer_bits}.{self.fraction_bits}"
