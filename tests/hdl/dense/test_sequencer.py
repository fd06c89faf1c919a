"""hdl.dense.walk and hdl.dense.sequencer: every step in its cycle, every phase exactly as long as it must be."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.dense.sequencer import Sequencer
from hdl.dense.walk import TileWalk
from hdl.op import Op
from spec.machine import Machine
from spec.network import NO_LABEL
from spec.program import DESCRIPTOR_STRIDE, DESCRIPTOR_WORDS, FIELDS, LayerDescriptor, encode
from spec.timing import DELTA_LATENCY, FINISH_CYCLES, FORWARD_TAIL, SETUP_CYCLES, UPDATE_TAIL, Phase, tile_interval

SIGNAL_CYCLES = 5
"""What the stand-in for the learning-signal unit takes."""


def machine(rows, cols):
    return Machine(
        name="test", rows=rows, cols=cols, weight_depth=64, activation_depth=64, max_neurons=24,
        max_fan_in=24, bias_depth=64, max_layers=3, delta_bits=18, fraction_bits=12,
        result_fifo_depth=16,
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


def descriptor(rng, m, number, layers, **changes):
    n_in, n_out = rng.randint(1, 24), rng.randint(1, 24)
    values = {
        "n_in": n_in, "n_out": n_out, "row_tiles": -(-n_in // m.rows), "col_tiles": -(-n_out // m.cols),
        "x_base": rng.randrange(8), "a_base": rng.randrange(64), "w_base": rng.randrange(64),
        "b_base": rng.randrange(64), "row_mask": rng.randrange(1 << m.rows),
        "act_shift": rng.randint(9, 24), "score_shift": rng.randrange(32),
        "rate_shift": rng.randint(-32, 31), "bias_shift": rng.randrange(8),
        "is_output": int(number == layers - 1), "train": 1,
    }  # fmt: skip
    return LayerDescriptor(**{**values, **changes})


def lengths(m, layer, learns):
    """Phases of a layer and their lengths, from the contract; `signal` by the stand-in."""
    interval = tile_interval(layer.row_tiles, m.cols)
    issue = (layer.col_tiles - 1) * interval + layer.row_tiles
    phases = [
        (Phase.SETUP, SETUP_CYCLES),
        (Phase.FORWARD, issue + m.rows + m.cols + FORWARD_TAIL),
    ]
    if learns or layer.is_output:
        phases.append((Phase.SIGNAL, SIGNAL_CYCLES))
    if learns:
        phases.append((Phase.UPDATE, issue + m.rows + m.cols + UPDATE_TAIL))
    return phases


def steps(m, layer, phase, x_offset):
    """Cycle within the phase -> step."""
    interval = tile_interval(layer.row_tiles, m.cols)
    lead = DELTA_LATENCY if phase is Phase.UPDATE else 0
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
def test_phases(rows, cols):
    """Random programs, labels, buffers and trained layers; each cycle's outputs are checked."""
    m = machine(rows, cols)
    rng = random.Random(f"{rows} {cols}")
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

    async def run_phase(ctx, number, layer, phase, length, buffer, learns, label, last):
        walking = phase in (Phase.FORWARD, Phase.UPDATE)
        walk = steps(m, layer, phase, input_words * buffer * (number == 0)) if walking else {}
        for cycle in range(length):
            final = cycle == length - 1
            ctx.set(dut.signal_done, phase is Phase.SIGNAL and final)
            where = (number, phase, cycle)
            assert ctx.get(dut.phase) == phase, where
            assert ctx.get(dut.layer) == number, where
            assert ctx.get(dut.label) == label
            step = walk.get(cycle)
            assert ctx.get(dut.step_valid) == (step is not None), where
            if step:
                got = (dut.step_addr, dut.read_addr, dut.step_first, dut.step_last)
                assert tuple(ctx.get(signal) for signal in got) == step, where
                assert ctx.get(dut.step_op) == (Op.UPDATE if phase is Phase.UPDATE else Op.FORWARD)
            first = cycle == 0
            assert ctx.get(dut.layer_start) == (first and phase is Phase.FORWARD), where
            assert ctx.get(dut.signal_start) == (first and phase is Phase.SIGNAL), where
            assert ctx.get(dut.update_start) == (first and phase is Phase.UPDATE), where
            assert ctx.get(dut.buffer_release) == (final and last and number == 0), where
            assert not ctx.get(dut.begin)
            if phase is Phase.SIGNAL:
                assert ctx.get(dut.signal_train) == learns
            if phase is not Phase.SETUP:
                for name in FIELDS:
                    if name not in ("n_in", "x_base"):
                        assert ctx.get(getattr(dut.descriptor, name)) == getattr(layer, name), name
            await ctx.tick()
        ctx.set(dut.signal_done, 0)

    async def bench(ctx):
        ctx.set(dut.input_words, input_words)
        in_wait = True
        for _ in range(12):
            if in_wait:
                layers = [descriptor(rng, m, n, count, train=int(rng.randrange(4) > 0))
                          for count in (rng.randint(1, 3),) for n in range(count)]  # fmt: skip
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
            for number, layer in enumerate(layers):
                learns = bool(layer.train) and label != NO_LABEL
                plan = lengths(m, layer, learns)
                for phase, length in plan:
                    last = phase == plan[-1][0]
                    await run_phase(ctx, number, layer, phase, length, buffer, learns, label, last)
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
