"""The host's address map, the one source for the hardware, the driver and the documentation.

Addresses count 32-bit words. The two highest bits of an address choose a window; the width of the
rest depends on the machine's memories (``offset_bits``). Addresses inside a window are bit fields,
so that no division is needed; the holes between them read as anything and must not be written.
Machines with ``gradient_bits`` have some registers more, longer descriptors, and biases in banks; those whose rule
trains a part of the class scores have its parameters in the upper half of the registers' window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spec.errors import SpecError, check_int
from spec.machine import Machine
from spec.rules import RULES
from spec.scores import lane_bits, row_bits
from spec.windowed_program import descriptor_kind

__all__ = [
    "BIAS",
    "ID_VALUE",
    "PROGRAM",
    "REGISTERS",
    "REGISTER_WINDOW",
    "SCORE",
    "VERSION_VALUE",
    "WINDOWED_VERSION_VALUE",
    "WEIGHT",
    "WINDOWED_REGISTERS",
    "WINDOWS",
    "Register",
    "Window",
    "address_bits",
    "bias_address",
    "describe",
    "offset_bits",
    "program_address",
    "register_address",
    "register_bit",
    "registers_of",
    "score_address",
    "version_value",
    "weight_address",
    "window_base",
]

ID_VALUE = 0x4C4C5331
"""``ID`` reads the ASCII codes of ``LLS1``."""
VERSION_VALUE = 1
"""``VERSION`` reads this; it rises when a driver written for the old map would fail."""
WINDOWED_VERSION_VALUE = 2
"""What it reads in machines with ``gradient_bits``: another driver's."""


@dataclass(frozen=True)
class Register:
    """A register: ``access`` is ``ro``, ``rw``, ``wo`` (a write starts something) or ``w1`` (bits
    written 1 act once); ``bits`` names single bits. ``width`` in bits; the rest reads 0. ``reset``
    is the value of a ``rw`` register after reset. ``windowed``: only machines with ``gradient_bits``
    have it."""

    name: str
    address: int
    access: str
    width: int
    description: str
    bits: dict[str, int] = field(default_factory=dict)
    reset: int = 0
    windowed: bool = False


@dataclass(frozen=True)
class Window:
    """A window of the address space, chosen by the two highest address bits."""

    name: str
    select: int
    access: str
    description: str


REGISTERS: dict[str, Register] = {
    register.name: register
    for register in (
        Register("ID", 0, "ro", 32, "always 0x4C4C5331, the ASCII codes of LLS1"),
        Register("VERSION", 1, "ro", 32, "version of this address map; plus 16 times the number of the learning rule"),
        Register(
            "CTRL",
            2,
            "rw",
            2,
            "enable: samples are taken; scores: results carry every signalled layer's class scores",
            {"enable": 0, "scores": 1},
        ),
        Register(
            "STATUS",
            3,
            "ro",
            3,
            "idle: no sample in work, no advance under way; bad_label, bad_length: "
            "a packet was dropped for its label or its length (sticky, see CLEAR)",
            {"idle": 0, "bad_label": 1, "bad_length": 2},
        ),
        Register(
            "CLEAR",
            4,
            "w1",
            2,
            "counters: the cycle counters, SAMPLES and FORWARD_STEPS return to 0; errors: the "
            "sticky bits of STATUS return to 0",
            {"counters": 0, "errors": 1},
        ),
        Register("LAYERS", 5, "rw", 7, "layers of the program"),
        Register("INPUT_LENGTH", 6, "rw", 16, "pixels of a sample, without its label"),
        Register("INPUT_WORDS", 7, "rw", 16, "words a bank of one input buffer"),
        Register(
            "ADVANCE_ARRAY",
            8,
            "wo",
            16,
            "steps the PEs' LFSRs, and UPDATE_STEPS, this many times; no weight changes",
        ),
        Register(
            "ADVANCE_BIAS",
            9,
            "wo",
            16,
            "steps the bias unit's LFSR, and BIAS_STEPS, this many times; no bias changes",
        ),
        Register("UPDATE_STEPS", 10, "ro", 16, "steps of the PEs' LFSRs since reset, mod 65535"),
        Register("BIAS_STEPS", 11, "ro", 16, "steps of the bias LFSR since reset, mod 65535"),
        Register("SAMPLES", 12, "ro", 32, "samples finished since the counters were cleared"),
        Register("FORWARD_STEPS", 13, "ro", 32, "forward steps of the array since cleared"),
        Register("CYCLES_WAIT", 16, "ro", 32, "cycles in phase wait since cleared"),
        Register("CYCLES_SETUP", 17, "ro", 32, "cycles in phase setup since cleared"),
        Register("CYCLES_FORWARD", 18, "ro", 32, "cycles in phase forward since cleared"),
        Register("CYCLES_SIGNAL", 19, "ro", 32, "cycles in phase signal since cleared"),
        Register("CYCLES_UPDATE", 20, "ro", 32, "cycles in phase update since cleared"),
        Register("CYCLES_FINISH", 21, "ro", 32, "cycles in phase finish since cleared"),
    )
}
"""Registers that every machine has, by name. The cycle counters stand in the order of ``spec.timing.Phase``."""

