"""The one exception for everything a user can get wrong, and the checks that raise it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["SpecError", "check_choice", "check_int", "check_number", "check_text", "located"]

_UNSET = object()

# Aliases let a small YAML file stand for an enormous value; the message stays one short line.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlevel = 2


class SpecError(ValueError):
    """A configuration, network, file or argument is refused.

    ``str(error)`` is one line: ``file: key.path: rule, got value``; parts that are not known are
    left out, so ``SpecError("a sentence")`` is one line too.
    """

    def __init__(self, key: str, rule: str = "", got: object = _UNSET, *, file: str = "") -> None:
        self.key = key
        self.rule = rule
        self.got = got
        self.file = file
        text = ": ".join(part for part in (file, key, rule) if part)
        if got is not _UNSET:
            text += f", got {_REPR.repr(got)}"
        super().__init__(" ".join(text.split()))


@contextmanager
def located(*, file: str = "", path: str = "") -> Iterator[None]:
    """Adds a file name and a key prefix to every :class:`SpecError` raised inside."""
    try:
        yield
    except SpecError as error:
        separator = "" if error.key.startswith("[") or not (path and error.key) else "."
        raise SpecError(
            f"{path}{separator}{error.key}", error.rule, error.got, file=file or error.file
        ) from None


def check_int(key: str, value: Any, low: int, high: int) -> None:
    """Refuses ``value`` unless it is an integer (not a bool) in ``low`` to ``high``, inclusive."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(key, f"must be an integer from {low} to {high}", value)


def check_number(key: str, value: Any, low: float, high: float) -> None:
    """Refuses ``value`` unless it is a finite number (not a bool) in ``low`` to ``high``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise SpecError(key, f"must be a number from {low:g} to {high:g}", value)


def check_text(key: str, value: Any) -> None:
    """Refuses ``value`` unless it is a printable, non-empty line of text."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise SpecError(key, "must be a line of text", value)


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses ``value`` unless it is one of ``choices``."""
    names = tuple(choices)
    if not isinstance(value, str) or value not in names:
        raise SpecError(key, f"must be one of {', '.join(names)}", value)
