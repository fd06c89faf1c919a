"""The bias unit: prefetched streams forward, rounded updates, host access, against the golden
model."""

import cocotb
import numpy as np

from golden.fixed import bias_random, update_biases
from hdl.dense.bias_unit import BiasUnit
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline

READ_LATENCY = 1
"""The host's word comes in the cycle after its address."""


class Bench:
    """Schedules the streams one after another and keeps the golden biases."""

    def __init__(self, timeline: Timeline):
        self.machine = context.design().machine
        self.timeline = timeline
        self.rng = context.rng("streams")
        self.t = timeline.now + 1
        self.bias = np.zeros(self.machine.bias_depth, dtype=np.int16)
        self.steps = 0

    def gaps(self, count: int) -> list[int]:
        """Cycles of ``count`` events from ``self.t`` on: dense at times, sparse at others."""
        often = self.rng.choice([1, 2, 4])
        cycles = []
        while len(cycles) < count:
            if self.rng.integers(often) == 0:
                cycles.append(self.t)
            self.t += 1
        return cycles

    def host_write(self, addr: int, value: int) -> None:
        """One word."""
        self.timeline.drive(self.t, host_valid=1, host_write=1, host_addr=addr, host_data=value)
        self.bias[addr] = value
        self.t += 1

    def host_read_all(self) -> None:
        """Every word, in random order."""
        for addr in self.rng.permutation(self.machine.bias_depth):
            self.timeline.drive(self.t, host_valid=1, host_addr=int(addr))
            value = int(self.bias[addr])
            self.timeline.expect(self.t + READ_LATENCY, "host_q", value, f"address {addr}")
            self.t += 1
        self.t += READ_LATENCY

    def forward(self, base: int, count: int) -> None:
        """A forward stream; each bias waits until it is popped."""
        self.timeline.drive(self.t, start=1, b_base=base)
        self.t += BiasUnit.LATENCY
        shown = self.t
        for j, pop in enumerate(self.gaps(count)):
            for cycle in range(shown, pop + 1):
                self.timeline.expect(cycle, "bias_data", int(self.bias[base + j]), f"neuron {j}")
            self.timeline.drive(pop, pop=1)
            shown = pop + 1

    def update(self, base: int, count: int, padded: int, bias_shift: int) -> None:
        """An update stream of ``count`` biases and ``padded`` values that change nothing."""
        machine, rng = self.machine, self.rng
        largest = 127 << (machine.delta_bits - 8)
        deltas = rng.integers(-largest, largest + 1, count) >> rng.integers(0, 16, count)
        deltas[: count // 4] = rng.choice([-largest, largest], count // 4)
        self.timeline.drive(self.t, delta_start=1, b_base=base)
        begin = self.t
        self.t += BiasUnit.LATENCY
        for j, cycle in enumerate(self.gaps(count + padded)):
            real = j < count
            value = int(deltas[j]) if real else 0
            self.timeline.drive(cycle, delta_valid=1, delta=value, delta_write=real)
        self.t += BiasUnit.WRITE_LATENCY - 1
        for cycle in range(begin, self.t):
            self.timeline.drive(cycle, bias_shift=bias_shift)
        window = slice(base, base + count)
        random = bias_random(machine, count, self.steps)
        self.bias[window] = update_biases(self.bias[window], deltas, bias_shift, random, machine.fraction_bits)
        self.steps += count + padded

    def advance(self, count: int) -> None:
        """Step the LFSR alone."""
        for cycle in self.gaps(count):
            self.timeline.drive(cycle, advance=1)
        self.steps += count


@cocotb.test()
async def streams(dut):
    """Random streams of both kinds, host access and advances between them."""
    cycles = await start(dut)
    noise = ("b_base", "delta", "bias_shift", "host_addr", "host_data")
    timeline = Timeline(cycles, context.rng("noise"), noise)
    bench = Bench(timeline)
    depth, rng = bench.machine.bias_depth, bench.rng
    corners = [-32768, 32767, 0, -1]
    for addr in range(depth):
        bench.host_write(addr, corners[addr] if addr < 4 else int(rng.integers(-32768, 32768)))
    bench.host_read_all()
    for turn in range(30):
        base = int(rng.integers(depth))
        count = int(rng.integers(1, depth - base + 1))
        if turn % 10 == 0:
            base, count = 0, depth
        bench.forward(base, count)
        # 7 belongs to a layer on pixels, 1 to one on hidden activations.
        bench.update(base, count, int(rng.integers(4)), int(rng.choice([7, 1])))
        if turn % 3 == 0:
            bench.advance(int(rng.integers(1, 50)))
        if turn % 5 == 0:
            bench.host_read_all()
            bench.host_write(base, int(rng.integers(-32768, 32768)))
        await timeline.run(bench.t)
    bench.host_read_all()
    await timeline.run()
    assert timeline.checked > 7 * depth
