"""hdl.dense.walk and hdl.dense.sequencer: every step in its cycle, every phase exactly as long as it must be."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.dense.sequencer import Sequencer, descriptor_layout
from hdl.dense.walk import TileWalk
from hdl.op import Op
from spec.machine import Machine
from spec.network import NO_LABEL
from spec.program import DESCRIPTOR_STRIDE, DESCRIPTOR_WORDS, LayerDescriptor, encode
from spec.rules import RULES
from spec.timing import (
    BACK_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    SETUP_CYCLES,
    Phase,
    delta_latency,
    tile_interval,
    update_tail,
)

SIGNAL_CYCLES = 5
"""What the stand-in for the learning-signal unit takes."""


def machine(rows, cols, rule="lls"):
    return Machine(
        name="test", rows=rows, cols=cols, weight_depth=64, activation_depth=64, max_neurons=24,
        max_fan_in=24, bias_depth=64, max_layers=3, delta_bits=18, fraction_bits=12,
        result_fifo_depth=16, rule=rule,
    )  # fmt: skip


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("cols", [1, 2, 3, 8])
@pytest.mark.parametrize("row_tiles", [1, 2, 3, 7])
@pytest.mark.parametrize("col_tiles", [1, 2, 3])
def test_walk(cols, row_tiles, col_tiles):
    dut = TileWalk(machine(3, cols))
    interval = tile_interval(row_tiles, cols)
    expected = {
        jt * interval + it: (50 + jt * row_tiles + it, 9 + it, it == 0, it == row_tiles - 1,
                             (jt, it) == (col_tiles - 1, row_tiles - 1))
        for jt in range(col_tiles) for it in range(row_tiles)
    }  # fmt: skip

    async def bench(ctx):
        for name, value in (("row_tiles", row_tiles), ("col_tiles", col_tiles),
                            ("x_base", 9), ("w_base", 50)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        for _ in range(2):  # a walk leaves nothing behind
            ctx.set(dut.start, 1)
            assert not ctx.get(dut.step_valid)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for cycle in range(max(expected) + 12):
                step = expected.get(cycle)
                assert ctx.get(dut.step_valid) == (step is not None), cycle
                if step:
                    assert ctx.get(dut.step_addr) == step[0] % 64
                    assert ctx.get(dut.read_addr) == step[1]
                    assert ctx.get(dut.step_first) == step[2]
                    assert ctx.get(dut.step_last) == step[3]
                assert ctx.get(dut.finishing) == (step is not None and step[4])
                await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 2), (8, 4)])
@pytest.mark.parametrize("row_tiles, col_tiles", [(1, 1), (1, 5), (4, 1), (3, 2), (2, 9)])
def test_walk_back(rows, cols, row_tiles, col_tiles):
    """Column tiles fastest; between two walks forward, of which it leaves nothing behind, nor in them."""
    dut = TileWalk(replace(machine(rows, cols, "bp"), max_fan_in=80, max_neurons=80))
    interval = max(col_tiles, rows)
    back = {
        it * interval + jt: (50 + jt * row_tiles + it, jt == 0, jt == col_tiles - 1, jt)
        for it in range(row_tiles) for jt in range(col_tiles)
    }  # fmt: skip
    interval = tile_interval(row_tiles, cols)
    forward = {
        jt * interval + it: (50 + jt * row_tiles + it, it == 0, it == row_tiles - 1, 9 + it)
        for jt in range(col_tiles) for it in range(row_tiles)
    }  # fmt: skip

    async def bench(ctx):
        for name, value in (("row_tiles", row_tiles), ("col_tiles", col_tiles),
                            ("x_base", 9), ("w_base", 50)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        for steps in (forward, back, back, forward):
            ctx.set(dut.start, 1)
            ctx.set(dut.back, steps is back)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.back, steps is forward)  # counts at the start only
            for cycle in range(max(steps) + 1):
                step = steps.get(cycle)
                assert ctx.get(dut.step_valid) == (step is not None), cycle
                if step:
                    which = dut.step_tile if steps is back else dut.read_addr
                    got = (dut.step_addr, dut.step_first, dut.step_last, which)
                    assert tuple(ctx.get(signal) for signal in got) == (step[0] % 64, *step[1:]), cycle
                    assert ctx.get(dut.step_back) == (steps is back)
                assert ctx.get(dut.finishing) == (cycle == max(steps))
                await ctx.tick()

    simulate(dut, bench)


def descriptor(rng, m, number, layers, **changes):
    n_in, n_out = rng.randint(1, 24), rng.randint(1, 24)
    values = {
        "n_in": n_in, "n_out": n_out, "row_tiles": -(-n_in // m.rows), "col_tiles": -(-n_out // m.cols),
        "x_base": rng.randrange(8), "a_base": rng.randrange(64), "w_base": rng.randrange(64),
        "b_base": rng.randrange(64), "row_mask": rng.randrange(1 << m.rows),
        "act_shift": rng.randint(9, 24), "score_shift": rng.randrange(32),
        "rate_shift": rng.randint(-32, 31), "bias_shift": rng.randrange(8),
        "is_output": int(number == layers - 1), "train": 1, "trains_below": 0,
    }  # fmt: skip
    return LayerDescriptor(**{**values, **changes})


def random_program(rng, m):
    """Layers of which each may be frozen or, where they wait, the last ones train."""
    count = rng.choice((1, 2, 3, 3))
    if not m.learning.waits:
        return [descriptor(rng, m, n, count, train=int(rng.randrange(4) > 0)) for n in range(count)]
    first = rng.choice((0, 0, rng.randint(0, count)))  # the first that trains
    return [
        descriptor(rng, m, n, count, train=int(n >= first), trains_below=int(n > first)) for n in range(count)
    ]


def plan(m, layers, label):
    """A sample's phases from the contract, as (layer, phase, cycles, ends the need for the pixels); `signal` by the
    stand-in, and how many of its cycles go before the way back."""
    rule, visits = m.learning, []
    trains = [bool(rule.learns and layer.train and label != NO_LABEL) for layer in layers]

    def visit(number, *phases):
        layer = layers[number]
        interval = tile_interval(layer.row_tiles, m.cols)
        issue = (layer.col_tiles - 1) * interval + layer.row_tiles + m.rows + m.cols
        back = (layer.row_tiles - 1) * max(layer.col_tiles, m.rows) + layer.col_tiles + BACK_TAIL
        back *= rule.transposes and trains[number] and layer.trains_below
        lengths = {
            Phase.SETUP: SETUP_CYCLES,
            Phase.FORWARD: issue + FORWARD_TAIL,
            Phase.SIGNAL: SIGNAL_CYCLES * (rule.scores or layer.is_output) + back,
            Phase.UPDATE: issue + update_tail(m.rule) if rule.learns else 0,
        }
        ends = Phase.UPDATE if trains[number] else Phase.FORWARD
        for phase in phases:
            if lengths[phase]:
                last = phase is (ends if rule.waits else phases[-1])
                visits.append((number, phase, lengths[phase], number == 0 and last))

    for number, layer in enumerate(layers):
        phases = [Phase.SETUP, Phase.FORWARD]
        if layer.is_output or (rule.scores and trains[number]):
            phases.append(Phase.SIGNAL)
        if trains[number] and (layer.is_output or not rule.waits):
            phases.append(Phase.UPDATE)
        visit(number, *phases)
    if rule.waits and trains[-1]:
        number = len(layers) - 1
        while layers[number].trains_below:
            number -= 1
            visit(number, Phase.SETUP, Phase.SIGNAL, Phase.UPDATE)
    return visits


def steps_back(m, layer):
    """Cycle within the phase -> step, on the way back."""
    interval = max(layer.col_tiles, m.rows)
    return {
        SIGNAL_CYCLES * layer.is_output + it * interval + jt: (
            (layer.w_base + jt * layer.row_tiles + it) % m.weight_depth,
            jt,
            jt == 0,
            jt == layer.col_tiles - 1,
        )
        for it in range(layer.row_tiles)
        for jt in range(layer.col_tiles)
    }


def steps(m, layer, phase, x_offset):
    """Cycle within the phase -> step."""
    interval = tile_interval(layer.row_tiles, m.cols)
    lead = delta_latency(m.rule) if phase is Phase.UPDATE else 0
    return {
        lead + jt * interval + it: (
            (layer.w_base + jt * layer.row_tiles + it) % m.weight_depth,
            layer.x_base + x_offset + it,
            it == 0,
            it == layer.row_tiles - 1,
        )
        for jt in range(layer.col_tiles)
        for it in range(layer.row_tiles)
    }


@pytest.mark.parametrize("rows,cols", [(1, 1), (2, 2), (3, 5), (8, 4)])
@pytest.mark.parametrize("rule", RULES)
def test_phases(rule, rows, cols):
    """Random programs, labels, buffers and trained layers; each cycle's outputs are checked."""
    m = machine(rows, cols, rule)
    rng = random.Random(f"{rows} {cols}")
    waits, transposes = m.learning.waits, m.learning.transposes
    dut = Sequencer(m)
    input_words = 11

    async def load(ctx, layers):
        ctx.set(dut.program_write, 1)
        for number, layer in enumerate(layers):
            for word, value in enumerate(encode(layer)):
                ctx.set(dut.program_addr, number * DESCRIPTOR_STRIDE + word)
                ctx.set(dut.program_data, value)
                await ctx.tick()
        ctx.set(dut.program_write, 0)
        ctx.set(dut.layers, len(layers))

    async def run_phase(ctx, number, layer, phase, length, buffer, label, release, coming):
        learns = bool(m.learning.learns and layer.train and label != NO_LABEL)
        signals = phase is Phase.SIGNAL and (layer.is_output or not waits)
        walk = {}
        if phase in (Phase.FORWARD, Phase.UPDATE):
            walk = steps(m, layer, phase, input_words * buffer * (number == 0))
        elif phase is Phase.SIGNAL and transposes and learns and layer.trains_below:
            walk = steps_back(m, layer)
        for cycle in range(length):
            final = cycle == length - 1
            ctx.set(dut.signal_done, signals and cycle == SIGNAL_CYCLES - 1)
            where = (number, phase, cycle)
            assert ctx.get(dut.phase) == phase, where
            assert ctx.get(dut.layer) == number, where
            assert ctx.get(dut.label) == label
            step = walk.get(cycle)
            assert ctx.get(dut.step_valid) == (step is not None), where
            if step:
                which = dut.step_tile if phase is Phase.SIGNAL else dut.read_addr
                got = (dut.step_addr, which, dut.step_first, dut.step_last)
                assert tuple(ctx.get(signal) for signal in got) == step, where
                assert ctx.get(dut.step_op) == (Op.UPDATE if phase is Phase.UPDATE else Op.FORWARD)
                if transposes:
                    assert ctx.get(dut.step_back) == (phase is Phase.SIGNAL)
            if transposes:
                # In the cycle before the first step, which may be the last of `setup`.
                from_setup = phase is Phase.SETUP and final and coming is Phase.SIGNAL
                assert ctx.get(dut.back_start) == (from_setup or (cycle + 1 in walk and phase is Phase.SIGNAL
                                                                  and cycle == SIGNAL_CYCLES - 1 and signals)), where
            first = cycle == 0
            assert ctx.get(dut.layer_start) == (first and phase is Phase.FORWARD), where
            assert ctx.get(dut.signal_start) == (first and signals), where
            assert ctx.get(dut.update_start) == (first and phase is Phase.UPDATE), where
            assert ctx.get(dut.buffer_release) == (final and release), where
            assert not ctx.get(dut.begin)
            if signals:
                assert ctx.get(dut.signal_train) == learns
            if phase is not Phase.SETUP:
                for name in descriptor_layout(m).members:
                    if name != "x_base":
                        assert ctx.get(getattr(dut.descriptor, name)) == getattr(layer, name), name
            await ctx.tick()
        ctx.set(dut.signal_done, 0)

    async def bench(ctx):
        ctx.set(dut.input_words, input_words)
        in_wait = True
        for _ in range(12):
            if in_wait:
                layers = random_program(rng, m)
                await load(ctx, layers)
            label, buffer = rng.choice([0, 1, 254, NO_LABEL]), rng.randrange(2)
            if in_wait:
                # Each condition alone keeps a sample from beginning.
                names = ("enable", "room", "sample_valid")
                for missing in (*names, "hold"):
                    for name in names:
                        ctx.set(getattr(dut, name), name != missing)
                    ctx.set(dut.hold, missing == "hold")
                    for _ in range(2):
                        assert not ctx.get(dut.begin)
                        assert ctx.get(dut.phase) == Phase.WAIT
                        await ctx.tick()
                ctx.set(dut.hold, 0)
            ctx.set(dut.sample_label, label)
            ctx.set(dut.sample_buffer, buffer)
            assert ctx.get(dut.begin) and ctx.get(dut.label_release)
            await ctx.tick()
            ctx.set(dut.sample_label, rng.randrange(256))
            ctx.set(dut.sample_buffer, 1 - buffer)
            upcoming = plan(m, layers, label)
            while upcoming:
                number, phase, length, release = upcoming.pop(0)
                coming = upcoming[0][1] if upcoming else None
                await run_phase(ctx, number, layers[number], phase, length, buffer, label, release, coming)
            for cycle in range(FINISH_CYCLES):
                assert ctx.get(dut.phase) == Phase.FINISH, cycle
                assert ctx.get(dut.layer) == 0
                if cycle < FINISH_CYCLES - 1:
                    await ctx.tick()
            # Straight on to the next sample, or by way of `wait` to another program.
            in_wait = rng.randrange(2) == 0
            if in_wait:
                ctx.set(dut.enable, 0)
                await ctx.tick()
                assert ctx.get(dut.phase) == Phase.WAIT
        ctx.set(dut.layers, 0)
        assert not ctx.get(dut.begin)

    simulate(dut, bench)


def test_setup_reads_whole_descriptor():
    assert SETUP_CYCLES >= DESCRIPTOR_WORDS