WINDOWED_REGISTERS: dict[str, Register] = {
    register.name: register
    for register in (
        Register(
            "BATCH",
            22,
            "rw",
            8,
            "samples of a batch, 1 to max_batch; 1 after reset",
            reset=1,
            windowed=True,
        ),
        Register(
            "INPUT_SLOTS",
            23,
            "rw",
            9,
            "slots of the input ring, of INPUT_WORDS words a bank each; BATCH or more",
            windowed=True,
        ),
        Register("INPUT_ROW", 24, "rw", 16, "elements of a row of a sample", windowed=True),
        Register(
            "INPUT_GAP",
            25,
            "rw",
            5,
            "elements of memory between two rows of a sample, which are not written",
            windowed=True,
        ),
    )
}
"""Registers that machines with ``gradient_bits`` have besides, by name."""

_ALL_REGISTERS = REGISTERS | WINDOWED_REGISTERS

REGISTER_WINDOW = Window("REGISTER", 0, "rw", "the registers")
PROGRAM = Window("PROGRAM", 1, "wo", "layer descriptors, one every {spacing} words")
BIAS = Window("BIAS", 2, "rw", "biases, 16 bits signed, sign-extended when read")
WEIGHT = Window(
    "WEIGHT", 3, "rw", "weights, 16 bits signed, sign-extended when read: word, row, column"
)
WINDOWS = (REGISTER_WINDOW, PROGRAM, BIAS, WEIGHT)
SCORE = Window(
    "SCORE", 0, "rw", "trained parameters of class scores, 24 bits signed, sign-extended when read: row, lane"
)
"""The upper half of the registers' window: its addresses have the highest bit of the offset set."""

_REGISTER_BITS = max(register.address for register in _ALL_REGISTERS.values()).bit_length()


def registers_of(machine: Machine) -> dict[str, Register]:
    """The registers that a machine has, by name."""
    return _ALL_REGISTERS if machine.windowed else REGISTERS


def version_value(machine: Machine) -> int:
    """What ``VERSION`` reads in a machine: the map's version and, times 16, the rule's number, 0 for ``lls``."""
    version = WINDOWED_VERSION_VALUE if machine.windowed else VERSION_VALUE
    return version + 16 * list(RULES).index(machine.rule)


def offset_bits(machine: Machine) -> int:
    """Address bits inside a window: enough for the largest one."""
    return max(
        _REGISTER_BITS,
        machine.layer_bits + _stride_bits(machine),
        machine.bias_bank_addr_bits + machine.col_bits if machine.windowed else machine.bias_addr_bits,
        machine.weight_addr_bits + machine.row_bits + machine.col_bits,
        1 + max(_REGISTER_BITS, row_bits(machine) + lane_bits(machine)) if machine.learning.trains else 0,
    )


def _stride_bits(machine: Machine) -> int:
    """Address bits of a word of a descriptor."""
    return descriptor_kind(machine).spacing().bit_length() - 1


def address_bits(machine: Machine) -> int:
    """Width of a bus address of this machine."""
    return offset_bits(machine) + 2


