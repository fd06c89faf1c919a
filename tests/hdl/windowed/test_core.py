"""The whole core in Amaranth's own simulator: it is loaded, trains in batches, answers, and keeps its times.

That its numbers are right is for the benches in `sim/`, which compare it with the bit-exact model.
"""

import gc
import random
from collections import Counter
from dataclasses import replace

import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

import hdl.dense.core
from hdl.core import core_for
from hdl.windowed.core import Core
from spec import memory_map
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import NO_LABEL, Convolution, FullyConnected, Network, Recipe
from spec.timing import Phase
from spec.windowed_program import WINDOWED_WORDS, compile_windowed
from spec.windowed_timing import ARGMAX_TAIL, FORWARD_TAIL, SETUP_TAIL, SIGNAL_TAIL, UPDATE_TAIL
from tests.hdl.core_host import Host, registers
from tests.hdl.windowed.networks import addresses, batches_of

TINY = load_machine("conv-tiny")


def network(*layers, shape=(4, 3, 1), classes=3, batch=2, basis="walsh"):
    return Network(
        name="test", input_shape=shape, classes=classes, basis=basis, layers=(*layers, FullyConnected(classes)),
        recipe=Recipe(hidden_rate_shift=4, output_rate_shift=4, batch=batch),
    )  # fmt: skip


def expected_phases(machine, program, classes, labels):
    """(phase, layer) -> cycles of one batch, from the description."""
    cycles, samples = Counter(), len(labels)
    skew = machine.rows + machine.cols
    for number, layer in enumerate(program.layers):
        learns = bool(layer.train) and labels != [NO_LABEL]
        positions = layer.col_tiles * layer.positions
        forward = (positions - 1) * layer.interval + layer.steps + skew + FORWARD_TAIL
        cycles[Phase.SETUP, number] = WINDOWED_WORDS + machine.rows + SETUP_TAIL
        cycles[Phase.FORWARD, number] = samples * forward
        if learns:
            cycles[Phase.SIGNAL, number] = samples * (3 * classes + layer.latents + SIGNAL_TAIL)
            cycles[Phase.UPDATE, number] = positions * layer.steps * samples + skew + UPDATE_TAIL
        elif layer.is_output:
            cycles[Phase.SIGNAL, number] = samples * (classes + ARGMAX_TAIL)
    cycles[Phase.FINISH, 0] = samples
    return cycles


def simulate(core, bench):
    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


NETWORKS = {
    "convolution": network(Convolution(3, (3, 3), (2, 2), padding=1, pool="max")),
    "depthwise": network(
        Convolution(2, (3, 2), (1, 2), padding=1, depthwise=True),
        Convolution(5, (1, 1), (2, 1), pool="latent"),
        shape=(3, 3, 2), batch=3,
    ),
    "dense": network(FullyConnected(5), shape=(7,), batch=4),
    "single": network(Convolution(2, (2, 2), (1, 1), stride=2), batch=1),
}  # fmt: skip


