"""What a host writes over the bus before the first sample: where weights, biases and what is trained of class scores
lie, and the whole list.

There is a host for each kind of program; a backend, a bench and `entrain generate --weights` ask it the same
questions. The compiled Verilog is driven with these same addresses, so what is exported is what trains here every day.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from golden.checkpoint import Parameters
from golden.train import initial_codes, initial_windowed_codes
from spec import memory_map
from spec.machine import Machine
from spec.network import Network
from spec.program import Program, encode, program_for
from spec.scores import first_codes, lane_bits, trained_shapes
from spec.windowed_program import BackDescriptor, WindowedProgram
from spec.windowed_timing import back_cycles

__all__ = ["DenseHost", "Host", "Place", "WindowedHost", "Writes", "control", "host_for", "weight_addresses"]

Writes = tuple[np.ndarray, np.ndarray]
"""Addresses and data, uint32 each, in the order in which they are written."""


class Place(NamedTuple):
    """Addresses of a layer's parameters, uint32: ``weights (N, taps)``, ``biases (N,)``."""

    weights: np.ndarray
    biases: np.ndarray


class Host(ABC):
    """A network on a machine, as its host sees it.

    ``batch`` is the number of labelled samples an update; ``signalled`` says of each layer whether its class scores
    are reported for a labelled sample (those of the output layer always are).
    """

    network: Network
    machine: Machine
    batch: int
    signalled: tuple[bool, ...]
    train_hidden: bool

    def __init__(self, network: Network, machine: Machine, program: Program | WindowedProgram) -> None:
        self.network = network
        self.machine = machine
        scores = machine.learning.scores
        self.signalled = tuple(bool(layer.is_output or layer.train and scores) for layer in program.layers)
        self.train_hidden = any(layer.train and not layer.is_output for layer in program.layers)

    @property
    @abstractmethod
    def registers(self) -> dict[str, int]:
        """Registers that belong to the program, by name."""

    @property
    @abstractmethod
    def descriptors(self) -> Sequence[Sequence[int]]:
        """Each layer's descriptor in words."""

    @property
    @abstractmethod
    def words(self) -> int:
        """Words of a PE that the network takes, from word 0 on."""

    @property
    @abstractmethod
    def patience(self) -> int:
        """Cycles that a batch certainly takes no longer than; so long no beat is seen only where the core hangs."""

    @cached_property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """Where each layer's parameters lie."""

    @abstractmethod
    def initial_parameters(self, seed: int) -> Parameters:
        """The codes that every integer model starts from."""

    @cached_property
    def score_places(self) -> tuple[np.ndarray, ...]:
        """Addresses of what is trained of each hidden layer's class scores, uint32 ``(rows, lanes)``; none under other
        rules, or with frozen hidden layers.
        """
        found, first, machine = [], 0, self.machine
        for rows, lanes in trained_shapes(self.network, machine) if self.train_hidden else ():
            row, lane = np.indices((rows, lanes))
            local = (first + row) << lane_bits(machine) | lane
            found.append((memory_map.window_base(machine, memory_map.SCORE) | local).astype(np.uint32))
            first += rows
        return tuple(found)

    def padding(self) -> np.ndarray:
        """Addresses of the words of all tiles that belong to no weight, uint32: 0 once, updates keep them at 0."""
        r, c, word = np.indices((self.machine.rows, self.machine.cols, self.words))
        every = weight_addresses(self.machine, r, c, word).ravel()
        return np.setdiff1d(every, np.concatenate([place.weights.ravel() for place in self.places]))

    def program_writes(self) -> Writes:
        """Descriptors and the registers that go with them; CTRL apart."""
        words = {
            memory_map.program_address(self.machine, layer, word): value
            for layer, descriptor in enumerate(self.descriptors)
            for word, value in enumerate(descriptor)
        }
        words |= {memory_map.register_address(name): value for name, value in self.registers.items()}
        return _words(list(words)), _words(list(words.values()))

    def parameter_writes(self, parameters: Parameters) -> Writes:
        """Weights and biases, int16 codes, layer by layer."""
        addresses, data = [], []
        for place, (weight, bias) in zip(self.places, parameters, strict=True):
            addresses += [place.weights.ravel(), place.biases]
            data += [_words(weight.ravel()), _words(bias)]
        return np.concatenate(addresses), np.concatenate(data)

    def score_writes(self, codes: Iterable[np.ndarray]) -> Writes:
        """What is trained of class scores, codes of 24 bits ``(rows, lanes)``, layer by layer."""
        pairs = list(zip(self.score_places, codes, strict=True))
        addresses = [place.ravel() for place, _ in pairs]
        return _joined(addresses), _joined([_words(layer.ravel()) for _, layer in pairs])

    def first_scores(self) -> list[np.ndarray]:
        """What is trained of class scores as training starts from it, int32."""
        return first_codes(self.network, self.machine)[: len(self.score_places)]

    def load_writes(self, parameters: Parameters) -> Writes:
        """Everything: CTRL = 0, program, padding, weights and biases, what class scores start from, and last
        CTRL = enable.
        """
        ctrl, padding = memory_map.register_address("CTRL"), self.padding()
        parts = (
            (_words([ctrl]), _words([0])),
            self.program_writes(),
            (padding, np.zeros_like(padding)),
            self.parameter_writes(parameters),
            self.score_writes(self.first_scores()),
            (_words([ctrl]), _words([control("enable")])),
        )
        addresses, data = zip(*parts, strict=True)
        return np.concatenate(addresses), np.concatenate(data)


