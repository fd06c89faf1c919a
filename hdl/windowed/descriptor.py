"""A layer's descriptor as this datapath's hardware keeps it."""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from hdl.windowed.map_memory import element_bits
from hdl.windowed.taps import MAX_KERNEL, digits_layout
from spec.machine import Machine
from spec.windowed_program import descriptor_kind

__all__ = ["count_bits", "descriptor_layout"]

_UNUSED_FIELDS = ("channels",)
"""Fields that no hardware has a use for: column tiles and `last_channels` say how many channels there are."""
_LEARNING_FIELDS = (
    "train", "positions", "windows", "latents", "slope_stride", "signal_stride", "score_shift", "rate_shift",
    "left_max", "coarse",
)  # fmt: skip
"""Fields that hardware has no use for which does not learn."""


def count_bits(machine: Machine) -> dict[str, int]:
    """Widths that hold any layer's numbers of column tiles, of steps and of cycles a position."""
    col_tiles = -(-machine.max_neurons // machine.cols)
    # Depthwise, a step is a tap, and taps are few.
    steps = max(-(-machine.max_fan_in // machine.rows), MAX_KERNEL**2)
    return {
        "col_tiles": col_tiles.bit_length(),
        "steps": steps.bit_length(),
        "interval": max(steps, machine.cols).bit_length(),
    }


def descriptor_layout(machine: Machine) -> data.StructLayout:
    """The fields of `spec.windowed_program` that the machine has a use for, each only as wide as it needs.

    A stride may equal a memory's depth, when only one sample fits: it is then 0 here and not used.
    """
    side = machine.max_side.bit_length()
    kernel = MAX_KERNEL.bit_length()
    words, elements = machine.activation_addr_bits, element_bits(machine)
    neurons = machine.max_neurons.bit_length()
    positions = (machine.max_side**2).bit_length()
    # Without latents a window is a pixel or a block.
    windows = positions if machine.learning.transposes else neurons
    counts = count_bits(machine)
    digits = dict(digits_layout(machine))
    widths = {
        "kernel_height": kernel,
        "kernel_width": kernel,
        "padding": (MAX_KERNEL - 1).bit_length(),
        "in_channels": machine.max_fan_in.bit_length(),
        "input_height": side,
        "input_width": side,
        "pitch": elements,
        "excess": words,
        **{f"{amount}_{digit}": digits[digit].width for amount in ("step", "rewind") for digit in digits},
        "x_base": words,
        "x_stride": words,
        "height": side,
        "width": side,
        "window_height": side,
        "window_width": side,
        "positions": positions,
        "windows": windows,
        "latents": neurons,
        "last_channels": machine.cols.bit_length(),
        **counts,
        "slope_stride": machine.slope_addr_bits,
        "signal_stride": machine.signal_addr_bits,
        "a_base": words,
        "a_stride": words,
        "a_pitch": elements,
        "next_channels": neurons,
        "w_base": machine.weight_addr_bits,
        "b_base": machine.bias_bank_addr_bits,
        "slope_base": machine.slope_addr_bits,
        "index_base": machine.index_addr_bits,
        "grid_width": side,
        "signal_base": machine.signal_addr_bits,
        "below_base": machine.signal_addr_bits,
        "below_windows": windows,
        "below_channels": neurons,
        "below_stride": machine.signal_addr_bits,
        # Depthwise they are column tiles.
        "row_tiles": max(counts["steps"], counts["col_tiles"]),
    }
    unused = _UNUSED_FIELDS if machine.learning.learns else _UNUSED_FIELDS + _LEARNING_FIELDS
    if machine.learning.transposes:
        unused += ("latents",)
    return data.StructLayout(
        {
            name: (signed if field.signed else unsigned)(min(field.width, widths.get(name, field.width)))
            for name, field in descriptor_kind(machine).fields.items()
            if name not in unused
        }
    )
