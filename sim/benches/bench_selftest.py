"""The bench of the benches: the trivial accumulator through every stall pattern."""

import cocotb

from sim.benches import context
from sim.benches.streams import Driver, Monitor, Scoreboard, stalls, start


@cocotb.test()
async def sums(dut):
    """Every running sum comes once, in order, whatever stalls."""
    rng = context.rng("data")
    cycles = await start(dut, fault=context.parameter("fault", 0))
    numbers = [int(value) for value in rng.integers(0, 256, 100)]
    board = Scoreboard("sums")
    total = 0
    for number in numbers:
        total = (total + number) & 0xFFFF
        board.expect(total, number)
    source = Driver(dut, "inputs", stalls(context.parameter("source"), context.rng("source")))
    Monitor(dut, "outputs", stalls(context.parameter("sink"), context.rng("sink")), board.got)
    await source.send(numbers)
    for _ in range(200):
        await cycles.next()
    board.done(len(numbers))


@cocotb.test()
async def combinational(dut):
    """An input driven after the rising edge reaches a combinational output in the same cycle."""
    cycles = await start(dut)
    for number in (0, 255, 1, 254):
        dut.inputs__payload.value = number
        await cycles.sample()
        assert int(dut.echo.value) == number + 1
        await cycles.next()


@cocotb.test()
async def latency(dut):
    """A number driven in cycle t is in the register, and visible, in cycle t + 1 and not before."""
    cycles = await start(dut)
    dut.outputs__ready.value = 1
    dut.inputs__valid.value = 1
    dut.inputs__payload.value = 3
    await cycles.sample()
    assert int(dut.outputs__valid.value) == 0
    await cycles.next()
    dut.inputs__valid.value = 0
    await cycles.sample()
    assert (int(dut.outputs__valid.value), int(dut.outputs__payload.value)) == (1, 3)
    await cycles.next()
    await cycles.sample()
    assert int(dut.outputs__valid.value) == 0
