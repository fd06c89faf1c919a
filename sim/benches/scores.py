"""What is trained of class scores, in both cores' benches: written before a case, compared after every step."""

import numpy as np

from golden.fixed import StatefulModel
from sim.benches import context
from sim.benches.bus import Bus
from sim.rtl.host import Host
from spec.machine import Machine
from spec.memory_map import score_address
from spec.scores import TRAINED_BITS, TRAINED_FRAC, basis_vectors, lanes, rows

__all__ = ["compare_scores", "score_addresses", "wide_scores", "write_scores"]

_HIGHEST = (1 << (TRAINED_BITS - 1)) - 1
_LOWEST = -_HIGHEST - 1


def wide_scores(golden: StatefulModel) -> None:
    """Gives the model other values than those that training starts from: spread around these, with both ends of the
    range, so that products and changes saturate."""
    rng, layers = context.rng("scores"), []
    for first in golden.trained_scores():
        codes = np.clip(first + rng.normal(0, 1 << TRAINED_FRAC, first.shape), _LOWEST, _HIGHEST).astype(np.int32)
        codes[0, 0], codes[-1, -1] = _LOWEST, _HIGHEST
        layers.append(codes)
    golden.load_trained_scores(layers)


async def write_scores(bus: Bus, host: Host, golden: StatefulModel) -> None:
    """Writes the model's values."""
    await bus.make(host.score_writes(golden.trained_scores()))


async def compare_scores(bus: Bus, host: Host, golden: StatefulModel, when: str) -> None:
    """Reads every value by the bus, sign-extended, and compares."""
    pairs = zip(host.score_places, golden.trained_scores(), strict=True)
    for number, (place, expected) in enumerate(pairs):
        found = await bus.codes(place, TRAINED_BITS)
        wrong = np.argwhere(found != expected)
        assert not len(wrong), (
            f"{when}: layer {number}: {len(wrong)} of {expected.size} trained scores differ, first at "
            f"{wrong[0].tolist()}: got {found[tuple(wrong[0])]}, golden {expected[tuple(wrong[0])]}"
        )


def score_addresses(machine: Machine, classes: int) -> list[int]:
    """Of every parameter that the machine has room for; none under rules that train nothing of their scores."""
    if not machine.learning.trains:
        return []
    depth = rows(machine, classes, basis_vectors(machine, classes))
    return [score_address(machine, row, lane) for row in range(depth) for lane in range(lanes(machine, classes))]
