"""hdl.arith against plain integers: every code of narrow operands, corners and random ones else."""

import gc
import random

import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.sim import Simulator

from hdl.arith import (
    Lfsr,
    bits_below,
    clip_symmetric,
    delay_line,
    leading_one,
    round_shift,
    saturate,
    truncate,
)


def codes(shape, count=200, seed=1):
    """Corner codes of a shape and random ones; all codes when it has at most 8 bits."""
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    high = low + (1 << shape.width) - 1
    if shape.width <= 8:
        return list(range(low, high + 1))
    rng = random.Random(seed)
    corners = [low, low + 1, -1, 0, 1, high - 1, high]
    for bit in range(shape.width - 1):
        corners += [1 << bit, (1 << bit) - 1, -(1 << bit)]
    values = corners + [rng.randint(low, high) >> rng.randrange(shape.width) for _ in range(count)]
    return [v for v in values if low <= v <= high]


def check(shapes, build, expect, vectors):
    """Every vector through the expression `build(*operands)` equals `expect(*vector)`."""
    operands = [Signal(shape, name=f"operand{i}") for i, shape in enumerate(shapes)]
    m = Module()
    value = build(*operands)
    result = Signal(value.shape())
    m.d.comb += result.eq(value)

    async def bench(ctx):
        for vector in vectors:
            for operand, code in zip(operands, vector, strict=True):
                ctx.set(operand, code)
            await ctx.delay(1e-9)
            assert ctx.get(result) == expect(*vector), vector

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    return value


def rnd(v, s):
    return (v + (1 << (s - 1))) >> s if s else v


@pytest.mark.parametrize("shape", [signed(8), unsigned(8), signed(29), signed(3)], ids=str)
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_saturate(shape, bits):
    high = (1 << (bits - 1)) - 1
    value = check(
        [shape], lambda v: saturate(v, bits), lambda v: max(-high - 1, min(high, v)),
        [(v,) for v in codes(shape)],
    )
    assert value.shape() == signed(bits)


def test_clip_symmetric():
    for width in (8, 10):
        check(
            [signed(width)], lambda v: clip_symmetric(v, 8), lambda v: max(-127, min(127, v)),
            [(v,) for v in codes(signed(width))],
        )


def test_truncate_extends():
    check([signed(5)], lambda v: truncate(v, 9), lambda v: v, [(v,) for v in codes(signed(5))])
    check([unsigned(5)], lambda v: truncate(v, 9), lambda v: v, [(v,) for v in codes(unsigned(5))])


@pytest.mark.parametrize("shape", [signed(7), unsigned(7), signed(34)], ids=str)
@pytest.mark.parametrize("amount", [0, 1, 2, 6, 7, 9])
def test_round_shift_by_a_constant(shape, amount):
    check(
        [shape], lambda v: round_shift(v, amount), lambda v: rnd(v, amount),
        [(v,) for v in codes(shape)],
    )


@pytest.mark.parametrize("shape", [signed(6), unsigned(6), signed(34)], ids=str)
@pytest.mark.parametrize("bounds", [(0, 31), (0, 9), (9, 24), (1, 4)], ids=str)
def test_round_shift_by_a_value(shape, bounds):
    low, high = bounds
    vectors = [(v, s) for v in codes(shape, 60) for s in range(low, high + 1)]
    check(
        [shape, unsigned(5)], lambda v, s: round_shift(v, s, high, min_amount=low), rnd, vectors
    )


def test_round_shift_refuses_bounds():
    with pytest.raises(ValueError, match="0 <= min <= max"):
        round_shift(Signal(8), Signal(3), 2, min_amount=3)


@pytest.mark.parametrize("width", [1, 2, 5, 8, 21])
def test_leading_one(width):
    value = check(
        [unsigned(width)], leading_one, lambda v: max(0, v.bit_length() - 1),
        [(v,) for v in codes(unsigned(width))],
    )
    assert len(value) == max(1, (width - 1).bit_length())


def test_bits_below():
    check(
        [unsigned(8), unsigned(3)], lambda v, t: bits_below(v, t, 4),
        lambda v, t: (v << 4 >> t) & 15,
        [(v, max(0, v.bit_length() - 1)) for v in range(256)],
    )


def test_lfsr_steps_and_holds():
    init = 0x1234
    dut = Lfsr(init)
    seen = []

    async def bench(ctx):
        assert ctx.get(dut.state) == init
        await ctx.tick().repeat(3)
        assert ctx.get(dut.state) == init  # holds without step
        ctx.set(dut.step, 1)
        state = init
        for _ in range(300):
            await ctx.tick()
            state = (state >> 1) ^ (0xB400 if state & 1 else 0)
            assert ctx.get(dut.state) == state
            seen.append(state)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(set(seen)) == 300


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("init", [0, 1 << 16])
def test_lfsr_refuses_a_state_it_cannot_leave_or_hold(init):
    with pytest.raises(ValueError, match="init must be in 1...65535"):
        Lfsr(init)
    gc.collect()


def test_delay_line():
    m = Module()
    value = Signal(signed(5))
    taps = delay_line(m, value, 3, "line")
    assert [tap.shape() for tap in taps] == [signed(5)] * 4

    async def bench(ctx):
        history = [0, 0, 0, 0]
        for code in (3, -7, 15, -16, 0, 1):
            ctx.set(value, code)
            history = [code, *history[:3]]
            await ctx.delay(1e-9)
            assert [ctx.get(tap) for tap in taps] == history
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
