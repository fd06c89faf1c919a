"""The whole core against the bit-exact model, under the machine's rule: it trains, and nothing may differ by a bit or
a cycle."""

from collections import Counter
from itertools import groupby
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from golden.data import load_digits
from golden.fixed import FixedModel, StepResult
from sim.benches import context
from sim.benches.bus import Bus, Host
from sim.benches.scores import compare_scores, score_addresses, wide_scores, write_scores
from sim.benches.streams import Cycles, Driver, Monitor, Scoreboard, signed, stalls, start
from sim.cycle.model import inference_step, training_step
from sim.cycle.stepped import Visit, walk_step
from sim.rtl.host import host_for
from spec.lfsr import PERIOD
from spec.machine import WEIGHT_BITS
from spec.network import NO_LABEL, Network
from spec.program import compile_program
from spec.scores import TRAINED_BITS
from spec.timing import Phase

LAST = {"samples": 1 << 8, "results": 1 << 32}
"""The ``last`` bit of the streams' payloads."""
PATIENCE = 400_000
COUNTERS = ("SAMPLES", "FORWARD_STEPS", *(f"CYCLES_{phase.name}" for phase in Phase))


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
        self.host = Host(Bus(dut, stalls(quick, context.rng("bus"))), self.machine)
        self.source = Driver(dut, "samples", stalls(quick, context.rng("source")))
        self.board = Scoreboard("results")
        self.sink = Monitor(dut, "results", stalls(pattern, context.rng("sink")), self._result)
        self.beats = 0
        self.with_scores = True

    def choose(self, network: Network) -> None:
        """What is trained from now on, and the model that it must equal."""
        self.network = network
        self.program = compile_program(network, self.machine, self.train_hidden)
        self.places = host_for(network, self.machine, self.train_hidden)
        self.golden = FixedModel(network, self.machine, context.seed(), self.train_hidden)
        self.x, self.labels = samples_of(network)
        self.position = 0

    def _result(self, payload: int) -> None:
        self.board.got(f"{payload:#x}", self.cycles_now())

    def cycles_now(self) -> int:
        """Cycles since the start, for messages."""
        return round(cocotb.simtime.get_sim_time("ns") / 10)

    async def prepare(self) -> None:
        """Program, parameters, enable; the counters begin at 0.

        The parameters are the model's initial ones, or normal numbers of ``weight_scale``: wide
        enough that saturation and large norms happen within a few samples.
        """
        host, scale = self.host, context.parameter("weight_scale")
        if scale:
            rng = context.rng("weights")

            def codes(*shape: int) -> np.ndarray:
                return np.clip(rng.normal(0, scale, shape), -32768, 32767).astype(np.int16)

            shapes = self.network.shapes
            self.golden.load_parameters([(codes(n_out, n_in), codes(n_out)) for n_in, n_out in shapes])
            wide_scores(self.golden)
        await host.set_register("CTRL", 0)
        await host.load_program(self.program)
        await host.write_parameters(self.program, self.golden.parameters())
        await write_scores(host.bus, self.places, self.golden)
        await host.set_bits("CLEAR", "counters")
        await self.enable()

    async def enable(self) -> None:
        """Let samples in."""
        await self.host.set_bits("CTRL", "enable", *(["scores"] if self.with_scores else []))

    def next_sample(self) -> tuple[np.ndarray, int]:
        """The next image and its label."""
        self.position += 1
        return self.x[self.position - 1], int(self.labels[self.position - 1])

    def packet(self, x: np.ndarray, label: int) -> list[int]:
        """The beats of a sample."""
        return [*(int(value) & 255 for value in x), label | LAST["samples"]]

    def expect(self, x: np.ndarray, label: int) -> StepResult:
        """Let the golden model take the sample, and queue the beats it leads to."""
        result = self.golden.step(x, None if label == NO_LABEL else label)
        sample = f"{self.network.name}, sample {self.position - 1}, label {label}"
        for layer, scores in enumerate(result.scores):
            if scores is not None and self.with_scores:
                for c, score in enumerate(scores):
                    self._expect_beat(int(score) & 0xFFFFFFFF, f"{sample}, layer {layer}, score {c}")
        self._expect_beat(LAST["results"] | label << 8 | result.prediction, f"{sample}, summary")
        return result

    def _expect_beat(self, payload: int, inputs: str) -> None:
        self.board.expect(f"{payload:#x}", inputs)
        self.beats += 1

    async def results(self) -> None:
        """Wait until every expected beat came and the core is idle."""
        for _ in range(PATIENCE):
            if not self.board.queue:
                break
            self.sink.check()
            await self.cycles.next()
        self.board.done(self.beats)
        while not await self.host.register("STATUS") & 1:
            pass

    async def compare(self, when: str) -> None:
        """Read every weight, bias and trained score by the bus and compare."""
        when = f"{self.network.name}, {when}"
        self.sink.pause()
        got = await self.host.read_parameters(self.program)
        await compare_scores(self.host.bus, self.places, self.golden, when)
        self.sink.resume()
        for number, (pair, golden) in enumerate(zip(got, self.golden.parameters(), strict=True)):
            for name, array, expected in zip(("weight", "bias"), pair, golden, strict=True):
                wrong = np.argwhere(array != expected)
                assert not len(wrong), (
                    f"{when}: layer {number}: {len(wrong)} of {expected.size} {name} codes differ, first at "
                    f"{wrong[0].tolist()}: got {array[tuple(wrong[0])]}, golden {expected[tuple(wrong[0])]}"
                )
        steps = await self.host.registers(("UPDATE_STEPS", "BIAS_STEPS"))
        golden_steps = self.golden.update_steps % PERIOD, self.golden.bias_steps % PERIOD
        assert tuple(steps.values()) == golden_steps, f"{when}: {steps}, golden {golden_steps}"

    async def step(self, x: np.ndarray, label: int) -> StepResult:
        """One sample from the first pixel to the comparison of every parameter."""
        result = self.expect(x, label)
        await self.source.send(self.packet(x, label))
        await self.results()
        await self.compare(f"after sample {self.position - 1}")
        return result

    def expected_visits(self, label: int) -> list[Visit]:
        """Phases of a sample, each with its layer and its cycles, from the cycle simulator."""
        labelled = label != NO_LABEL and self.machine.learning.learns
        return walk_step(self.machine, self.network, self.train_hidden, labelled).visits

    def expected_counters(self, labels: list[int]) -> dict[str, int]:
        """Counters after these samples, but for ``wait``, from the cycle simulator."""
        total: Counter[str] = Counter()
        for label in labels:
            if label == NO_LABEL:
                step = inference_step(self.machine, self.network)
            else:
                step = training_step(self.machine, self.network, train_hidden=self.train_hidden)
            total.update({f"CYCLES_{name.upper()}": value for name, value in step.cycles_by_phase.items()})
        total["SAMPLES"] = len(labels)
        total["FORWARD_STEPS"] = len(labels) * sum(layer.steps for layer in self.program.layers)
        return {name: total[name] for name in COUNTERS if name != "CYCLES_WAIT"}

    async def check_counters(self, labels: list[int]) -> dict[str, int]:
        """Compare the counters with the cycle simulator's; returns them."""
        counters = await self.host.registers(COUNTERS)
        expected = self.expected_counters(labels)
        got = {name: counters[name] for name in expected}
        assert got == expected, f"{self.network.name}: counters after labels {labels}: got {got}, simulator {expected}"
        return counters


