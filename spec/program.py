"""The layer program: what the sequencer reads before each layer, and how it is made.

A descriptor fills ``DESCRIPTOR_WORDS`` words of 32 bits; descriptors stand ``DESCRIPTOR_STRIDE``
words apart in program memory. ``compile_program`` also places weights, biases and activations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from spec.errors import SpecError, check_int
from spec.lfsr import STATE_BITS
from spec.machine import ACT_FRAC, INPUT_FRAC, SCORE_FRAC, WEIGHT_FRAC, Machine
from spec.network import Network

__all__ = [
    "DESCRIPTOR_STRIDE",
    "DESCRIPTOR_WORDS",
    "FIELDS",
    "Field",
    "LayerDescriptor",
    "Program",
    "compile_program",
    "decode",
    "encode",
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
    "is_output": Field(5, 30, 1),
    "train": Field(5, 31, 1),
}
"""The layout of a descriptor; bits that no field names are 0."""

DESCRIPTOR_WORDS = 1 + max(field.word for field in FIELDS.values())
DESCRIPTOR_STRIDE = 1 << (DESCRIPTOR_WORDS - 1).bit_length()


@dataclass(frozen=True)
class LayerDescriptor:
    """One layer as the sequencer sees it.

    Element ``i`` of the layer's input is in bank ``i % rows`` at ``x_base + i // rows``, its output
    (hidden layers) likewise at ``a_base``; PE(r, c) holds ``w[jt*cols + c][it*rows + r]`` at
    ``w_base + jt*row_tiles + it``; neuron ``j``'s bias is at ``b_base + j``. Bit ``r`` of
    ``row_mask`` says that row ``r`` has an input in the last row tile. Shifts: see
    ``docs/architecture.md``, section 1. ``is_output`` and ``train`` are 0 or 1.
    """

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
    is_output: int
    train: int

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            check_int(f"descriptor.{name}", getattr(self, name), field.low, field.high)

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


def encode(descriptor: LayerDescriptor) -> tuple[int, ...]:
    """The descriptor as ``DESCRIPTOR_WORDS`` unsigned 32-bit words."""
    words = [0] * DESCRIPTOR_WORDS
    for name, field in FIELDS.items():
        code = getattr(descriptor, name) & ((1 << field.width) - 1)
        words[field.word] |= code << field.lsb
    return tuple(words)


def decode(words: tuple[int, ...]) -> LayerDescriptor:
    """The inverse of :func:`encode`."""
    values = {}
    for name, field in FIELDS.items():
        code = words[field.word] >> field.lsb & ((1 << field.width) - 1)
        values[name] = code - (1 << field.width) if code > field.high else code
    return LayerDescriptor(**values)


assert tuple(FIELDS) == tuple(field.name for field in fields(LayerDescriptor))


def compile_program(network: Network, machine: Machine, train_hidden: bool = True) -> Program:
    """Places a network on a machine; ``train_hidden=False`` freezes the hidden layers.

    :class:`SpecError` for what does not fit, naming everything that is too small, by how much, and
    the value of the machine's parameter that would fit; and for what the hardware does not compute.
    """

    if network.windowed:
        what = "has convolutions or batches, which the hardware does not compute yet"
        raise SpecError(f"network {network.name}", what)
    if machine.fraction_bits > STATE_BITS:
        what = f"has fraction_bits above {STATE_BITS}, which the hardware does not compute yet"
        raise SpecError(f"machine {machine.name}", what, machine.fraction_bits)
    problems = []

    def fit(parameter: str, needed: int, what: str) -> None:
        has = getattr(machine, parameter)
        if needed > has:
            problems.append(
                f"{parameter} is {has}, {needed - has} too few: {needed} would fit ({what})"
            )

    shapes, rows, cols = network.shapes, machine.rows, machine.cols
    recipe = network.recipe
    fit("max_layers", len(shapes), "layers")
    fan_in, neurons = (max(sizes) for sizes in zip(*shapes, strict=True))
    fit("max_fan_in", fan_in, "inputs of the widest layer")
    fit("max_neurons", neurons, "neurons of the widest layer")
    fit(
        "result_fifo_depth",
        len(shapes) * network.classes + 1,
        "beats of a sample's result: every layer's class scores and the summary",
    )

    input_words = -(-shapes[0][0] // rows)
    # Hidden activations alternate between two slots: a layer reads one while it writes the other.
    slots = [0, 0]
    for number, (_, n_out) in enumerate(shapes[:-1]):
        slots[number % 2] = max(slots[number % 2], -(-n_out // rows))
    slot_bases = (2 * input_words, 2 * input_words + slots[0])
    fit(
        "activation_depth",
        slot_bases[1] + slots[1],
        "words a bank: two input buffers and two layers' activations",
    )

    layers = []
    x_base = w_base = b_base = 0
    for number, (n_in, n_out) in enumerate(shapes):
        is_output = number == len(shapes) - 1
        in_frac = ACT_FRAC if number else INPUT_FRAC
        row_tiles, col_tiles = -(-n_in // rows), -(-n_out // cols)
        a_base = 0 if is_output else slot_bases[number % 2]
        rate = recipe.output_rate_shift + 7 if is_output else recipe.hidden_rate_shift + 2
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
                rate_shift=rate + in_frac - WEIGHT_FRAC,
                bias_shift=2 * in_frac - 7,
                is_output=int(is_output),
                train=int(is_output or train_hidden),
            )
        )
        x_base = a_base
        w_base += row_tiles * col_tiles
        b_base += n_out
    fit("weight_depth", w_base, "weight words a PE")
    fit("bias_depth", b_base, "biases")
    if problems:
        raise SpecError(
            f"network {network.name} does not fit machine {machine.name}", "; ".join(problems)
        )
    return Program(tuple(LayerDescriptor(**layer) for layer in layers), shapes[0][0], input_words)