@pytest.mark.parametrize("name, rows, cols", [
    ("convolution", 2, 2), ("convolution", 4, 3), ("depthwise", 4, 3), ("dense", 2, 2), ("single", 2, 2),
])  # fmt: skip
def test_smoke(name, rows, cols):
    net = NETWORKS[name]
    machine = replace(TINY, rows=rows, cols=cols)
    program = compile_windowed(net, machine)
    # No deeper than need be, so that an advance comes by the same weights often.
    machine = replace(machine, weight_depth=max(8, sum(layer.col_tiles * layer.steps for layer in program.layers)))
    core = core_for(machine, net.classes, Basis(net.basis, net.classes))
    rng = random.Random(f"{name} {rows} {cols}")
    where = addresses(machine, program)
    initial = {address: rng.randrange(-9000, 9000) for layer in where for address in layer}
    batch = program.batch
    labels = [1] * batch + [2, NO_LABEL, NO_LABEL] + [0] * batch
    if batch == 1:
        labels.remove(NO_LABEL)

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, initial)
        assert set(phase for phase, _ in host.seen) == {Phase.WAIT}
        await host.register(ctx, "CLEAR", 1)
        ctx.set(core.results.ready, 1)
        for label in labels:
            await host.send(ctx, [rng.randrange(-128, 128) for _ in range(net.features)], label)
        expected, beats = Counter(), []
        trained = samples = 0
        for part in batches_of(labels, batch):
            expected += expected_phases(machine, program, net.classes, part)
            signalled = sum(part != [NO_LABEL] or bool(layer.is_output) for layer in program.layers)
            beats += [None] * (signalled * len(part) * net.classes) + part
            trained += part != [NO_LABEL]
            samples += len(part)
        while len(host.beats) < len(beats):
            await host.tick(ctx)
        await host.idle(ctx)
        assert [data >> 8 if last else None for data, last in host.beats] == beats
        assert all(data & 255 < net.classes for data, last in host.beats if last)

        seen = Counter({key: n for key, n in host.seen.items() if key[0] is not Phase.WAIT})
        assert seen == expected
        for phase in Phase:
            if phase is not Phase.WAIT:
                count = sum(n for (p, _), n in expected.items() if p is phase)
                assert await host.register(ctx, f"CYCLES_{phase.name}") == count
        forward = sum(layer.col_tiles * layer.positions * layer.steps for layer in program.layers)
        tiles = sum(layer.col_tiles * layer.steps for layer in program.layers)
        columns = sum(layer.col_tiles for layer in program.layers) * cols
        assert await host.register(ctx, "SAMPLES") == samples == len(labels)
        assert await host.register(ctx, "FORWARD_STEPS") == len(labels) * forward
        assert await host.register(ctx, "UPDATE_STEPS") == trained * tiles
        assert await host.register(ctx, "BIAS_STEPS") == trained * columns

        trained_to = [[await host.bus(ctx, address) for address in layer] for layer in where]
        for number, (layer, got) in enumerate(zip(where, trained_to, strict=True)):
            changed = sum(g != initial[a] & 0xFFFFFFFF for g, a in zip(got, layer, strict=True))
            assert changed, f"layer {number} has learned nothing"

        # Between batches the LFSRs can be moved on, whatever is left in memories and columns.
        for register, counter in (("ADVANCE_ARRAY", "UPDATE_STEPS"), ("ADVANCE_BIAS", "BIAS_STEPS")):
            steps = await host.register(ctx, counter)
            await host.register(ctx, register, 300)
            await host.idle(ctx)
            assert await host.register(ctx, counter) == steps + 300
        after = [[await host.bus(ctx, address) for address in layer] for layer in where]
        assert after == trained_to

    simulate(core, bench)


def test_advance_is_as_good_as_training():
    """A core whose LFSRs were advanced by what another one's training stepped them goes on with the same bits."""
    net = NETWORKS["convolution"]
    program = compile_windowed(net, TINY)
    where = [address for layer in addresses(TINY, program) for address in layer]
    draw = random.Random(4)
    samples = [[draw.randint(-128, 127) for _ in range(net.features)] for _ in range(4)]
    first = {address: draw.randint(-9000, 9000) for address in where}
    results = {}

    def run(resumed):
        core = Core(TINY, 3, Basis(net.basis, 3))

        async def train(ctx, host, part):
            host.beats.clear()
            for pixels, label in part:
                await host.send(ctx, pixels, label)
            while sum(last for _, last in host.beats) < len(part):
                await host.tick(ctx)

        async def bench(ctx):
            host = Host(core)
            ctx.set(core.results.ready, 1)
            await host.setup(ctx, program, results["middle"] if resumed else first)
            if resumed:
                for register, steps in results["steps"].items():
                    await host.register(ctx, register, steps)
            else:
                await train(ctx, host, zip_labels(samples[:2]))
                results["steps"] = {
                    "ADVANCE_ARRAY": await host.register(ctx, "UPDATE_STEPS"),
                    "ADVANCE_BIAS": await host.register(ctx, "BIAS_STEPS"),
                }
                results["middle"] = {address: await host.bus(ctx, address) for address in where}
            await train(ctx, host, zip_labels(samples[2:]))
            results[resumed] = host.beats, [await host.bus(ctx, address) for address in where]

        simulate(core, bench)

    def zip_labels(part):
        return [(pixels, n % 3) for n, pixels in enumerate(part)]

    run(False)
    run(True)
    assert results[True] == results[False]
    assert results[True][1] != list(results["middle"].values())