async def begin(dut: Any) -> Bench:
    """Reset the core and make its bench."""
    return Bench(await start(dut))


def samples_of(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Images int8 ``(N, features)`` and labels."""
    rng = context.rng("samples")
    if network.features == 64 and network.classes == 10:
        data = load_digits()
        order = rng.permutation(len(data.x_train))
        return data.x_train[order], data.y_train[order]
    # No data set is this small: noise around one random image a class, corner codes with it.
    images = rng.integers(0, 128, (network.classes, network.features))
    labels = rng.integers(0, network.classes, 400)
    x = np.clip(images[labels] + rng.integers(-20, 21, (400, network.features)), 0, 127).astype(np.int8)
    x[0], x[1], x[2] = -128, 127, 0
    return x, labels


@cocotb.test()
async def trains(dut):
    """Random weights, real digits; after every sample every weight, bias, score and counter is
    equal. One network after the other, without a reset: nothing of the one before may be left."""
    bench = await begin(dut)
    for _ in context.networks(bench):
        await bench.prepare()
        await bench.compare("before the first sample")
        labels: list[int] = []
        before, scores = bench.golden.parameters(), bench.golden.trained_scores()
        for number in range(context.parameter("samples")):
            x, label = bench.next_sample()
            # Every fourth sample is only inferred, unlabelled or at the very begin.
            label = NO_LABEL if number % 4 == 2 else label
            await bench.step(x, label)
            labels.append(label)
            await bench.check_counters(labels)
        after = bench.golden.parameters()
        changed = sum(int((a != b).sum()) for (a, _), (b, _) in zip(before, after, strict=True))
        learns = bench.machine.learning.learns
        assert (changed > 0) == learns, f"{changed} weights were trained, so nothing was tested"
        moved = [np.any(a != b) for a, b in zip(scores, bench.golden.trained_scores(), strict=True)]
        assert any(moved) or not moved, f"scores trained by layer: {moved}"


@cocotb.test()
async def pipelined(dut):
    """Samples back to back: the next loads while one is worked on, results wait for the host."""
    bench = await begin(dut)
    await bench.prepare()
    packets: list[int] = []
    labels: list[int] = []
    rng = context.rng("labels")
    for _ in range(context.parameter("samples")):
        x, label = bench.next_sample()
        label = NO_LABEL if rng.integers(5) == 0 else label
        bench.expect(x, label)
        packets += bench.packet(x, label)
        labels.append(label)
    await bench.source.send(packets)
    await bench.results()
    await bench.compare("after all samples")
    await bench.check_counters(labels)


@cocotb.test()
async def watched(dut):
    """The host reads a weight, a bias and a trained score again and again meanwhile: it sees them as they are between
    samples."""
    bench = await begin(dut)
    await bench.prepare()
    places, trained = bench.places.places[0], bench.places.score_places
    addresses = [(int(places.weights[0, 0]), WEIGHT_BITS), (int(places.biases[0]), WEIGHT_BITS)]
    addresses += [(int(place[-1, 0]), TRAINED_BITS) for place in trained]

    def now() -> list[int]:
        weight, bias = bench.golden.parameters()[0]
        return [int(weight[0, 0]), int(bias[0]), *(int(codes[-1, 0]) for codes in bench.golden.trained_scores())]

    states, packets = [now()], []
    for _ in range(context.parameter("samples")):
        x, label = bench.next_sample()
        bench.expect(x, label)
        packets += bench.packet(x, label)
        states.append(now())
    sending = cocotb.start_soon(bench.source.send(packets))
    first, reads = 0, 0
    while not sending.done() or bench.board.queue:
        # Were scores read while a sample is worked on, one layer's would be of the next state, another's not yet.
        for part in [0, 1, *8 * list(range(2, len(addresses)))]:
            address, bits = addresses[part]
            code = signed(await bench.host.bus.read(address), bits)
            # The states that this read may have met, none before what the last one met.
            met = [n for n in range(first, len(states)) if states[n][part] == code]
            assert met, f"part {part} reads {code} after state {first}, golden {[state[part] for state in states]}"
            first, reads = met[0], reads + 1
    assert reads > context.parameter("samples")
    await bench.results()
    await bench.compare("after all samples")


@cocotb.test()
async def scores_off(dut):
    """Without CTRL.scores a result is its summary alone, and training is the same."""
    bench = await begin(dut)
    bench.with_scores = False
    await bench.prepare()
    for _ in range(context.parameter("samples")):
        await bench.step(*bench.next_sample())


@cocotb.test()
async def bad_packets(dut):
    """Packets with a wrong label or length vanish whole, set their sticky bit, and disturb
    nothing."""
    bench = await begin(dut)
    await bench.prepare()
    host, classes, length = bench.host, bench.network.classes, bench.network.features
    bits = {"idle": 1, "bad_label": 2, "bad_length": 4}

    async def status() -> int:
        while not (value := await host.register("STATUS")) & bits["idle"]:
            pass
        return value

    assert await status() == bits["idle"]
    x, label = bench.next_sample()
    bad = {
        "bad_label": [(length, classes), (length, 254), (length, 128)],
        "bad_length": [
            (0, 0),
            (1, 0),
            (length - 1, 0),
            (length + 1, 0),
            (length - 1, NO_LABEL),
            (3 * length, 1),
        ],
    }
    for name, packets in bad.items():
        for pixels, tag in packets:
            noise = context.rng(f"{name} {pixels}").integers(-128, 128, pixels)
            await bench.source.send(bench.packet(noise, tag))
            for _ in range(10):
                await bench.cycles.next()
            got = await status()
            assert got == bits["idle"] | bits[name], f"{name} {pixels} pixels, label {tag}: STATUS {got:#x}"
            # Sticky: a good packet does not clear it, the host does.
            await bench.step(x, label)
            assert await status() == bits["idle"] | bits[name]
            await host.set_bits("CLEAR", "errors")
            assert await status() == bits["idle"]
            x, label = bench.next_sample()
    # Between packets that follow each other at once, bad ones in both buffers.
    noise = context.rng("noise").integers(-128, 128, length + 1)
    beats: list[int] = []
    for _ in range(3):
        beats += bench.packet(noise, 0) + bench.packet(noise[:-1], classes)
        x, label = bench.next_sample()
        bench.expect(x, label)
        beats += bench.packet(x, label)
    await bench.source.send(beats)
    await bench.results()
    await bench.compare("after bad and good packets")
    assert await status() == sum(bits.values())


@cocotb.test()
async def phases(dut):
    """The ports ``phase`` and ``layer`` show the cycle simulator's walk, the counters what the ports show; ``wait`` is
    all the rest."""
    bench = await begin(dut)
    await bench.prepare()
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        while True:
            await FallingEdge(dut.clk)
            seen.append((int(dut.phase.value), int(dut.layer.value)))

    await bench.host.set_bits("CLEAR", "counters")
    task = cocotb.start_soon(watch())
    labels = []
    total: Counter[int] = Counter()
    for number in range(context.parameter("samples")):
        x, label = bench.next_sample()
        label = NO_LABEL if number == 1 else label
        bench.expect(x, label)
        labels.append(label)
        seen.clear()
        await bench.source.send(bench.packet(x, label))
        await bench.results()
        total.update(phase for phase, _ in seen)
        # The last beat is the step's, not a layer's.
        last = len(bench.program.layers) - 1
        shown = [(phase, last if phase == Phase.FINISH else layer) for phase, layer in seen]
        got = [(Phase(phase).name.lower(), layer, len(list(cycles))) for (phase, layer), cycles in groupby(shown)]
        got = [visit for visit in got if visit[0] != "wait"]
        assert got == bench.expected_visits(label), f"sample {number}, label {label}"
    task.cancel()
    counters = await bench.check_counters(labels)
    for phase in Phase:
        if phase is not Phase.WAIT:
            assert total[phase] == counters[f"CYCLES_{phase.name}"], f"{phase.name}: seen {total[phase]}"
    first = await bench.host.registers(COUNTERS)
    for _ in range(100):
        await bench.cycles.next()
    second = await bench.host.registers(COUNTERS)
    assert second["CYCLES_WAIT"] >= first["CYCLES_WAIT"] + 100
    assert {**second, "CYCLES_WAIT": 0} == {**first, "CYCLES_WAIT": 0}
    await bench.host.set_bits("CLEAR", "counters")
    cleared = await bench.host.registers(COUNTERS)
    assert cleared.pop("CYCLES_WAIT") < 100
    assert not any(cleared.values()), f"after CLEAR.counters: {cleared}"


@cocotb.test()
async def resumes(dut):
    """ADVANCE brings a fresh core to the LFSR states of a run that went on before."""
    bench = await begin(dut)
    bench.golden.update_steps = context.parameter("update_steps")
    bench.golden.bias_steps = context.parameter("bias_steps")
    await bench.prepare()
    await bench.host.set_register("ADVANCE_ARRAY", bench.golden.update_steps)
    await bench.host.set_register("ADVANCE_BIAS", bench.golden.bias_steps)
    for _ in range(PATIENCE):
        if await bench.host.register("STATUS") & 1:
            break
    await bench.compare("after advancing")
    for _ in range(context.parameter("samples")):
        await bench.step(*bench.next_sample())


@cocotb.test()
async def identity(dut):
    """ID, VERSION and the registers' reset values; the largest legal values can be read back."""
    from spec.memory_map import ID_VALUE, REGISTERS, version_value

    bench = await begin(dut)
    host = bench.host
    names = [name for name, register in REGISTERS.items() if "r" in register.access]
    values = await host.registers(names)
    assert (values.pop("ID"), values.pop("VERSION")) == (ID_VALUE, version_value(bench.machine))
    assert values.pop("STATUS") == 1
    assert values.pop("CYCLES_WAIT") < 100
    assert not any(values.values()), f"after reset: {values}"
    machine = bench.machine
    largest = {
        "LAYERS": machine.max_layers,
        "INPUT_LENGTH": machine.max_fan_in,
        "INPUT_WORDS": machine.activation_depth - 1,
    }
    for name, value in largest.items():
        await host.set_register(name, value)
    assert await host.registers(list(largest)) == largest


@cocotb.test()
async def memories(dut):
    """Every word of every weight memory, of the bias memory and of that of trained scores is a word of its own."""
    from spec.memory_map import bias_address, weight_address

    bench = await begin(dut)
    machine, rng = bench.machine, context.rng("memories")
    addresses = [
        weight_address(machine, row, col, word)
        for word in range(machine.weight_depth)
        for row in range(machine.rows)
        for col in range(machine.cols)
    ]
    addresses += [bias_address(machine, word) for word in range(machine.bias_depth)]
    values = [int(value) for value in rng.integers(-32768, 32768, len(addresses))]
    values[:4] = -32768, 32767, -1, 0
    addresses += score_addresses(machine, bench.network.classes)
    highest = 1 << (TRAINED_BITS - 1)
    values += [int(value) for value in rng.integers(-highest, highest, len(addresses) - len(values))]
    for order in (rng.permutation(len(addresses)), np.arange(len(addresses))):
        await bench.host.bus.transact((addresses[n], values[n]) for n in order)
    for order in (np.arange(len(addresses)), rng.permutation(len(addresses))):
        words = await bench.host.bus.transact((addresses[n], None) for n in order)
        for n, word in zip(order, words, strict=True):
            golden = values[n] & 0xFFFFFFFF
            assert word == golden, f"address {addresses[n]:#x}: got {word:#x}, golden {golden:#x}"
