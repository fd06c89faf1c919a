"""The whole core: every block, and nothing but the wires between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.argmax import Argmax
from hdl.bus import COUNTER_REGISTERS, Bus, BusSignature
from hdl.counters import Counters
from hdl.dense.activation_memory import ActivationMemory
from hdl.dense.array import Array
from hdl.dense.back_signal import BackSignal
from hdl.dense.bias_unit import BiasUnit
from hdl.dense.feedback_signal import FeedbackSignal
from hdl.dense.label_signal import LabelSignal
from hdl.dense.learning_signal import LearningSignal
from hdl.dense.loader import InputLoader
from hdl.dense.post_process import PostProcess
from hdl.dense.sequencer import Sequencer, descriptor_layout
from hdl.dense.writeback import Writeback
from hdl.feed import feed
from hdl.maintenance import Maintenance
from hdl.op import Op
from hdl.results import ResultFifo
from hdl.score_memory import host_from_bus
from hdl.signal_path import check_basis
from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT
from spec.basis import Basis
from spec.machine import ACT_BITS, Machine
from spec.memory_map import address_bits
from spec.rules import part
from spec.timing import Phase

__all__ = ["SIGNAL_UNITS", "Core"]

_ACT_MAX = (1 << (ACT_BITS - 1)) - 1

SIGNAL_UNITS: dict[str, Callable[[Machine, int, Basis], wiring.Component]] = {
    "own": LearningSignal,
    "label": LabelSignal,
    "output": FeedbackSignal,
    "back": lambda machine, classes, _: BackSignal(machine, classes),
    "none": lambda _, classes, __: Argmax(classes),
}
"""By what a rule's hidden layers learn from, or by the rule (`spec.rules.part`): made of machine, classes and basis."""


