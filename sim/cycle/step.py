"""A training step as it is reported: layer by layer, cycles, multiplications and actions.

Cycles are counted by what the sequencer does, multiplications and actions by what the work is *for*: the class scores
are formed while the sequencer is in ``forward``, but they are the learning signal's. All numbers are those of the whole
step: of one sample on the dense datapath, of a batch on the windowed one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.cycle.counts import PURPOSES, Counts
from spec.machine import Machine
from spec.network import Network
from spec.program import Program
from spec.timing import FINISH_CYCLES
from spec.windowed_program import WindowedProgram

__all__ = ["CYCLE_PHASES", "LABEL", "LayerStep", "Step", "multiplied"]

LABEL = "closed form, equal to the RTL on every tested shape"
"""What the figures are."""
CYCLE_PHASES = ("setup", "forward", "signal", "update", "finish")
"""The phases of a step; ``wait`` is not one, since it depends on the host."""
SIGN_SUMS = ("scores", "gradient", "feedback")
"""Parts of a learning signal whose factors are entries of a basis: sums alone where an entry is a sign."""


@dataclass(frozen=True)
class LayerStep:
    """A layer's share of a step.

    ``n_in`` inputs (taps) and ``n_out`` neurons (channels) at each of ``positions``, in ``windows``, which each have a
    learning signal a channel. ``cycles`` by phase; ``macs``: multiplications with a sum that the usual form of the
    arithmetic needs, by purpose and part (padding is not among them); ``multiplications``: how many of them, and of the
    biases', are multiplied here, by purpose; ``window_additions``: activations summed within windows for that;
    ``counts``: what the machine does, padding included.
    """

    layer: int
    n_in: int
    n_out: int
    cycles: dict[str, int]
    macs: dict[str, dict[str, int]]
    counts: Counts
    multiplications: dict[str, int] = field(default_factory=dict)
    window_additions: int = 0
    positions: int = 1
    windows: int = 1

    @property
    def useful_macs(self) -> int:
        """Forward and weight gradient, as every rule needs."""
        return sum(sum(self.macs[purpose].values()) for purpose in ("forward", "update"))

    def utilization(self, machine: Machine) -> float:
        """Useful MACs over those possible in the layer's own cycles, R·C a cycle."""
        return self.useful_macs / (machine.pes * sum(self.cycles.values()))


@dataclass(frozen=True)
class Step:
    """The way of ``batch`` samples through the machine, with one update; rule ``inference``: without.

    ``label``: what the figures are.
    """

    rule: str
    machine: Machine
    network: Network
    program: Program | WindowedProgram
    layers: tuple[LayerStep, ...]
    batch: int = 1
    label: str = LABEL

    @property
    def cycles_by_phase(self) -> dict[str, int]:
        """Cycles of all layers by phase, with a ``finish`` a sample."""
        total = {phase: sum(layer.cycles[phase] for layer in self.layers) for phase in CYCLE_PHASES}
        total["finish"] = FINISH_CYCLES * self.batch
        return total

    @property
    def cycles(self) -> int:
        """Cycles of the step, ``wait`` apart."""
        return sum(self.cycles_by_phase.values())

    @property
    def macs_by_phase(self) -> dict[str, int]:
        """MACs by purpose: forward, learning signal, weight gradient."""
        return {purpose: sum(sum(layer.macs[purpose].values()) for layer in self.layers) for purpose in PURPOSES}

    @property
    def multiplications_by_phase(self) -> dict[str, int]:
        """Multiplications by purpose."""
        return {purpose: sum(layer.multiplications[purpose] for layer in self.layers) for purpose in PURPOSES}

    @property
    def window_additions(self) -> int:
        """Activations summed within windows, in place of multiplications."""
        return sum(layer.window_additions for layer in self.layers)

    @property
    def signal_macs(self) -> dict[str, int]:
        """The learning signal's MACs by part."""
        parts: dict[str, int] = {}
        for layer in self.layers:
            for part, number in layer.macs["signal"].items():
                parts[part] = parts.get(part, 0) + number
        return parts

    @property
    def macs(self) -> int:
        """MACs of the whole step."""
        return sum(self.macs_by_phase.values())

    @property
    def useful_macs(self) -> int:
        """Forward and weight gradient, as every rule needs."""
        return sum(layer.useful_macs for layer in self.layers)

    @property
    def utilization(self) -> float:
        """Useful MACs over those possible, R·C a cycle. For all rules alike: a learning signal's are not counted."""
        return self.useful_macs / (self.machine.pes * self.cycles)

    @property
    def counts(self) -> Counts:
        """All layers' actions."""
        total = Counts()
        for layer in self.layers:
            total += layer.counts
        return total


def multiplied(macs: Mapping[str, Mapping[str, int]], basis_kind: str) -> dict[str, int]:
    """How many of a layer's MACs are multiplied, by purpose: all but sums over the signs of a basis."""
    added = SIGN_SUMS if basis_kind != "sine" else ()
    return {
        purpose: sum(number for part, number in parts.items() if part not in added) for purpose, parts in macs.items()
    }
