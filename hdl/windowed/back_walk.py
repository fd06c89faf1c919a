"""The walk back through a layer: samples, positions of the map that it read, row tiles, taps, column tiles.

docs/rules.md, section 6.
"""

from __future__ import annotations

from typing import NamedTuple

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.windowed.descriptor import descriptor_layout
from hdl.windowed.taps import MAX_KERNEL
from spec.machine import Machine

__all__ = ["BackWalk"]

_MAX_PADDING = MAX_KERNEL - 1
_MOVES = ("tap", "kernel_row", "tile", "position", "line", "sample")
"""What a move leads to the next of, and to the first of what is inside it; another column tile is no such move."""


class BackWalk(wiring.Component):
    """Issues the steps of the way back through a layer, of a whole batch; then all stays quiet.

    Loops, the inner ones last: sample; input position, row by row; row tile (depthwise column tile); kernel row,
    kernel column (those whose taps read the position, or one where none does); column tile (not depthwise). A step a
    cycle; a row tile's last one waits until R cycles behind that of the row tile before it, as rows end one a cycle.
    Nothing else holds a walk up.

    ===================================  =============  ======================================================
    ``slope_addr, _index_, _signal_``    u              words of :class:`~hdl.windowed.back_memory.BackMemory`,
                                                        of the position p that the tap is of, or of its window
    ``channels``                         u              columns in use in the step's tile
    ``place``                            u              2·(y mod 2) + x mod 2 of p
    ``outside``                          u              no step, or one whose p is not in the map: then the
                                                        words mean nothing
    ``step_valid, step_addr``            t = u + 2      a step, the word of its weights: none of the layer's
                                                        where no tap reads the position
    ``step_first, step_last``            t              the first and last of a row tile
    ===================================  =============  ======================================================

    Members
    -------
    start : In, pulse
        A walk begins: the first step's cycle u is `LEAD` cycles later.
    samples : In
        Of the batch, at least 1; taken at `start`.
    layer : In, `descriptor_layout`
        Held from `start` on while a walk is under way.
    finishing : Out
        Cycle t of the last step.
    """

    LEAD = 2 * _MAX_PADDING + 4

    start: Signal
    samples: Signal
    layer: data.View
    slope_addr: Signal
    index_addr: Signal
    signal_addr: Signal
    channels: Signal
    place: Signal
    outside: Signal
    step_valid: Signal
    step_addr: Signal
    step_first: Signal
    step_last: Signal
    finishing: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "start": In(1),
                "samples": In(range(machine.max_batch + 1)),
                "layer": In(descriptor_layout(machine)),
                "slope_addr": Out(machine.slope_addr_bits),
                "index_addr": Out(machine.index_addr_bits),
                "signal_addr": Out(machine.signal_addr_bits),
                "channels": Out(range(machine.cols + 1)),
                "place": Out(2),
                "outside": Out(1),
                "step_valid": Out(1),
                "step_addr": Out(machine.weight_addr_bits),
                "step_first": Out(1),
                "step_last": Out(1),
                "finishing": Out(1),
            }
        )
        flags = ("valid", "real", "first", "last", "last_column", "done", "lead", "up")
        self._flags = data.StructLayout({name: 1 for name in (*flags, *_MOVES, "next_column", "first_column")})

    def elaborate(self, platform) -> Module:
        m = Module()
        layer = self.layer
        flags, weight = self._loops(m)
        line = [self._flags(stage) for stage in delay_line(m, flags.as_value(), 5, "step")]

        # A cycle later: p, where it and its window are in the sample's map, and where a column tile's words begin.
        step = line[1]
        y = self._axis(m, "y", step, layer.height, layer.window_height, step.line, step.kernel_row, step.sample)
        x = self._axis(m, "x", step, layer.width, layer.window_width, step.position, step.tap, step.line | step.sample)
        window = self._place(m, "window", step, Mux(y.wraps, layer.grid_width, 0), x.wraps)
        pixel = self._place(m, "pixel", step, Mux(y.moves, layer.width, 0), x.moves)
        count = Mux(layer.pool_latent, layer.positions, layer.windows)
        position = Mux(layer.pool_latent, pixel, window)  # of a slope: a pixel's, or that of the largest of a block

        # Two cycles later, and three: sums.
        slope, signal = Signal.like(self.slope_addr), Signal(max(len(self.index_addr), len(self.signal_addr)))
        m.d.sync += [
            slope.eq(self._tile(m, step, slope, layer.slope_stride, count) + position),
            signal.eq(self._tile(m, step, signal, layer.signal_stride, layer.windows) + window),
            self.slope_addr.eq(slope + layer.slope_base),
            self.index_addr.eq(signal + layer.index_base),
            self.signal_addr.eq(signal + layer.signal_base),
            self.step_addr.eq(self._weights(m, line[4]) + delay_line(m, weight, 4, "weight")[-1]),
        ]
        seen = delay_line(m, Cat(x.at[0], y.at[0], step.real & y.inside & x.inside), 2, "seen")[-1]
        m.d.comb += [
            self.place.eq(seen[:2]),
            self.outside.eq(~seen[2]),
            self.channels.eq(Mux(line[3].last_column, layer.last_channels, self.machine.cols)),
            self.step_valid.eq(line[5].valid),
            self.step_first.eq(line[5].first),
            self.step_last.eq(line[5].last),
            self.finishing.eq(line[5].done),
        ]
        return m

    def _loops(self, m: Module) -> tuple[data.View, Value]:
        """The loops, three cycles before u. Returns what a step is in them, and the words from the first tap to its.

        Counters count down to 1.
        """
        layer = self.layer
        lead = Signal(range(2 * _MAX_PADDING + 1))
        walking, first = Signal(), Signal()
        rest = Signal(range(self.machine.rows))  # cycles that a row tile's last step has to wait

        def counter(length: Signal, name: str) -> tuple[Signal, Signal]:
            left, last = Signal.like(length, name=f"{name}_left"), Signal(name=f"{name}_last")
            m.d.comb += last.eq(left == 1)
            return left, last

        columns, column_last = counter(layer.col_tiles, "columns")
        rows, row_last = counter(layer.row_tiles, "rows")
        across, x_last = counter(layer.input_width, "x")
        below, y_last = counter(layer.input_height, "y")
        samples, b_last = counter(self.samples, "samples")
        # Words from a tap to that on its right, and to that below it.
        right = Mux(layer.depthwise, 1, layer.row_tiles)
        down = Signal.like(layer.steps)
        m.d.sync += down.eq(sum(Mux(bit, right << k, 0) for k, bit in enumerate(layer.kernel_width)))
        y_taps = _Taps("y", layer.kernel_height, layer, down)
        x_taps = _Taps("x", layer.kernel_width, layer, right)

        # The step, which a row tile's last one has to wait to be, is the last of its loop.
        ends, tile_ends, position_ends, line_ends, sample_ends, moves = (
            Signal(name=name) for name in ("ends", "tile_ends", "position_ends", "line_ends", "sample_ends", "moves")
        )
        m.d.comb += [
            ends.eq(layer.depthwise | column_last),
            tile_ends.eq(ends & x_taps.last & y_taps.last),
            position_ends.eq(tile_ends & row_last),
            line_ends.eq(position_ends & x_last),
            sample_ends.eq(line_ends & y_last),
            moves.eq(walking & (~tile_ends | (rest == 0))),
        ]

        flags = Signal(self._flags)
        m.d.comb += [
            flags.valid.eq(moves),
            flags.real.eq(moves & x_taps.real & y_taps.real),
            flags.first.eq(first),
            flags.last.eq(tile_ends),
            flags.last_column.eq(Mux(layer.depthwise, row_last, column_last)),
            flags.done.eq(moves & sample_ends & b_last),
            flags.next_column.eq(moves & Mux(layer.depthwise, tile_ends & ~row_last, ~column_last)),
            flags.first_column.eq(moves & Mux(layer.depthwise, position_ends, column_last)),
        ]
        m.d.sync += rest.eq(rest - (rest != 0))
        with m.If(moves):
            m.d.sync += [first.eq(tile_ends), columns.eq(Mux(ends, layer.col_tiles, columns - 1))]
        with m.If(moves & ends):
            with m.If(~x_taps.last):
                m.d.comb += flags.tap.eq(1)
                m.d.sync += x_taps.on()
            with m.Elif(~y_taps.last):
                m.d.comb += flags.kernel_row.eq(1)
                m.d.sync += [*x_taps.again(), *y_taps.on()]
            with m.Else():
                m.d.sync += [
                    rest.eq(self.machine.rows - 1),
                    rows.eq(Mux(row_last, layer.row_tiles, rows - 1)),
                ]
                with m.If(~row_last):
                    m.d.comb += flags.tile.eq(1)
                    m.d.sync += [*x_taps.again(), *y_taps.again()]
                with m.Elif(~x_last):
                    m.d.comb += [flags.position.eq(1), flags.up.eq(x_taps.up)]
                    m.d.sync += [across.eq(across - 1), *x_taps.next(), *y_taps.again()]
                with m.Elif(~y_last):
                    m.d.comb += [flags.line.eq(1), flags.up.eq(y_taps.up)]
                    m.d.sync += [across.eq(layer.input_width), below.eq(below - 1), *x_taps.start(), *y_taps.next()]
                with m.Else():
                    m.d.comb += flags.sample.eq(1)
                    m.d.sync += [
                        across.eq(layer.input_width), below.eq(layer.input_height), samples.eq(samples - 1),
                        walking.eq(~b_last), *x_taps.start(), *y_taps.start(),
                    ]  # fmt: skip

        # To the p of the map's first position, which the padding is before: down, then to the right.
        with m.If(lead != 0):
            m.d.sync += [lead.eq(lead - 1), *x_taps.start(), *y_taps.start()]
            m.d.comb += [
                flags.lead.eq(1),
                flags.line.eq(lead > _MAX_PADDING),
                flags.position.eq(lead <= _MAX_PADDING),
                flags.up.eq((lead - 1)[: _MAX_PADDING.bit_length() - 1] < layer.padding >> layer.stride[1]),
            ]
            with m.If(lead == 1):
                m.d.sync += [walking.eq(1), first.eq(1), rest.eq(self.machine.rows - 1)]
        with m.If(self.start):
            m.d.sync += [
                lead.eq(2 * _MAX_PADDING), columns.eq(layer.col_tiles), rows.eq(layer.row_tiles),
                across.eq(layer.input_width), below.eq(layer.input_height), samples.eq(self.samples),
            ]  # fmt: skip
        return flags, (y_taps.weight + x_taps.weight)[: len(down)]

    def _axis(
        self, m: Module, name: str, step: data.View, length: Value, window: Value, move: Value, on: Value, edge: Value
    ) -> _Axis:
        """p along an axis. `move, on, edge`: to the next input position, to the next tap, to the map's edge."""
        bits = (self.machine.max_side + 2 * _MAX_PADDING).bit_length()
        anywhere = data.StructLayout({"at": bits, "offset": len(window)})  # p, and p within its window
        least = min(len(window), _MAX_PADDING.bit_length())
        # Of the step; of the kernel's first tap; of that at the map's edge.
        here, begin = (Signal(anywhere, name=f"{name}_{n}") for n in ("here", "begin"))
        first = Signal(data.StructLayout({"at": range(_MAX_PADDING + 1), "offset": least}), name=f"{name}_first")
        last = Signal.like(begin.offset, name=f"{name}_offset_last")

        up = move & step.up
        wraps = Mux(on, here.offset == 0, up & (begin.offset == last))
        step_by = Mux(on, -1, up)
        at = Mux(on, here.at, begin.at) + step_by
        offset = Mux(wraps, Mux(on, last, 0), Mux(on, here.offset, begin.offset) + step_by)
        m.d.sync += last.eq(window - 1)
        with m.If(edge):
            m.d.sync += [reg[n].eq(first[n]) for reg in (begin, here) for n in ("at", "offset")]
        with m.Elif(move):
            m.d.sync += [value for reg in (begin, here) for value in (reg.at.eq(at), reg.offset.eq(offset))]
        with m.Elif(on | step.position | step.tile | step.kernel_row):
            m.d.sync += [here.at.eq(at), here.offset.eq(offset)]
        with m.If(move & step.lead):
            m.d.sync += [first.at.eq(at), first.offset.eq(offset)]
        with m.If(self.start):
            m.d.sync += [reg.eq(0) for reg in (first, begin, here)]
        return _Axis(here.at, here.at < length, on | up, wraps)

    def _place(self, m: Module, name: str, step: data.View, down: Value, right: Value) -> Signal:
        """A number of p in the map, that changes by `down` or `right`, one of which is 0."""
        back = step.tap | step.kernel_row
        places = range(self.machine.max_side**2)
        # Of the step; of the first tap of its kernel row, of its kernel, of the kernel at the line's first position; of
        # that at the map's.
        here, row, position, line, first = (
            Signal(places, name=f"{name}_{n}") for n in ("here", "row", "position", "line", "first")
        )
        source = Mux(step.tap, here, Mux(step.kernel_row, row, Mux(step.line, line, position)))
        place = Signal(places, name=f"{name}_next")
        by = (down | right) ^ back.replicate(len(place))
        # One adder: a bit below lets the carry in.
        total = Cat(back, source) + Cat(back, by[: len(place)])
        m.d.comb += place.eq(Mux(step.sample, first, total[1:]))
        starts = step.line | step.sample
        for register, moves in (
            (here, step.tap | step.kernel_row | step.tile | step.position | starts),
            (row, step.kernel_row | step.tile | step.position | starts),
            (position, step.position | starts),
            (line, step.lead | starts),
            (first, step.lead),
        ):
            with m.If(moves):
                m.d.sync += register.eq(place)
            with m.If(self.start):
                m.d.sync += register.eq(0)
        return here

    def _tile(self, m: Module, step: data.View, address: Signal, stride: Value, words: Value) -> Signal:
        """Words before those of the step's column tile, of which each has so many; a sample's take `stride`."""
        tile, sample = (Signal.like(address, name=f"{address.name}_{n}") for n in ("tile", "sample"))
        following = Signal.like(address, name=f"{address.name}_next")
        more = Mux(step.sample, stride, Mux(step.next_column, words, 0))
        m.d.comb += following.eq(Mux(step.next_column, tile, sample) + more)
        with m.If(step.sample | step.first_column | step.next_column):
            m.d.sync += tile.eq(following)
        with m.If(step.sample):
            m.d.sync += sample.eq(following)
        with m.If(self.start):
            m.d.sync += [tile.eq(0), sample.eq(0)]
        return tile

    def _weights(self, m: Module, step: data.View) -> Signal:
        """The word of the first tap of the step's tiles."""
        layer = self.layer
        column, row = (Signal.like(self.step_addr, name=f"weights_{n}") for n in ("column", "row"))
        following = Signal.like(self.step_addr, name="weights_next")
        source, more = Mux(step.next_column, column, row), Mux(step.next_column, layer.steps, step.tile)
        m.d.comb += following.eq(source + more)
        with m.If(step.position | step.line | step.sample):
            m.d.sync += [column.eq(layer.w_base), row.eq(layer.w_base)]
        with m.Else():
            with m.If(step.tile | step.first_column | step.next_column):
                m.d.sync += column.eq(following)
            with m.If(step.tile):
                m.d.sync += row.eq(following)
        return column


