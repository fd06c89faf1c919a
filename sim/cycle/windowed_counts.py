"""Actions of a layer on the windowed datapath, each where it happens; ``docs/convolutions.md``, section 6.

All counts are a batch's. A PE beyond the last tap or channel, and one off the diagonal in a depthwise layer, is counted
like the others. Registers are counted where they are one a PE, a row or a column, a step each, whether or not their
value changes. A memory whose address stays is read once: weights of an update tile, a tile's biases, a window's
signals. Control, and shifts by wires, are left out.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.cycle.counts import Counts
from spec.geometry import LayerGeometry
from spec.lfsr import STATE_BITS
from spec.machine import ACT_BITS, ERROR_BITS, WEIGHT_BITS, Machine
from spec.technology import activation_action, weight_action
from spec.windowed import COARSE
from spec.windowed_program import MAX_WINDOW, WindowedDescriptor

__all__ = [
    "PART",
    "WEIGHT_BITS_OF_LATENT",
    "Work",
    "bias_update",
    "forward",
    "kept_errors",
    "latent_sums",
    "local_memories",
    "slope_weights",
    "tile_biases",
    "transposed",
    "update",
]

WINDOW_BITS = 18
"""The multiplier's narrow operand, which is the sum of a window's activations."""
PART = 128
"""Positions whose activations, each 8-fold, fill those bits: a larger window is multiplied in parts."""
WEIGHT_BITS_OF_LATENT = (8 * MAX_WINDOW).bit_length()
"""``A'`` of a bias: 8 or 1 a position of a window."""


