"""From a position of the output map to the addresses of R taps, one a bank, a step a cycle."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.windowed.map_memory import element_bits, rotated
from spec.machine import Machine

__all__ = ["MAX_KERNEL", "TapReader", "digits_layout"]

MAX_KERNEL = 5
"""Height and width of the largest kernel."""


def digits_layout(machine: Machine, max_kernel: int = MAX_KERNEL) -> data.StructLayout:
    """A tap, or what is added to one, as `spec.layout.Digits`."""
    return data.StructLayout(
        {
            "ky": _last_kernel_row(machine.rows, max_kernel).bit_length(),
            "kx": (max_kernel - 1).bit_length(),
            "ci": max(1, (machine.max_fan_in - 1).bit_length()),
        }
    )


class TapReader(wiring.Component):
    """Makes the reads of :class:`hdl.windowed.map_memory.MapMemory`: row r gets tap ``t = s·R + r``.

    Row r counts its tap in digits ``(ky, kx, ci)``, all rows by the same amount a step. With
    ``e = base + (y·stride - padding)·pitch + (x·stride - padding)·channels + s·R`` row r reads bank
    ``(e + r) % R``, so bank b serves row ``(b - e) % R``, at word
    ``e // R + [b < e % R] + ky·excess``. Its mask bit is 0 where ``ky, kx`` leave the map, and beyond
    the last tap, where ``ky >= kernel_height``. Depthwise a step moves all rows by a pixel, and
    ``e = … + s·channels``: row r has tap s of channel r from the base on, and is masked from
    `tile_channels` on.
    Addresses are modulo the memory; what would wrap is masked.

    Members
    -------
    prepare : In, pulse
        Sets the rows to their first taps by counting: `ready` falls for R - 1 cycles. Not within
        `LATENCY` cycles of a step. From then on the parameters down to `rewind_digits` are held.
    kernel_height, kernel_width, channels, stride, padding, input_height, input_width : In
        The layer's; stride 1 or 2, less padding than either side of the kernel.
    pitch, excess, depthwise, step_digits, rewind_digits : In
        As in :mod:`spec.layout`; `excess` and `rewind_digits.ky` modulo their widths.
    step_valid, y, x, base, tile_channels : In
        A step in cycle t, its position, the map's first element (depthwise: of the tile's first
        channel), the column tile's channels.
    advance, rewind : In, with `step_valid`
        After this step the rows move on to the next step's taps or, with `rewind` too, to the first.
    read_addr[b], rotation, mask : Out
        The step's reads in cycle t + `LATENCY`; `mask` is 0 where there is none.
    """

    LATENCY = 5

    prepare: Signal
    ready: Signal
    kernel_height: Signal
    kernel_width: Signal
    channels: Signal
    stride: Signal
    padding: Signal
    input_height: Signal
    input_width: Signal
    pitch: Signal
    excess: Signal
    depthwise: Signal
    step_digits: data.View
    rewind_digits: data.View
    step_valid: Signal
    y: Signal
    x: Signal
    base: Signal
    tile_channels: Signal
    advance: Signal
    rewind: Signal
    read_addr: list[Signal]
    rotation: Signal
    mask: Signal

    def __init__(self, machine: Machine, max_side: int, max_kernel: int = MAX_KERNEL):
        """`max_side`: the largest height or width of a map; `max_kernel`: of a kernel."""
        self.machine = machine
        self.max_kernel = max_kernel
        self.element_bits = element_bits(machine)
        self.digits = digits_layout(machine, max_kernel)
        super().__init__(
            {
                "prepare": In(1),
                "ready": Out(1),
                "kernel_height": In(range(max_kernel + 1)),
                "kernel_width": In(range(max_kernel + 1)),
                "channels": In(range(machine.max_fan_in + 1)),
                "stride": In(range(3)),
                "padding": In(range(max_kernel)),
                "input_height": In(range(max_side + 1)),
                "input_width": In(range(max_side + 1)),
                "pitch": In(self.element_bits),
                "excess": In(machine.activation_addr_bits),
                "depthwise": In(1),
                "step_digits": In(self.digits),
                "rewind_digits": In(self.digits),
                "step_valid": In(1),
                "y": In(range(max_side)),
                "x": In(range(max_side)),
                "base": In(self.element_bits),
                "tile_channels": In(range(machine.cols + 1)),
                "advance": In(1),
                "rewind": In(1),
                "read_addr": Out(machine.activation_addr_bits).array(machine.rows),
                "rotation": Out(machine.row_bits),
                "mask": Out(machine.rows),
            }
        )

    def elaborate(self, platform) -> Module:
        rows, row_bits = self.machine.rows, self.machine.row_bits
        m = Module()
        # Cycle t + 3: the step's first element, which kernel rows and columns are in the map, digits.
        element, in_rows, in_columns = self._element(m)
        row_digits = self._digits(m)
        valid = delay_line(m, self.step_valid, 3, "valid")[3]
        lanes = delay_line(m, self.tile_channels, 3, "lanes")[3]

        # t + 4: the mask; which kernel row a bank reads.
        word = Signal(self.machine.activation_addr_bits)
        rotation = Signal(row_bits)
        mask = Signal(rows)
        m.d.sync += Cat(rotation, word).eq(element)
        kernel_rows = [digits.ky[: len(digits.kx)] for digits in row_digits]
        bank_rows = [Signal(len(row_digits[0].kx), name=f"bank_row_{b}") for b in range(rows)]
        for b, kernel_row in enumerate(rotated(kernel_rows, element[:row_bits], -1)):
            m.d.sync += bank_rows[b].eq(kernel_row)
        for r, digits in enumerate(row_digits):
            seen = (in_rows >> digits.ky)[0] & (in_columns >> digits.kx)[0]
            m.d.sync += mask[r].eq(valid & seen & (~self.depthwise | (lanes > r)))

        # t + 5: a bank's word.
        multiples = self._multiples(m)
        m.d.sync += [self.rotation.eq(rotation), self.mask.eq(mask)]
        for b in range(rows):
            later = Array(multiples)[bank_rows[b]]
            # One adder: a bit below lets the carry in.
            total = Cat(1, word) + Cat(rotation > b if b < rows - 1 else 0, later)
            m.d.sync += self.read_addr[b].eq(total[1:])
        return m

    def _element(self, m: Module) -> tuple[Value, Value, Value]:
        """What depends on the position, in cycle t + 3."""
        # t + 1: where the kernel begins; the base with the taps of earlier steps.
        side = signed(max(len(self.y), len(self.padding)) + 1)
        top, left = Signal(side), Signal(side)
        taps, start = Signal(self.element_bits), Signal(self.element_bits)
        twice = self.stride[1]
        m.d.sync += [
            top.eq(Mux(twice, self.y << 1, self.y) - self.padding),
            left.eq(Mux(twice, self.x << 1, self.x) - self.padding),
            start.eq(self.base + taps),
        ]
        with m.If(self.prepare | (self.step_valid & self.advance & self.rewind)):
            m.d.sync += taps.eq(0)
        with m.Elif(self.step_valid & self.advance):
            m.d.sync += taps.eq(taps + Mux(self.depthwise, self.channels, self.machine.rows))
        # t + 2: the products.
        down, right = (Signal(self.element_bits, name=n) for n in ("down", "right"))
        start_2, element = Signal.like(start), Signal.like(start)
        rows = _inside(m, top, self.input_height, self.max_kernel)
        rows &= Cat(self.kernel_height > k for k in range(self.max_kernel))
        columns = _inside(m, left, self.input_width, self.max_kernel)
        m.d.sync += [
            down.eq(top * self.pitch),
            right.eq(left * self.channels),
            start_2.eq(start),
            element.eq(down + right + start_2),
        ]
        return element, delay_line(m, rows, 2, "in_rows")[2], delay_line(m, columns, 2, "in_columns")[2]

    def _digits(self, m: Module) -> list[data.View]:
        """The rows' digits, of a step's taps in its cycle t + 3.

        `amount` is what rows add in a cycle in which they move, `over` the same less a whole digit:
        the sum with it is the digit when it is not negative, and then carries.
        """
        rows = self.machine.rows
        moves = delay_line(m, self.step_valid & self.advance, 3, "moves")[3]
        rewind = delay_line(m, self.rewind, 2, "rewind")[2]

        # Bit r is 1 for r cycles, in which row r counts to r.
        counting = Signal(rows)
        m.d.comb += self.ready.eq(counting == 0)
        m.d.sync += counting.eq(counting << 1)
        with m.If(self.prepare):
            m.d.sync += counting.eq((1 << rows) - 2)

        amount = Signal(self.digits)
        over = {name: Signal(signed(len(amount[name]) + 1), name=f"over_{name}") for name in ("kx", "ci")}
        chosen = Mux(rewind, self.rewind_digits.as_value(), self.step_digits.as_value())
        unit = self.digits.const({"ky": 0, "kx": 0, "ci": 1}).as_value()
        next_amount = self.digits(Mux(self.prepare | counting.any(), unit, chosen))
        m.d.sync += [
            amount.eq(next_amount),
            over["kx"].eq(next_amount.kx - self.kernel_width),
            over["ci"].eq(next_amount.ci - self.channels),
        ]
        found = []
        for r in range(rows):
            row = Signal(self.digits, name=f"row_{r}")
            ci, carry = _add(row.ci, amount.ci, over["ci"], 0)
            kx, carry = _add(row.kx, amount.kx, over["kx"], carry)
            with m.If(self.prepare):
                m.d.sync += row.eq(0)
            with m.Elif(counting[r] | moves):
                m.d.sync += [row.ci.eq(ci), row.kx.eq(kx), row.ky.eq(row.ky + amount.ky + carry)]
            found.append(row)
        return found

    def _multiples(self, m: Module) -> list[Value]:
        """0, 1, 2, … times `excess`: what kernel row 0, 1, 2, … lies further than its taps say."""
        bits = len(self.excess)
        found: list[Value] = [Value.cast(0), self.excess]
        for k in range(2, self.max_kernel):
            if k % 2:
                multiple = Signal(unsigned(bits), name=f"excess_{k}")
                m.d.sync += multiple.eq(found[k - 1] + self.excess)
                found.append(multiple)
            else:
                found.append((found[k // 2] << 1)[:bits])
        return found


def _last_kernel_row(rows: int, max_kernel: int) -> int:
    """The largest ky that a row counts to, some beyond the last tap; kernel rows of more than R taps need no more."""
    return max(
        (-(-height * taps // rows) * rows - 1) // taps
        for height in range(1, max_kernel + 1)
        for taps in range(1, rows + 1)
    )


def _inside(m: Module, start: Signal, length: Signal, count: int) -> Value:
    """Bit k of `count`: ``0 <= start + k < length``, for ``-count < start < length``."""
    bits = (count - 1).bit_length()
    room = Signal(len(start), name=f"room_{start.name}")
    m.d.comb += room.eq(length - 1 - start)
    far = room[bits:].any()
    return Cat(
        (~start[-1] | (start[:bits] >= (1 << bits) - k)) & (far | (room[:bits] >= k) if k else 1)
        for k in range(count)
    )


def _add(digit: Value, amount: Value, over: Value, carry: Value | int) -> tuple[Value, Value]:
    """The sum's digit, and the carry out of it."""
    less = (digit + over + carry)[: len(over)]
    carries = ~less[-1]
    return Mux(carries, less, digit + amount + carry)[: len(digit)], carries