class _Axis(NamedTuple):
    """A coordinate of p, whether it is in the map, and whether the move leads to another one, and to another window."""

    at: Value
    inside: Value
    moves: Value
    wraps: Value


class _Taps:
    """The taps along an axis of the kernel that read the input position; each method gives the assignments of a move.

    With stride 2 the first of them is the kernel's second where `odd`.
    """

    def __init__(self, name: str, kernel: Value, layer: data.View, unit: Value):
        """`unit`: words from a tap to the next."""
        self.kernel, self.unit = kernel, unit
        self.stride, self.two, self.padding = layer.stride, layer.stride[1], layer.padding
        self.odd = Signal(name=f"{name}_odd")
        self.left = Signal.like(kernel, name=f"{name}_taps_left")  # of the kernel, from the step's on
        self.weight = Signal.like(layer.steps, name=f"{name}_weight")  # words from the kernel's first tap
        self.last = self.left <= self.stride
        self.real = self.left != 0
        self.up = ~self.two | self.odd
        """The next position's p is the next one."""

    def start(self) -> list:
        odd = self.two & self.padding[0]
        return [self.odd.eq(odd), *self._to(odd)]

    def next(self) -> list:
        odd = self.two & ~self.odd
        return [self.odd.eq(odd), *self._to(odd)]

    def again(self) -> list:
        return self._to(self.odd)

    def on(self) -> list:
        unit = Mux(self.two, self.unit << 1, self.unit)
        return [self.left.eq(self.left - self.stride), self.weight.eq(self.weight + unit)]

    def _to(self, odd: Value) -> list:
        return [self.left.eq(self.kernel - odd), self.weight.eq(Mux(odd, self.unit, 0))]