def test_reset():
    """One cycle of reset, in the middle of things: registers, streams and LFSRs begin anew, memories stay."""
    net = NETWORKS["convolution"]
    program = compile_windowed(net, TINY)
    where = [address for layer in addresses(TINY, program) for address in layer]
    draw = random.Random(8)
    first = {address: draw.randint(-9000, 9000) for address in where}
    pixels = [[draw.randint(-128, 127) for _ in range(net.features)] for _ in range(2)]
    trained = {}

    def run(moment):
        """`moment`: cycles from the second sample's last beat to the reset; None: there is none."""
        core, reset = Core(TINY, 3, Basis(net.basis, 3)), Signal()

        async def bench(ctx):
            host = Host(core)
            if moment is None:
                await host.setup(ctx, program, first)
            else:
                # A batch was worked on, another one is; half a sample is in the ring, a packet was bad.
                await host.setup(ctx, program, {address: draw.randint(-9000, 9000) for address in where})
                ctx.set(core.results.ready, 1)
                for label in (1, 2):
                    await host.send(ctx, pixels[0], label)
                await host.idle(ctx)
                assert await host.register(ctx, "UPDATE_STEPS")
                ctx.set(core.results.ready, 0)
                for address, value in first.items():
                    await host.bus(ctx, address, value)
                await host.send(ctx, pixels[0], 7)
                await host.send(ctx, pixels[0], 0)
                await host.send(ctx, pixels[1], 0)
                ctx.set(core.samples.payload, {"data": 5, "last": 0})
                ctx.set(core.samples.valid, 1)
                for _ in range(moment):
                    await host.tick(ctx)
                    ctx.set(core.samples.valid, 0)
                assert Phase(ctx.get(core.phase)) is not Phase.WAIT
                ctx.set(reset, 1)
                await host.tick(ctx)
                ctx.set(reset, 0)
                assert not ctx.get(core.results.valid)
                assert ctx.get(core.phase) == Phase.WAIT and ctx.get(core.layer) == 0
                readable = [r for r in memory_map.registers_of(TINY).values() if "r" in r.access]
                for register in readable:
                    if register.name not in ("ID", "VERSION", "STATUS", "CYCLES_WAIT"):
                        assert await host.register(ctx, register.name) == register.reset, register.name
                assert await host.register(ctx, "STATUS") == 1
                # The update under way has left some parameters changed.
                for address, value in first.items():
                    await host.bus(ctx, address, value)
                for name, value in registers(program).items():
                    await host.register(ctx, name, value)
                await host.register(ctx, "CTRL", 0b11)
            host.beats.clear()
            ctx.set(core.results.ready, 1)
            for part in pixels:
                await host.send(ctx, part, 2)
            while sum(last for _, last in host.beats) < 2:
                await host.tick(ctx)
            trained[moment] = host.beats, [await host.bus(ctx, address) for address in where]

        simulate(ResetInserter(reset)(core), bench)

    moments = [3, 150, 330]
    run(None)
    for moment in moments:
        run(moment)
        assert trained[moment] == trained[None], moment
    assert trained[None][1] != [value & 0xFFFFFFFF for value in first.values()]


def test_registers_of_the_ring():
    """INPUT_SLOTS and INPUT_WORDS wait for the batch at work and drop what waits; BATCH acts at once."""
    net = NETWORKS["convolution"]
    program = compile_windowed(net, TINY)
    core = Core(TINY, 3, Basis(net.basis, 3))
    where = [address for layer in addresses(TINY, program) for address in layer]

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, {address: 100 + address % 7 for address in where})
        for name, value in registers(program).items():
            assert await host.register(ctx, name) == value, name
        ctx.set(core.results.ready, 1)
        pixels = [5] * net.features
        for label in (0, 1, 2):
            await host.send(ctx, pixels, label)
        assert await host.register(ctx, "CYCLES_WAIT") < 2000
        # A batch is worked on and one sample waits behind it. The write is done when the batch is.
        assert Phase(ctx.get(core.phase)) is not Phase.WAIT
        await host.register(ctx, "INPUT_SLOTS", 3)
        assert await host.register(ctx, "INPUT_SLOTS") == 3
        assert Phase(ctx.get(core.phase)) is Phase.WAIT
        assert [data >> 8 for data, last in host.beats if last] == [0, 1]
        # What waited is gone: one more sample makes no batch, until BATCH says so. Its first beat is offered while
        # the register is being written, and waits.
        host.beats.clear()
        await host.register(ctx, "INPUT_SLOTS", 4)
        assert not ctx.get(core.samples.ready)
        await host.send(ctx, pixels, 1)
        assert await host.register(ctx, "STATUS") == 1
        for _ in range(100):
            assert Phase(ctx.get(core.phase)) is Phase.WAIT
            await host.tick(ctx)
        await host.register(ctx, "BATCH", 1)
        await host.idle(ctx)
        while not any(last for _, last in host.beats):
            await host.tick(ctx)
        assert [data >> 8 for data, last in host.beats if last] == [1]
        # Registers keep as many bits as the machine needs.
        for name, bits in (("BATCH", 3), ("INPUT_SLOTS", 4), ("INPUT_GAP", 1), ("INPUT_ROW", 10), ("INPUT_WORDS", 9)):
            await host.register(ctx, name, 0xFFFFFFFF)
            assert await host.register(ctx, name) == (1 << bits) - 1

    simulate(core, bench)