def window_base(machine: Machine, window: Window) -> int:
    """First address of a window."""
    base = window.select << offset_bits(machine)
    return base | 1 << (offset_bits(machine) - 1) if window is SCORE else base


def register_address(name: str) -> int:
    """Address of a register, the same in every machine that has it."""
    if name not in _ALL_REGISTERS:
        raise SpecError("register", f"must be one of {', '.join(_ALL_REGISTERS)}", name)
    return _ALL_REGISTERS[name].address


def register_bit(name: str, bit: str) -> int:
    """Number of a named bit of a register, e.g. ``register_bit("CTRL", "scores")``."""
    return _ALL_REGISTERS[name].bits[bit]


def program_address(machine: Machine, layer: int, word: int) -> int:
    """Address of a word of a layer's descriptor."""
    check_int("layer", layer, 0, machine.max_layers - 1)
    check_int("word", word, 0, descriptor_kind(machine).words() - 1)
    return window_base(machine, PROGRAM) | layer << _stride_bits(machine) | word


def bias_address(machine: Machine, word: int, col: int | None = None) -> int:
    """Address of a word of the bias memory; with ``gradient_bits`` of bank ``col``: ``word``, then column bits."""
    if not machine.windowed:
        check_int("word", word, 0, machine.bias_depth - 1)
        if col is not None:
            raise SpecError("col", "must be left out without gradient_bits", col)
        return window_base(machine, BIAS) | word
    check_int("word", word, 0, machine.bias_bank_depth - 1)
    check_int("col", col, 0, machine.cols - 1)
    return window_base(machine, BIAS) | word << machine.col_bits | (col or 0)


def weight_address(machine: Machine, row: int, col: int, word: int) -> int:
    """Address of a word of PE(row, col), window included: ``word``, then row, then column bits."""
    check_int("row", row, 0, machine.rows - 1)
    check_int("col", col, 0, machine.cols - 1)
    check_int("word", word, 0, machine.weight_depth - 1)
    local = word << (machine.row_bits + machine.col_bits) | row << machine.col_bits | col
    return window_base(machine, WEIGHT) | local


def score_address(machine: Machine, row: int, lane: int) -> int:
    """Address of a trained parameter of class scores: its row in the memory, all layers' together, then lane bits."""
    check_int("row", row, 0, (1 << row_bits(machine)) - 1)
    check_int("lane", lane, 0, (1 << lane_bits(machine)) - 1)
    return window_base(machine, SCORE) | row << lane_bits(machine) | lane


def describe(machine: Machine) -> dict[str, object]:
    """The whole map as plain values, for a machine-readable file beside the Verilog."""
    banks = ": word, column" if machine.windowed else ""
    descriptions = {
        PROGRAM: PROGRAM.description.format(spacing=descriptor_kind(machine).spacing()),
        BIAS: f"{BIAS.description}{banks}",
    }
    column = {"lsb": 0, "width": machine.col_bits}
    described: dict[str, object] = {
        "address_unit_bits": 32,
        "address_bits": address_bits(machine),
        "registers": [
            {
                "name": register.name,
                "address": register.address,
                "access": register.access,
                "width": register.width,
                "bits": dict(register.bits),
                "description": register.description,
            }
            for register in registers_of(machine).values()
        ],
        "windows": [
            {
                "name": window.name,
                "base": window_base(machine, window),
                "access": window.access,
                "description": descriptions.get(window, window.description),
            }
            for window in (*WINDOWS, *([SCORE] if machine.learning.trains else []))
        ],
        "weight_fields": {
            "column": column,
            "row": {"lsb": machine.col_bits, "width": machine.row_bits},
            "word": {
                "lsb": machine.row_bits + machine.col_bits,
                "width": machine.weight_addr_bits,
            },
        },
    }
    if machine.windowed:
        word = {"lsb": machine.col_bits, "width": machine.bias_bank_addr_bits}
        described["bias_fields"] = {"column": dict(column), "word": word}
    if machine.learning.trains:
        described["score_fields"] = {
            "lane": {"lsb": 0, "width": lane_bits(machine)},
            "row": {"lsb": lane_bits(machine), "width": row_bits(machine)},
        }
    return described
