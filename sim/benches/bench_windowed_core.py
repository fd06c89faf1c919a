"""The whole core for convolutions and batches against the bit-exact model: it trains, and nothing may differ by a bit
or a cycle."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from golden.data import load_digits
from golden.fixed import StepResult
from golden.windowed import WindowedModel
from sim.benches import context
from sim.benches.bus import Bus
from sim.benches.scores import compare_scores, score_addresses, wide_scores, write_scores
from sim.benches.streams import Cycles, Driver, Monitor, Scoreboard, signed, stalls, start
from sim.cycle.model import inference_step, training_step
from sim.cycle.stepped import Visit
from sim.cycle.windowed_stepped import walk_windowed_step
from sim.rtl.host import host_for, weight_addresses
from spec import memory_map
from spec.lfsr import PERIOD
from spec.machine import WEIGHT_BITS, Machine
from spec.network import NO_LABEL, Network
from spec.scores import TRAINED_BITS
from spec.timing import Phase

LAST = {"samples": 1 << 8, "results": 1 << 32}
"""The ``last`` bit of the streams' payloads."""
PATIENCE = 2_000_000
MOST_NOISE = 4096
"""Words of weights that are filled with noise before a case begins, at most."""
COUNTERS = ("SAMPLES", "FORWARD_STEPS", *(f"CYCLES_{phase.name}" for phase in Phase))

Batch = tuple[int, bool]
"""Samples that are worked on together, and whether they have labels; without, it is one sample."""


