"""Counts of actions: how often the machine does what a technology prices.

A count is kept under what it is *for* (its purpose: forward, signal, update), where it happens (its component) and
which action of ``spec.technology.ACTIONS`` it is. Padding is counted: a PE of a padded column multiplies too.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from spec.basis import Basis
from spec.lfsr import STATE_BITS
from spec.machine import WEIGHT_BITS, Machine
from spec.network import Network
from spec.program import LayerDescriptor
from spec.rules import Rule
from spec.scores import TRAINED_BITS, basis_vectors, lanes, rows, score_basis, trained_shapes
from spec.technology import activation_action

__all__ = [
    "COMPONENTS",
    "LOCAL_COSTS",
    "PURPOSES",
    "Counts",
    "array_registers",
    "bias_pass",
    "entry_read",
    "entry_sum",
    "kept_bits",
    "local_counts",
    "local_macs",
    "neuron_bits",
    "row_read",
    "score_memory_bytes",
    "softmax",
    "trained_bytes",
]

PURPOSES = ("forward", "signal", "update")
"""Forward pass, learning signal, weight gradient with its update."""
COMPONENTS = (
    "multipliers",
    "adders",
    "registers",
    "weight memory",
    "activation memory",
    "column memory",
    "bias unit",
    "signal arithmetic",
    "latent memory",
    "basis table",
    "score memory",
    "delta memory",
)
"""Where. The column memory, of slope bits, BP's indices of the largest and shifted signals, is the windowed datapath's.
The score memory has trained parameters of class scores. The delta memory keeps signals that are not yet shifted, BP's,
and on the windowed datapath the errors that DFA waits for."""

Key = tuple[str, str, str]


class Counts:
    """A multiset of actions under ``(purpose, component, action)``; zero counts are not kept."""

    def __init__(self, numbers: Mapping[Key, int] | None = None):
        self._numbers: dict[Key, int] = dict(numbers or {})

    def add(self, purpose: str, component: str, action: str, number: int) -> None:
        """``number`` more of an action."""
        if number:
            key = (purpose, component, action)
            self._numbers[key] = self._numbers.get(key, 0) + number

    def __iadd__(self, other: "Counts") -> "Counts":
        for (purpose, component, action), number in other._numbers.items():
            self.add(purpose, component, action, number)
        return self

    def __add__(self, other: "Counts") -> "Counts":
        total = Counts(self._numbers)
        total += other
        return total

    def __mul__(self, times: int) -> "Counts":
        return Counts({key: number * times for key, number in self._numbers.items() if times})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and self._numbers == other._numbers

    def __repr__(self) -> str:
        return f"Counts({self._numbers})"

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        return iter(sorted(self._numbers.items()))

    def total(self, action: str, component: str | None = None, purpose: str | None = None) -> int:
        """How often an action happens, in all or in a component or for a purpose."""
        return sum(
            number
            for (p, c, a), number in self._numbers.items()
            if a == action and component in (None, c) and purpose in (None, p)
        )


def array_registers(machine: Machine, purpose: str, steps: int, edge_bits: int) -> Counts:
    """Flip-flops that a step writes in every PE (both operands, two weights, product, psum; in update the LFSR
    too), and ``edge_bits`` of accumulators; a register is taken to be written whether or not its value changes."""
    pe = machine.narrow_bits + machine.operand_bits + 2 * WEIGHT_BITS + machine.product_bits + machine.psum_bits
    if purpose == "update":
        pe += STATE_BITS
    counts = Counts()
    counts.add(purpose, "registers", "register_bit", steps * (pe * machine.pes + edge_bits))
    return counts


def bias_pass(machine: Machine, layer: LayerDescriptor, purpose: str) -> Counts:
    """The bias unit in a pass: a read and an addition for every column of every tile; in update the real ones are
    written, and the unit's LFSR steps; the shifted signals pass the FIFO on their way to the columns."""
    counts, columns = Counts(), layer.col_tiles * machine.cols
    counts.add(purpose, "bias unit", "bias_read", columns)
    counts.add(purpose, "bias unit", "add_32", columns)
    if purpose == "update":
        counts.add(purpose, "bias unit", "bias_write", layer.n_out)
        counts.add(purpose, "bias unit", "register_bit", STATE_BITS * columns)
        counts.add("signal", "signal arithmetic", "register_bit", machine.delta_bits * columns)
    return counts


def entry_read(latents: int, basis: Basis) -> Counts:
    """Reads of the basis: K entries a latent; Walsh rows are computed, so nothing is read."""
    counts = Counts()
    if basis.kind != "walsh":
        bits = latents * basis.classes * basis.entry_bits
        counts.add("signal", "basis table", "rom_read_bit", bits)
    return counts


def row_read(latents: int, basis: Basis) -> Counts:
    """Reads of one row of the basis, the label's: an entry a latent."""
    counts = Counts()
    if basis.kind != "walsh":
        counts.add("signal", "basis table", "rom_read_bit", latents * basis.entry_bits)
    return counts


def kept_bits(rule: Rule) -> int:
    """Bits of a hidden neuron that its signal needs: the slope; with fixed feedback also whether it is saturated."""
    return 2 if rule.basis and not rule.scores else 1