@dataclass(frozen=True)
class Work:
    """A layer's walk over the array for ``batch`` samples."""

    machine: Machine
    geometry: LayerGeometry
    descriptor: WindowedDescriptor
    batch: int

    @property
    def tiles(self) -> int:
        """Words of a PE that hold the layer's weights, T·S."""
        return self.descriptor.col_tiles * self.descriptor.steps

    @property
    def steps(self) -> int:
        """Steps of the array in a pass over all positions of all samples."""
        return self.tiles * self.descriptor.positions * self.batch

    @property
    def outputs(self) -> int:
        """Results at the columns, of all positions of all samples: T·C a position."""
        return self.batch * self.descriptor.positions * self.columns

    @property
    def columns(self) -> int:
        """Columns of all column tiles, T·C."""
        return self.descriptor.col_tiles * self.machine.cols

    @cached_property
    def window_sizes(self) -> np.ndarray:
        """Positions of each window."""
        return np.bincount(self.geometry.window_of)

    @property
    def parts(self) -> int:
        """Parts of all windows of a sample."""
        return int(np.sum(-(-self.window_sizes // PART)))

    @property
    def macs(self) -> int:
        """MACs of a pass over all positions of all samples; those with zeros around a map count."""
        return self.batch * self.geometry.macs

    @property
    def map_action(self) -> tuple[str, str]:
        """Read and write of an element of a map."""
        size = self.machine.activation_depth * ACT_BITS // 8
        return activation_action(size, "read"), activation_action(size, "write")

    @property
    def slope_action(self) -> tuple[str, str]:
        """Read and write of 8 slope bits."""
        size = self.machine.slope_depth * self.machine.cols // 8
        return activation_action(size, "read"), activation_action(size, "write")


def forward(work: Work, first: bool) -> Counts:
    """The array's walk and the columns; the first layer's input is counted as it is loaded."""
    counts, machine, layer = Counts(), work.machine, work.descriptor
    counts.add("forward", "multipliers", "multiply_8x16", work.steps * machine.pes)
    _add(counts, "forward", "adders", machine.psum_bits, work.steps * machine.pes)
    _add(counts, "forward", "adders", machine.acc_bits, work.steps * machine.cols)
    counts.add("forward", "weight memory", weight_action(machine, "read"), work.steps * machine.pes)
    counts.add("forward", "activation memory", work.map_action[0], work.steps * machine.rows)
    edge = machine.acc_bits * machine.cols + _skew(machine)
    registers = work.steps * ((_operand_registers(machine) + machine.psum_bits) * machine.pes + edge)
    counts.add("forward", "registers", "register_bit", registers)
    # A column's bias stays for its tile; every position adds it, and rounds.
    counts.add("forward", "bias unit", "bias_read", work.batch * work.columns)
    _add(counts, "forward", "bias unit", machine.acc_bits, work.outputs)
    counts.add("forward", "adders", "add_16", work.outputs * (2 if layer.max_pool else 1))
    written = work.batch * math.prod(work.geometry.input) if first else 0
    if not layer.is_output:
        written += work.batch * math.prod(work.geometry.next_input)
    counts.add("forward", "activation memory", work.map_action[1], written)
    if layer.pool_latent:
        counts += latent_sums(work, "forward")
    return counts


def latent_sums(work: Work, purpose: str) -> Counts:
    """Windows' sums of activations, rounded to latents."""
    counts = Counts()
    rounded = work.batch * work.columns * work.descriptor.windows
    counts.add(purpose, "signal arithmetic", "add_16", work.outputs + rounded)
    return counts


def slope_weights(work: Work) -> Counts:
    """``A'``: a lane sums 8 or 1 a position, and it waits beside its latent until the signal is there."""
    counts, values = Counts(), work.batch * work.descriptor.latents
    size = _bytes(WEIGHT_BITS_OF_LATENT)
    counts.add("update", "bias unit", "add_16", work.outputs)
    counts.add("update", "latent memory", "activation_write", values * size)
    counts.add("update", "latent memory", "activation_read", values * size)
    return counts


def kept_errors(work: Work, classes: int, access: str) -> Counts:
    """A pass over the output layer's errors of all samples, which rules that wait for them keep; ``access`` as actions
    name it."""
    counts = Counts()
    counts.add("signal", "delta memory", f"activation_{access}", work.batch * classes * _bytes(ERROR_BITS))
    return counts


def local_memories(work: Work) -> Counts:
    """What a gradient needs beside the maps: slope bits a position, a shifted signal a window."""
    counts, machine, layer = Counts(), work.machine, work.descriptor
    word, signal = _bytes(machine.cols), _bytes(machine.delta_bits)
    read, write = work.slope_action
    counts.add("update", "column memory", write, work.batch * layer.col_tiles * layer.positions * word)
    counts.add("update", "column memory", read, work.steps * word)
    counts.add("signal", "column memory", "activation_write", work.batch * layer.latents * signal)
    windows = work.batch * work.tiles * layer.windows
    counts.add("update", "column memory", "activation_read", windows * machine.cols * signal)
    return counts


def update(work: Work, signals: int, summed: bool) -> Counts:
    """The array's walk of an update, with ``signals`` products a weight and sample.

    ``summed``: activations are summed within windows first. A weight is read and written once a batch; while a tile's
    positions pass, its sum stays in the PE.
    """
    counts, machine = Counts(), work.machine
    products = work.batch * work.tiles * signals * machine.pes
    if summed:
        counts.add("update", "adders", "add_16", work.steps * machine.pes)
    # A sum of one activation has its 8 bits, whatever it is shifted by.
    wide = summed and work.geometry.positions > work.geometry.windows
    counts.add("update", "multipliers", "multiply_16x16" if wide else "multiply_8x18", products)
    _add(counts, "update", "adders", machine.psum_bits, products)
    counts.add("update", "weight memory", weight_action(machine, "read"), work.tiles * machine.pes)
    writing = min(machine.rows, machine.cols) if work.geometry.depthwise else machine.pes
    counts.add("update", "weight memory", weight_action(machine, "write"), work.tiles * writing)
    counts.add("update", "activation memory", work.map_action[0], work.steps * machine.rows)
    registers = work.steps * (_operand_registers(machine) * machine.pes + _skew(machine))
    registers += products * machine.psum_bits + work.tiles * machine.pes * STATE_BITS
    counts.add("update", "registers", "register_bit", registers)
    return counts


def bias_update(work: Work, signals: int, weighted: bool) -> Counts:
    """The bias unit in an update: an addition a signal; ``weighted``: a product with its ``A'`` before it.

    A channel's sum waits in a memory from one sample of the batch to the next; the LFSR steps for padding too.
    """
    counts, machine, channels = Counts(), work.machine, work.descriptor.channels
    values = work.batch * channels * signals
    if weighted:
        counts.add("update", "bias unit", "multiply_16x16", values)
    _add(counts, "update", "bias unit", machine.psum_bits, values)
    words = -(-machine.psum_bits // WEIGHT_BITS)
    kept = (work.batch - 1) * channels * words
    counts.add("update", "bias unit", "bias_read", channels + kept)
    counts.add("update", "bias unit", "bias_write", channels + kept)
    counts.add("update", "bias unit", "register_bit", STATE_BITS * work.columns)
    return counts


def tile_biases(work: Work) -> Counts:
    """Biases of a rule that waits: a sum a column of ``d'`` or ``8·d'`` a position, in a tile's first step."""
    counts, machine, channels = Counts(), work.machine, work.descriptor.channels
    _add(counts, "update", "bias unit", machine.psum_bits, work.outputs)
    counts.add("update", "bias unit", "bias_read", channels)
    counts.add("update", "bias unit", "bias_write", channels)
    registers = machine.psum_bits * work.outputs + STATE_BITS * work.columns
    counts.add("update", "bias unit", "register_bit", registers)
    return counts


def transposed(work: Work, signals: int) -> Counts:
    """BP's walk of ``Wᵀδ``: every word of every PE at every position, psums to the rows' ends.

    Of a channel's positions, ``signals`` a sample have a signal that is read and multiplied.
    """
    counts, machine = Counts(), work.machine
    products = work.batch * work.tiles * signals
    counts.add("signal", "multipliers", "multiply_8x16", products * machine.pes)
    _add(counts, "signal", "adders", machine.psum_bits, work.steps * machine.pes)
    _add(counts, "signal", "adders", machine.acc_bits, work.steps * machine.rows)
    counts.add("signal", "weight memory", weight_action(machine, "read"), work.steps * machine.pes)
    counts.add("signal", "delta memory", "activation_read", products * machine.cols)
    pe = _operand_registers(machine) + machine.psum_bits
    registers = work.steps * (pe * machine.pes + machine.acc_bits * machine.rows)
    counts.add("signal", "registers", "register_bit", registers)
    return counts


def _operand_registers(machine: Machine) -> int:
    """Flip-flops of a PE that every step writes: activation, slope, operands, two weights, product; not the psum.

    Without learning the activation is an operand, and there is no slope.
    """
    if not machine.learning.learns:
        return machine.narrow_bits + machine.operand_bits + 2 * WEIGHT_BITS + machine.product_bits
    act = ACT_BITS + (COARSE if machine.fraction_bits > STATE_BITS else 0)
    product = min(WINDOW_BITS + machine.operand_bits - 1, machine.psum_bits)
    return act + 1 + WINDOW_BITS + machine.operand_bits + 2 * WEIGHT_BITS + product


def _skew(machine: Machine) -> int:
    """Flip-flops in which row r's activation waits r cycles."""
    return ACT_BITS * machine.rows * (machine.rows - 1) // 2


def _add(counts: Counts, purpose: str, component: str, bits: int, number: int) -> None:
    """``number`` additions of ``bits`` bits, put together from those that a technology prices."""
    wide, rest = divmod(bits, 32)
    if rest > 20:
        wide, rest = wide + 1, 0
    counts.add(purpose, component, "add_32", number * wide)
    if rest:
        counts.add(purpose, component, "add_16", number)


def _bytes(bits: int) -> int:
    """Bits as accesses of 8."""
    return -(-bits // 8)
