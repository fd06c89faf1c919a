"""The layer program: what the sequencer reads before each layer, and how it is made.

A descriptor fills ``DESCRIPTOR_WORDS`` words of 32 bits; descriptors stand ``DESCRIPTOR_STRIDE``
words apart in program memory. ``compile_program`` also places weights, biases and activations.
Those of fully connected layers at batch 1 are here, those of convolutions and batches in
:mod:`spec.windowed_program`; ``program_for`` makes the one that the network needs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, TypeVar

from spec.errors import SpecError, check_int
from spec.machine import ACT_FRAC, INPUT_FRAC, SCORE_FRAC, WEIGHT_FRAC, Machine, load_machine
from spec.network import Network
from spec.rules import BACK_FRAC
from spec.scores import score_basis
from spec.yaml_loader import preset_names

if TYPE_CHECKING:
    from spec.windowed_program import WindowedProgram

__all__ = [
    "DESCRIPTOR_STRIDE",
    "DESCRIPTOR_WORDS",
    "FIELDS",
    "Descriptor",
    "Field",
    "Fit",
    "LayerDescriptor",
    "Program",
    "check_kind",
    "compile_program",
    "decode",
    "encode",
    "fitting_presets",
    "map_bases",
    "need_scores",
    "program_for",
]


@dataclass(frozen=True)
class Field:
    """Where a field lies: ``width`` bits of word ``word`` from bit ``lsb`` up."""

    word: int
    lsb: int
    width: int
    signed: bool = False

    @property
    def low(self) -> int:
        """Smallest value."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value."""
        return (1 << (self.width - self.signed)) - 1


class Descriptor:
    """What both kinds of descriptor share: a value for each of the class's ``fields``, that fits it."""

    fields: ClassVar[dict[str, Field]]

    def __post_init__(self) -> None:
        for name, field in self.fields.items():
            check_int(f"descriptor.{name}", getattr(self, name), field.low, field.high)

    @classmethod
    def words(cls) -> int:
        """Words of 32 bits that it fills."""
        return 1 + max(field.word for field in cls.fields.values())

    @classmethod
    def spacing(cls) -> int:
        """Words from one to the next in program memory, a power of two."""
        return 1 << (cls.words() - 1).bit_length()


FIELDS: dict[str, Field] = {
    "n_in": Field(0, 0, 16),
    "n_out": Field(0, 16, 16),
    "row_tiles": Field(1, 0, 16),
    "col_tiles": Field(1, 16, 16),
    "x_base": Field(2, 0, 16),
    "a_base": Field(2, 16, 16),
    "w_base": Field(3, 0, 16),
    "b_base": Field(3, 16, 16),
    "row_mask": Field(4, 0, 32),
    "act_shift": Field(5, 0, 5),
    "score_shift": Field(5, 8, 5),
    "rate_shift": Field(5, 16, 6, signed=True),
    "bias_shift": Field(5, 24, 3),
    "trains_below": Field(5, 29, 1),
    "is_output": Field(5, 30, 1),
    "train": Field(5, 31, 1),
}
"""The layout of a descriptor; bits that no field names are 0."""

DESCRIPTOR_WORDS = 1 + max(field.word for field in FIELDS.values())
DESCRIPTOR_STRIDE = 1 << (DESCRIPTOR_WORDS - 1).bit_length()


@dataclass(frozen=True)
class LayerDescriptor(Descriptor):
    """One layer as the sequencer sees it.

    Element ``i`` of the layer's input is in bank ``i % rows`` at ``x_base + i // rows``, its output
    (hidden layers) likewise at ``a_base``; PE(r, c) holds ``w[jt*cols + c][it*rows + r]`` at
    ``w_base + jt*row_tiles + it``; neuron ``j``'s bias is at ``b_base + j``. Bit ``r`` of
    ``row_mask`` says that row ``r`` has an input in the last row tile. Shifts: see
    ``docs/architecture.md``, section 1. ``is_output`` and ``train`` are 0 or 1, and so is
    ``trains_below``: whether layers before this one train after it (a rule that ``waits``).
    """

    fields = FIELDS

    n_in: int
    n_out: int
    row_tiles: int
    col_tiles: int
    x_base: int
    a_base: int
    w_base: int
    b_base: int
    row_mask: int
    act_shift: int
    score_shift: int
    rate_shift: int
    bias_shift: int
    trains_below: int
    is_output: int
    train: int

    @property
    def steps(self) -> int:
        """Steps of the array in one phase of this layer: ``row_tiles * col_tiles``."""
        return self.row_tiles * self.col_tiles


