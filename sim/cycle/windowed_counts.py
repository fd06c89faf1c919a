"""Actions of a layer on the windowed datapath, each where it happens; ``docs/convolutions.md``, section 6.

All counts are a batch's. A PE beyond the last tap or channel, and one off the diagonal in a depthwise layer, is counted
like the others. Registers are counted where they are one a PE, a row or a column, a step each, whether or not their
value changes. A memory whose address stays is read once: weights of an update tile, a tile's biases, a window's
signals. A multiplier rests where the lane of its column carries 0 as there is no signal. Control, and shifts by wires,
are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sim.cycle.counts import Counts
from spec.geometry import LayerGeometry
from spec.lfsr import STATE_BITS
from spec.machine import ACT_BITS, ERROR_BITS, WEIGHT_BITS, Machine
from spec.technology import activation_action, weight_action
from spec.windowed import COARSE, Windows, windows_of
from spec.windowed_program import MAX_WINDOW, BackDescriptor, WindowedDescriptor

__all__ = [
    "INDEX_BITS",
    "PART",
    "WEIGHT_BITS_OF_LATENT",
    "Work",
    "back",
    "bias_update",
    "forward",
    "kept_errors",
    "kept_signals",
    "latent_sums",
    "local_memories",
    "slope_weights",
    "tile_biases",
    "update",
]

WINDOW_BITS = 18
"""The multiplier's narrow operand, which is the sum of a window's activations."""
PART = 128
"""Positions whose activations, each 8-fold, fill those bits: a larger window is multiplied in parts."""
WEIGHT_BITS_OF_LATENT = (8 * MAX_WINDOW).bit_length()
"""``A'`` of a bias: 8 or 1 a position of a window."""
INDEX_BITS = 2
"""Which of a 2x2 block was the largest."""
_BLOCK = 4


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
    def windows(self) -> Windows:
        """The positions that are computed, and what of them has a signal."""
        return windows_of(self.geometry, self.machine)

    @property
    def parts(self) -> int:
        """Parts of all windows of a sample."""
        found = self.windows
        heights, widths = (
            [min(size, side - start) for start in range(0, side, size)]
            for side, size in zip((found.height, found.width), found.size, strict=True)
        )
        return sum(-(-height * width // PART) for height in heights for width in widths)

    @property
    def macs(self) -> int:
        """MACs of a pass over all positions of all samples; those with zeros around a map count."""
        return self.batch * self.descriptor.positions * self.geometry.weights

    @property
    def chosen(self) -> bool:
        """Whether of each window one pixel, the largest, has a slope bit and a part in the gradient."""
        return self.machine.learning.transposes and self.geometry.pool == "max"

    @property
    def adding(self) -> int:
        """Pixels of a channel and sample that have these."""
        return self.descriptor.windows if self.chosen else self.descriptor.positions

    @property
    def back_steps(self) -> int:
        """Steps of the array on the way back, of all samples: one at least where no weight meets a place."""
        return self._back_rounds * math.prod(sum(max(len(met), 1) for met in self._met(axis)) for axis in (0, 1))

    @property
    def back_multiplied(self) -> int:
        """Products of the PEs on these steps, where the lane of a column has a signal."""
        return self._back_rounds * self._meetings * self.machine.pes // self._shared

    @property
    def back_products(self) -> int:
        """Of these the products of weights."""
        weights = self.geometry.weights // math.prod(self.geometry.kernel)
        return self.batch * self._meetings * weights // self._shared

    @property
    def back_totals(self) -> int:
        """Totals at the rows' ends, those that are dropped among them."""
        height, width, _ = self.geometry.input
        return self.batch * height * width * self._row_tiles * self.machine.rows

    @property
    def _shared(self) -> int:
        """Pixels that share a signal on the way back: it is one's alone, of a block each one's equally often."""
        return _BLOCK if self.chosen else 1

    @property
    def _row_tiles(self) -> int:
        assert isinstance(self.descriptor, BackDescriptor)
        return self.descriptor.row_tiles

    @property
    def _back_rounds(self) -> int:
        """Steps that a position and a place of the kernel take together."""
        return self.batch * self._row_tiles * (1 if self.geometry.depthwise else self.descriptor.col_tiles)

    @property
    def _meetings(self) -> int:
        """Positions and places of the kernel that read something of the map, of a sample."""
        return math.prod(sum(sum(met) for met in self._met(axis)) for axis in (0, 1))

    def _met(self, axis: int) -> Iterator[list[bool]]:
        """For each place of the map along an axis, the kernel's that meet it: is it at a position that there is?"""
        geometry, positions = self.geometry, (self.windows.height, self.windows.width)[axis]
        for place in range(geometry.padding, geometry.padding + geometry.input[axis]):
            taps = range(place % geometry.stride, geometry.kernel[axis], geometry.stride)
            yield [0 <= place - tap < geometry.stride * positions for tap in taps]

    @property
    def map_action(self) -> tuple[str, str]:
        """Read and write of an element of a map."""
        return self._of_memory(self.machine.activation_depth * ACT_BITS)

    @property
    def slope_action(self) -> tuple[str, str]:
        """Read and write of 8 slope bits."""
        return self._of_memory(self.machine.slope_depth * self.machine.cols)

    @property
    def index_action(self) -> tuple[str, str]:
        """Read and write of 8 bits of indices."""
        return self._of_memory(self.machine.index_depth * self.machine.cols * INDEX_BITS)

    @property
    def signal_action(self) -> tuple[str, str]:
        """Read and write of 8 bits of a backpropagated signal."""
        return self._of_memory(self.machine.signal_depth * self.machine.signal_bits)

    def _of_memory(self, bits: int) -> tuple[str, str]:
        """Read and write of one of so many bits."""
        return activation_action(bits // 8, "read"), activation_action(bits // 8, "write")


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


def kept_signals(work: Work, signals: int) -> Counts:
    """Backpropagated signals of a sample are written, not yet shifted."""
    counts = Counts()
    counts.add("signal", "delta memory", work.signal_action[1], work.batch * signals * _bytes(work.machine.signal_bits))
    return counts


def local_memories(work: Work) -> Counts:
    """What a gradient needs beside the maps: slope bits a position, or a block with the place of its largest; a signal
    a window, which is shifted before it is kept, or under BP as it is read."""
    counts, machine, layer = Counts(), work.machine, work.descriptor
    word, index = _bytes(machine.cols), _bytes(machine.cols * INDEX_BITS)
    for size, (read, write) in ((word, work.slope_action), (index * work.chosen, work.index_action)):
        counts.add("update", "column memory", write, work.batch * layer.col_tiles * work.adding * size)
        counts.add("update", "column memory", read, work.batch * work.tiles * work.adding * size)
    signals = work.batch * work.tiles * layer.windows * machine.cols
    if machine.learning.transposes:
        counts.add("update", "delta memory", work.signal_action[0], signals * _bytes(machine.signal_bits))
        return counts
    size = _bytes(machine.delta_bits)
    counts.add("signal", "column memory", "activation_write", work.batch * layer.latents * size)
    counts.add("update", "column memory", "activation_read", signals * size)
    return counts


def update(work: Work) -> Counts:
    """The array's walk of an update.

    Activations are summed within windows first, and a part of a window is a product. A weight is read and written once
    a batch; while a tile's positions pass, its sum stays in the PE.
    """
    counts, machine = Counts(), work.machine
    products = work.batch * work.tiles * work.parts * machine.pes
    counts.add("update", "adders", "add_16", work.batch * work.tiles * work.adding * machine.pes)
    # A sum of one activation has its 8 bits, whatever it is shifted by.
    wide = work.adding > work.descriptor.windows
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


def bias_update(work: Work) -> Counts:
    """The bias unit in an update: an addition a signal, in a hidden layer a product with its ``A'`` before it.

    A channel's sum waits in a memory from one sample of the batch to the next; the LFSR steps for padding too.
    """
    counts, machine, channels = Counts(), work.machine, work.descriptor.channels
    values = work.batch * channels * work.descriptor.windows
    if not work.descriptor.is_output:
        counts.add("update", "bias unit", "multiply_16x16", values)
    _add(counts, "update", "bias unit", machine.psum_bits, values)
    words = -(-machine.psum_bits // WEIGHT_BITS)
    kept = (work.batch - 1) * channels * words
    counts.add("update", "bias unit", "bias_read", channels + kept)
    counts.add("update", "bias unit", "bias_write", channels + kept)
    counts.add("update", "bias unit", "register_bit", STATE_BITS * work.columns)
    return counts


def tile_biases(work: Work) -> Counts:
    """Biases of a rule that waits: a sum a column of ``d'`` or ``8·d'``, in a tile's first step."""
    counts, machine, channels = Counts(), work.machine, work.descriptor.channels
    added = work.batch * work.columns * work.adding
    _add(counts, "update", "bias unit", machine.psum_bits, added)
    counts.add("update", "bias unit", "bias_read", channels)
    counts.add("update", "bias unit", "bias_write", channels)
    registers = machine.psum_bits * added + STATE_BITS * work.columns
    counts.add("update", "bias unit", "register_bit", registers)
    return counts


def back(work: Work) -> Counts:
    """The way back through a layer: slope bits, indices and signals a step, psums to the rows' ends, whose totals are
    rounded, one a cycle, to the signals of the layer before it."""
    counts, machine, steps = Counts(), work.machine, work.back_steps
    # Of 15 and of 16 bits.
    counts.add("signal", "multipliers", "multiply_16x16", work.back_multiplied)
    _add(counts, "signal", "adders", machine.psum_bits, steps * machine.pes)
    _add(counts, "signal", "adders", machine.back_sum_bits, steps * machine.rows)
    counts.add("signal", "weight memory", weight_action(machine, "read"), steps * machine.pes)
    counts.add("signal", "column memory", work.slope_action[0], steps * _bytes(machine.cols))
    index = _bytes(machine.cols * INDEX_BITS) * work.chosen
    counts.add("signal", "column memory", work.index_action[0], steps * index)
    signals = steps * machine.cols * _bytes(machine.signal_bits)
    counts.add("signal", "delta memory", work.signal_action[0], signals)
    pe = _operand_registers(machine) + machine.psum_bits
    registers = steps * (pe * machine.pes + machine.back_sum_bits * machine.rows)
    counts.add("signal", "registers", "register_bit", registers)
    counts.add("signal", "signal arithmetic", "add_16", work.back_totals)
    return counts + kept_signals(work, math.prod(work.geometry.input))


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
