"""The whole core in Amaranth's own simulator: it is loaded, trains, answers, and keeps its times.

That its numbers are right is for the benches in `sim/`, which compare it with the bit-exact model.
"""

import gc
import random
from collections import Counter
from dataclasses import replace

import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from hdl.dense.core import Core
from spec import memory_map
from spec.basis import Basis
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import NO_LABEL, load_network
from spec.program import compile_program
from spec.timing import (
    ARGMAX_TAIL,
    DELTA_LATENCY,
    FINISH_CYCLES,
    FORWARD_TAIL,
    SETUP_CYCLES,
    SIGNAL_TAIL,
    UPDATE_TAIL,
    Phase,
    tile_interval,
)
from tests.hdl.core_host import Host
from tests.hdl.dense.networks import addresses, network

TINY = load_machine("tiny")


def expected_phases(machine, program, classes, label):
    """(phase, layer) -> cycles of one sample, from the contract."""
    cycles = Counter()
    for number, layer in enumerate(program.layers):
        interval = tile_interval(layer.row_tiles, machine.cols)
        issue = (layer.col_tiles - 1) * interval + layer.row_tiles
        learns = bool(layer.train) and label != NO_LABEL
        skew = machine.rows + machine.cols
        cycles[Phase.SETUP, number] = SETUP_CYCLES
        cycles[Phase.FORWARD, number] = issue + skew + FORWARD_TAIL
        if learns:
            cycles[Phase.SIGNAL, number] = 3 * classes + SIGNAL_TAIL
            cycles[Phase.UPDATE, number] = issue + skew + UPDATE_TAIL
        elif layer.is_output:
            cycles[Phase.SIGNAL, number] = classes + ARGMAX_TAIL
    cycles[Phase.FINISH, 0] = FINISH_CYCLES
    return cycles