@dataclass(frozen=True)
class Program:
    """What the host writes before the first sample.

    ``input_length`` pixels a sample, ``input_words`` words a bank in each of two input buffers.
    """

    layers: tuple[LayerDescriptor, ...]
    input_length: int
    input_words: int


_Kind = TypeVar("_Kind", bound=Descriptor)


def encode(descriptor: Descriptor) -> tuple[int, ...]:
    """A descriptor of any kind as unsigned 32-bit words."""
    words = [0] * descriptor.words()
    for name, field in descriptor.fields.items():
        code = getattr(descriptor, name) & ((1 << field.width) - 1)
        words[field.word] |= code << field.lsb
    return tuple(words)


def decode(words: tuple[int, ...], kind: type[_Kind] = LayerDescriptor) -> _Kind:
    """The inverse of :func:`encode`; ``kind`` is the descriptor's class."""
    values = {}
    for name, field in kind.fields.items():
        code = words[field.word] >> field.lsb & ((1 << field.width) - 1)
        values[name] = code - (1 << field.width) if code > field.high else code
    return kind(**values)


assert tuple(FIELDS) == tuple(field.name for field in fields(LayerDescriptor))


def program_for(network: Network, machine: Machine, train_hidden: bool = True) -> Program | WindowedProgram:
    """The program that runs a network on a machine: of convolutions and batches where it has them.

    ``train_hidden=False`` freezes the hidden layers. :class:`SpecError` in one line for a machine
    of the other kind (:func:`check_kind`), or one that the network does not fit.
    """
    if network.windowed:
        # It builds on this module.
        from spec.windowed_program import compile_windowed

        return compile_windowed(network, machine, train_hidden)
    return compile_program(network, machine, train_hidden)


def check_kind(network: Network, machine: Machine) -> None:
    """Refuses a network on a machine whose datapath is not for its kind; says which would do."""
    if network.windowed == machine.windowed:
        return
    presets = fitting_presets(network)
    such = f", such as the preset {presets[0]}" if presets else ""
    if network.windowed:
        rule = f"has convolutions or batches: it needs a machine with gradient_bits{such}, not {machine.name}"
    else:
        rule = (
            f"has neither convolutions nor batches: it needs a machine without gradient_bits{such}, "
            f"not {machine.name}, or a recipe.batch above 1"
        )
    raise SpecError(f"network {network.name}", rule)


def fitting_presets(network: Network) -> tuple[str, ...]:
    """The preset machines that run a network; those with fewer PEs first."""
    found = []
    for name in preset_names("machines"):
        machine = load_machine(name)
        if machine.windowed == network.windowed:
            with suppress(SpecError):
                program_for(network, machine)
                found.append((machine.pes, name))
    return tuple(name for _, name in sorted(found))


class Fit:
    """Collects what of a machine is too small for a network, so that one refusal names everything."""

    def __init__(self, network: Network, machine: Machine) -> None:
        self._network, self._machine = network, machine
        self._problems: list[str] = []

    def need(self, parameter: str, needed: int, what: str) -> None:
        """The machine's ``parameter`` must be ``needed`` or more; ``what`` is what it counts."""
        has = getattr(self._machine, parameter)
        if needed > has:
            self.problem(f"{parameter} is {has}, {needed - has} too few: {needed} would fit ({what})")

    def problem(self, text: str) -> None:
        """Anything else that does not fit."""
        self._problems.append(text)

    def refuse(self) -> None:
        """:class:`SpecError`, one line, if anything did not fit."""
        if self._problems:
            where = f"network {self._network.name} does not fit machine {self._machine.name}"
            raise SpecError(where, "; ".join(self._problems))


