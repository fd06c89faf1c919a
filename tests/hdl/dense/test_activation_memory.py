"""hdl.dense.activation_memory: skewed reads, the row mask, two writers."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.dense.activation_memory import ActivationMemory
from spec.machine import Machine


def machine(rows, depth):
    return Machine(
        name="test", rows=rows, cols=2, weight_depth=8, activation_depth=depth, max_neurons=16,
        max_fan_in=16, bias_depth=8, max_layers=2, delta_bits=18, fraction_bits=12,
        result_fifo_depth=8,
    )


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("rows, depth", [(1, 16), (2, 16), (3, 20), (8, 16)])
def test_writes_and_skewed_reads(rows, depth):
    """Both writers fill all banks; then random reads, with gaps, each row in its cycle."""
    dut = ActivationMemory(machine(rows, depth))
    rng = random.Random(rows)
    words = {(r, a): rng.choice([-128, 127, -1, rng.randint(-128, 127)])
             for r in range(rows) for a in range(depth)}
    sites = list(words)
    rng.shuffle(sites)
    mask = rng.randrange(1 << rows)

    async def bench(ctx):
        post, load = sites[: len(sites) // 2], sites[len(sites) // 2 :]
        accepted = []
        while post or load:
            writing = bool(post) and rng.random() < 0.5
            ctx.set(dut.write_valid, writing)
            row, addr = post.pop() if writing else (0, 0)
            ctx.set(dut.write_row, row)
            ctx.set(dut.write_addr, addr)
            ctx.set(dut.write_data, words[row, addr] if writing else 55)
            loading = bool(load) and rng.random() < 0.7
            ctx.set(dut.load_valid, loading)
            row, addr = load[-1] if loading else (0, 0)
            ctx.set(dut.load_row, row)
            ctx.set(dut.load_addr, addr)
            ctx.set(dut.load_data, words[row, addr] if loading else 66)
            assert ctx.get(dut.load_ready) == (not writing)
            if loading and not writing:
                accepted.append(load.pop())
            await ctx.tick()
        assert len(accepted) == len(sites) - len(sites) // 2
        ctx.set(dut.write_valid, 0)
        ctx.set(dut.load_valid, 0)

        ctx.set(dut.row_mask, mask)
        reads = [(rng.random() < 0.8, rng.randrange(depth), rng.random() < 0.3)
                 for _ in range(200)]
        for t in range(len(reads) + rows):
            valid, addr, last = reads[t] if t < len(reads) else (0, 0, 0)
            ctx.set(dut.read_valid, valid)
            ctx.set(dut.read_addr, addr)
            ctx.set(dut.read_last, last)
            for r in range(rows):
                asked = t - r - ActivationMemory.LATENCY
                if not 0 <= asked < len(reads):
                    continue
                valid, addr, last = reads[asked]
                shown = valid and (not last or mask >> r & 1)
                assert ctx.get(dut.act[r]) == (words[r, addr] if shown else 0), (t, r)
            await ctx.tick()

    simulate(dut, bench)


def test_a_word_can_be_read_in_the_cycle_after_its_write():
    dut = ActivationMemory(machine(2, 16))

    async def bench(ctx):
        ctx.set(dut.write_valid, 1)
        ctx.set(dut.write_row, 0)
        ctx.set(dut.write_addr, 9)
        ctx.set(dut.write_data, -77)
        await ctx.tick()
        ctx.set(dut.write_valid, 0)
        ctx.set(dut.read_valid, 1)
        ctx.set(dut.read_addr, 9)
        await ctx.tick()
        assert ctx.get(dut.act[0]) == -77

    simulate(dut, bench)