def neuron_bits(n: int, rule: Rule) -> Counts:
    """What is kept of each of ``n`` neurons, written going forward and read for its signal, 8 bits an access."""
    counts, accesses = Counts(), -(-n * kept_bits(rule) // 8)
    counts.add("signal", "latent memory", "activation_write", accesses)
    counts.add("signal", "latent memory", "activation_read", accesses)
    return counts


def entry_sum(latents: int, basis: Basis) -> Counts:
    """K products of an entry with a latent or an error, summed: additions alone when an entry is a sign."""
    counts, products = Counts(), latents * basis.classes
    if basis.kind == "sine":
        counts.add("signal", "signal arithmetic", "multiply_8x8", products)
        counts.add("signal", "signal arithmetic", "add_32", products)
    else:
        counts.add("signal", "signal arithmetic", "add_16", products)
    return counts


def softmax(classes: int) -> Counts:
    """The softmax and the error: a maximum, a sum and a product over the classes; shifts and tables are left out."""
    counts = Counts()
    counts.add("signal", "signal arithmetic", "add_16", 3 * classes)
    counts.add("signal", "signal arithmetic", "multiply_16x16", classes)
    return counts


def local_macs(network: Network, machine: Machine, number: int) -> dict[str, int]:
    """Of a hidden layer's signal: class scores and ``G = Bᵀe``; the norm; the projection ``Σ e·s`` and ``q·a``.

    What is trained of the scores has a product a parameter on the way to them, one on the way back and one in its own
    gradient.
    """
    n, basis = network.geometry[number].latents, _fixed_basis(network, machine)
    sums = basis.classes * n if basis else 0
    parts = {"scores": sums, "gradient": sums, "norm": n, "projection": network.classes + n}
    if trained := _trained(network, machine, number):
        parts |= {"trained scores": trained, "trained gradient": trained, "parameters": trained}
    return {part: products for part, products in parts.items() if products}


def local_counts(network: Network, machine: Machine, number: int) -> Counts:
    """What a hidden layer's signal does: twice the basis, the norm, the projection, the latent memory, and what is
    trained of its scores."""
    n, basis = network.geometry[number].latents, _fixed_basis(network, machine)
    counts = entry_read(2 * n, basis) + entry_sum(2 * n, basis) if basis else Counts()
    counts.add("signal", "signal arithmetic", "multiply_8x8", n)
    counts.add("signal", "signal arithmetic", "add_32", n + network.classes)
    counts.add("signal", "signal arithmetic", "multiply_16x16", network.classes + 1)
    counts.add("signal", "signal arithmetic", "multiply_8x16", n)
    counts.add("signal", "signal arithmetic", "add_16", n)
    counts.add("signal", "latent memory", "activation_write", n)
    counts.add("signal", "latent memory", "activation_read", n)
    return counts + _trained_counts(network, machine, number)


LocalCost = Callable[[Network, Machine, int], tuple[dict[str, int], Counts]]
LOCAL_COSTS: dict[str, LocalCost] = {"own": lambda *layer: (local_macs(*layer), local_counts(*layer))}
"""MACs by part, and actions, of a hidden layer's signal from its own scores, by a rule's name where that has another
(`spec.rules.part`): of a network on a machine, in layer so many."""


def score_memory_bytes(network: Network, machine: Machine) -> int:
    """Bytes that a machine has for trained parameters of class scores; 0 where its rule trains none."""
    if not machine.learning.trains:
        return 0
    words = rows(machine, network.classes, basis_vectors(machine, network.classes))
    return words * lanes(machine, network.classes) * TRAINED_BITS // 8


def trained_bytes(network: Network, machine: Machine) -> int:
    """Bytes of the trained parameters of all hidden layers' class scores."""
    return sum(map(math.prod, trained_shapes(network, machine))) * TRAINED_BITS // 8


def _fixed_basis(network: Network, machine: Machine) -> Basis | None:
    """What scores are summed with; nothing where it is trained itself."""
    return None if machine.learning.trains == "basis" else score_basis(network, machine)


def _trained(network: Network, machine: Machine, number: int) -> int:
    """Trained parameters of the class scores of hidden layer ``number``."""
    shapes = trained_shapes(network, machine)
    return math.prod(shapes[number]) if shapes else 0


def _trained_counts(network: Network, machine: Machine, number: int) -> Counts:
    """Each trained parameter is read for the scores, and once more for the errors, its own gradient and its change."""
    counts, trained, kind = Counts(), _trained(network, machine, number), machine.learning.trains
    if not trained:
        return counts
    # Times a latent of 8 bits or a vector's score of 18; an error of 10; and that, cut to 8, times the former.
    scored, gradient = ("multiply_8x16", "multiply_8x8") if kind == "basis" else ("multiply_16x16", "multiply_8x18")
    for action in (scored, "multiply_16x16", gradient):
        counts.add("signal", "signal arithmetic", action, trained)
    # A factor's products are not summed.
    counts.add("signal", "signal arithmetic", "add_32", trained * (1 if kind == "factors" else 3))
    size, bytes_each = score_memory_bytes(network, machine), TRAINED_BITS // 8
    counts.add("signal", "score memory", activation_action(size, "read"), 2 * trained * bytes_each)
    counts.add("signal", "score memory", activation_action(size, "write"), trained * bytes_each)
    return counts