def compile_program(network: Network, machine: Machine, train_hidden: bool = True) -> Program:
    """Places a network of fully connected layers at batch 1 on a machine without ``gradient_bits``.

    ``train_hidden=False`` freezes the hidden layers. :class:`SpecError` for what does not fit,
    naming everything that is too small, by how much, and the value of the machine's parameter that
    would fit; and for a network or machine of the other kind.
    """
    check_kind(network, machine)
    fit = Fit(network, machine)
    shapes, rows, cols = network.shapes, machine.rows, machine.cols
    recipe, rule = network.recipe, machine.learning
    fit.need("max_layers", len(shapes), "layers")
    fan_in, neurons = (max(sizes) for sizes in zip(*shapes, strict=True))
    fit.need("max_fan_in", fan_in, "inputs of the widest layer")
    fit.need("max_neurons", neurons, "neurons of the widest layer")
    fit.need(
        "result_fifo_depth",
        len(shapes) * network.classes + 1,
        "beats of a sample's result: every layer's class scores and the summary",
    )

    input_words = -(-shapes[0][0] // rows)
    hidden = [-(-n_out // rows) for _, n_out in shapes[:-1]]
    bases, words = map_bases(hidden, 2 * input_words, rule.waits)
    kept = "all hidden layers'" if rule.waits else "two layers'"
    fit.need("activation_depth", words, f"words a bank: two input buffers and {kept} activations")

    layers = []
    x_base = w_base = b_base = 0
    for number, (n_in, n_out) in enumerate(shapes):
        is_output = number == len(shapes) - 1
        in_frac = ACT_FRAC if number else INPUT_FRAC
        row_tiles, col_tiles = -(-n_in // rows), -(-n_out // cols)
        a_base = 0 if is_output else bases[number]
        train = rule.learns and (is_output or train_hidden)
        layers.append(
            dict(
                n_in=n_in,
                n_out=n_out,
                row_tiles=row_tiles,
                col_tiles=col_tiles,
                x_base=x_base,
                a_base=a_base,
                w_base=w_base,
                b_base=b_base,
                row_mask=(1 << (n_in - (row_tiles - 1) * rows)) - 1,
                act_shift=WEIGHT_FRAC + in_frac - (SCORE_FRAC if is_output else ACT_FRAC),
                score_shift=SCORE_FRAC if is_output else recipe.temperature_shift,
                rate_shift=_rate_shift(network, machine, is_output) + in_frac - WEIGHT_FRAC,
                bias_shift=2 * in_frac - 7,
                is_output=int(is_output),
                train=int(train),
                trains_below=int(rule.waits and train_hidden and number > 0),
            )
        )
        x_base = a_base
        w_base += row_tiles * col_tiles
        b_base += n_out
    fit.need("weight_depth", w_base, "weight words a PE")
    fit.need("bias_depth", b_base, "biases")
    need_scores(fit, network, machine)
    fit.refuse()
    return Program(tuple(LayerDescriptor(**layer) for layer in layers), shapes[0][0], input_words)


def need_scores(fit: Fit, network: Network, machine: Machine) -> None:
    """Adds what of a trained part of the class scores does not fit (:mod:`spec.scores`)."""
    try:
        score_basis(network, machine)
    except SpecError as error:
        fit.problem(str(error))
    if machine.learning.trains == "basis":
        latents = sum(geometry.latents for geometry in network.geometry[:-1])
        fit.need("classifier_depth", latents, "latents of all hidden layers")


def map_bases(words: list[int], first: int, kept: bool) -> tuple[list[int], int]:
    """Where the activations of each hidden layer, of so many words a bank, begin, from word ``first`` on; and where all
    end.

    They alternate between two slots, a layer reading one while it writes the other, unless they are ``kept``
    to be read once more when the forward pass is over.
    """
    if kept:
        return [first + sum(words[:number]) for number in range(len(words))], first + sum(words)
    slots = [max(words[parity::2], default=0) for parity in (0, 1)]
    return [first + number % 2 * slots[0] for number in range(len(words))], first + sum(slots)


def _rate_shift(network: Network, machine: Machine, is_output: bool) -> int:
    """A layer's shift of the rate, and the fraction bits of its signal."""
    recipe, rule = network.recipe, machine.learning
    shift = recipe.output_rate_shift if is_output else recipe.rate_shift(rule.name)
    if rule.transposes:
        return shift + BACK_FRAC
    # A layer's own error lacks the norm of its latents, 2^4 or so, which the exponent k brings back.
    return shift + (7 if is_output else 6 - 4 * rule.scores)
