"""The walk over a layer: column tiles, steps, samples, positions, for all that follows the steps.

docs/convolutions.md, section 6.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line
from hdl.op import Op
from hdl.windowed.array import WindowArray
from hdl.windowed.descriptor import descriptor_layout
from hdl.windowed.map_memory import MapMemory, element_bits
from hdl.windowed.position_layout import position_layout
from hdl.windowed.positions import Positions
from hdl.windowed.raster import Raster
from hdl.windowed.taps import TapReader
from spec.machine import Machine

__all__ = ["PART", "Walk"]

PART = 128
"""Positions of a window that the PEs apply at once: `hdl.windowed.pe.WINDOW_BITS` holds no more."""


class Walk(wiring.Component):
    """Issues a layer's steps, in two orders, the inner loops last; then all stays quiet.

    * forward, of one sample: column tile, position, step. A position takes `interval` cycles, of
      which the first `steps` have a step.
    * update, of all samples: column tile, step, sample, position, a step a cycle. Where the rule `waits`, a column tile
      begins C cycles after the one before at least, as the biases take a column a cycle.

    The first step's *read cycle*, u, is the cycle after `start`. Steps are numbered in the order in
    which weights lie, from `w_base` on. Nothing holds a walk up, and each part of the machine is told
    of a step when it comes by:

    =============================  ============  =====================================================
    ``tap_*``                      u             :class:`~hdl.windowed.taps.TapReader`'s inputs
    ``slope_addr, signal_addr``    u + LEAD - 1  words of the column memory, in update: of the
                                                 position, of its window
    ``signal_channels``            u + LEAD - 1  columns in use in the step's tile
    ``index_addr, place``          u + LEAD - 2  where the rule `transposes`, and with them the three above:
                                                 :class:`~hdl.windowed.back_memory.BackMemory`'s inputs
    ``step_*``                     u + LEAD      :class:`~hdl.windowed.array.WindowArray`'s inputs. Its
                                                 windows are parts of windows, of at most PART positions
    ``step_opens``                 u + LEAD      where the rule `waits`: in update, of the column tile's
                                                 first step
    ``bias_addr``                  v - 1         word of the biases of the position's tile
    ``position_valid, position``   v             forward: column 0 has the position's total
    ``position_tile, _channels``   v             its column tile, the columns in use in it
    =============================  ============  =====================================================

    where ``v = u + LEAD + R + WindowArray.LATENCY``, u being of the position's last step.

    Within an update the tile with a weight's address is walked once, in consecutive cycles, and is
    written at its end: the next tiles have other addresses, so no address is read while it has still
    to be written. A machine that does not learn only goes forward: it has none of what else an update takes.

    Members
    -------
    start : In, pulse
        A walk begins: takes the next five, and sizes and bases of `layer`. The totals of an earlier
        forward walk have all come.
    update : In
        The order.
    samples : In
        Of the batch, at least 1; no matter to a forward walk.
    x_first, x_wrap : In
        Word at which the first sample's map begins; the others follow `x_stride` words apart, but
        that behind `x_wrap` samples, if so many there are, begins at word 0 (the input ring's end;
        0: no ring).
    layer : In, `descriptor_layout`
        Held while a walk and its totals are under way.
    finishing : Out
        The read cycle of the walk's last step.
    """

    LEAD = TapReader.LATENCY + MapMemory.LATENCY - 1
    """From a step's read cycle to its cycle t at the array: ``act[r]`` is there in t + r + 1."""

    start: Signal
    update: Signal
    samples: Signal
    x_first: Signal
    x_wrap: Signal
    layer: data.View
    finishing: Signal
    tap_step_valid: Signal
    tap_y: Signal
    tap_x: Signal
    tap_base: Signal
    tap_tile_channels: Signal
    tap_advance: Signal
    tap_rewind: Signal
    slope_addr: Signal
    signal_addr: Signal
    signal_channels: Signal
    index_addr: Signal
    place: Signal
    step_valid: Signal
    step_op: Value
    step_addr: Signal
    step_first: Signal
    step_last: Signal
    step_window_first: Signal
    step_window_last: Signal
    step_diagonal: Signal
    step_opens: Signal
    bias_addr: Signal
    position_valid: Signal
    position: data.View
    position_tile: Signal
    position_channels: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        rule = machine.learning
        layer = descriptor_layout(machine)
        side, channels = range(machine.max_side), range(machine.cols + 1)
        flags = ["valid", "first", "last"]
        if rule.learns:
            flags += ["window_first", "window_last", "diagonal"]
        memories = {
            "slope_addr": Out(machine.slope_addr_bits),
            "signal_addr": Out(machine.signal_addr_bits),
            "signal_channels": Out(channels),
        }
        if rule.waits:
            flags.append("opens")
        if rule.transposes:
            memories |= {"index_addr": Out(machine.index_addr_bits), "place": Out(2)}
        super().__init__(
            {
                "start": In(1),
                **({"update": In(1), "samples": In(range(machine.max_batch + 1))} if rule.learns else {}),
                "x_first": In(machine.activation_addr_bits),
                **({"x_wrap": In(range(2 * machine.max_batch + 1))} if rule.learns else {}),
                "layer": In(layer),
                "finishing": Out(1),
                "tap_step_valid": Out(1),
                "tap_y": Out(side),
                "tap_x": Out(side),
                "tap_base": Out(element_bits(machine)),
                "tap_tile_channels": Out(channels),
                "tap_advance": Out(1),
                "tap_rewind": Out(1),
                **(memories if rule.learns else {}),
                **{f"step_{name}": Out(1) for name in flags},
                "step_op": Out(Op),
                "step_addr": Out(machine.weight_addr_bits),
                "bias_addr": Out(machine.bias_bank_addr_bits),
                "position_valid": Out(1),
                "position": Out(position_layout(machine.max_side)),
                "position_tile": Out(layer["col_tiles"].shape),
                "position_channels": Out(channels),
            }
        )
        of_update = {
            "part_first": 1,
            "part_last": 1,
            "window_last": 1,
            "map_last": 1,  # of a sample's positions
        }
        self._flags = data.StructLayout(
            {
                "valid": 1,  # a step
                "first": 1,  # FORWARD: of a position's; UPDATE: in a tile's first part
                "last": 1,  # of a position's; of a tile's
                **(of_update if rule.learns else {}),
                "column_last": 1,  # with `last`: the column tile's, too
                **({"in_last_column": 1} if rule.learns else {}),  # the column tile is the layer's last
                **({"opens": 1} if rule.waits else {}),  # of the column tile's first step
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        learns = self.machine.learning.learns
        update: Value = Signal(name="update") if learns else Const(0, 1)
        if learns:
            with m.If(self.start):
                m.d.sync += update.eq(self.update)
        m.submodules.positions = positions = self._positions(m)
        flags = self._read(m, update, positions)
        line = [self._flags(stage) for stage in delay_line(m, flags.as_value(), self.LEAD, "step")]
        if self.machine.learning.transposes:
            self._back_addresses(m, line, positions)
        elif learns:
            self._addresses(m, line[-2])
        self._steps(m, line[-1], update)
        total = line[-1].valid & line[-1].last
        self._totals(m, total & ~update if learns else total)
        return m

    def _read(self, m: Module, update: Value, positions: Positions) -> data.View:
        """The loops, in the read cycle. Returns what a step is in them."""
        layer, rule = self.layer, self.machine.learning
        walking, issuing = Signal(), Signal()
        # Steps of an update; forward the cycles of a position, which outlast its steps where
        # `interval` is longer.
        count = Signal(layer.interval.shape())
        last_count, last_step = Signal.like(count), Signal.like(count)
        column, last_column = Signal.like(self.position_tile), Signal.like(self.position_tile)
        sample, last_sample = Signal(range(self.machine.max_batch)), Signal(range(self.machine.max_batch))
        part = Signal(range(PART))
        first_part = Signal()

        at_last_step, at_last_count = count == last_step, count == last_count
        in_last_column, batch_last = Signal(), Signal()
        moves = Signal()  # to another position
        running, stepping = walking, issuing
        if rule.waits:
            tile_ends = issuing & update & at_last_step & batch_last & ~in_last_column
            paused = self._paused(m, tile_ends)
            running, stepping = walking & ~paused, issuing & ~paused
        m.d.comb += [
            in_last_column.eq(column == last_column),
            # Forward `positions.last`.
            batch_last.eq(positions.last & (sample == last_sample) if rule.learns else positions.last),
            moves.eq(running & (update | at_last_count)),
            positions.step.eq(moves),
            self.finishing.eq(stepping & at_last_step & batch_last & in_last_column),
        ]

        with m.If(running):
            # In an update `last_count` is `last_step`.
            m.d.sync += issuing.eq(at_last_count | (issuing & ~at_last_step))
            with m.If(~update | batch_last):
                m.d.sync += count.eq(Mux(at_last_count, 0, count + 1))
            with m.If(moves):
                if rule.learns:
                    m.d.sync += part.eq(Mux(positions.window_last, 0, part + 1))
                    with m.If(positions.last):
                        m.d.sync += sample.eq(Mux(batch_last, 0, sample + 1))
                with m.If(batch_last & at_last_count):
                    m.d.sync += column.eq(column + 1)
                if rule.learns:
                    with m.If(batch_last):
                        m.d.sync += first_part.eq(1)
                    with m.Elif(part == PART - 1):
                        m.d.sync += first_part.eq(0)
                    with m.Elif(positions.window_last):
                        m.d.sync += first_part.eq(0)
            with m.If(self.finishing):
                m.d.sync += [walking.eq(0), issuing.eq(0)]
        with m.If(self.start):
            batch = [
                sample.eq(0),
                last_sample.eq(Mux(self.update, self.samples - 1, 0)),
                part.eq(0),
                first_part.eq(1),
            ] if rule.learns else []  # fmt: skip
            m.d.sync += [
                walking.eq(1),
                issuing.eq(1),
                count.eq(0),
                last_count.eq((Mux(self.update, layer.steps, layer.interval) if rule.learns else layer.interval) - 1),
                last_step.eq(layer.steps - 1),
                column.eq(0),
                last_column.eq(layer.col_tiles - 1),
                *batch,
            ]

        self._bases(m, moves & positions.last, ~batch_last, at_last_count, sample)
        m.d.comb += [
            self.tap_step_valid.eq(stepping),
            self.tap_y.eq(positions.y),
            self.tap_x.eq(positions.x),
            self.tap_tile_channels.eq(self._channels(in_last_column)),
            self.tap_advance.eq(~update | batch_last),
            self.tap_rewind.eq(at_last_step),
        ]
        flags = Signal(self._flags)
        of_windows = [
            flags.part_first.eq(part == 0),
            flags.part_last.eq((part == PART - 1) | positions.window_last),
            flags.window_last.eq(positions.window_last),
            flags.map_last.eq(positions.last),
        ] if rule.learns else []  # fmt: skip
        m.d.comb += [
            flags.valid.eq(stepping),
            flags.first.eq(Mux(update, first_part, count == 0) if rule.learns else count == 0),
            flags.last.eq(Mux(update, batch_last, at_last_step) if rule.learns else at_last_step),
            *of_windows,
            flags.column_last.eq(at_last_step & batch_last),
            *([flags.in_last_column.eq(in_last_column)] if rule.learns else []),
            *([flags.opens.eq(update & (count == 0))] if rule.waits else []),
        ]
        return flags

    def _paused(self, m: Module, tile_ends: Value) -> Signal:
        """Between column tiles of an update that begin in less than C cycles: not even positions move on then."""
        paused = Signal()
        left = Signal(range(self.machine.cols))  # of the C cycles, after this one
        due, asked = left == 0, tile_ends | paused
        m.d.sync += paused.eq(asked & ~due)
        with m.If(self.start | (asked & due)):
            m.d.sync += left.eq(self.machine.cols - 1)
        with m.Elif(~due):
            m.d.sync += left.eq(left - 1)
        return paused

    def _bases(self, m: Module, map_ends: Value, next_sample: Value, next_column: Value, sample: Signal) -> None:
        """`tap_base`, an element: of the sample's map; depthwise of the tile's first channel in it."""
        layer, row_zeros, learns = self.layer, Const(0, self.machine.row_bits), self.machine.learning.learns
        # The first sample's base, and that of one at word 0.
        first, ring = Signal.like(self.tap_base), Signal.like(self.tap_base)
        before_wrap = Signal(range(2 * self.machine.max_batch + 1))  # the last sample before the ring's end: none is -1
        channels = Mux(layer.depthwise, self.machine.cols, 0)
        with m.If(map_ends):
            if learns:
                with m.If(next_sample):
                    wraps = sample == before_wrap
                    m.d.sync += self.tap_base.eq(Mux(wraps, ring, self.tap_base + Cat(row_zeros, layer.x_stride)))
            with m.Elif(next_column) if learns else m.If(next_column):
                m.d.sync += [
                    self.tap_base.eq(first + channels),
                    first.eq(first + channels),
                    *([ring.eq(ring + channels)] if learns else []),
                ]
            with m.Else():
                m.d.sync += self.tap_base.eq(first)
        with m.If(self.start):
            m.d.sync += [
                self.tap_base.eq(Cat(row_zeros, self.x_first)),
                first.eq(Cat(row_zeros, self.x_first)),
                *([ring.eq(0), before_wrap.eq(self.x_wrap - 1)] if learns else []),
            ]

    def _addresses(self, m: Module, step: data.View) -> None:
        """Of slopes and signals, in an update: what forward wrote as a stream is walked by strides."""
        layer = self.layer
        slope_base = layer.slope_base if self.machine.learning.waits else 0
        self._strides(m, step, self.slope_addr, slope_base, 1, layer.slope_stride, layer.positions)
        self._strides(m, step, self.signal_addr, 0, step.window_last, layer.signal_stride, layer.windows)
        m.d.comb += self.signal_channels.eq(self._channels(step.in_last_column))

    def _strides(
        self,
        m: Module,
        step: data.View,
        address: Signal,
        base: ValueLike,
        moves: ValueLike,
        stride: Value,
        column: Value,
    ) -> Signal:
        """`address` of the step, from `base` on: a sample's words lie `stride` apart, a column tile's `column`.

        Returns where the column tile's begin in this sample.
        """
        # In the first sample, and in this one.
        first, start = (Signal.like(address, name=f"{address.name}_{n}") for n in ("first", "start"))
        with m.If(step.valid):
            with m.If(~step.map_last):
                m.d.sync += address.eq(address + moves)
            with m.Elif(~step.last):
                m.d.sync += [address.eq(start + stride), start.eq(start + stride)]
            with m.Elif(~step.column_last):
                m.d.sync += [address.eq(first), start.eq(first)]
            with m.Else():
                m.d.sync += [reg.eq(first + column) for reg in (address, start, first)]
        with m.If(self.start):
            m.d.sync += [reg.eq(base) for reg in (address, start, first)]
        return start

    def _back_addresses(self, m: Module, line: list[data.View], positions: Positions) -> None:
        """Of slopes, indices and signals, in an update: a pixel's are numbered row by row, whatever the order."""
        layer = self.layer
        m.submodules.raster = raster = Raster(self.machine)
        m.d.comb += [
            raster.valid.eq(line[0].valid),
            raster.width.eq(layer.width),
            *(getattr(raster, name).eq(getattr(positions, name)) for name in ("y", "x", "window_first")),
        ]
        number = Mux(layer.pool_latent, raster.number, positions.window)
        place = Cat(positions.x[0], positions.y[0])

        # A cycle before they are given out.
        step = line[self.LEAD - 3]
        words = Mux(layer.pool_latent, layer.positions, layer.windows)
        slope, signal = Signal.like(self.slope_addr), Signal(max(len(self.signal_addr), len(self.index_addr)))
        tile = self._strides(m, step, slope, layer.slope_base, 0, layer.slope_stride, words)
        self._strides(m, step, signal, 0, step.window_last, layer.signal_stride, layer.windows)
        m.d.sync += [
            self.slope_addr.eq(tile + delay_line(m, number, self.LEAD - 3, "number")[-1]),
            self.index_addr.eq(signal + layer.index_base),
            self.signal_addr.eq(signal + layer.signal_base),
        ]
        m.d.comb += [
            self.place.eq(delay_line(m, place, self.LEAD - 2, "place")[-1]),
            self.signal_channels.eq(self._channels(line[self.LEAD - 2].in_last_column)),
        ]

    def _steps(self, m: Module, step: data.View, update: Value) -> None:
        """To the array, and the weights' address."""
        first = Signal.like(self.step_addr, name="column_addr")  # of the column tile
        after = Signal.like(self.step_addr, name="next_addr")
        rule = self.machine.learning
        of_windows = [
            self.step_window_first.eq(step.part_first),
            self.step_window_last.eq(step.part_last),
            self.step_diagonal.eq(self.layer.depthwise),
        ] if rule.learns else []  # fmt: skip
        m.d.comb += [
            self.step_valid.eq(step.valid),
            self.step_op.eq(Mux(update, Op.UPDATE, Op.FORWARD) if rule.learns else Op.FORWARD),
            self.step_first.eq(step.first),
            self.step_last.eq(step.last),
            *of_windows,
            *([self.step_opens.eq(step.opens)] if rule.waits else []),
            after.eq(self.step_addr + 1),
        ]
        with m.If(step.valid):
            with m.If(step.column_last):
                m.d.sync += first.eq(after)
            with m.If(~update & step.last & ~step.column_last):
                m.d.sync += self.step_addr.eq(first)
            with m.Elif(~update | step.last):
                m.d.sync += self.step_addr.eq(after)
        with m.If(self.start):
            m.d.sync += [self.step_addr.eq(self.layer.w_base), first.eq(self.layer.w_base)]

    def _totals(self, m: Module, last_step: Value) -> None:
        """The positions once more, as their totals come: registers for what a delay line would be long for."""
        m.submodules.totals = totals = self._positions(m)
        delay = self.machine.rows + WindowArray.LATENCY - 1
        arriving = delay_line(m, last_step, delay, "arriving")[-1]
        column, last_column = (Signal.like(self.position_tile, name=n) for n in ("total_column", "total_last"))
        m.d.comb += totals.step.eq(arriving)
        m.d.sync += [
            self.position_valid.eq(arriving),
            self.position_tile.eq(column),
            self.position_channels.eq(self._channels(column == last_column)),
            *(self.position[name].eq(getattr(totals, name)) for name, _ in self.position.shape()),
        ]
        with m.If(arriving & totals.last):
            m.d.sync += [column.eq(column + 1), self.bias_addr.eq(self.bias_addr + 1)]
        with m.If(self.start):
            m.d.sync += [
                column.eq(0),
                last_column.eq(self.layer.col_tiles - 1),
                self.bias_addr.eq(self.layer.b_base),
            ]

    def _positions(self, m: Module) -> Positions:
        """A walk over the layer's positions, that begins with `start`."""
        positions = Positions(self.machine.max_side)
        m.d.comb += [
            positions.start.eq(self.start),
            positions.pool.eq(self.layer.max_pool),
            *(
                getattr(positions, name).eq(self.layer[name])
                for name in ("height", "width", "window_height", "window_width")
            ),
        ]
        return positions

    def _channels(self, in_last_column: Value) -> Value:
        """Columns in use in a column tile."""
        return Mux(in_last_column, self.layer.last_channels, self.machine.cols)
