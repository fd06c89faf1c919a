"""hdl.windowed.sequencer: which batch begins, every phase exactly as long as it must be, every pulse in its cycle.

The walk, the loader and the learning signal are stood in for.
"""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.sequencer import Sequencer
from spec.machine import load_machine
from spec.network import NO_LABEL
from spec.program import encode
from spec.timing import Phase
from spec.windowed_program import descriptor_kind
from spec.windowed_timing import FORWARD_TAIL, SETUP_TAIL, UPDATE_TAIL

PULSES = (
    "begin", "release", "prepare", "walk_start", "back_start", "layer_start", "sample_start", "signal_start",
    "update_start",
)  # fmt: skip


def machine(rows, cols, **changes):
    values = {
        "rows": rows, "cols": cols, "weight_depth": 64, "activation_depth": 256, "max_neurons": 24, "max_fan_in": 24,
        "bias_depth": 64, "max_layers": 3, "fraction_bits": 20, "gradient_bits": 44, "max_batch": 3, "max_side": 12,
        "index_depth": 200,
    }  # fmt: skip
    return replace(load_machine("tiny"), **{**values, **changes})


def program_of(m, rng, count, slots):
    """Any values that fit; the ring of the first layer fits the memory. Where the rule waits the last layers train."""
    kind, layers = descriptor_kind(m), []
    lowest = rng.choice([0, 0, 0, rng.randrange(count + 1)])
    for number in range(count):
        values = {name: rng.randint(field.low, field.high) for name, field in kind.fields.items()}
        values |= {"is_output": int(number == count - 1), "train": int(rng.randrange(4) > 0)}
        if m.learning.waits:
            values |= {"train": int(number >= lowest), "trains_below": int(number > lowest)}
        if number == 0:
            values |= {"x_base": 0, "x_stride": rng.randint(1, 255 // slots)}
        layers.append(kind(**values))
    return layers


class Bench:
    """Drives a sequencer; what is around it is as good as the contracts let it be."""

    def __init__(self, dut, ctx, rng):
        self.dut, self.ctx, self.rng, self.m = dut, ctx, rng, dut.machine
        self.rule, self.kind = self.m.learning, descriptor_kind(self.m)
        self.layers, self.slots, self.slot = [], 1, 0
        self.first = 0  # the batch's first slot
        self.queue = []  # labels of samples that have not begun
        self.labels = [0] * (2 * self.m.max_batch)  # a slot
        self.asked = 0
        self.found = False  # the sequencer may look at `found`

    def set(self, **values):
        for name, value in values.items():
            self.ctx.set(getattr(self.dut, name), value)

    def get(self, name):
        return self.ctx.get(getattr(self.dut, name))

    async def tick(self):
        """A cycle, in which the loader's label is that of the slot asked for a cycle before."""
        self.ctx.set(self.dut.slot_label, self.labels[self.asked])
        self.asked = self.get("label_slot")
        await self.ctx.tick()

    def offer(self):
        """What the loader says of the queue."""
        labelled = [label for label in self.queue if label != NO_LABEL]
        self.set(waiting=len(labelled), unlabelled=len(labelled) < len(self.queue))

    def makes(self, batch):
        """Whether the queue makes a batch."""
        return sum(label != NO_LABEL for label in self.queue) >= batch or NO_LABEL in self.queue

    def quiet(self, *others):
        """No pulse but these."""
        for name in PULSES:
            if name not in self.dut.signature.members:
                assert name not in others
                continue
            assert self.get(name) == (name in others), name

    async def load(self, count, slots):
        """Another program; the ring begins anew."""
        self.layers, self.slots, self.slot, self.queue = program_of(self.m, self.rng, count, slots), slots, 0, []
        self.set(program_write=1, hold=1)
        for number, layer in enumerate(self.layers):
            for word, value in enumerate(encode(layer)):
                self.set(program_addr=number * self.kind.spacing() + word, program_data=value)
                await self.tick()
        self.set(program_write=0, layers=count, input_slots=slots, restart=1)
        self.offer()
        await self.tick()
        self.set(restart=0)

    async def begin(self, batch):
        """Waits a while, with each condition missing in turn; then the batch begins. Returns its labels."""
        dut_ready = {"enable": 1, "room": 1, "hold": 0}
        for missing in dut_ready:
            self.set(**{**dut_ready, missing: 1 - dut_ready[missing]})
            for _ in range(3):
                self.quiet()
                assert self.get("phase") == Phase.WAIT and self.get("layer") == 0
                await self.tick()
        return await self.start(batch, dut_ready)

    async def start(self, batch, ready):
        labelled = [label for label in self.queue if label != NO_LABEL]
        labels = labelled[:batch] or self.queue[:1]
        self.set(**ready)
        self.quiet("begin")
        assert self.get("begin_count") == len(labels)
        await self.tick()
        # Not before the begin of the next phase is anything of this looked at again.
        self.queue = self.queue[len(labels) :]
        self.offer()
        return labels

    async def phase(self, phase, number, length, labels, sample, learns, walk, down=False):
        """All of a phase; `walk` is the number of cycles that the walk takes, if it walks."""
        layer, samples, rule = self.layers[number], len(labels), self.rule
        signals, updates = layer.is_output or down, learns
        back = rule.transposes and phase is Phase.SIGNAL and down
        goes_back = rule.transposes and layer.trains_below
        if rule.waits:
            updates = learns and signals
        elif rule.learns:
            signals = learns or layer.is_output
        for cycle in range(length):
            final = cycle == length - 1
            walks = phase in (Phase.FORWARD, Phase.UPDATE)
            self.set(
                walk_finishing=walks and cycle == walk - 1,
                signal_done=phase is Phase.SIGNAL and final and not back,
                **({"back_finishing": back and final} if rule.transposes else {}),
                room=self.rng.randrange(2), enable=self.rng.randrange(2), hold=self.rng.randrange(2),
            )  # fmt: skip
            if (phase is Phase.SIGNAL and not down) or not self.found:
                self.set(found=self.rng.randrange(256))
            where = (phase, number, sample, cycle)
            assert self.get("phase") == phase and self.get("layer") == number, where
            assert self.get("samples") == samples
            done = final and (phase is Phase.SIGNAL or (phase is Phase.FORWARD and not signals))
            last = sample == samples - 1
            ends = final and (phase is Phase.UPDATE or (done and last and not updates))
            starts = final and phase is Phase.SETUP and not down or done and (updates if last else not down)
            begins = Phase.SIGNAL if down and not rule.transposes else Phase.FORWARD
            update = done and last
            if rule.transposes:
                # The output layer's update, or way back, follows its last signal, others' their setup or way back.
                turns = final and (phase is Phase.SETUP if down else phase is Phase.SIGNAL and last and updates)
                update = turns and not goes_back or back and final
                starts = update or final and phase is Phase.SETUP and not down or done and not back and not last
            pulses = {
                "prepare": phase is Phase.SETUP and cycle == self.kind.words(),
                "walk_start": starts,
                "back_start": rule.transposes and turns and goes_back,
                "sample_start": phase is Phase.FORWARD and cycle == 0,
                "layer_start": phase is begins and cycle == 0 and sample == 0,
                "signal_start": phase is Phase.SIGNAL and cycle == 0 and not back,
                "update_start": phase is Phase.UPDATE and cycle == 0,
                "release": ends and number == 0 and (updates or not learns),
            }  # fmt: skip
            self.quiet(*(name for name, happens in pulses.items() if happens))
            if starts:
                following = 0 if phase is Phase.SETUP or back or (done and last) else sample + 1
                assert self.get("walk_x_first") == self.base(number, following), where
                if rule.learns:
                    assert self.get("walk_update") == update
                    assert self.get("walk_x_wrap") == ((self.slots - self.first) if number == 0 else 0), where
            if pulses["release"]:
                assert self.get("release_count") == samples
            if phase is not Phase.SETUP or cycle >= self.kind.words():
                self.check_descriptor(layer, number)
            kept = phase is Phase.SIGNAL or phase is Phase.UPDATE and cycle < 2
            if phase is Phase.FORWARD and cycle >= 2 or kept and not down:
                self.check_made(layer, sample, where)
            if phase is Phase.FORWARD and cycle < 2 and sample:
                self.check_made(layer, sample - 1, where)
            if phase is Phase.SIGNAL and not back:
                if rule.learns:
                    assert self.get("signal_train") == learns
                assert self.get("label") == labels[sample], where
                if cycle and rule.learns and not rule.waits:
                    assert self.get("sample_first") == (sample == 0)
                    assert self.get("sample_last") == last
            await self.tick()
        self.set(walk_finishing=0, signal_done=0, **({"back_finishing": 0} if rule.transposes else {}))

    def check_made(self, layer, sample, where):
        """Where what the sample makes is written."""
        assert self.get("a_word") == (layer.a_base + sample * layer.a_stride) % 256, where
        if self.rule.transposes:
            slope = layer.slope_base + sample * layer.slope_stride
            # A stride is kept as wide as addresses of its memory are.
            index = layer.index_base + sample * (layer.signal_stride % (1 << self.m.signal_addr_bits))
            assert self.get("slope_word") == slope % (1 << self.m.slope_addr_bits), where
            assert self.get("index_word") == index % (1 << self.m.index_addr_bits), where

    def base(self, number, sample):
        layer = self.layers[number]
        if number == 0:
            return (self.first + sample) % self.slots * layer.x_stride
        return (layer.x_base + sample * layer.x_stride) % 256

    def check_descriptor(self, layer, number):
        for name, shape in self.dut.descriptor.shape():
            if name == "x_base" and number == 0:
                expected = self.base(0, 0)
            else:
                expected = getattr(layer, name)
                width = shape.width
                narrower = width < self.kind.fields[name].width
                expected = expected % (1 << width) if expected >= 0 or narrower else expected
            assert self.ctx.get(getattr(self.dut.descriptor, name)) == expected, name

    async def run(self, labels):
        """A batch up to `finish`; returns the predictions made for it."""
        rng, trains = self.rng, labels != [NO_LABEL] and self.rule.learns
        setup = self.kind.words() + self.m.rows + SETUP_TAIL
        self.first = self.slot
        for n, label in enumerate(labels):
            self.labels[(self.slot + n) % self.slots] = label
        predictions = []
        for number, layer in enumerate(self.layers):
            learns = bool(layer.train and trains)
            signals = learns and not self.rule.waits
            await self.phase(Phase.SETUP, number, setup, labels, 0, learns, 0)
            for sample in range(len(labels)):
                await self.walk(Phase.FORWARD, number, labels, sample, learns)
                if number == 0:
                    # Once read, a label may go.
                    self.labels[(self.slot + sample) % self.slots] = rng.randrange(256)
                if signals or layer.is_output:
                    await self.phase(Phase.SIGNAL, number, rng.randint(1, 6), labels, sample, learns, 0)
                    if layer.is_output:
                        predictions.append(rng.randrange(256))
                        self.set(found=predictions[-1])
                        self.found = True
            if self.rule.transposes and learns and layer.is_output:
                await self.back(number, labels)
            if signals or (learns and layer.is_output):
                await self.walk(Phase.UPDATE, number, labels, len(labels) - 1, learns)
            if number == 0:
                self.slot = (self.slot + len(labels)) % self.slots
        while self.rule.waits and trains and self.layers[number].trains_below:
            number -= 1
            await self.phase(Phase.SETUP, number, setup, labels, 0, True, 0, down=True)
            if self.rule.transposes:
                await self.back(number, labels)
            else:
                for sample in range(len(labels)):
                    await self.phase(Phase.SIGNAL, number, rng.randint(1, 6), labels, sample, True, 0, down=True)
            await self.walk(Phase.UPDATE, number, labels, len(labels) - 1, True, down=True)
        return predictions

    async def back(self, number, labels):
        """The way back of a batch, if there is one."""
        if self.layers[number].trains_below:
            length = self.rng.randint(1, 6)
            await self.phase(Phase.SIGNAL, number, length, labels, len(labels) - 1, True, 0, down=True)

    async def walk(self, phase, number, labels, sample, learns, down=False):
        """A phase that walks, a few cycles."""
        walk = self.rng.randint(1, 7)
        length = walk + self.m.rows + self.m.cols + (FORWARD_TAIL if phase is Phase.FORWARD else UPDATE_TAIL)
        await self.phase(phase, number, length, labels, sample, learns, walk, down)

    async def finish(self, labels, predictions):
        """All but the last cycle, which may begin the next batch."""
        for sample, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
            assert self.get("phase") == Phase.FINISH and self.get("layer") == 0
            assert self.get("label") == label
            assert self.get("prediction") == prediction
            if sample < len(labels) - 1:
                self.set(enable=1, room=1, hold=0)
                self.quiet()
                await self.tick()
        self.found = False


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("rows, cols, rule", [
    *((rows, cols, "lls") for rows, cols in ((1, 1), (2, 2), (4, 3), (8, 8))),
    *((rows, cols, rule) for rows, cols in ((1, 1), (4, 3)) for rule in ("dfa", "bp", "inference")),
])  # fmt: skip
def test_batches(rows, cols, rule):
    """Random programs, batches and rings; each cycle's outputs are checked."""
    rng = random.Random(f"{rows} {cols} {rule}")
    dut = Sequencer(machine(rows, cols, rule=rule))
    seen = set()

    async def bench(ctx):
        b = Bench(dut, ctx, rng)
        for number in range(6):
            batch = 1 + number % 3
            await b.load(rng.randint(1, 3), rng.randint(batch, 6))
            b.set(batch=batch)
            straight = False
            for _ in range(4):
                if not straight and (not b.makes(batch) or rng.randrange(2)):
                    labelled = rng.choice([0, 1, batch, b.slots])
                    b.queue = [rng.choice([0, 1, 254]) for _ in range(labelled)]
                    if labelled < batch or rng.randrange(2):
                        b.queue.append(NO_LABEL)
                if straight:
                    labels = await b.start(batch, {"enable": 1, "room": 1, "hold": 0})
                else:
                    b.offer()
                    await b.tick()
                    await b.tick()
                    labels = await b.begin(batch)
                seen.add((len(labels), labels == [NO_LABEL]))
                predictions = await b.run(labels)
                await b.finish(labels, predictions)
                # Straight on to what has waited since, if that is a batch, or by way of `wait`.
                straight = rng.randrange(2) and b.makes(batch)
                if not straight:
                    b.set(enable=0)
                    b.quiet()
                    await b.tick()
                    assert b.get("phase") == Phase.WAIT
            b.set(enable=0, hold=1)
            await b.tick()

    simulate(dut, bench)
    assert seen == {(1, True), (1, False), (2, False), (3, False)}


@pytest.mark.parametrize("waiting, unlabelled, batch, count", [
    (0, 0, 1, None), (1, 0, 2, None), (2, 0, 3, None), (0, 1, 3, 1), (1, 1, 3, 1), (2, 1, 3, 2), (3, 0, 3, 3),
    (3, 1, 3, 3), (6, 0, 3, 3), (5, 1, 3, 3), (1, 0, 1, 1), (6, 1, 1, 1), (6, 1, 0, None), (0, 1, 0, None),
])  # fmt: skip
@pytest.mark.parametrize("layers", [0, 2])
def test_when_a_batch_begins(waiting, unlabelled, batch, count, layers):
    """The full number, or those in front of an unlabelled sample, or that one; nothing without layers."""
    dut = Sequencer(machine(2, 2))

    async def bench(ctx):
        for name, value in (("layers", layers), ("batch", batch), ("input_slots", 6), ("enable", 1), ("room", 1),
                            ("waiting", waiting), ("unlabelled", unlabelled)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        for cycle in range(6):
            begins = cycle == 2 and count is not None and layers
            assert ctx.get(dut.begin) == bool(begins)
            if cycle == 1 and count is not None:
                assert ctx.get(dut.single) == (waiting == 0)
            if begins:
                assert ctx.get(dut.begin_count) == count
            await ctx.tick()

    simulate(dut, bench)


def test_nothing_begins_behind_a_restart():
    """Of what the ring held; `hold` is there in the cycle of `restart` alone."""
    dut = Sequencer(machine(2, 2))

    async def bench(ctx):
        for name, value in (("layers", 1), ("batch", 1), ("input_slots", 4), ("enable", 1), ("room", 1),
                            ("hold", 1), ("waiting", 2)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        await ctx.tick().repeat(3)
        ctx.set(dut.restart, 1)
        assert not ctx.get(dut.begin)
        await ctx.tick()
        ctx.set(dut.restart, 0)
        ctx.set(dut.hold, 0)
        ctx.set(dut.waiting, 0)
        for _ in range(4):
            assert not ctx.get(dut.begin)
            await ctx.tick()

    simulate(dut, bench)