class Core(wiring.Component):
    """A machine for networks with `classes` classes and any layers that its memories hold.

    It holds one basis, if its rule reads one.

    Members
    -------
    bus : In, BusSignature
        Registers and memories, by the address map of `spec.memory_map`.
    samples : In, stream of SAMPLE_LAYOUT
        A sample's pixels, one a beat, then a beat with its label and `last = 1`.
    results : Out, stream of RESULT_LAYOUT
        For each layer that forms class scores, if its `signal` phase runs, these (if CTRL.scores), then
        the summary.
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
        m.submodules.loader = loader = InputLoader(machine, self.classes)
        m.submodules.sequencer = sequencer = Sequencer(machine)
        m.submodules.maintenance = maintenance = Maintenance(machine)
        m.submodules.activations = activations = ActivationMemory(machine)
        m.submodules.array = array = Array(machine)
        m.submodules.bias = bias = BiasUnit(machine)
        m.submodules.post = post = PostProcess(machine)
        m.submodules.writeback = writeback = Writeback(machine)
        m.submodules.signal = signal = self._signal
        m.submodules.results = results = self._results
        m.submodules.counters = counters = Counters()

        connect(m, flipped(self.bus), bus.bus)
        connect(m, flipped(self.samples), loader.samples)
        connect(m, results.results, flipped(self.results))
        m.d.comb += [self.phase.eq(sequencer.phase), self.layer.eq(sequencer.layer)]

        layer = sequencer.descriptor
        # But for `train`, which counts only with a label.
        parameters = {name: getattr(layer, name) for name in descriptor_layout(machine).members if name != "train"}
        waiting, finishing = Signal(), Signal()
        m.d.comb += [
            waiting.eq(sequencer.phase == Phase.WAIT),
            finishing.eq(sequencer.phase == Phase.FINISH),
        ]

        # Host and sequencer.
        m.d.comb += [
            bus.waiting.eq(waiting),
            bus.idle.eq(waiting & ~maintenance.busy),
            bus.bad_label.eq(loader.bad_label),
            bus.bad_length.eq(loader.bad_length),
            loader.enable.eq(bus.enable),
            loader.length.eq(bus.input_length),
            loader.input_words.eq(bus.input_words),
            loader.clear_errors.eq(bus.clear_errors),
            loader.label_release.eq(sequencer.label_release),
            loader.buffer_release.eq(sequencer.buffer_release),
            sequencer.program_write.eq(bus.program_write),
            sequencer.program_addr.eq(bus.program_addr),
            sequencer.program_data.eq(bus.program_data),
            sequencer.layers.eq(bus.layers),
            sequencer.input_words.eq(bus.input_words),
            sequencer.enable.eq(bus.enable),
            sequencer.hold.eq(bus.hold | maintenance.busy),
            sequencer.room.eq(results.room),
            sequencer.sample_valid.eq(loader.sample_valid),
            sequencer.sample_label.eq(loader.sample_label),
            sequencer.sample_buffer.eq(loader.sample_buffer),
            sequencer.signal_done.eq(signal.done),
        ]

        # Steps: the sequencer's, and in `wait` the maintenance block's, whose activations are 0.
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
            array.step_valid.eq(sequencer.step_valid | maintenance.step_valid),
            array.step_op.eq(Mux(waiting, maintenance.step_op, sequencer.step_op)),
            array.step_addr.eq(Mux(waiting, maintenance.step_addr, sequencer.step_addr)),
            array.step_first.eq(Mux(waiting, maintenance.step_first, sequencer.step_first)),
            array.step_last.eq(Mux(waiting, maintenance.step_last, sequencer.step_last)),
            array.host_row.eq(maintenance.host_row),
            array.host_col.eq(maintenance.host_col),
            array.host_data.eq(maintenance.host_data),
            maintenance.result_valid.eq(array.result_valid),
            maintenance.result_data.eq(array.result_data),
        ]

        # Activations into the array.
        m.d.comb += [
            activations.read_valid.eq(sequencer.step_valid),
            activations.read_addr.eq(sequencer.read_addr),
            activations.read_last.eq(sequencer.step_last),
            activations.row_mask.eq(layer.row_mask),
            activations.load_valid.eq(loader.load_valid),
            activations.load_row.eq(loader.load_row),
            activations.load_addr.eq(loader.load_addr),
            activations.load_data.eq(loader.load_data),
            loader.load_ready.eq(activations.load_ready),
            *(array.act[r].eq(activations.act[r]) for r in range(machine.rows)),
        ]

        # Totals out of the array: post-processing, then back to memory and on to the scores.
        m.d.comb += [
            bias.start.eq(sequencer.layer_start),
            bias.b_base.eq(layer.b_base),
            bias.pop.eq(post.bias_pop),
            post.acc_valid.eq(array.result_valid & (sequencer.phase == Phase.FORWARD)),
            post.acc_data.eq(array.result_data),
            post.bias_data.eq(bias.bias_data),
            post.act_shift.eq(layer.act_shift),
            post.is_output.eq(layer.is_output),
            writeback.start.eq(sequencer.layer_start),
            writeback.n_out.eq(layer.n_out),
            writeback.a_base.eq(layer.a_base),
            writeback.valid.eq(post.out_valid),
            activations.write_valid.eq(writeback.real & ~layer.is_output),
            activations.write_row.eq(writeback.row),
            activations.write_addr.eq(writeback.addr),
            activations.write_data.eq(post.out_a),
            signal.start.eq(sequencer.layer_start),
            *feed(signal, **parameters),
            *feed(
                signal,
                in_valid=writeback.real,
                in_a=post.out_a,
                in_neg=post.out_neg,
                in_saturated=(post.out_a == _ACT_MAX) | (post.out_a == ~_ACT_MAX),
                in_score=post.out_score,
            ),
        ]

        # The learning signal: to the result FIFO, the array and the biases.
        m.d.comb += [
            signal.go.eq(sequencer.signal_start),
            *feed(signal, label=sequencer.label, train=sequencer.signal_train),
            results.layers.eq(bus.layers if rule.scores else 1),
            results.scores.eq(bus.scores),
            results.begin.eq(sequencer.begin),
            results.score_valid.eq(signal.report_valid),
            results.score.eq(signal.report_score),
            results.summary.eq(finishing),
            results.prediction.eq(signal.prediction),
            results.label.eq(sequencer.label),
            *(
                [
                    signal.delta_go.eq(sequencer.update_start),
                    signal.delta_pop.eq(array.delta_pop),
                    array.delta.eq(signal.delta_fifo_data),
                    bias.delta_start.eq(sequencer.update_start),
                    bias.delta_valid.eq(signal.delta_made),
                    bias.delta.eq(signal.delta_value),
                    bias.delta_write.eq(signal.delta_real),
                    bias.bias_shift.eq(layer.bias_shift),
                    bias.advance.eq(maintenance.bias_advance),
                ]
                if rule.learns
                else []
            ),
            bias.host_valid.eq(bus.bias_valid),
            bias.host_addr.eq(bus.bias_addr),
            bias.host_write.eq(bus.bias_write),
            bias.host_data.eq(bus.bias_data),
            bus.bias_q.eq(bias.host_q),
        ]

        # What is trained of the class scores.
        if rule.trains:
            m.d.comb += [signal.first_layer.eq(sequencer.layer == 0), *host_from_bus(signal, bus)]

        # The way back: signals into the array's columns, sums out of its rows.
        if rule.transposes:
            m.d.comb += [
                array.step_back.eq(sequencer.step_back),
                *(array.back_delta[c].eq(signal.back_delta[c]) for c in range(machine.cols)),
                signal.half.eq(sequencer.layer[0]),
                signal.back_start.eq(sequencer.back_start),
                signal.step_valid.eq(sequencer.step_valid & sequencer.step_back),
                signal.step_tile.eq(sequencer.step_tile),
                signal.step_last.eq(sequencer.step_last),
                signal.back_valid.eq(array.back_valid),
                signal.back_data.eq(array.back_data),
            ]

        forward = array.step_op == Op.FORWARD
        m.d.comb += [
            counters.phase.eq(sequencer.phase),
            counters.forward_step.eq(array.step_valid & (forward & ~array.step_back if rule.transposes else forward)),
            counters.update_step.eq(array.step_valid & (array.step_op == Op.UPDATE)),
            counters.bias_step.eq(signal.delta_made | maintenance.bias_advance if rule.learns else 0),
            counters.sample_done.eq(finishing),
            counters.clear.eq(bus.clear_counters),
            *(getattr(bus, name).eq(getattr(counters, name)) for name in COUNTER_REGISTERS),
        ]
        return m
