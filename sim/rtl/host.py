"""What a host writes over the bus before the first sample: addresses of weights and biases, and the whole list.

The compiled Verilog is driven with these same addresses, so what `entrain generate --weights` exports is what trains
here every day.
"""

import numpy as np

from golden.checkpoint import Parameters
from spec import memory_map
from spec.machine import Machine
from spec.program import LayerDescriptor, Program, encode

__all__ = [
    "bias_addresses",
    "control",
    "load_writes",
    "padding_addresses",
    "program_writes",
    "weight_addresses",
]

Writes = tuple[np.ndarray, np.ndarray]
"""Addresses and data, uint32 each, in the order in which they are written."""


def control(*bits: str) -> int:
    """CTRL with these bits set."""
    return sum(1 << memory_map.register_bit("CTRL", bit) for bit in bits)


def program_writes(machine: Machine, program: Program) -> Writes:
    """Descriptors and the registers that go with them; CTRL apart."""
    words = {
        memory_map.program_address(machine, layer, word): value
        for layer, descriptor in enumerate(program.layers)
        for word, value in enumerate(encode(descriptor))
    }
    words[memory_map.register_address("LAYERS")] = len(program.layers)
    words[memory_map.register_address("INPUT_LENGTH")] = program.input_length
    words[memory_map.register_address("INPUT_WORDS")] = program.input_words
    return _words(list(words)), _words(list(words.values()))


def weight_addresses(machine: Machine, layer: LayerDescriptor) -> np.ndarray:
    """Of a layer's weights, in ``(n_out, n_in)`` order, uint32."""
    j, i = np.indices((layer.n_out, layer.n_in))
    word = layer.w_base + j // machine.cols * layer.row_tiles + i // machine.rows
    return _weight_address(machine, i % machine.rows, j % machine.cols, word).ravel()


def bias_addresses(machine: Machine, layer: LayerDescriptor) -> np.ndarray:
    """Of a layer's biases, uint32."""
    base = memory_map.bias_address(machine, layer.b_base)
    return np.arange(base, base + layer.n_out, dtype=np.uint32)


def padding_addresses(machine: Machine, program: Program) -> np.ndarray:
    """Of the words of all tiles that belong to no weight, uint32: 0 once, updates keep them at 0."""
    used = sum(layer.steps for layer in program.layers)
    r, c, word = np.indices((machine.rows, machine.cols, used))
    every = _weight_address(machine, r, c, word).ravel()
    return np.setdiff1d(every, np.concatenate([weight_addresses(machine, layer) for layer in program.layers]))


def load_writes(machine: Machine, program: Program, parameters: Parameters) -> Writes:
    """Everything: CTRL = 0, program, padding, weights and biases (int16 codes), and last CTRL = enable."""
    ctrl = memory_map.register_address("CTRL")
    padding = padding_addresses(machine, program)
    parts = [(_words([ctrl]), _words([0])), program_writes(machine, program), (padding, np.zeros_like(padding))]
    for layer, (weight, bias) in zip(program.layers, parameters, strict=True):
        parts.append((weight_addresses(machine, layer), _words(weight.ravel())))
        parts.append((bias_addresses(machine, layer), _words(bias)))
    parts.append((_words([ctrl]), _words([control("enable")])))
    addresses, data = zip(*parts, strict=True)
    return np.concatenate(addresses), np.concatenate(data)


def _weight_address(machine: Machine, r: np.ndarray, c: np.ndarray, word: np.ndarray) -> np.ndarray:
    # The vector form of memory_map.weight_address.
    local = word << (machine.row_bits + machine.col_bits) | r << machine.col_bits | c
    return (memory_map.window_base(machine, memory_map.WEIGHT) | local).astype(np.uint32)


def _words(values) -> np.ndarray:
    """Integers, negative ones too, as 32-bit words."""
    return np.asarray(values, np.int64).astype(np.uint32)
