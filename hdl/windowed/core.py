"""The whole core for convolutions and mini-batches: every block, and nothing but the wires between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.argmax import Argmax
from hdl.bus import COUNTER_REGISTERS, Bus, BusSignature
from hdl.counters import Counters
from hdl.feed import feed, link
from hdl.maintenance import Maintenance
from hdl.op import Op
from hdl.results import ResultFifo
from hdl.score_memory import host_from_bus
from hdl.signal_path import check_basis
from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT
from hdl.windowed.array import WindowArray
from hdl.windowed.back_memory import BackMemory
from hdl.windowed.back_signal import BackSignal
from hdl.windowed.back_sums import BackSums
from hdl.windowed.back_walk import BackWalk
from hdl.windowed.bias_memory import BiasMemory
from hdl.windowed.bias_unit import BiasUnit
from hdl.windowed.column_memory import ColumnMemory
from hdl.windowed.columns import Columns
from hdl.windowed.descriptor import descriptor_layout
from hdl.windowed.feedback_signal import FeedbackSignal
from hdl.windowed.label_signal import LabelSignal
from hdl.windowed.learning_signal import LearningSignal
from hdl.windowed.loader import Loader
from hdl.windowed.map_memory import MapMemory
from hdl.windowed.sequencer import Sequencer
from hdl.windowed.taps import TapReader
from hdl.windowed.tile_bias import TileBias
from hdl.windowed.walk import Walk
from hdl.windowed.writer import Writer
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import WEIGHT_BITS, Machine
from spec.memory_map import address_bits
from spec.rules import part
from spec.timing import Phase
from spec.windowed_timing import BACK_TAIL, FORWARD_TAIL, UPDATE_TAIL

__all__ = ["SIGNAL_UNITS", "Core"]

# The last step's last latent is the last thing of `forward`: its column's total, then its own way. (The vector of its
# position's activations is earlier.) The weight of the last PE is written in the last cycle of `update`. Both count
# from the last step's read cycle, less the skew R + C.
assert FORWARD_TAIL == Walk.LEAD + WindowArray.LATENCY + Columns.LATENT_LATENCY - 1
assert UPDATE_TAIL == Walk.LEAD + WindowArray.WRITE_LATENCY - 1 - 2
assert Columns.MAP_LATENCY <= Columns.LATENT_LATENCY
# The way back's walk starts a cycle before the phase, which its last step ends.
assert BACK_TAIL == BackWalk.LEAD + BackMemory.LATENCY - 1
# The last column's bias is written in `update` or, in an array of one row, a cycle behind it: nothing reads it then.
assert TileBias.WRITE_LATENCY <= 1 + WindowArray.WRITE_LATENCY

SIGNAL_UNITS: dict[str, Callable[[Machine, int, Basis], wiring.Component]] = {
    "own": LearningSignal,
    "label": LabelSignal,
    "output": FeedbackSignal,
    "back": BackSignal,
    "none": lambda _, classes, __: Argmax(classes),
}
"""By what a rule's hidden layers learn from, or by the rule (`spec.rules.part`): made of machine, classes and basis."""


