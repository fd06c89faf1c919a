"""hdl.windowed.tile_bias and bias_memory: gradients by columns, rounding to the bit, reads and the host, by cycle."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.bias_memory import BiasMemory
from hdl.windowed.tile_bias import TileBias
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import load_machine

WORD = (-(1 << 15), (1 << 15) - 1)


def machine(cols=4, rule="dfa", **changes):
    values = {"cols": cols, "bias_depth": 37, "max_neurons": 24, "fraction_bits": 20, "gradient_bits": 44,
              "delta_bits": 18}  # fmt: skip
    return replace(load_machine("tiny"), rule=rule, **{**values, **changes})


class Rig:
    """Drives a unit; on all ports not named, and in columns without a step, there is noise."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.dut = TileBias(m) if m.learning.learns else BiasMemory(m)
        self.words = -(-m.bias_depth // m.cols)
        self.bias = [[self.code(*WORD) for _ in range(m.cols)] for _ in range(self.words)]
        self.steps = 0  # of the LFSR, by the equations
        self.due, self.stepped = [], []  # cycles in which it has to step, in which it did
        self.t = 0
        self.reads, self.columns = {}, {}  # cycle -> word; (cycle, column) -> negative, signal

    def code(self, low, high):
        return self.rng.choice([low, high, 0, 1, self.rng.randint(low, high)])

    async def cycle(self, ctx, **ports):
        """A cycle with these ports; the rest is 0 where it is a strobe, noise elsewhere."""
        dut, m, rng = self.dut, self.m, self.rng
        for name in ("start", "step", "advance", "host_valid"):
            if hasattr(dut, name):
                ctx.set(getattr(dut, name), ports.get(name, 0))
        for name in ("b_base", "step_last", "bias_shift", "host_addr", "host_write", "host_data", "read_addr"):
            if name in dut.signature.members:
                port = getattr(dut, name)
                ctx.set(port, ports.get(name, rng.randrange(1 << len(port)) if len(port) else 0))
        if m.learning.learns:
            found = [self.columns.get((self.t, c), (rng.randrange(2), self.code(-m.max_delta, m.max_delta)))
                     for c in range(m.cols)]  # fmt: skip
            ctx.set(dut.neg, sum(neg << c for c, (neg, _) in enumerate(found)))
            for c, (_, delta) in enumerate(found):
                ctx.set(dut.delta[c], delta)
            if ctx.get(dut.stepped):
                self.stepped.append(self.t)
        if "read_addr" in ports:
            self.reads[self.t] = ports["read_addr"]
        for c in range(m.cols):
            word = self.reads.get(self.t - 1 - c)
            if word is not None:
                assert ctx.get(dut.bias[c]) == self.bias[word][c], (self.t, c)
        self.t += 1
        await ctx.tick()

    async def idle(self, ctx, count, **held):
        for _ in range(count):
            await self.cycle(ctx, **held)

    def places(self):
        return [(word, column) for word in range(self.words) for column in range(self.m.cols)]

    async def host_write(self, ctx, word, column, value):
        addr = word << self.m.col_bits | column
        await self.cycle(ctx, host_valid=1, host_addr=addr, host_write=1, host_data=value)
        self.bias[word][column] = value

    async def write_all(self, ctx):
        for word, column in self.places():
            await self.host_write(ctx, word, column, self.bias[word][column])

    async def read_all(self, ctx):
        for word, column in self.places():
            await self.cycle(ctx, host_valid=1, host_addr=word << self.m.col_bits | column, host_write=0)
            assert ctx.get(self.dut.host_q) == self.bias[word][column], (word, column)

    async def forward(self, ctx, words):
        for word in words:
            await self.cycle(ctx, read_addr=word)
        await self.idle(ctx, self.m.cols)

    async def advance(self, ctx):
        self.due.append(self.t)
        self.steps += 1
        await self.cycle(ctx, advance=1)

    def random_bits(self):
        F = self.m.fraction_bits
        state = int(SEQUENCE[(offset(self.m, self.m.pes) + self.steps) % PERIOD])
        return state >> (16 - F) if F < 16 else state << (F - 16)

    def tile(self, positions, used, left):
        """`[position][column]` of (negative, d'); d' is 0 in columns that the layer lacks."""
        code = lambda c: -self.code(-127, 127) << left if c < used else 0  # noqa: E731
        return [[(self.rng.randrange(2), code(c)) for c in range(self.m.cols)] for _ in range(positions)]

    async def update(self, ctx, base, tiles, shift, gaps=0.0, settle=0):
        """A layer's column tiles, each as soon as it may end; ends `settle` cycles after the last bias can be read."""
        m, F = self.m, self.m.fraction_bits
        await self.cycle(ctx, start=1, b_base=base, bias_shift=shift)
        ended = self.t - m.cols
        for number, tile in enumerate(tiles):
            for p, columns in enumerate(tile):
                last = p == len(tile) - 1
                while self.rng.random() < gaps or (last and self.t < ended + m.cols):
                    await self.cycle(ctx, bias_shift=shift)
                for c, value in enumerate(columns):
                    self.columns[self.t + c, c] = value
                await self.cycle(ctx, step=1, step_last=last, bias_shift=shift)
            ended = self.t - 1
            for c in range(m.cols):
                D = sum(d if neg else 8 * d for neg, d in (columns[c] for columns in tile)) << shift
                total = (self.bias[base + number][c] << F) + self.random_bits() + D
                assert -(1 << (m.psum_bits - 1)) <= total < 1 << (m.psum_bits - 1)
                self.bias[base + number][c] = max(WORD[0], min(WORD[1], total >> F))
                self.due.append(ended + 3 + c)
                self.steps += 1
        await self.idle(ctx, TileBias.WRITE_LATENCY - 1 + m.cols - 1 + settle, bias_shift=shift)

    def run(self, bench):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        assert self.stepped == self.due


MACHINES = [{}, {"fraction_bits": 12, "gradient_bits": 40, "delta_bits": 14},
            {"fraction_bits": 24, "gradient_bits": 48}, {"fraction_bits": 16, "gradient_bits": 38}]  # fmt: skip


@pytest.mark.parametrize("cols", [1, 2, 3, 8])
@pytest.mark.parametrize("changes", MACHINES)
def test_updates(cols, changes):
    """Layers anywhere in the banks, tiles of any number of positions, the last with columns to spare."""
    m = machine(cols, **changes)
    rig = Rig(m, seed=cols)
    rng = rig.rng

    async def bench(ctx):
        await rig.write_all(ctx)
        for number in range(10):
            base = rng.randrange(rig.words)
            tiles, shift = rng.randint(1, rig.words - base), rng.choice([0, 11, 4, rng.randint(0, 11)])
            room = (1 << (m.psum_bits - 1)) - (1 << (15 + m.fraction_bits))
            positions = rng.choice([1, 2, 9])
            fits = (room // (positions * 8 * 128 * 127)).bit_length() - 1  # as spec.windowed's left_max
            left = rng.randint(0, min(m.delta_bits - 8, fits - max(0, shift - 7)))
            values = [rig.tile(positions, cols if n < tiles - 1 else rng.randint(1, cols), left) for n in range(tiles)]
            await rig.update(ctx, base, values, shift, 0.3 * (number % 2), rng.choice([0, 5]))
            if number % 3:
                await rig.forward(ctx, [base + tiles - 1, *range(base, rig.words)])
            else:
                await rig.read_all(ctx)
            for _ in range(rng.randrange(4)):
                await rig.host_write(ctx, *rng.choice(rig.places()), rig.code(*WORD))
                await rig.advance(ctx)
        await rig.read_all(ctx)

    rig.run(bench)


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes(sign):
    """As many positions as fit, all with the largest signal: sums at their limit, biases to both ends."""
    m = machine(2, gradient_bits=37)
    rig = Rig(m, seed=3)
    positions = ((1 << 36) - (1 << 35)) // (8 * 128 * m.max_delta)
    largest = [[[(0, sign * m.max_delta)] * 2] * positions] * 3

    async def bench(ctx):
        for n, word in enumerate([*WORD, 0, -1, 1, 7]):
            rig.bias[2 + n // 2][n % 2] = word
        await rig.write_all(ctx)
        await rig.update(ctx, 2, largest, 7)
        after = {bias for word in rig.bias[2:5] for bias in word}
        assert WORD[sign > 0] in after and WORD[sign < 0] not in after
        await rig.read_all(ctx)

    rig.run(bench)


def test_the_last_word_is_read_as_soon_as_it_may():
    """Column c's, c cycles after column 0's."""
    m = machine(3)
    rig = Rig(m, seed=5)

    async def bench(ctx):
        await rig.write_all(ctx)
        for _ in range(6):
            await rig.update(ctx, 4, [rig.tile(2, 3, 10) for _ in range(2)], 7)
            await rig.forward(ctx, [5])

    rig.run(bench)


@pytest.mark.parametrize("cols", [1, 3, 8])
def test_a_memory_that_is_only_read(cols):
    rig = Rig(machine(cols, "inference"), seed=cols)

    async def bench(ctx):
        await rig.write_all(ctx)
        for _ in range(5):
            await rig.forward(ctx, rig.rng.choices(range(rig.words), k=12))
            await rig.host_write(ctx, *rig.rng.choice(rig.places()), rig.code(*WORD))
        await rig.read_all(ctx)

    rig.run(bench)
