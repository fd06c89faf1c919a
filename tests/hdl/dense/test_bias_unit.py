"""The bias unit: streams, stochastic rounding to the bit, padding, host access."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.dense.bias_unit import BiasUnit
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import load_machine


def sat16(v):
    return max(-32768, min(32767, v))


@pytest.mark.parametrize("name", ["tiny", "ice40up5k"])
def test_streams(name):
    machine = replace(load_machine(name), bias_depth=37)
    rng = random.Random(name)
    dut = BiasUnit(machine)
    F = machine.fraction_bits
    first = offset(machine, machine.pes)
    biases = [rng.choice([-32768, 32767, 0, rng.randint(-32768, 32767)]) for _ in range(37)]
    steps = 0

    async def pause(ctx):
        while rng.random() < 0.3:
            await ctx.tick()

    async def read_back(ctx):
        ctx.set(dut.host_valid, 1)
        for address, bias in enumerate(biases):
            ctx.set(dut.host_addr, address)
            await ctx.tick()
            assert ctx.get(dut.host_q) == bias, address
        ctx.set(dut.host_valid, 0)

    async def forward(ctx, base, count):
        ctx.set(dut.b_base, base)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await ctx.tick().repeat(BiasUnit.LATENCY - 1)
        for n in range(count):
            await pause(ctx)
            assert ctx.get(dut.bias_data) == biases[base + n], n
            ctx.set(dut.pop, 1)
            await ctx.tick()
            ctx.set(dut.pop, 0)

    async def update(ctx, base, count, padding, shift):
        nonlocal steps
        ctx.set(dut.b_base, base)
        ctx.set(dut.bias_shift, shift)
        ctx.set(dut.delta_start, 1)
        await ctx.tick()
        ctx.set(dut.delta_start, 0)
        ctx.set(dut.b_base, rng.randrange(37))
        await ctx.tick().repeat(BiasUnit.LATENCY - 1)
        low = 1 << (machine.delta_bits - 1)
        for n in range(count + padding):
            if count < 20:
                await pause(ctx)
            delta = rng.choice([1 - low, low - 1, 0, -1, 1, rng.randint(1 - low, low - 1)])
            rand = int(SEQUENCE[(first + steps) % PERIOD]) >> (16 - F)
            if n < count:
                b = biases[base + n]
                biases[base + n] = sat16(((b << F) + rand + (delta << shift)) >> F)
            steps += 1
            ctx.set(dut.delta_valid, 1)
            ctx.set(dut.delta, delta)
            ctx.set(dut.delta_write, n < count)
            await ctx.tick()
            ctx.set(dut.delta_valid, 0)
        await ctx.tick().repeat(BiasUnit.WRITE_LATENCY - 1)

    async def bench(ctx):
        nonlocal steps
        for address, bias in enumerate(biases):
            ctx.set(dut.host_write, 1)
            ctx.set(dut.host_valid, 1)
            ctx.set(dut.host_addr, address)
            ctx.set(dut.host_data, bias)
            await ctx.tick()
        ctx.set(dut.host_write, 0)
        await read_back(ctx)
        for _ in range(6):
            base = rng.randrange(37)
            await forward(ctx, base, 37 - base)
            for shift in (7, 1, 0, 3):
                base = rng.randrange(37)
                await update(ctx, base, rng.randint(1, 37 - base), rng.randrange(4), shift)
            await forward(ctx, base, 1)
            count = rng.randrange(20)
            for _ in range(count):
                await pause(ctx)
                ctx.set(dut.advance, 1)
                await ctx.tick()
                ctx.set(dut.advance, 0)
            steps += count
        await update(ctx, 0, 37, 2, 7)
        await read_back(ctx)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
