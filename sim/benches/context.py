"""What the pytest side hands to a bench: the design, the seed and free parameters."""

import os
import pickle
import zlib
from functools import cache
from typing import Any

import numpy as np

from sim.runner import BENCH_FILE, Design

__all__ = ["design", "inputs", "parameter", "rng", "seed"]


@cache
def _content() -> dict[str, Any]:
    with open(os.environ[BENCH_FILE], "rb") as file:
        return pickle.load(file)  # noqa: S301 (written a moment ago by sim.runner)


def design() -> Design:
    """The design under test."""
    return _content()["design"]


def inputs() -> list[str]:
    """Names of the design's input ports, but for clock and reset."""
    return _content()["inputs"]


def parameter(name: str, default: Any = None) -> Any:
    """A parameter that the test passed to :func:`sim.runner.run_bench`."""
    return _content()["parameters"].get(name, default)


def seed() -> int:
    """The seed of this run."""
    return _content()["seed"]


def rng(name: str) -> np.random.Generator:
    """A random generator of its own for each purpose ``name``, so that adding one does not change
    another."""
    return np.random.default_rng([seed(), zlib.crc32(name.encode())])
