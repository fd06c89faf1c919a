"""The sequencer: runs the layer program once a sample, phase by phase.

Once a sample has begun nothing can stall it, so a phase's steps need no handshakes, and its end is
found by counting. Only the learning-signal unit says itself when it is done.
"""

from __future__ import annotations

from contextlib import nullcontext

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.dense.walk import TileWalk, tile_count_bits
from hdl.memory import DualPortMemory
from hdl.op import Op
from hdl.streams import LABEL_BITS
from spec.machine import Machine
from spec.network import NO_LABEL
from spec.program import DESCRIPTOR_STRIDE, FIELDS
from spec.timing import DELTA_LATENCY, FORWARD_TAIL, SETUP_CYCLES, UPDATE_TAIL, Phase, delta_latency

__all__ = ["Sequencer", "descriptor_layout"]

_PHASE_BITS = 3


def descriptor_layout(machine: Machine) -> data.StructLayout:
    """A layer's descriptor as the hardware keeps it: the fields of `spec.program`, each only as wide
    as this machine needs, and only those that its rule needs. `n_in` is but for the way back: elsewhere
    `row_tiles` and `row_mask` say it."""
    rule = machine.learning
    kept = {
        "n_in": rule.transposes,
        "trains_below": rule.waits,
        **dict.fromkeys(("score_shift", "rate_shift", "bias_shift", "train"), rule.learns),
    }
    row_tile_bits, col_tile_bits = tile_count_bits(machine)
    widths = {
        "n_in": machine.max_fan_in.bit_length(),
        "n_out": machine.max_neurons.bit_length(),
        "row_tiles": row_tile_bits,
        "col_tiles": col_tile_bits,
        "x_base": machine.activation_addr_bits,
        "a_base": machine.activation_addr_bits,
        "w_base": machine.weight_addr_bits,
        "b_base": machine.bias_addr_bits,
        "row_mask": machine.rows,
    }
    return data.StructLayout(
        {
            name: (signed if field.signed else unsigned)(min(field.width, widths.get(name, 32)))
            for name, field in FIELDS.items()
            if kept.get(name, True)
        }
    )