class Bench:
    """A core with its host, its streams and the golden model that it must equal."""

    def __init__(self, cycles: Cycles):
        dut = cycles.dut
        self.cycles = cycles
        self.dut = dut
        self.machine = context.design().machine
        self.train_hidden: bool = context.parameter("train_hidden", True)
        self.choose(context.parameter("networks")[0])
        pattern = context.parameter("stalls", "none")
        quick = "none" if pattern == "slow" else pattern
        self.bus = Bus(dut, stalls(quick, context.rng("bus")))
        self.source = Driver(dut, "samples", stalls(quick, context.rng("source")))
        self.board = Scoreboard("results")
        self.sink = Monitor(dut, "results", stalls(pattern, context.rng("sink")), self._result)
        self.beats = 0
        self.with_scores = True

    def choose(self, network: Network) -> None:
        """What is trained from now on, and the model that it must equal."""
        self.network = network
        self.host = host_for(network, self.machine, self.train_hidden)
        self.golden = WindowedModel(network, self.machine, context.seed(), self.train_hidden)
        self.x, self.labels = samples_of(network)
        self.position = 0
        self.done: list[Batch] = []

    def _result(self, payload: int) -> None:
        self.board.got(f"{payload:#x}", self.cycles_now())

    def cycles_now(self) -> int:
        """Cycles since the start, for messages."""
        return round(cocotb.simtime.get_sim_time("ns") / 10)

    # ---- the bus -----------------------------------------------------------------------------------

    async def write(self, writes: tuple[np.ndarray, np.ndarray]) -> None:
        """Makes a list of writes."""
        await self.bus.make(writes)

    async def registers(self, names: Sequence[str]) -> dict[str, int]:
        """Reads registers in one go."""
        requests = [(memory_map.register_address(name), None) for name in names]
        return dict(zip(names, await self.bus.transact(requests), strict=True))

    async def register(self, name: str) -> int:
        """Reads a register."""
        return (await self.registers([name]))[name]

    async def set_register(self, name: str, value: int) -> None:
        """Writes a register."""
        await self.bus.write(memory_map.register_address(name), value)

    async def set_bits(self, name: str, *bits: str) -> None:
        """Writes a register with the named bits set and the others 0."""
        await self.set_register(name, sum(1 << memory_map.register_bit(name, bit) for bit in bits))

    async def codes(self, addresses: np.ndarray) -> np.ndarray:
        """Reads weights or biases, in the shape of the addresses."""
        return await self.bus.codes(addresses, WEIGHT_BITS)

    async def prepare(self) -> None:
        """Program, noise in every weight, zeros where the tiles are padded, parameters, enable.

        The parameters are the model's initial ones, or normal numbers of ``weight_scale``: wide enough that saturation
        and large norms happen within a few samples.
        """
        scale = context.parameter("weight_scale")
        if scale:
            rng = context.rng("weights")

            def codes(*shape: int) -> np.ndarray:
                found = np.clip(rng.normal(0, scale, shape), -32768, 32767).astype(np.int16)
                if context.parameter("lowest"):
                    # A slope of 1/8 needs the most negative sums to saturate.
                    found[-1] = -32768
                return found

            shapes = self.network.shapes
            self.golden.load_parameters([(codes(channels, taps), codes(channels)) for taps, channels in shapes])
            wide_scores(self.golden)
        await self.set_register("CTRL", 0)
        await self.write(self.host.program_writes())
        if slots := context.parameter("slots"):
            await self.set_register("INPUT_SLOTS", slots)
        padding = self.host.padding()
        if self.host.words * self.machine.pes <= MOST_NOISE:
            # What the host does not write must not matter; a simulator's memories begin with zeros.
            every = np.indices((self.machine.rows, self.machine.cols, self.host.words))
            addresses = weight_addresses(self.machine, *every).ravel()
            addresses = np.concatenate([addresses, bias_addresses(self.machine)])
            await self.write((addresses, context.rng("noise").integers(0, 1 << 16, len(addresses))))
        await self.write((padding, np.zeros_like(padding)))
        await self.write(self.host.parameter_writes(self.golden.parameters()))
        await write_scores(self.bus, self.host, self.golden)
        await self.set_bits("CTRL", "enable", *(["scores"] if self.with_scores else []))
        await self.set_bits("CLEAR", "counters")

    async def idle(self) -> int:
        """Waits for STATUS.idle; returns STATUS."""
        bit = 1 << memory_map.register_bit("STATUS", "idle")
        for _ in range(PATIENCE):
            if (status := await self.register("STATUS")) & bit:
                return status
        raise AssertionError("STATUS.idle does not come")

    # ---- samples and results -----------------------------------------------------------------------

    def next_samples(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The next images and their labels."""
        where = np.arange(self.position, self.position + number) % len(self.x)
        self.position += number
        return self.x[where], self.labels[where]

    def packet(self, x: np.ndarray, label: int) -> list[int]:
        """The beats of a sample."""
        return [*(int(value) & 255 for value in x), int(label) | LAST["samples"]]

    def expect(self, x: np.ndarray, labels: np.ndarray | None) -> list[int]:
        """Lets the golden model take a batch (or one sample without label), queues the beats it leads to, and returns
        those to send."""
        assert labels is not None or len(x) == 1
        results = self.golden.run(x, labels)
        tags = [NO_LABEL] * len(x) if labels is None else labels.tolist()
        batch = f"{self.network.name}, batch {len(self.done)}, labels {tags}"
        if self.with_scores:
            self._expect_scores(results, batch)
        for number, (result, tag) in enumerate(zip(results, tags, strict=True)):
            self._expect_beat(LAST["results"] | tag << 8 | result.prediction, f"{batch}, summary {number}")
        self.done.append((len(x), labels is not None))
        return [beat for pixels, tag in zip(x, tags, strict=True) for beat in self.packet(pixels, tag)]

    def _expect_scores(self, results: list[StepResult], batch: str) -> None:
        """Layer by layer, in a layer sample by sample."""
        for layer in range(len(self.network.layers)):
            for number, result in enumerate(results):
                scores = result.scores[layer]
                for c, score in enumerate(() if scores is None else scores.tolist()):
                    self._expect_beat(score & 0xFFFFFFFF, f"{batch}, layer {layer}, sample {number}, score {c}")

    def _expect_beat(self, payload: int, inputs: str) -> None:
        self.board.expect(f"{payload:#x}", inputs)
        self.beats += 1

    async def results(self) -> None:
        """Waits until every expected beat came and the core is idle."""
        for _ in range(PATIENCE):
            if not self.board.queue:
                break
            self.sink.check()
            await self.cycles.next()
        self.board.done(self.beats)
        await self.idle()

    async def compare(self, when: str) -> None:
        """Reads every weight, bias and trained score by the bus and compares."""
        when = f"{self.network.name}, {when}"
        self.sink.pause()
        got = [(await self.codes(place.weights), await self.codes(place.biases)) for place in self.host.places]
        await compare_scores(self.bus, self.host, self.golden, when)
        self.sink.resume()
        for number, (pair, golden) in enumerate(zip(got, self.golden.parameters(), strict=True)):
            for name, array, expected in zip(("weight", "bias"), pair, golden, strict=True):
                wrong = np.argwhere(array != expected)
                assert not len(wrong), (
                    f"{when}: layer {number}: {len(wrong)} of {expected.size} {name} codes differ, first at "
                    f"{wrong[0].tolist()}: got {array[tuple(wrong[0])]}, golden {expected[tuple(wrong[0])]}"
                )
        steps = await self.registers(("UPDATE_STEPS", "BIAS_STEPS"))
        golden_steps = self.golden.update_steps % PERIOD, self.golden.bias_steps % PERIOD
        assert tuple(steps.values()) == golden_steps, f"{when}: {steps}, golden {golden_steps}"

    async def check_padding(self) -> None:
        """What belongs to no weight is still 0: updates of padding change nothing."""
        padding = self.host.padding()
        wrong = np.flatnonzero(await self.codes(padding))
        assert not len(wrong), (
            f"{self.network.name}: {len(wrong)} words of padding are not 0, first at address {padding[wrong[0]]:#x}"
        )

    async def step(self, number: int, labelled: bool = True) -> None:
        """A batch from the first pixel to the comparison of every parameter and of the cycles."""
        x, labels = self.next_samples(number)
        beats = self.expect(x, labels if labelled else None)
        await self.source.send(beats)
        await self.results()
        await self.compare(f"after batch {len(self.done) - 1}")
        await self.check_counters()

    async def short(self, number: int) -> None:
        """A batch that the samples do not fill: the host says how many there are."""
        await self.set_register("BATCH", number)
        await self.step(number)
        await self.set_register("BATCH", self.golden.batch)

    async def closed(self, number: int) -> None:
        """A batch that an unlabelled sample behind it closes, and that sample."""
        x, labels = self.next_samples(number + 1)
        beats = self.expect(x[:number], labels[:number])
        beats += self.expect(x[number:], None)
        await self.source.send(beats)
        await self.results()
        await self.compare(f"after batch {len(self.done) - 2}, which an unlabelled sample closed")
        await self.check_counters()

    # ---- cycles ------------------------------------------------------------------------------------

    def expected_cycles(self) -> Counter[tuple[str, int]]:
        """Cycles of the batches done, by phase and layer, from the cycle simulator; ``finish`` as of layer 0."""
        total: Counter[tuple[str, int]] = Counter()
        for (number, labelled), times in Counter(self.done).items():
            if labelled:
                options = {"train_hidden": self.train_hidden, "batch": number}
                step = training_step(self.machine, self.network, **options)
            else:
                step = inference_step(self.machine, self.network)
            for layer in step.layers:
                for name, cycles in layer.cycles.items():
                    total[name.upper(), layer.layer] += times * cycles
            total["FINISH", 0] = total["FINISH", 0] + times * step.cycles_by_phase["finish"]
        return total

    def expected_visits(self) -> list[Visit]:
        """Phases of the batches done, each with its layer and its cycles, from the cycle simulator."""
        visits: list[Visit] = []
        for number, labelled in self.done:
            visits += walk_windowed_step(self.machine, self.network, number, self.train_hidden, labelled).visits
        return visits

    async def check_counters(self) -> dict[str, int]:
        """Compares the counters with the cycle simulator's; returns them."""
        counters = await self.registers(COUNTERS)
        total: Counter[str] = Counter()
        for (name, _), cycles in self.expected_cycles().items():
            total[f"CYCLES_{name}"] += cycles
        samples = sum(number for number, _ in self.done)
        steps = sum(layer.col_tiles * layer.positions * layer.steps for layer in self.host.program.layers)
        total.update({"SAMPLES": samples, "FORWARD_STEPS": samples * steps})
        expected = {name: total[name] for name in COUNTERS if name != "CYCLES_WAIT"}
        got = {name: counters[name] for name in expected}
        assert got == expected, (
            f"{self.network.name}: counters after {self.done}: got {got}, simulator {expected}"
        )
        return counters


def samples_of(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Images int8 ``(N, features)`` and labels: real digits where the shape is theirs; else noise around one random
    image a class, corner codes first."""
    rng = context.rng("samples")
    if network.features == 64 and network.classes == 10:
        data = load_digits()
        order = rng.permutation(len(data.x_train))
        return data.x_train[order], data.y_train[order]
    images = rng.integers(-128, 128, (network.classes, network.features))
    labels = rng.integers(0, network.classes, 400)
    x = np.clip(images[labels] + rng.integers(-30, 31, (400, network.features)), -128, 127).astype(np.int8)
    x[0], x[1], x[2] = -128, 127, 0
    return x, labels


def bias_addresses(machine: Machine) -> np.ndarray:
    """Of every word of every bias bank."""
    words = range(-(-machine.bias_depth // machine.cols))
    addresses = [memory_map.bias_address(machine, word, column) for word in words for column in range(machine.cols)]
    return np.array(addresses, np.uint32)


async def begin(dut: Any) -> Bench:
    """Resets the core and makes its bench."""
    return Bench(await start(dut))


@cocotb.test()
async def trains(dut):
    """Batch after batch, whole and short, labelled and not; after each every weight, bias, score and counter is equal.

    One network after the other, without a reset: nothing of the one before may be left.
    """
    bench = await begin(dut)
    for network in context.networks(bench):
        await bench.prepare()
        await bench.compare("before the first batch")
        before, scores = bench.golden.parameters(), bench.golden.trained_scores()
        batch = bench.golden.batch
        for number in range(context.parameter("batches")):
            kind = number % 4
            if kind == 1:
                await bench.step(1, labelled=False)
            elif kind == 2 and batch > 1:
                await bench.short(1 + number % (batch - 1))
            elif kind == 3:
                await bench.closed(batch - 1 or 1)
            else:
                await bench.step(batch)
        await bench.check_padding()
        changed = sum(int((a != b).sum()) for (a, _), (b, _) in zip(before, bench.golden.parameters(), strict=True))
        learns = bench.machine.learning.learns
        assert (changed > 0) == learns, f"{network.name}: {changed} weights were trained, so nothing was tested"
        moved = [np.any(a != b) for a, b in zip(scores, bench.golden.trained_scores(), strict=True)]
        assert any(moved) or not moved, f"{network.name}: scores trained by layer: {moved}"


@cocotb.test()
async def pipelined(dut):
    """Samples back to back, some without a label: the next load while a batch is worked on, results wait for the
    host."""
    bench = await begin(dut)
    rng = context.rng("labels")
    for _ in context.networks(bench):
        await bench.prepare()
        batch = bench.golden.batch
        packets: list[int] = []
        for _ in range(context.parameter("batches")):
            if rng.integers(3) == 0:
                # An unlabelled sample, behind nothing or behind a batch that it closes.
                if batch > 1 and rng.integers(2):
                    packets += bench.expect(*bench.next_samples(int(rng.integers(1, batch))))
                packets += bench.expect(bench.next_samples(1)[0], None)
            else:
                packets += bench.expect(*bench.next_samples(batch))
        await bench.source.send(packets)
        await bench.results()
        await bench.compare("after all batches")
        await bench.check_counters()


@cocotb.test()
async def watched(dut):
    """The host reads a weight, a bias and trained scores again and again meanwhile: it sees them as they are between
    batches."""
    bench = await begin(dut)
    await bench.prepare()
    places = bench.host.places
    layer = int(context.rng("layer").integers(len(places)))
    j = int(context.rng("channel").integers(places[layer].weights.shape[0]))
    t = int(context.rng("tap").integers(places[layer].weights.shape[1]))

    def now() -> list[int]:
        weight, bias = bench.golden.parameters()[layer]
        return [int(weight[j, t]), int(bias[j]), *(int(codes[-1, 0]) for codes in bench.golden.trained_scores())]

    states, packets = [now()], []
    for _ in range(context.parameter("batches")):
        packets += bench.expect(*bench.next_samples(bench.golden.batch))
        states.append(now())
    sending = cocotb.start_soon(bench.source.send(packets))
    addresses = [(int(places[layer].weights[j, t]), WEIGHT_BITS), (int(places[layer].biases[j]), WEIGHT_BITS)]
    addresses += [(int(place[-1, 0]), TRAINED_BITS) for place in bench.host.score_places]
    seen: list[tuple[int, int]] = [(0, 0)]
    while not sending.done() or bench.board.queue:
        for part, (address, bits) in enumerate(addresses):
            code = signed(await bench.bus.read(address), bits)
            # The states that this read may have met, none before what the last one met.
            met = [n for n in range(seen[-1][0], len(states)) if states[n][part] == code]
            assert met, f"part {part} reads {code} after state {seen[-1][0]}, golden {[s[part] for s in states]}"
            seen.append((met[0], part))
    assert len(seen) > 2 * context.parameter("batches") / 3
    await bench.results()
    await bench.compare("after all batches")


@cocotb.test()
async def scores_off(dut):
    """Without CTRL.scores a result is its summary alone, and training is the same."""
    bench = await begin(dut)
    bench.with_scores = False
    await bench.prepare()
    for _ in range(context.parameter("batches")):
        await bench.step(bench.golden.batch)
        await bench.step(1, labelled=False)


@cocotb.test()
async def bad_packets(dut):
    """Packets with a wrong label or length vanish whole, set their sticky bit, and disturb nothing."""
    bench = await begin(dut)
    await bench.prepare()
    classes, length, batch = bench.network.classes, bench.network.features, bench.golden.batch
    bits = {"idle": 1, "bad_label": 2, "bad_length": 4}
    assert await bench.idle() == bits["idle"]
    bad = {
        "bad_label": [(length, classes), (length, 254), (length, 128)],
        "bad_length": [(0, 0), (1, 0), (length - 1, 0), (length + 1, 0), (length - 1, NO_LABEL), (3 * length, 1)],
    }
    for name, packets in bad.items():
        for pixels, tag in packets:
            noise = context.rng(f"{name} {pixels}").integers(-128, 128, pixels)
            # In the middle of a batch: what waits for it stays.
            x, labels = bench.next_samples(batch)
            beats = bench.expect(x, labels)
            begun = (batch // 2) * (length + 1)
            await bench.source.send([*beats[:begun], *bench.packet(noise, tag)])
            for _ in range(20):
                await bench.cycles.next()
            got = await bench.idle()
            assert got == bits["idle"] | bits[name], f"{name} {pixels} pixels, label {tag}: STATUS {got:#x}"
            # Sticky: a good packet does not clear it, the host does.
            await bench.source.send(beats[begun:])
            await bench.results()
            await bench.compare(f"after {name}, {pixels} pixels, label {tag}")
            assert await bench.idle() == bits["idle"] | bits[name]
            await bench.set_bits("CLEAR", "errors")
            assert await bench.idle() == bits["idle"]
    # Between packets that follow each other at once.
    noise = context.rng("noise").integers(-128, 128, length + 1)
    wrong = bench.packet(noise, 0) + bench.packet(noise[:-1], classes)
    beats = []
    for _ in range(3):
        good = bench.expect(*bench.next_samples(batch)) + bench.expect(bench.next_samples(1)[0], None)
        for first in range(0, len(good), length + 1):
            beats += wrong + good[first : first + length + 1]
    await bench.source.send(beats)
    await bench.results()
    await bench.compare("after bad and good packets")
    assert await bench.idle() == sum(bits.values())
    await bench.check_counters()


@cocotb.test()
async def phases(dut):
    """The ports `phase` and `layer` show the cycle simulator's walk; the counters count the same."""
    bench = await begin(dut)
    await bench.prepare()
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        while True:
            await FallingEdge(dut.clk)
            seen.append((int(dut.phase.value), int(dut.layer.value)))

    await bench.set_bits("CLEAR", "counters")
    task = cocotb.start_soon(watch())
    batch = bench.golden.batch
    for number in range(context.parameter("batches")):
        if number % 2:
            await bench.closed(batch - 1 or 1)
        else:
            await bench.step(batch)
    task.cancel()
    # The last beats are the batch's, not a layer's.
    last = len(bench.network.layers) - 1
    shown = [(phase, last if phase == Phase.FINISH else layer) for phase, layer in seen if phase != Phase.WAIT]
    got = [(Phase(phase).name.lower(), layer, len(list(cycles))) for (phase, layer), cycles in groupby(shown)]
    assert got == bench.expected_visits()
    first = await bench.registers(COUNTERS)
    for _ in range(100):
        await bench.cycles.next()
    second = await bench.registers(COUNTERS)
    assert second["CYCLES_WAIT"] >= first["CYCLES_WAIT"] + 100
    assert {**second, "CYCLES_WAIT": 0} == {**first, "CYCLES_WAIT": 0}
    await bench.set_bits("CLEAR", "counters")
    cleared = await bench.registers(COUNTERS)
    assert cleared.pop("CYCLES_WAIT") < 200
    assert not any(cleared.values()), f"after CLEAR.counters: {cleared}"


@cocotb.test()
async def resumes(dut):
    """ADVANCE brings a fresh core to the LFSR states of a run that went on before."""
    bench = await begin(dut)
    bench.golden.update_steps = context.parameter("update_steps")
    bench.golden.bias_steps = context.parameter("bias_steps")
    await bench.prepare()
    await bench.set_register("ADVANCE_ARRAY", bench.golden.update_steps)
    await bench.set_register("ADVANCE_BIAS", bench.golden.bias_steps)
    await bench.idle()
    await bench.compare("after advancing")
    for _ in range(context.parameter("batches")):
        await bench.step(bench.golden.batch)


@cocotb.test()
async def identity(dut):
    """ID, VERSION and the registers' reset values."""
    bench = await begin(dut)
    registers = memory_map.registers_of(bench.machine)
    names = [name for name, register in registers.items() if "r" in register.access]
    values = await bench.registers(names)
    assert (values.pop("ID"), values.pop("VERSION")) == (memory_map.ID_VALUE, memory_map.version_value(bench.machine))
    assert values.pop("STATUS") == 1
    assert values.pop("CYCLES_WAIT") < 200
    assert values == {name: 1 if name == "BATCH" else 0 for name in values}, f"after reset: {values}"
    largest = {"LAYERS": bench.machine.max_layers, "BATCH": bench.machine.max_batch}
    largest |= {name: value for name, value in bench.host.registers.items() if name not in largest}
    for name, value in largest.items():
        await bench.set_register(name, value)
    assert await bench.registers(list(largest)) == largest


@cocotb.test()
async def memories(dut):
    """Every word of every weight memory, of every bias bank and of trained scores is a word of its own."""
    bench = await begin(dut)
    machine, rng = bench.machine, context.rng("memories")
    places = np.indices((machine.rows, machine.cols, machine.weight_depth)).reshape(3, -1).T
    addresses = [memory_map.weight_address(machine, *where) for where in places.tolist()]
    addresses += bias_addresses(machine).tolist()
    values = [int(value) for value in rng.integers(-32768, 32768, len(addresses))]
    values[:4] = -32768, 32767, -1, 0
    addresses += score_addresses(machine, bench.network.classes)
    highest = 1 << (TRAINED_BITS - 1)
    values += [int(value) for value in rng.integers(-highest, highest, len(addresses) - len(values))]
    for order in (rng.permutation(len(addresses)), np.arange(len(addresses))):
        await bench.bus.transact((addresses[n], values[n]) for n in order)
    for order in (np.arange(len(addresses)), rng.permutation(len(addresses))):
        words = await bench.bus.transact((addresses[n], None) for n in order)
        for n, got in zip(order, words, strict=True):
            golden = values[n] & 0xFFFFFFFF
            assert got == golden, f"address {addresses[n]:#x}: got {got:#x}, golden {golden:#x}"