SHAPES = [(5, 3, 3), (4, 3), (1, 2, 3), (8, 8, 5, 3)]


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("rows,cols", [(2, 2), (1, 1), (3, 5)])
def test_smoke(sizes, rows, cols):
    net = network(*sizes, basis="walsh")
    machine = replace(TINY, rows=rows, cols=cols, weight_depth=256, activation_depth=64)
    program = compile_program(net, machine)
    # No deeper than need be, so that an advance comes by the same weights often.
    machine = replace(machine, weight_depth=max(8, sum(layer.steps for layer in program.layers)))
    core = Core(machine, net.classes, Basis(net.basis, net.classes))
    rng = random.Random(f"{sizes} {rows} {cols}")
    where = addresses(machine, program)
    initial = {address: rng.randrange(-9000, 9000) for layer in where for address in layer}
    labels = [0, NO_LABEL, 2, 1, 1]

    async def bench(ctx):
        host = Host(core)
        await host.setup(ctx, program, initial)
        before = host.seen.copy()
        assert set(phase for phase, _ in before) == {Phase.WAIT}
        await host.register(ctx, "CLEAR", 1)
        ctx.set(core.results.ready, 1)
        expected, beats = Counter(), 0
        for label in labels:
            await host.send(ctx, [rng.randrange(0, 128) for _ in range(net.features)], label)
            expected += expected_phases(machine, program, net.classes, label)
            signalled = len(program.layers) if label != NO_LABEL else 1
            beats += signalled * net.classes + 1
        while len(host.beats) < beats:
            await host.tick(ctx)
        while not await host.register(ctx, "STATUS") & 1:
            pass
        assert len(host.beats) == beats
        summaries = [data for data, last in host.beats if last]
        assert [data >> 8 for data in summaries] == labels
        assert all(data & 255 < net.classes for data in summaries)

        seen = Counter({key: n for key, n in host.seen.items() if key[0] is not Phase.WAIT})
        assert seen == expected
        for phase in Phase:
            if phase is not Phase.WAIT:
                count = sum(n for (p, _), n in expected.items() if p is phase)
                assert await host.register(ctx, f"CYCLES_{phase.name}") == count
        trained = sum(label != NO_LABEL for label in labels)
        steps = sum(layer.steps for layer in program.layers)
        assert await host.register(ctx, "SAMPLES") == len(labels)
        assert await host.register(ctx, "FORWARD_STEPS") == len(labels) * steps
        assert await host.register(ctx, "UPDATE_STEPS") == trained * steps
        columns = sum(layer.col_tiles for layer in program.layers) * cols
        assert await host.register(ctx, "BIAS_STEPS") == trained * columns

        trained_to = [[await host.bus(ctx, address) for address in layer] for layer in where]
        for number, (layer, got) in enumerate(zip(where, trained_to, strict=True)):
            changed = sum(g != initial[a] & 0xFFFFFFFF for g, a in zip(got, layer, strict=True))
            assert changed, f"layer {number} has learned nothing"

        # Between samples the LFSRs can be moved on, whatever is left in memories and columns.
        for name, counter in (("ADVANCE_ARRAY", "UPDATE_STEPS"), ("ADVANCE_BIAS", "BIAS_STEPS")):
            steps = await host.register(ctx, counter)
            await host.register(ctx, name, 300)
            while not await host.register(ctx, "STATUS") & 1:
                pass
            assert await host.register(ctx, counter) == steps + 300
        after = [[await host.bus(ctx, address) for address in layer] for layer in where]
        assert after == trained_to

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_reset():
    """One cycle of reset, in the middle of things: registers, streams and LFSRs begin anew, memories stay."""
    net = network(5, 4, 3)
    program = compile_program(net, TINY)
    where = [address for layer in addresses(TINY, program) for address in layer]
    draw = random.Random(8)
    first = {address: draw.randint(-9000, 9000) for address in where}
    pixels = [draw.randint(0, 127) for _ in range(5)]
    trained = {}

    def run(before_reset):
        core, reset = Core(TINY, 3, Basis(net.basis, 3)), Signal()

        async def bench(ctx):
            host = Host(core)
            if before_reset:
                await host.setup(ctx, program, {address: draw.randint(-9000, 9000) for address in where})
                await host.send(ctx, pixels, 1)
                for _ in range(400):
                    await host.tick(ctx)
                assert ctx.get(core.results.valid) and await host.register(ctx, "UPDATE_STEPS")
                await host.register(ctx, "CTRL", 0b11)
                for address, value in first.items():
                    await host.bus(ctx, address, value)
                # Half a sample is in the buffer, a packet was bad, and a result waits.
                await host.send(ctx, pixels[:2], 7)
                ctx.set(core.samples.payload, {"data": 5, "last": 0})
                ctx.set(core.samples.valid, 1)
                await host.tick(ctx)
                ctx.set(core.samples.valid, 0)
                assert await host.register(ctx, "STATUS") == 0b101
                ctx.set(reset, 1)
                await host.tick(ctx)
                ctx.set(reset, 0)
                assert not ctx.get(core.results.valid)
                zero = [r.name for r in memory_map.REGISTERS.values() if "r" in r.access]
                for name in set(zero) - {"ID", "VERSION", "STATUS", "CYCLES_WAIT"}:
                    assert await host.register(ctx, name) == 0, name
                assert await host.register(ctx, "STATUS") == 1
                for name, value in (("LAYERS", 2), ("INPUT_LENGTH", 5), ("INPUT_WORDS", 3), ("CTRL", 0b11)):
                    await host.register(ctx, name, value)
            else:
                await host.setup(ctx, program, first)
            host.beats.clear()
            ctx.set(core.results.ready, 1)
            await host.send(ctx, pixels, 2)
            for _ in range(1000):
                await host.tick(ctx)
            assert host.beats and host.beats[-1][1], "no result came"
            trained[before_reset] = host.beats, [await host.bus(ctx, address) for address in where]

        simulator = Simulator(ResetInserter(reset)(core))
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()

    run(before_reset=False)
    run(before_reset=True)
    assert trained[True] == trained[False]
    assert trained[True][1] != [value & 0xFFFFFFFF for value in first.values()]


def test_utilization():
    """The contract's phases leave the multipliers of 8x8 at work for 90 % of a training step."""
    machine, net = load_machine("mnist"), load_network("mnist")
    cycles = sum(
        expected_phases(machine, compile_program(net, machine), net.classes, 0).values()
    )
    assert 2 * net.macs / (machine.pes * cycles) >= 0.9


def test_deltas_outlive_no_tile():
    """A column's signal is taken before the next tile's: tiles are at least C cycles apart."""
    assert all(tile_interval(rows, cols) >= cols for rows in (1, 5, 40) for cols in (1, 8, 32))
    assert UPDATE_TAIL > DELTA_LATENCY


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refusals():
    with pytest.raises(SpecError, match=r"basis\.classes: must equal classes \(3\), got 4"):
        Core(TINY, 3, Basis("square", 4))
    with pytest.raises(SpecError, match="result_fifo_depth"):
        Core(replace(TINY, max_neurons=64), 16, Basis("square", 16))
    gc.collect()