class DenseHost(Host):
    """Of a program for fully connected layers at batch 1 (``docs/architecture.md``)."""

    batch = 1

    def __init__(self, network: Network, machine: Machine, program: Program) -> None:
        super().__init__(network, machine, program)
        self.program = program

    @property
    def registers(self) -> dict[str, int]:
        """Of the program: sizes of a sample and of an input buffer."""
        program = self.program
        return {
            "LAYERS": len(program.layers),
            "INPUT_LENGTH": program.input_length,
            "INPUT_WORDS": program.input_words,
        }

    @property
    def descriptors(self) -> Sequence[Sequence[int]]:
        """Each layer's descriptor in words."""
        return [encode(layer) for layer in self.program.layers]

    @property
    def words(self) -> int:
        """Words of a PE that the network takes."""
        return sum(layer.steps for layer in self.program.layers)

    @property
    def patience(self) -> int:
        """Twice forward, update and the way back, and what a layer adds."""
        total, machine = 0, self.machine
        for layer in self.program.layers:
            forward = layer.col_tiles * max(layer.row_tiles, machine.cols)
            back = layer.row_tiles * max(layer.col_tiles, machine.rows) if machine.learning.transposes else 0
            total += 4 * forward + 2 * back + _LAYER_CYCLES
        return total

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Weight ``[j, i]`` in PE(i % R, j % C), biases one behind the other."""
        machine, found = self.machine, []
        for layer in self.program.layers:
            j, i = np.indices((layer.n_out, layer.n_in))
            word = layer.w_base + j // machine.cols * layer.row_tiles + i // machine.rows
            base = memory_map.bias_address(machine, layer.b_base)
            biases = np.arange(base, base + layer.n_out, dtype=np.uint32)
            found.append(Place(weight_addresses(machine, i % machine.rows, j % machine.cols, word), biases))
        return tuple(found)

    def initial_parameters(self, seed: int) -> Parameters:
        """The codes that every integer model starts from."""
        return initial_codes(self.network.shapes, seed)


class WindowedHost(Host):
    """Of a program for convolutions and batches (``docs/convolutions.md``)."""

    def __init__(self, network: Network, machine: Machine, program: WindowedProgram) -> None:
        super().__init__(network, machine, program)
        self.program = program
        self.batch = program.batch

    @property
    def registers(self) -> dict[str, int]:
        """Of the program: the batch, and how the ring of samples is laid out."""
        program = self.program
        return {
            "LAYERS": len(program.layers),
            "INPUT_LENGTH": program.input_length,
            "INPUT_WORDS": program.input_words,
            "BATCH": program.batch,
            "INPUT_SLOTS": program.input_slots,
            "INPUT_ROW": program.input_row,
            "INPUT_GAP": program.input_gap,
        }

    @property
    def descriptors(self) -> Sequence[Sequence[int]]:
        """Each layer's descriptor in words."""
        return [encode(layer) for layer in self.program.layers]

    @property
    def words(self) -> int:
        """Words of a PE that the network takes."""
        return sum(layer.col_tiles * layer.steps for layer in self.program.layers)

    @property
    def patience(self) -> int:
        """Twice forward, signal and update of a batch, and what a layer adds."""
        total = 0
        for layer in self.program.layers:
            forward = layer.col_tiles * layer.positions * layer.interval
            signal = layer.latents + 3 * self.network.classes + _LAYER_CYCLES
            update = layer.col_tiles * layer.steps * layer.positions
            total += 2 * self.batch * (forward + signal + update) + _LAYER_CYCLES
            if isinstance(layer, BackDescriptor):
                total += 2 * back_cycles(layer, self.machine, self.batch)
        return total

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Weight ``[j, t]`` in PE(t % R, j % C), depthwise in PE(j % C, j % C); bias ``j`` in bank j % C."""
        machine, found = self.machine, []
        for layer, (taps, channels) in zip(self.program.layers, self.network.shapes, strict=True):
            j, t = np.indices((channels, taps))
            column, tile = j % machine.cols, layer.w_base + j // machine.cols * layer.steps
            if layer.depthwise:
                weights = weight_addresses(machine, column, column, tile + t)
            else:
                weights = weight_addresses(machine, t % machine.rows, column, tile + t // machine.rows)
            j = np.arange(channels)
            local = (layer.b_base + j // machine.cols) << machine.col_bits | j % machine.cols
            biases = memory_map.window_base(machine, memory_map.BIAS) | local
            found.append(Place(weights, biases.astype(np.uint32)))
        return tuple(found)

    def initial_parameters(self, seed: int) -> Parameters:
        """The codes that every integer model starts from."""
        return initial_windowed_codes(self.network.shapes, seed, self.network.recipe.gain_shift)


def host_for(network: Network, machine: Machine, train_hidden: bool = True) -> Host:
    """The host of a network on a machine; SpecError where the machine does not run it."""
    program = program_for(network, machine, train_hidden)
    if isinstance(program, WindowedProgram):
        return WindowedHost(network, machine, program)
    return DenseHost(network, machine, program)


def control(*bits: str) -> int:
    """CTRL with these bits set."""
    return sum(1 << memory_map.register_bit("CTRL", bit) for bit in bits)


def weight_addresses(machine: Machine, row: np.ndarray, column: np.ndarray, word: np.ndarray) -> np.ndarray:
    """The vector form of ``memory_map.weight_address``: uint32, in the shape of the arguments."""
    local = word << (machine.row_bits + machine.col_bits) | row << machine.col_bits | column
    return (memory_map.window_base(machine, memory_map.WEIGHT) | local).astype(np.uint32)


_LAYER_CYCLES = 1000
"""More than setup, the ends of phases and an array's skew take together."""


def _joined(words: list[np.ndarray]) -> np.ndarray:
    """One array, of none too, uint32."""
    return np.concatenate([np.zeros(0, np.uint32), *words])


def _words(values) -> np.ndarray:
    """Integers, negative ones too, as 32-bit words."""
    return np.asarray(values, np.int64).astype(np.uint32)