class Sequencer(wiring.Component):
    """Phases and their lengths: docs/architecture.md, section 2, docs/rules.md, section 2, and `spec.timing`.

    A sample begins in `wait`, or straight from `finish`, when `enable`, `sample_valid` and `room` are
    set and `hold` is not. It trains if it has a label; a layer takes part if its `train` is set. Where the
    rule `waits`, layers are updated on the way down from the output layer, which goes on as long as a
    layer's `trains_below` is set; such a layer has to train itself.

    Members
    -------
    program_write, program_addr, program_data : In
        Write port of the program memory; a sample may begin two cycles later at the earliest.
    layers, input_words : In
        Constant while a sample is worked on. `layers` is at most `max_layers`; with 0 none begins.
    enable, hold, room : In
        `room`: the result FIFO has room for a whole result (counting a beat pushed in this cycle).
    sample_valid, sample_label, sample_buffer, label_release, buffer_release
        To the input loader.
    phase, layer : Out
        A Phase (3 bits), and the layer at work (0 in `wait` and `finish`).
    descriptor : Out, `descriptor_layout`
        The layer's fields, valid after `setup`; `x_base` then includes the input buffer.
    step_valid, step_op, step_addr, step_first, step_last, read_addr : Out
        A step of the array and the activation memory's address, in its cycle t.
    layer_start : Out, pulse
        First cycle of `forward`.
    signal_start, signal_train : Out; signal_done : In
        Pulse in the first cycle of `signal`, and whether it is to prepare an update; `signal_done`
        comes in the phase's last cycle.
    update_start : Out, pulse
        First cycle of `update`; the first step follows `delta_latency` cycles later.
    back_start : Out, pulse; step_back, step_tile : Out; with rule ``bp``
        The way back through this layer begins in the next cycle; its steps, and their column tiles.
    label : Out
        The sample's label.
    begin : Out, pulse
        A sample begins: the cycle before its first `setup`.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        _, col_tile_bits = tile_count_bits(machine)
        transposing = {"back_start": Out(1), "step_back": Out(1), "step_tile": Out(col_tile_bits)}
        super().__init__(
            {
                "program_write": In(1),
                "program_addr": In(range(machine.max_layers * DESCRIPTOR_STRIDE)),
                "program_data": In(32),
                "layers": In(machine.max_layers.bit_length()),
                "input_words": In(machine.activation_addr_bits),
                "enable": In(1),
                "hold": In(1),
                "room": In(1),
                "sample_valid": In(1),
                "sample_label": In(LABEL_BITS),
                "sample_buffer": In(1),
                "label_release": Out(1),
                "buffer_release": Out(1),
                "phase": Out(_PHASE_BITS),
                "layer": Out(machine.layer_bits),
                "descriptor": Out(descriptor_layout(machine)),
                "step_valid": Out(1),
                "step_op": Out(Op),
                "step_addr": Out(machine.weight_addr_bits),
                "step_first": Out(1),
                "step_last": Out(1),
                "read_addr": Out(machine.activation_addr_bits),
                "layer_start": Out(1),
                "signal_start": Out(1),
                "signal_train": Out(1),
                "signal_done": In(1),
                "update_start": Out(1),
                "label": Out(LABEL_BITS),
                "begin": Out(1),
                **(transposing if machine.learning.transposes else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine, descriptor = self._machine, self.descriptor
        rule = machine.learning
        layer = self.layer
        phase = Signal(Phase)
        m.d.comb += self.phase.eq(phase)

        # Outside `setup` the first word of the next layer is read all the time, so that `setup`
        # finds it there. `next_layer` is 0 in `wait` and `finish`, `layer` in `setup`, `layer + 1`
        # behind it, and `layer - 1` on the way down, where the end of `setup` asks what the last word
        # says: there it is the first to be read, as the memory is too slow to decide on its output.
        m.submodules.program = program = DualPortMemory(32, machine.max_layers * DESCRIPTOR_STRIDE)
        next_layer = Signal(range(machine.max_layers + 1))
        word = Signal(range(SETUP_CYCLES))
        in_setup = phase == Phase.SETUP
        first_word = SETUP_CYCLES - 1 if rule.waits else 0
        base = next_layer * DESCRIPTOR_STRIDE
        m.d.comb += [
            program.read_addr.eq(base + Mux(in_setup, word, first_word) if rule.waits else base + word + in_setup),
            program.write_en.eq(self.program_write),
            program.write_addr.eq(self.program_addr),
            program.write_data.eq(self.program_data),
        ]

        m.submodules.walk = walk = TileWalk(machine)
        m.d.comb += [
            walk.row_tiles.eq(descriptor.row_tiles),
            walk.col_tiles.eq(descriptor.col_tiles),
            walk.x_base.eq(descriptor.x_base),
            walk.w_base.eq(descriptor.w_base),
            self.step_valid.eq(walk.step_valid),
            self.step_addr.eq(walk.step_addr),
            self.step_first.eq(walk.step_first),
            self.step_last.eq(walk.step_last),
            self.read_addr.eq(walk.read_addr),
        ]
        down = Signal()
        if rule.transposes:
            m.d.comb += [
                self.step_back.eq(walk.step_back),
                self.step_tile.eq(walk.step_tile),
                self.back_start.eq(walk.start & walk.back),
                walk.back.eq(down & (phase != Phase.UPDATE)),
            ]

        # A phase that walks ends when the pipeline behind the last step is empty.
        skew = machine.rows + machine.cols
        forward_drain = skew + FORWARD_TAIL
        latency = delta_latency(machine.rule) if rule.learns else 0
        update_drain = skew + UPDATE_TAIL - DELTA_LATENCY
        draining = Signal()
        left = Signal(range(max(forward_drain, update_drain, latency)))
        expired = left == 0
        buffer = Signal()
        learns = Signal()
        layer_done = Signal()
        fresh = Signal()  # the first cycle of a phase
        trains: Value = descriptor.train if rule.learns else Const(0)
        trains_below: Value = descriptor.trains_below if rule.waits else Const(0)
        labelled = self.label != NO_LABEL
        m.d.comb += learns.eq(trains & labelled)
        m.d.comb += self.signal_train.eq(learns)
        m.d.sync += fresh.eq(0)
        with m.If(~expired):
            m.d.sync += left.eq(left - 1)

        def enter(new: Phase) -> None:
            m.d.sync += [phase.eq(new), fresh.eq(1)]

        def enter_update() -> None:
            enter(Phase.UPDATE)
            m.d.sync += left.eq(latency - 1)

        def update_or_finish() -> None:
            """What follows the signal, or what there is of it."""
            if rule.learns:
                with m.If(learns):
                    enter_update()
            with m.Else() if rule.learns else nullcontext():
                m.d.comb += layer_done.eq(1)

        def drain(cycles: int) -> None:
            with m.If(walk.finishing):
                m.d.sync += [draining.eq(1), left.eq(cycles - 1)]

        drained = draining & expired
        with m.If(drained):
            m.d.sync += draining.eq(0)

        with m.Switch(phase):
            with m.Case(Phase.WAIT, Phase.FINISH):
                ready = self.sample_valid & self.room & (self.layers != 0)
                m.d.comb += self.begin.eq(self.enable & ~self.hold & ready)
                with m.If(self.begin):
                    m.d.sync += [self.label.eq(self.sample_label), buffer.eq(self.sample_buffer)]
                    enter(Phase.SETUP)
                with m.Else():
                    enter(Phase.WAIT)
            with m.Case(Phase.SETUP):
                with m.If(word == SETUP_CYCLES - 1):
                    m.d.sync += word.eq(0)
                    with m.If(~down) if rule.waits else nullcontext():
                        m.d.comb += walk.start.eq(1)
                        m.d.sync += next_layer.eq(next_layer + 1)
                        enter(Phase.FORWARD)
                    if rule.waits:
                        with m.Else():
                            m.d.sync += next_layer.eq(next_layer - 1)
                            if rule.transposes:
                                with m.If(trains_below):
                                    m.d.comb += walk.start.eq(1)
                                    enter(Phase.SIGNAL)
                            with m.Else() if rule.transposes else nullcontext():
                                update_or_finish()
                with m.Else():
                    m.d.sync += word.eq(word + 1)
            with m.Case(Phase.FORWARD):
                m.d.comb += [self.step_op.eq(Op.FORWARD), self.layer_start.eq(fresh)]
                drain(forward_drain)
                with m.If(drained):
                    with m.If(learns | descriptor.is_output if rule.scores else descriptor.is_output):
                        enter(Phase.SIGNAL)
                    if rule.error == "label":
                        with m.Elif(learns):
                            enter_update()
                    with m.Else():
                        m.d.comb += layer_done.eq(1)
            with m.Case(Phase.SIGNAL):
                over: Value = self.signal_done
                m.d.comb += self.signal_start.eq(fresh & ~down if rule.transposes else fresh)
                if rule.waits:
                    with m.If(fresh & ~down & learns):
                        m.d.sync += [down.eq(1), next_layer.eq(layer - 1)]
                if rule.transposes:
                    # Without what is on its way: it is there before the layer before needs it.
                    back = learns & trains_below
                    with m.If(self.signal_done & back):
                        m.d.comb += walk.start.eq(1)
                    over = Mux(back, walk.finishing, self.signal_done)
                with m.If(over):
                    update_or_finish()
            if rule.learns:
                with m.Case(Phase.UPDATE):
                    leading = Signal()
                    m.d.comb += [self.step_op.eq(Op.UPDATE), self.update_start.eq(fresh)]
                    with m.If(fresh):
                        m.d.sync += leading.eq(1)
                    with m.If((leading | fresh) & expired):
                        m.d.comb += walk.start.eq(1)
                        m.d.sync += leading.eq(0)
                    drain(update_drain)
                    with m.If(drained):
                        m.d.comb += layer_done.eq(1)

        # A layer that waits for its update needs its input once more.
        released = drained & ((phase == Phase.UPDATE) | ~learns) if rule.waits else layer_done
        m.d.comb += [
            self.label_release.eq(self.begin),
            self.buffer_release.eq(released & (layer == 0)),
        ]
        with m.If(layer_done):
            last = next_layer == self.layers
            with m.If(Mux(down, ~trains_below, last) if rule.waits else last):
                m.d.sync += [layer.eq(0), next_layer.eq(0)]
                if rule.waits:
                    m.d.sync += down.eq(0)
                enter(Phase.FINISH)
            with m.Else():
                m.d.sync += layer.eq(next_layer)
                enter(Phase.SETUP)

        # `setup` sees a word of the descriptor a cycle.
        with m.If(in_setup):
            for name in descriptor_layout(machine).members:
                field, target = FIELDS[name], getattr(descriptor, name)
                code = program.read_data[field.lsb : field.lsb + len(target)]
                with m.If(word == (field.word - first_word) % SETUP_CYCLES):
                    m.d.sync += target.eq(code)
            with m.If((word == (FIELDS["x_base"].word + 1 - first_word) % SETUP_CYCLES) & (layer == 0) & buffer):
                m.d.sync += descriptor.x_base.eq(descriptor.x_base + self.input_words)
        return m