def test_the_result_fifo_holds_a_batch_back():
    """Until the scores of the whole batch fit, or its summaries; an unlabelled sample's sooner."""
    net = NETWORKS["convolution"]
    depth = 2 * (2 * 3 + 1)
    machine = replace(TINY, result_fifo_depth=depth)
    program = compile_windowed(net, machine)
    core = Core(machine, 3, Basis(net.basis, 3))

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, {})
        pixels = [5] * net.features
        for label in (0, 1, 2, 2):
            await host.send(ctx, pixels, label)
        await host.idle(ctx)
        assert await host.register(ctx, "SAMPLES") == 2  # they fill the FIFO
        for taken in range(1, depth + 1):
            ctx.set(core.results.ready, 1)
            await host.tick(ctx)
            ctx.set(core.results.ready, 0)
            for _ in range(4):
                await host.tick(ctx)
            assert (Phase(ctx.get(core.phase)) is Phase.WAIT) == (taken < depth), taken
        await host.idle(ctx)
        await host.register(ctx, "CTRL", 0b01)  # without scores
        ctx.set(core.results.ready, 1)
        for _ in range(2):
            await host.tick(ctx)
        ctx.set(core.results.ready, 0)
        for label in (0, 1):
            await host.send(ctx, pixels, label)
        await host.idle(ctx)
        assert await host.register(ctx, "SAMPLES") == 6
        await host.send(ctx, pixels, NO_LABEL)
        for _ in range(20):
            await host.tick(ctx)
        assert Phase(ctx.get(core.phase)) is Phase.WAIT
        ctx.set(core.results.ready, 1)
        await host.tick(ctx)
        ctx.set(core.results.ready, 0)
        for _ in range(4):
            await host.tick(ctx)
        assert Phase(ctx.get(core.phase)) is not Phase.WAIT
        await host.idle(ctx)
        assert await host.register(ctx, "SAMPLES") == 7

    simulate(core, bench)


@pytest.mark.parametrize("missing", [0, 1])
def test_straight_from_one_batch_to_the_next(missing):
    """Where the results of both fit to the last beat; `wait` where one beat is missing."""
    net = NETWORKS["convolution"]
    beats = 2 * (2 * 3 + 1)
    machine = replace(TINY, result_fifo_depth=2 * beats - missing)
    program = compile_windowed(net, machine)
    core = Core(machine, 3, Basis(net.basis, 3))

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, {})
        for label in (0, 1, 2, 0):
            await host.send(ctx, [5] * net.features, label)
        waited = host.seen[Phase.WAIT, 0]
        while host.seen[Phase.FINISH, 0] < 2:
            await host.tick(ctx)
        assert (Phase(ctx.get(core.phase)) is Phase.WAIT) == missing
        assert host.seen[Phase.WAIT, 0] == waited
        await host.idle(ctx)
        assert await host.register(ctx, "SAMPLES") == (2 if missing else 4)
        assert not ctx.get(core.results.ready)
        ctx.set(core.results.ready, 1)
        while len(host.beats) < 2 * beats:
            await host.tick(ctx)
        assert [data >> 8 for data, last in host.beats if last] == [0, 1, 2, 0]

    simulate(core, bench)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_which_core():
    basis = Basis("square", 3)
    assert isinstance(core_for(TINY, 3, basis), Core)
    assert isinstance(core_for(load_machine("tiny"), 3, basis), hdl.dense.core.Core)
    gc.collect()


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refusals():
    with pytest.raises(SpecError, match=r"basis\.classes: must equal classes \(3\), got 4"):
        Core(TINY, 3, Basis("square", 4))
    with pytest.raises(SpecError, match="gradient_bits: must not be 0"):
        Core(load_machine("tiny"), 3, Basis("square", 3))
    with pytest.raises(SpecError, match="result_fifo_depth"):
        Core(TINY, 64, Basis("square", 64))
    gc.collect()
