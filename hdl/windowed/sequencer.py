"""The sequencer: runs the layer program once a batch, layer by layer, in a layer sample by sample.

Once a batch has begun nothing can stall it, so a phase's steps need no handshakes, and its end is
found by counting. Only the learning-signal unit says itself when it is done.
"""

from __future__ import annotations

from contextlib import nullcontext

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.memory import DualPortMemory
from hdl.streams import LABEL_BITS
from hdl.windowed.descriptor import descriptor_layout
from spec.machine import Machine
from spec.timing import Phase
from spec.windowed_program import descriptor_kind
from spec.windowed_timing import FORWARD_TAIL, SETUP_TAIL, UPDATE_TAIL

__all__ = ["Sequencer"]

_PHASE_BITS = 3


class Sequencer(wiring.Component):
    """Phases and their lengths: docs/convolutions.md, section 6, docs/rules.md, sections 5, 6, `spec.windowed_timing`.

    A batch begins in `wait`, or straight from the last cycle of `finish`, when `enable` and `room` are
    set, `hold` is not, and either `batch` labelled samples wait or an unlabelled one does, behind
    fewer. It is then of the labelled ones, or if there are none of the other. A batch of labelled
    samples trains, in layers whose `train` is set. Where the rule `waits`, layers are updated on the way
    down from the output layer, which goes on as long as a layer's `trains_below` is set: the layer
    before it has to train then. Where the rule `transposes`, the way back through such a layer precedes its update,
    in `signal` too. A machine that does not learn has no port of an update or of training.

    Members
    -------
    program_write, program_addr, program_data : In
        Write port of the program memory; a batch may begin two cycles later at the earliest.
    layers, batch, input_slots : In
        Constant while a batch is worked on. `layers` is at most `max_layers`; with 0 none begins, nor
        with a `batch` of 0. The ring's slots are the first layer's `x_stride` words apart.
    enable, hold : In
    single, room : Out, In
        The batch that waits is an unlabelled sample; a cycle later, the result FIFO has room for the
        results of `batch` samples, or where `single` was set for those of one (counting what is pushed
        in this cycle). That is when the batch may begin.
    restart : In, pulse
        The next sample is in slot 0 and the loader's ring is empty; with `hold`, not during a batch.
    waiting, unlabelled, begin, begin_count, release, release_count, label_slot, slot_label
        To the loader; `slot_label` is its `label`.
    phase, layer : Out
        A Phase (3 bits), and the layer at work (0 in `wait` and `finish`).
    descriptor : Out, `descriptor_layout`
        The layer's fields, valid in setup when all words have been read; the first layer's `x_base` is
        that of the batch's first sample in the ring.
    prepare : Out, pulse
        In setup: the descriptor is complete, R cycles before the first step at least.
    walk_start, walk_update, walk_x_first, walk_x_wrap, samples : Out; walk_finishing : In
        To the walk, whose first step is in the first cycle of `forward` or `update`. `samples`: of the
        batch.
    back_start : Out, pulse; back_finishing : In; where the rule `transposes`
        To the way back's walk, the cycle before the phase's first, and from it in its last. `samples` too.
    layer_start, sample_start : Out, pulses
        First cycle of a layer's first `forward`, and of each sample's. The former also in that of a layer's
        first `signal` on the way down, unless the rule `transposes`.
    a_word : Out
        Word at which the map that the sample's forward makes begins: from the third cycle of
        `forward` to the second after it.
    slope_word, index_word : Out, where the rule `transposes`
        As `a_word`, words at which the sample's slope bits and indices begin.
    signal_start, signal_train : Out; signal_done : In
        Pulse in the first cycle of `signal` but for the way back, and whether it is to prepare an update; `signal_done`
        comes in the phase's last cycle.
    sample_first, sample_last : Out
        Unless the rule `waits`: the sample is the batch's first, its last: a cycle late, so that what follows
        a `signal` by a cycle still finds its sample here.
    update_start : Out, pulse
        First cycle of `update`.
    label : Out
        The sample's label: in `signal` and, sample by sample, in `finish`.
    found, prediction : In, Out
        The output layer's prediction, valid from the cycle after its `signal_done` until that of the
        next sample; in `finish` each sample's.
    """

    program_write: Signal
    program_addr: Signal
    program_data: Signal
    layers: Signal
    batch: Signal
    input_slots: Signal
    enable: Signal
    hold: Signal
    room: Signal
    restart: Signal
    waiting: Signal
    unlabelled: Signal
    begin: Signal
    begin_count: Signal
    release: Signal
    release_count: Signal
    label_slot: Signal
    slot_label: Signal
    single: Signal
    phase: Signal
    layer: Signal
    descriptor: data.View
    prepare: Signal
    walk_start: Signal
    walk_update: Signal
    walk_x_first: Signal
    walk_x_wrap: Signal
    walk_finishing: Signal
    back_start: Signal
    back_finishing: Signal
    samples: Signal
    layer_start: Signal
    sample_start: Signal
    a_word: Signal
    slope_word: Signal
    index_word: Signal
    signal_start: Signal
    signal_train: Signal
    signal_done: Signal
    sample_first: Signal
    sample_last: Signal
    update_start: Signal
    label: Signal
    found: Signal
    prediction: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        self._kind = descriptor_kind(machine)
        rule, learns = machine.learning, machine.learning.learns
        slots = 2 * machine.max_batch
        transposing = {
            "back_start": Out(1),
            "back_finishing": In(1),
            "slope_word": Out(machine.slope_addr_bits),
            "index_word": Out(machine.index_addr_bits),
        }
        batch = range(machine.max_batch + 1)
        super().__init__(
            {
                "program_write": In(1),
                "program_addr": In(range(machine.max_layers * self._kind.spacing())),
                "program_data": In(32),
                "layers": In(machine.max_layers.bit_length()),
                "batch": In(batch),
                "input_slots": In(range(slots + 1)),
                "enable": In(1),
                "hold": In(1),
                "room": In(1),
                "restart": In(1),
                "waiting": In(range(slots + 1)),
                "unlabelled": In(1),
                "begin": Out(1),
                "begin_count": Out(batch),
                "release": Out(1),
                "release_count": Out(batch),
                "label_slot": Out(range(slots)),
                "slot_label": In(LABEL_BITS),
                "single": Out(1),
                "phase": Out(_PHASE_BITS),
                "layer": Out(machine.layer_bits),
                "descriptor": Out(descriptor_layout(machine)),
                "prepare": Out(1),
                "walk_start": Out(1),
                **({"walk_update": Out(1)} if learns else {}),
                "walk_x_first": Out(machine.activation_addr_bits),
                **({"walk_x_wrap": Out(range(slots + 1))} if learns else {}),
                "walk_finishing": In(1),
                "samples": Out(batch),
                "layer_start": Out(1),
                "sample_start": Out(1),
                "a_word": Out(machine.activation_addr_bits),
                "signal_start": Out(1),
                **({"signal_train": Out(1)} if learns else {}),
                "signal_done": In(1),
                **({"sample_first": Out(1), "sample_last": Out(1)} if learns and not rule.waits else {}),
                **({"update_start": Out(1)} if learns else {}),
                "label": Out(LABEL_BITS),
                "found": In(LABEL_BITS),
                "prediction": Out(LABEL_BITS),
                **(transposing if rule.transposes else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine, descriptor, layer = self.machine, self.descriptor, self.layer
        rule = machine.learning
        phase = Signal(Phase)
        fresh = Signal()  # the first cycle of a phase
        labelled, learns = Signal(), Signal()
        down = Signal()  # updating layers, from the output layer on
        layer_done, sample_done = Signal(), Signal()
        # The sample at work, or whose summary it is; known a cycle early for what is kept a sample.
        sample, next_sample = Signal(range(machine.max_batch)), Signal(range(machine.max_batch))
        last_sample = Signal()
        words = self._kind.words()
        len_setup = words + machine.rows + SETUP_TAIL
        word, setup_ends = Signal(range(len_setup)), Signal()
        next_layer = Signal(range(machine.max_layers + 1))
        drained = self._drained(m, phase == Phase.UPDATE)
        ready, unlabelled = self._next_batch(m)
        # Whether a layer has a signal phase going forward, and an update behind its last sample.
        signals = descriptor.is_output if rule.waits or not rule.learns else learns | descriptor.is_output
        updates = learns & (descriptor.is_output | down) if rule.waits else learns
        m.d.comb += [
            self.phase.eq(phase),
            *([learns.eq(descriptor.train & labelled)] if rule.learns else []),
            last_sample.eq(sample == self.samples - 1),
            next_sample.eq(sample),
        ]
        m.d.sync += [fresh.eq(0), sample.eq(next_sample)]

        def enter(new: Phase) -> None:
            m.d.sync += [phase.eq(new), fresh.eq(1)]

        def walk(new: Phase) -> None:
            m.d.comb += self.walk_start.eq(1)
            enter(new)

        def update() -> None:
            m.d.comb += self.walk_update.eq(1)
            walk(Phase.UPDATE)

        def back() -> None:
            """Through the layer, then its update."""
            with m.If(descriptor.trains_below):
                m.d.comb += self.back_start.eq(1)
                enter(Phase.SIGNAL)
            with m.Else():
                update()

        with m.Switch(phase):
            with m.Case(Phase.WAIT, Phase.FINISH):
                with m.If((phase == Phase.WAIT) | last_sample):
                    may = self.enable & ~self.hold & self.room & (self.layers != 0)
                    m.d.comb += [self.begin.eq(may & ready), next_sample.eq(0)]
                    with m.If(self.begin):
                        m.d.sync += self.samples.eq(self.begin_count)
                        if rule.learns:
                            m.d.sync += labelled.eq(~unlabelled)
                        enter(Phase.SETUP)
                    with m.Else():
                        enter(Phase.WAIT)
                with m.Else():
                    m.d.comb += next_sample.eq(sample + 1)
            with m.Case(Phase.SETUP):
                m.d.comb += self.prepare.eq(word == words)
                m.d.sync += setup_ends.eq(word == len_setup - 2)
                with m.If(setup_ends):
                    m.d.sync += word.eq(0)
                    if rule.waits:
                        with m.If(down):
                            m.d.sync += next_layer.eq(next_layer - 1)
                            if rule.transposes:
                                back()
                            else:
                                enter(Phase.SIGNAL)
                    with m.Else() if rule.waits else nullcontext():
                        m.d.sync += next_layer.eq(next_layer + 1)
                        walk(Phase.FORWARD)
                with m.Else():
                    m.d.sync += word.eq(word + 1)
            with m.Case(Phase.FORWARD):
                m.d.comb += [self.sample_start.eq(fresh), self.layer_start.eq(fresh & (sample == 0))]
                with m.If(drained):
                    with m.If(signals):
                        enter(Phase.SIGNAL)
                    with m.Else():
                        m.d.comb += sample_done.eq(1)
            with m.Case(Phase.SIGNAL):
                starts = fresh & ~down if rule.transposes else fresh
                m.d.comb += [self.signal_start.eq(starts), sample_done.eq(self.signal_done)]
                if rule.transposes:
                    # Without what is on its way: it is there before the layer before needs it.
                    with m.If(self.back_finishing):
                        update()
                elif rule.waits:
                    m.d.comb += self.layer_start.eq(fresh & down & (sample == 0))
            if rule.learns:
                with m.Case(Phase.UPDATE):
                    m.d.comb += [self.update_start.eq(fresh), layer_done.eq(drained)]
                    if rule.waits and not rule.transposes:
                        with m.If(fresh & ~down):
                            m.d.sync += [down.eq(1), next_layer.eq(layer - 1)]

        with m.If(sample_done):
            with m.If(~last_sample):
                m.d.comb += next_sample.eq(sample + 1)
                again = rule.waits and not rule.transposes
                if again:
                    with m.If(down):
                        enter(Phase.SIGNAL)
                with m.Else() if again else nullcontext():
                    walk(Phase.FORWARD)
            with m.Else():
                m.d.comb += next_sample.eq(0)
                if rule.learns:
                    with m.If(updates):
                        if rule.transposes:
                            m.d.sync += [down.eq(1), next_layer.eq(layer - 1)]
                            back()
                        else:
                            update()
                with m.Else() if rule.learns else nullcontext():
                    m.d.comb += layer_done.eq(1)
        with m.If(layer_done):
            last = next_layer == self.layers
            with m.If(Mux(down, ~descriptor.trains_below, last) if rule.waits else last):
                m.d.sync += [layer.eq(0), next_layer.eq(0)]
                if rule.waits:
                    m.d.sync += down.eq(0)
                enter(Phase.FINISH)
            with m.Else():
                m.d.sync += layer.eq(next_layer)
                enter(Phase.SETUP)

        # A layer that waits for its update needs its input once more.
        released = layer_done & (updates | ~learns) if rule.waits else layer_done
        m.d.comb += [
            *([self.signal_train.eq(learns)] if rule.learns else []),
            self.release.eq(released & (layer == 0)),
            self.release_count.eq(self.samples),
        ]
        if rule.learns and not rule.waits:
            m.d.sync += [self.sample_first.eq(sample == 0), self.sample_last.eq(last_sample)]
        second = Signal()  # the second cycle of `forward`
        m.d.sync += second.eq(self.sample_start)
        ring_word = self._maps(m, sample_done, last_sample, second, sample, down)
        self._program(m, phase == Phase.SETUP, word, next_layer, ring_word)
        self._kept(m, sample, next_sample, last_sample, second)
        return m

    def _drained(self, m: Module, update: Value) -> Signal:
        """The last cycle of a phase that walks: the pipeline behind the last step is empty.

        A register, as what it starts is much and far away.
        """
        skew = self.machine.rows + self.machine.cols
        drained, left = Signal(), Signal(range(skew + max(FORWARD_TAIL, UPDATE_TAIL)))
        m.d.sync += drained.eq(left == 1)
        tail = Mux(update, UPDATE_TAIL, FORWARD_TAIL) if self.machine.learning.learns else FORWARD_TAIL
        with m.If(self.walk_finishing):
            m.d.sync += left.eq(skew - 1 + tail)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return drained

    def _next_batch(self, m: Module) -> tuple[Signal, Signal]:
        """Whether a batch waits, and whether it is an unlabelled sample: both two cycles late, as `begin_count` is.

        In the cycle between, the result FIFO finds out whether there is room for it. What waits grows,
        until a batch begins; then it takes a `setup` until the next may begin.
        """
        offered, count = Signal(), Signal.like(self.begin_count)
        ready, unlabelled = Signal(), Signal()
        full, some = self.waiting >= self.batch, self.waiting != 0
        m.d.sync += [
            offered.eq((full | self.unlabelled) & (self.batch != 0) & ~self.restart),
            count.eq(Mux(full, self.batch, Mux(some, self.waiting, 1))),
            self.single.eq(~some),
            ready.eq(offered & ~self.restart),
            self.begin_count.eq(count),
            unlabelled.eq(self.single),
        ]
        return ready, unlabelled

    def _program(self, m: Module, in_setup: Value, word: Signal, next_layer: Signal, ring_word: Signal) -> None:
        """`setup` sees a word of the descriptor a cycle.

        Outside `setup` the first word of the next layer is read all the time, so that `setup` finds it
        there. `next_layer` is 0 in `wait` and `finish`, `layer` in `setup`, `layer + 1` behind it, on the way down
        `layer - 1`.
        """
        spacing = self._kind.spacing()
        m.submodules.program = program = DualPortMemory(32, self.machine.max_layers * spacing)
        m.d.comb += [
            program.read_addr.eq(next_layer * spacing + word + in_setup),
            program.write_en.eq(self.program_write),
            program.write_addr.eq(self.program_addr),
            program.write_data.eq(self.program_data),
        ]
        with m.If(in_setup):
            for name, _ in self.descriptor.shape():
                field, target = self._kind.fields[name], getattr(self.descriptor, name)
                code = program.read_data[field.lsb : field.lsb + len(target)]
                if name == "x_base":
                    code = Mux(self.layer == 0, ring_word, code)
                with m.If(word == field.word):
                    m.d.sync += target.eq(code)

    def _maps(
        self, m: Module, sample_done: Signal, last_sample: Signal, second: Signal, sample: Signal, down: Signal
    ) -> Signal:
        """Where the sample's maps begin. Returns the word in the ring that the first layer reads the batch from."""
        descriptor, rule = self.descriptor, self.machine.learning
        words = self.machine.activation_addr_bits
        ring_word, x_word, next_x_word = (Signal(words, name=n) for n in ("ring_word", "x_word", "next_x_word"))
        before_wrap = Signal(range(2 * self.machine.max_batch + 1))
        first_layer = self.layer == 0
        slot_last = self.label_slot == self.input_slots - 1
        m.d.sync += next_x_word.eq(Mux(first_layer & slot_last, 0, x_word + descriptor.x_stride))
        if rule.learns:
            with m.If(self.begin):
                m.d.sync += before_wrap.eq(self.input_slots - self.label_slot)
        with m.If(self.prepare):
            m.d.sync += x_word.eq(descriptor.x_base)
        with m.If(sample_done):
            m.d.sync += x_word.eq(next_x_word)
            with m.If(first_layer & ~down if rule.waits else first_layer):
                m.d.sync += [
                    ring_word.eq(next_x_word),
                    self.label_slot.eq(Mux(slot_last, 0, self.label_slot + 1)),
                ]
        with m.If(self.restart):
            m.d.sync += [ring_word.eq(0), self.label_slot.eq(0)]
        m.d.comb += [
            self.walk_x_first.eq(Mux(sample_done & ~last_sample, next_x_word, descriptor.x_base)),
            *([self.walk_x_wrap.eq(Mux(first_layer, before_wrap, 0))] if rule.learns else []),
        ]
        made = [(self.a_word, descriptor.a_base, descriptor.a_stride)]
        if rule.transposes:
            made += [
                (self.slope_word, descriptor.slope_base, descriptor.slope_stride),
                (self.index_word, descriptor.index_base, descriptor.signal_stride),
            ]
        with m.If(second):
            m.d.sync += [word.eq(Mux(sample == 0, base, word + stride)) for word, base, stride in made]
        if not rule.waits:
            return ring_word
        # The next sample's is beyond the batch by the time of the way down.
        first_word = Signal(words)
        with m.If(self.begin):
            m.d.sync += first_word.eq(ring_word)
        return first_word

    def _kept(
        self, m: Module, sample: Signal, next_sample: Signal, last_sample: Signal, second: Signal
    ) -> None:
        """A sample's label and prediction, from the first layer's `forward` and the last one's `signal` to `finish`."""
        m.submodules.labels = labels = DualPortMemory(LABEL_BITS, self.machine.max_batch)
        m.submodules.predictions = predictions = DualPortMemory(LABEL_BITS, self.machine.max_batch)
        found, found_sample = Signal(), Signal.like(sample)
        m.d.sync += [found.eq(self.signal_done & self.descriptor.is_output), found_sample.eq(sample)]
        m.d.comb += [
            labels.write_en.eq(second & (self.layer == 0)),
            labels.write_addr.eq(sample),
            labels.write_data.eq(self.slot_label),
            labels.read_addr.eq(next_sample),
            self.label.eq(labels.read_data),
            predictions.write_en.eq(found),
            predictions.write_addr.eq(found_sample),
            predictions.write_data.eq(self.found),
            predictions.read_addr.eq(next_sample),
            # The last sample's may be too new to be read.
            self.prediction.eq(Mux(last_sample, self.found, predictions.read_data)),
        ]
