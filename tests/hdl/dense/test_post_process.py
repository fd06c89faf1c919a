"""Post-processing against its equations: corners of every shift, random totals, with gaps."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.dense.post_process import PostProcess
from spec.machine import load_machine


def rnd(v, s):
    return (v + (1 << (s - 1))) >> s


def sat(v, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, v))


def expected(acc, bias, shift):
    z = acc + (bias << 7)
    zl = z >> 3 if z < 0 else z
    return sat(rnd(zl, shift), 8), int(z < 0), sat(rnd(z, shift), 20)


def totals(machine, shift, rng):
    """Pairs of total and bias that no network of the machine can exceed together."""
    high = (1 << (machine.acc_bits - 1)) - 1 - (1 << 22)
    corners = [0, 1, -1, 7, -7, -8, -9, high, -high]
    for scale in (1 << shift, 1 << shift >> 1, 8 << shift, 1 << shift << 7, 8 << shift << 7):
        corners += [sign * scale + offset for sign in (1, -1) for offset in (-1, 0, 1)]
    corners = [acc for acc in corners if abs(acc) <= high]
    pairs = [(acc, 0) for acc in corners] + [(acc - (b << 7), b) for b in (-32768, 32767, 5)
                                             for acc in corners if abs(acc - (b << 7)) <= high]
    for _ in range(60):
        acc = rng.randint(-high, high) >> rng.randrange(20)
        pairs.append((acc, rng.randint(-32768, 32767)))
    return pairs


@pytest.mark.parametrize("is_output", [0, 1])
@pytest.mark.parametrize("name", ["tiny", "mnist"])
def test_stream(name, is_output):
    machine = load_machine(name)
    rng = random.Random(f"{name} {is_output}")
    dut = PostProcess(machine)

    async def bench(ctx):
        ctx.set(dut.is_output, is_output)
        for shift in range(9, 25):
            ctx.set(dut.act_shift, shift)
            await ctx.tick().repeat(2)
            due = {}
            pairs = totals(machine, shift, rng)
            cycle = 0
            while pairs or cycle <= max(due):
                valid = bool(pairs) and rng.random() < 0.8
                acc, bias = pairs.pop() if valid else (rng.getrandbits(20), rng.getrandbits(15))
                ctx.set(dut.acc_valid, valid)
                ctx.set(dut.acc_data, acc)
                ctx.set(dut.bias_data, bias)
                assert ctx.get(dut.bias_pop) == valid
                if valid:
                    due[cycle + PostProcess.LATENCY] = (acc, bias)
                assert ctx.get(dut.out_valid) == (cycle in due)
                if cycle in due:
                    acc, bias = due[cycle]
                    a, neg, score = expected(acc, bias, shift)
                    assert ctx.get(dut.out_neg) == neg, (due[cycle], shift)
                    assert ctx.get(dut.out_score) == score or not is_output, (due[cycle], shift)
                    assert ctx.get(dut.out_a) == a or is_output, (due[cycle], shift)
                await ctx.tick()
                cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
