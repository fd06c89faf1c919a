"""hdl.windowed.map_memory: unaligned writes by two writers, rotated and masked reads, against a list."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.windowed.map_memory import MapMemory, element_bits
from spec.machine import Machine


def machine(rows, cols, depth=16):
    return Machine(
        name="test", rows=rows, cols=cols, weight_depth=8, activation_depth=depth, max_neurons=16,
        max_fan_in=16, bias_depth=8, max_layers=2, delta_bits=18, fraction_bits=12,
        result_fifo_depth=8,
    )  # fmt: skip


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("rows, cols, depth", [(1, 1, 16), (2, 2, 16), (4, 3, 10), (8, 8, 16), (8, 5, 20)])
def test_random_writes_and_reads(rows, cols, depth):
    """All in every cycle; a loader that is refused holds its element; each act in its cycle."""
    dut, rng = MapMemory(machine(rows, cols, depth)), random.Random(rows)
    elements = [0] * (rows * depth)
    written = [0] * len(elements)  # the cycle, the last time
    acts = {}  # (cycle, row) -> value
    refused = 0

    async def bench(ctx):
        nonlocal refused
        loading = False
        load = 0, 0
        for t in range(10, 1200):
            old = list(elements)
            writing = rng.random() < 0.6
            count = rng.randint(0, cols)
            start = rng.randrange(len(elements) - count + 1) % len(elements)
            vector = [rng.randint(-128, 127) for _ in range(cols)]
            ctx.set(dut.write_valid, writing)
            ctx.set(dut.write_element, start)
            ctx.set(dut.write_count, count)
            for lane, value in enumerate(vector):
                ctx.set(dut.write_data[lane], value)
            if not loading:
                loading = rng.random() < 0.6
                load = rng.randrange(len(elements)), rng.randint(-128, 127)
            ctx.set(dut.load_valid, loading)
            ctx.set(dut.load_element, load[0])
            ctx.set(dut.load_data, load[1])
            assert ctx.get(dut.load_ready) == (not writing)
            changes = dict(zip(range(start, start + count), vector, strict=False)) if writing else {}
            if loading and not writing:
                changes, loading = dict([load]), False
            refused += loading

            addr = [rng.randrange(depth) for _ in range(rows)]
            rotation, mask = rng.randrange(rows), rng.choice([-1, rng.randrange(1 << rows)])
            for bank, value in enumerate(addr):
                ctx.set(dut.read_addr[bank], value)
            ctx.set(dut.rotation, rotation)
            ctx.set(dut.mask, mask)
            for r in range(rows):
                element = addr[(rotation + r) % rows] * rows + (rotation + r) % rows
                settled = element not in changes and t - written[element] >= MapMemory.WRITE_LATENCY
                value = old[element] if settled else None
                acts[t + MapMemory.LATENCY + r, r] = value if mask >> r & 1 else 0
            for element, value in changes.items():
                elements[element], written[element] = value, t
            for r in range(rows):
                if acts.get((t, r)) is not None:
                    assert ctx.get(dut.act[r]) == acts[t, r], (t, r)
            await ctx.tick()

    simulate(dut, bench)
    assert refused > 100


def test_a_vector_can_be_read_two_cycles_after_its_write():
    """And not a whole word more than it has is written."""
    dut = MapMemory(machine(4, 3))

    async def bench(ctx):
        for bank in range(4):
            ctx.set(dut.read_addr[bank], 2 + (bank < 3))  # elements 11, 12, 13, 14
        ctx.set(dut.rotation, 3)
        ctx.set(dut.mask, 0b1111)
        ctx.set(dut.write_valid, 1)
        ctx.set(dut.write_element, 11)
        ctx.set(dut.write_count, 3)
        for lane, value in enumerate((-128, 127, -1)):
            ctx.set(dut.write_data[lane], value)
        await ctx.tick()
        ctx.set(dut.write_valid, 0)
        for t in range(1, 10):
            for r, value in enumerate((-128, 127, -1, 0)):
                if t - r >= MapMemory.WRITE_LATENCY + MapMemory.LATENCY:
                    assert ctx.get(dut.act[r]) == value, (t, r)
            await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("rows, cols", [(3, 2), (4, 8)])
def test_shapes_that_have_no_maps_are_refused(rows, cols):
    with pytest.raises(ValueError, match=f"{rows}x{cols}"):
        element_bits(machine(rows, cols))