class Core(wiring.Component):
    """A machine for networks with `classes` classes and one basis; any layers and batches that its memories hold.

    Members
    -------
    bus : In, BusSignature
        Registers and memories, by the address map of `spec.memory_map`.
    samples : In, stream of SAMPLE_LAYOUT
        A sample's elements, row by row, one a beat, then a beat with its label and `last = 1`.
    results : Out, stream of RESULT_LAYOUT
        Of a batch, for each layer that forms class scores, in it for each sample, if its `signal` phase runs, these
        (if CTRL.scores); then each sample's summary.
    phase, layer : Out
        What the sequencer is doing: a `spec.timing.Phase` in 3 bits, and for which layer.

    All is synchronous to `clk`, with the synchronous reset `rst`. Reset returns the LFSRs to their
    starting points and leaves all memories as they are.

    Raises
    ------
    SpecError
        When the machine or the basis do not suit `classes`.
    """

    def __init__(self, machine: Machine, classes: int, basis: Basis):
        if not machine.windowed:
            raise SpecError("gradient_bits", "must not be 0 for this datapath", machine.gradient_bits)
        check_basis(machine, classes, basis)
        self.machine, self.classes, self.basis = machine, classes, basis
        # Made here and not in elaborate(), so that a machine that does not do is refused at once.
        self._results = ResultFifo(machine, classes)
        self._signal: Any = part(SIGNAL_UNITS, machine.learning)(machine, classes, basis)
        super().__init__(
            {
                "bus": In(BusSignature(address_bits(machine))),
                "samples": In(stream.Signature(SAMPLE_LAYOUT)),
                "results": Out(stream.Signature(RESULT_LAYOUT)),
                "phase": Out(3),
                "layer": Out(machine.layer_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine, rule = self.machine, self.machine.learning
        m.submodules.bus = bus = Bus(machine)
        m.submodules.loader = loader = Loader(machine, self.classes)
        m.submodules.sequencer = sequencer = Sequencer(machine)
        m.submodules.maintenance = maintenance = Maintenance(machine)
        m.submodules.walk = walk = Walk(machine)
        m.submodules.taps = taps = TapReader(machine, machine.max_side)
        m.submodules.maps = maps = MapMemory(machine)
        m.submodules.array = array = WindowArray(machine)
        m.submodules.columns = columns = Columns(machine)
        m.submodules.writer = writer = Writer(machine)
        column_memory: Any = None
        if rule.transposes:
            m.submodules.back_memory = column_memory = BackMemory(machine)
            m.submodules.back_walk = back = BackWalk(machine)
            m.submodules.back_sums = sums = BackSums(machine)
        elif rule.learns:
            m.submodules.column_memory = column_memory = ColumnMemory(machine)
        bias: Any = (TileBias if rule.waits else BiasUnit if rule.learns else BiasMemory)(machine)
        m.submodules.bias = bias
        m.submodules.signal = signal = self._signal
        m.submodules.results = results = self._results
        m.submodules.counters = counters = Counters()

        connect(m, flipped(self.bus), bus.bus)
        connect(m, flipped(self.samples), loader.samples)
        connect(m, results.results, flipped(self.results))
        m.d.comb += [self.phase.eq(sequencer.phase), self.layer.eq(sequencer.layer)]

        layer = sequencer.descriptor
        # But for `train`, which counts only with a label.
        parameters = {name: layer[name] for name in descriptor_layout(machine).members if name != "train"}
        deltas = ("delta_valid", "delta_value", "delta_weight", "delta_channel_last", "delta_sample_last")
        waiting, forward, finishing = Signal(), Signal(), Signal()
        m.d.comb += [
            waiting.eq(sequencer.phase == Phase.WAIT),
            forward.eq(sequencer.phase == Phase.FORWARD),
            finishing.eq(sequencer.phase == Phase.FINISH),
        ]

        # Host, loader and sequencer.
        m.d.comb += [
            bus.waiting.eq(waiting),
            bus.idle.eq(waiting & ~maintenance.busy),
            bus.bad_label.eq(loader.bad_label),
            bus.bad_length.eq(loader.bad_length),
            loader.enable.eq(bus.enable & ~bus.restarting),
            loader.length.eq(bus.input_length),
            loader.input_row.eq(bus.input_row),
            loader.input_gap.eq(bus.input_gap),
            loader.input_words.eq(bus.input_words),
            loader.input_slots.eq(bus.input_slots),
            loader.restart.eq(bus.restart),
            loader.clear_errors.eq(bus.clear_errors),
            loader.begin.eq(sequencer.begin),
            loader.begin_count.eq(sequencer.begin_count),
            loader.release.eq(sequencer.release),
            loader.release_count.eq(sequencer.release_count),
            loader.label_slot.eq(sequencer.label_slot),
            sequencer.slot_label.eq(loader.label),
            sequencer.waiting.eq(loader.waiting),
            sequencer.unlabelled.eq(loader.unlabelled),
            sequencer.program_write.eq(bus.program_write),
            sequencer.program_addr.eq(bus.program_addr),
            sequencer.program_data.eq(bus.program_data),
            sequencer.layers.eq(bus.layers),
            sequencer.batch.eq(bus.batch),
            sequencer.input_slots.eq(bus.input_slots),
            sequencer.restart.eq(bus.restart),
            sequencer.enable.eq(bus.enable),
            sequencer.hold.eq(bus.hold | maintenance.busy),
            sequencer.room.eq(results.room),
            sequencer.signal_done.eq(signal.done),
            sequencer.found.eq(signal.prediction),
            sequencer.walk_finishing.eq(walk.finishing),
        ]

        # Steps: the walk's, and in `wait` the maintenance block's, whose activations are 0. A host's word comes out
        # in one column.
        names = ("valid", "op", "addr", "first", "last")
        step: dict[str, Any] = {name: getattr(walk, f"step_{name}") for name in names}
        if rule.transposes:
            of_back = {"op": Op.FORWARD, **{name: getattr(back, f"step_{name}") for name in names if name != "op"}}
            step = {name: Mux(back.step_valid, of_back[name], step[name]) for name in names}
        random_bits = machine.random_bits
        words = Array(total[random_bits:][:WEIGHT_BITS] for total in array.result_data)
        m.d.comb += [
            maintenance.waiting.eq(waiting),
            maintenance.weight_valid.eq(bus.weight_valid),
            maintenance.weight_write.eq(bus.weight_write),
            maintenance.row.eq(bus.row),
            maintenance.col.eq(bus.col),
            maintenance.word.eq(bus.word),
            maintenance.data.eq(bus.weight_data),
            bus.weight_done.eq(maintenance.weight_done),
            bus.read_valid.eq(maintenance.read_valid),
            bus.read_data.eq(maintenance.read_data),
            maintenance.advance_array.eq(bus.advance_array),
            maintenance.advance_bias.eq(bus.advance_bias),
            maintenance.advance_count.eq(bus.advance_count),
            bus.advancing_array.eq(maintenance.advancing_array),
            bus.advancing_bias.eq(maintenance.advancing_bias),
            array.step_valid.eq(step["valid"] | maintenance.step_valid),
            array.step_op.eq(Mux(waiting, maintenance.step_op, step["op"])),
            array.step_addr.eq(Mux(waiting, maintenance.step_addr, step["addr"])),
            array.step_first.eq(Mux(waiting, maintenance.step_first, step["first"])),
            array.step_last.eq(Mux(waiting, maintenance.step_last, step["last"])),
            *(
                [
                    # A step of the maintenance block is a window, on all PEs.
                    array.step_window_first.eq(waiting | walk.step_window_first),
                    array.step_window_last.eq(waiting | walk.step_window_last),
                    array.step_diagonal.eq(~waiting & walk.step_diagonal),
                    array.coarse.eq(layer.coarse),
                ]
                if rule.learns
                else []
            ),
            array.host_row.eq(maintenance.host_row),
            array.host_col.eq(maintenance.host_col),
            array.host_data.eq(maintenance.host_data),
            maintenance.result_valid.eq(array.result_valid.any()),
            maintenance.result_data.eq(Cat(Const(0, random_bits), words[maintenance.host_col]).as_signed()),
        ]

        # The walk, and what it reads for the array.
        m.d.comb += [
            walk.start.eq(sequencer.walk_start),
            *([walk.update.eq(sequencer.walk_update), walk.samples.eq(sequencer.samples)] if rule.learns else []),
            walk.x_first.eq(sequencer.walk_x_first),
            *([walk.x_wrap.eq(sequencer.walk_x_wrap)] if rule.learns else []),
            walk.layer.eq(layer),
            taps.prepare.eq(sequencer.prepare),
            taps.channels.eq(layer.in_channels),
            *(
                getattr(taps, name).eq(layer[name])
                for name in ("kernel_height", "kernel_width", "stride", "padding", "input_height", "input_width",
                             "pitch", "excess", "depthwise")
            ),
            *(
                getattr(taps, f"{amount}_digits")[digit].eq(layer[f"{amount}_{digit}"])
                for amount in ("step", "rewind") for digit in ("ky", "kx", "ci")
            ),
            *(
                getattr(taps, name).eq(getattr(walk, f"tap_{name}"))
                for name in ("step_valid", "y", "x", "base", "tile_channels", "advance", "rewind")
            ),
            maps.rotation.eq(taps.rotation),
            maps.mask.eq(taps.mask),
            *(maps.read_addr[b].eq(taps.read_addr[b]) for b in range(machine.rows)),
            maps.load_valid.eq(loader.load_valid),
            maps.load_element.eq(loader.load_element),
            maps.load_data.eq(loader.load_data),
            loader.load_ready.eq(maps.load_ready),
            *(array.act[r].eq(maps.act[r]) for r in range(machine.rows)),
        ]  # fmt: skip
        if column_memory:
            m.d.comb += [
                *([] if rule.transposes else link(column_memory, walk, "slope_addr", "signal_addr", "signal_channels")),
                array.neg.eq(column_memory.neg),
                *(array.delta[c].eq(column_memory.delta[c]) for c in range(machine.cols)),
            ]

        # Totals out of the array: to activations in the map memory, slope bits, latents.
        m.d.comb += [
            bias.read_addr.eq(walk.bias_addr),
            columns.result_valid.eq(Mux(forward, array.result_valid, 0)),
            columns.position.eq(walk.position),
            columns.position_tile.eq(walk.position_tile),
            columns.position_channels.eq(walk.position_channels),
            *(columns.result_data[c].eq(array.result_data[c]) for c in range(machine.cols)),
            *(columns.bias[c].eq(bias.bias[c]) for c in range(machine.cols)),
            *(
                getattr(columns, name).eq(layer[name])
                for name in ("in_frac", "act_shift", "latent_shift", "is_output", "max_pool")
            ),
            writer.base.eq(Cat(Const(0, machine.row_bits), sequencer.a_word)),
            *(
                getattr(writer, name).eq(layer[name])
                for name in ("a_pitch", "next_channels", "max_pool", "pool_latent", "is_output")
            ),
            *(
                getattr(writer, name).eq(getattr(columns, name))
                for name in ("map_valid", "map_position", "map_tile", "map_channels", "latent_valid", "latent",
                             "latent_column", "latent_window", "latent_y", "latent_tile")
            ),
            *(writer.map_data[c].eq(columns.map_data[c]) for c in range(machine.cols)),
            maps.write_valid.eq(writer.write_valid),
            maps.write_element.eq(writer.write_element),
            maps.write_count.eq(writer.write_count),
            *(maps.write_data[c].eq(writer.write_data[c]) for c in range(machine.cols)),
            *(
                [
                    *feed(column_memory, layer_start=sequencer.layer_start, **parameters),
                    *link(column_memory, columns, "slope_valid", "slope"),
                ]
                if column_memory
                else []
            ),
            *link(signal, columns, "latent_valid", "latent", "latent_column", "latent_weight", "score"),
            *feed(signal, in_valid=columns.latent_valid, in_score=columns.score),
        ]  # fmt: skip

        # The learning signal: to the result FIFO, the column memory and, with the latents' A', the biases.
        m.d.comb += [
            signal.start.eq(sequencer.sample_start),
            signal.go.eq(sequencer.signal_start),
            *(feed(signal, label=sequencer.label, train=sequencer.signal_train) if rule.learns else []),
            *feed(signal, layer_start=sequencer.layer_start, **parameters),
            results.layers.eq(bus.layers if rule.scores else 1),
            results.scores.eq(bus.scores),
            results.batch.eq(bus.batch),
            results.single.eq(sequencer.single),
            results.begin.eq(sequencer.begin),
            results.score_valid.eq(signal.report_valid),
            results.score.eq(signal.report_score),
            results.summary.eq(finishing),
            results.prediction.eq(sequencer.prediction),
            results.label.eq(sequencer.label),
            *(link(column_memory, signal, *deltas) if column_memory else []),
            *link(bias, signal, *deltas),
            *link(bias, sequencer, "layer_start"),
            *feed(bias, b_base=layer.b_base),
            *link(bias, sequencer, "sample_first", "sample_last"),
            *(feed(bias, bias_shift=layer.in_frac + Cat(Const(0, 2), layer.coarse)) if rule.learns else []),
            *(feed(bias, pad=sequencer.update_start, start=sequencer.update_start) if rule.learns else []),
            *feed(bias, pad_count=machine.cols - layer.last_channels, advance=maintenance.bias_advance),
            # The host's word may be read all the time in `wait`: that keeps the bus out of the banks' addresses.
            bias.host_valid.eq(waiting),
            bias.host_addr.eq(bus.bias_addr),
            bias.host_write.eq(bus.bias_write),
            bias.host_data.eq(bus.bias_data),
            bus.bias_q.eq(bias.host_q),
        ]

        # What is trained of the class scores.
        if rule.trains:
            m.d.comb += [signal.first_layer.eq(sequencer.layer == 0), *host_from_bus(signal, bus)]

        # Where the rule waits, the biases' gradients are added up beside the array.
        if rule.waits:
            deltas_of_biases: list[Any] = list(column_memory.delta)
            if rule.transposes:
                # A bias has no activation that is not added.
                deltas_of_biases = [Mux(column_memory.skip[c], 0, delta) for c, delta in enumerate(deltas_of_biases)]
            m.d.comb += [
                bias.step.eq(walk.step_valid & walk.step_opens),
                bias.step_last.eq(walk.step_last),
                bias.neg.eq(column_memory.neg),
                *(bias.delta[c].eq(delta) for c, delta in enumerate(deltas_of_biases)),
            ]

        # The way back: signals into the array's columns, sums out of its rows, and what forward keeps for it.
        if rule.transposes:
            updating = Signal()
            m.d.comb += [
                updating.eq(sequencer.phase == Phase.UPDATE),
                back.start.eq(sequencer.back_start),
                back.samples.eq(sequencer.samples),
                back.layer.eq(layer),
                sequencer.back_finishing.eq(back.finishing),
                array.step_back.eq(back.step_valid),
                array.skip.eq(column_memory.skip),
                column_memory.back.eq(~updating),
                column_memory.outside.eq(~updating & back.outside),
                column_memory.channels.eq(Mux(updating, walk.signal_channels, back.channels)),
                *(
                    getattr(column_memory, name).eq(Mux(updating, getattr(walk, name), getattr(back, name)))
                    for name in ("slope_addr", "index_addr", "signal_addr", "place")
                ),
                column_memory.pooled.eq(layer.max_pool),
                column_memory.left_shift.eq(signal.left_shift),
                sums.start.eq(sequencer.back_start),
                sums.layer.eq(layer),
                sums.back_valid.eq(array.back_valid),
                sums.back_data.eq(array.back_data),
                column_memory.signal_valid.eq(sums.signal_valid | signal.signal_valid),
                *(
                    getattr(column_memory, name).eq(Mux(sums.signal_valid, getattr(sums, name), getattr(signal, name)))
                    for name in ("signal_bank", "signal_word", "signal_value")
                ),
                columns.slope_base.eq(sequencer.slope_word),
                columns.index_base.eq(sequencer.index_word),
                *(
                    getattr(columns, name).eq(layer[name])
                    for name in ("pool_latent", "width", "positions", "windows")
                ),
                *link(column_memory, columns, "slope_word", "index_valid", "index_word"),
                *(column_memory.index[c].eq(columns.index[c]) for c in range(machine.cols)),
            ]

        # UPDATE_STEPS counts as the PEs' LFSRs step: once a tile.
        forward_step = array.step_valid & (array.step_op == Op.FORWARD)
        m.d.comb += [
            counters.phase.eq(sequencer.phase),
            counters.forward_step.eq(forward_step & ~array.step_back if rule.transposes else forward_step),
            counters.update_step.eq(
                array.step_valid & (array.step_op == Op.UPDATE) & array.step_window_last & array.step_first
                if rule.learns
                else 0
            ),
            counters.bias_step.eq(bias.stepped if rule.learns else 0),
            counters.sample_done.eq(finishing),
            counters.clear.eq(bus.clear_counters),
            *(getattr(bus, name).eq(getattr(counters, name)) for name in COUNTER_REGISTERS),
        ]
        return m
