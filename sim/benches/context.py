"""What the pytest side hands to a bench: the design, the seed and free parameters."""

import os
import pickle
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from sim.runner import BENCH_FILE, Design
from spec.network import Network

__all__ = ["design", "inputs", "networks", "parameter", "rng", "seed"]


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


def networks(bench: Any) -> Iterator[Network]:
    """Each network of the parameter ``networks`` in turn becomes a core's bench's; the LFSRs go on, and what is in
    the tiles' padding stays.
    """
    steps = 0, 0
    for network in parameter("networks"):
        bench.choose(network)
        bench.golden.update_steps, bench.golden.bias_steps = steps
        yield network
        steps = bench.golden.update_steps, bench.golden.bias_steps


def seed() -> int:
    """The seed of this run."""
    return _content()["seed"]


def rng(name: str) -> np.random.Generator:
    """A random generator of its own for each purpose ``name``, so that adding one does not change
    another."""
    return np.random.default_rng([seed(), zlib.crc32(name.encode())])
