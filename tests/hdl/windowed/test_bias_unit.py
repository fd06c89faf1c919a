"""hdl.windowed.bias_unit: sums over windows and samples, rounding to the bit, skewed reads, in every cycle."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.bias_unit import BiasUnit
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import load_machine

WORD = (-(1 << 15), (1 << 15) - 1)
MAX_WEIGHT = 8 * 1024


def machine(cols=4, **changes):
    values = {"cols": cols, "bias_depth": 37, "max_neurons": 24, "fraction_bits": 20, "gradient_bits": 44,
              "delta_bits": 18}  # fmt: skip
    return replace(load_machine("tiny"), **{**values, **changes})


class Rig:
    """Drives the unit, a method a contract; between them, and on all ports not named, there is noise."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.dut = BiasUnit(m)
        self.words = -(-m.bias_depth // m.cols)
        self.bias = [[self.code(*WORD) for _ in range(m.cols)] for _ in range(self.words)]
        self.steps = 0  # of the LFSR, by the equations
        self.due = []  # cycles in which it has to step
        self.channel_steps = 0  # those whose cycle is not said
        self.stepped = []  # cycles in which it did
        self.t = 0
        self.reads = {}  # cycle -> word

    def code(self, low, high):
        return self.rng.choice([low, high, 0, 1, self.rng.randint(low, high)])

    async def cycle(self, ctx, **ports):
        """A cycle with these ports; the rest is 0 where it is a strobe, noise elsewhere."""
        dut, rng, cols = self.dut, self.rng, self.m.cols
        for name in ("layer_start", "delta_valid", "pad", "advance", "host_valid"):
            ctx.set(getattr(dut, name), ports.get(name, 0))
        for name in ("b_base", "sample_first", "sample_last", "delta_value", "delta_weight", "delta_channel_last",
                     "delta_sample_last", "bias_shift", "pad_count", "host_addr", "host_write", "host_data",
                     "read_addr"):  # fmt: skip
            port = getattr(dut, name)
            ctx.set(port, ports.get(name, rng.randrange(1 << len(port)) if len(port) else 0))
        if "read_addr" in ports:
            self.reads[self.t] = ports["read_addr"]
        for c in range(cols):
            word = self.reads.get(self.t - 1 - c)
            if word is not None:
                assert ctx.get(dut.bias[c]) == self.bias[word][c], (self.t, c)
        if ctx.get(dut.stepped):
            self.stepped.append(self.t)
        self.t += 1
        await ctx.tick()

    async def idle(self, ctx, count):
        for _ in range(count):
            await self.cycle(ctx)

    async def host_write(self, ctx, word, column, value):
        addr = word << self.m.col_bits | column
        await self.cycle(ctx, host_valid=1, host_addr=addr, host_write=1, host_data=value)
        self.bias[word][column] = value

    async def write_all(self, ctx):
        for word, column in self.places():
            await self.host_write(ctx, word, column, self.bias[word][column])

    async def host_read(self, ctx, word, column):
        await self.cycle(ctx, host_valid=1, host_addr=word << self.m.col_bits | column, host_write=0)
        assert ctx.get(self.dut.host_q) == self.bias[word][column], (word, column)

    async def read_all(self, ctx):
        for word, column in self.places():
            await self.host_read(ctx, word, column)

    def places(self):
        return [(word, column) for word in range(self.words) for column in range(self.m.cols)]

    async def forward(self, ctx, words):
        """Reads these words, one a cycle."""
        for word in words:
            await self.cycle(ctx, read_addr=word)
        await self.idle(ctx, self.m.cols)

    async def pad(self, ctx, count):
        self.due += [self.t + 1 + n for n in range(count)]
        self.steps += count
        await self.cycle(ctx, pad=1, pad_count=count)
        await self.idle(ctx, count)

    async def advance(self, ctx):
        self.due.append(self.t)
        self.steps += 1
        await self.cycle(ctx, advance=1)

    def random_bits(self):
        F = self.m.fraction_bits
        state = int(SEQUENCE[(offset(self.m, self.m.pes) + self.steps) % PERIOD])
        return state >> (16 - F) if F < 16 else state << (F - 16)

    def signals(self, samples, channels, windows, shift):
        """`[sample][channel][window]` of `(d', A')`, of any size that the sum has room for."""
        m, rng = self.m, self.rng
        room = (1 << (m.psum_bits - 1)) - (1 << (15 + m.fraction_bits))
        left = rng.randint(0, m.delta_bits - 8)
        most = min(MAX_WEIGHT, (room >> shift + left) // (samples * windows * 127))
        assert most >= 1
        return [[[(-self.code(-127, 127) << left, self.code(1, most)) for _ in range(windows)]
                 for _ in range(channels)] for _ in range(samples)]  # fmt: skip

    async def train(self, ctx, base, samples, shift, *, gaps=0.0, wait=BiasUnit.WRITE_LATENCY, pad=0):
        """A layer's batch, and at once so much padding. Ends `wait` cycles after the last signal."""
        m, rng, F = self.m, self.rng, self.m.fraction_bits
        await self.cycle(ctx, layer_start=1, b_base=base)
        for b, channels in enumerate(samples):
            held = {"bias_shift": shift}
            flags = {"sample_first": b == 0, "sample_last": b == len(samples) - 1}
            for j, windows in enumerate(channels):
                for w, (delta, weight) in enumerate(windows):
                    ends = w == len(windows) - 1
                    while (j or w) and rng.random() < gaps:
                        await self.cycle(ctx, **held)
                    await self.cycle(ctx, delta_valid=1, delta_value=delta, delta_weight=weight, **flags, **held,
                                     delta_channel_last=ends,
                                     delta_sample_last=ends and j == len(channels) - 1)  # fmt: skip
            pads = {"pad": 1, "pad_count": pad} if pad and b == len(samples) - 1 else {}
            self.due += [self.t + 1 + n for n in range(pads.get("pad_count", 0))]
            await self.cycle(ctx, **held, **pads)
            await self.cycle(ctx, **held)
            await self.idle(ctx, max(wait, pad) - 3)
        for j in range(len(samples[0])):
            word, column = base + j // m.cols, j % m.cols
            total = (self.bias[word][column] << F) + self.random_bits()
            total += sum((d * a) << shift for channels in samples for d, a in channels[j])
            assert -(1 << (m.psum_bits - 1)) <= total < 1 << (m.psum_bits - 1)
            self.bias[word][column] = max(WORD[0], min(WORD[1], total >> F))
            self.steps += 1
        self.channel_steps += len(samples[0])
        self.steps += pad

    def run(self, bench):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        assert set(self.due) <= set(self.stepped)
        assert len(self.stepped) == len(self.due) + self.channel_steps == self.steps


MACHINES = [{}, {"fraction_bits": 12, "gradient_bits": 40, "delta_bits": 14},
            {"fraction_bits": 24, "gradient_bits": 48},
            {"fraction_bits": 16, "gradient_bits": 38}, {"max_neurons": 64, "gradient_bits": 60}]  # fmt: skip


@pytest.mark.parametrize("cols", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("changes", MACHINES)
def test_batches(cols, changes):
    """Layers of all shapes anywhere in the banks; forward reads, padding and the host's in between."""
    m = machine(cols, **changes)
    rig = Rig(m, seed=cols)
    rng = rig.rng

    async def bench(ctx):
        await rig.write_all(ctx)
        await rig.read_all(ctx)
        for number in range(14):
            base = rng.randrange(rig.words)
            channels = rng.randint(1, min(m.max_neurons, (rig.words - base) * cols))
            shift = rng.choice([0, 11, 4, rng.randint(0, 11)])
            samples = rng.choice([1, 1, 2, 3])
            signals = rig.signals(samples, channels, rng.choice([1, 1, 2, 5]), shift)
            wait = BiasUnit.WRITE_LATENCY + rng.choice([0, 0, 1, 30])
            padding = -channels % cols
            at_once = rng.choice([0, padding])
            await rig.train(ctx, base, signals, shift, gaps=0.3 * (number % 2), wait=wait, pad=at_once)
            await rig.forward(ctx, [*range(base, rig.words), *rng.choices(range(rig.words), k=4)])
            await rig.pad(ctx, padding - at_once)
            if number % 3 == 0:
                await rig.read_all(ctx)
            for _ in range(rng.randrange(4)):
                await rig.host_write(ctx, *rng.choice(rig.places()), rig.code(*WORD))
                await rig.advance(ctx)
                await rig.idle(ctx, rng.randrange(2))
        await rig.read_all(ctx)
        await rig.forward(ctx, range(rig.words))

    rig.run(bench)


@pytest.mark.parametrize("cols", [1, 4])
@pytest.mark.parametrize("windows", [1, 3])
def test_as_soon_as_it_may(cols, windows):
    """A channel alone: its next sample, and what reads it, `WRITE_LATENCY` cycles after its last signal."""
    m = machine(cols)
    rig = Rig(m, seed=2)

    async def bench(ctx):
        await rig.write_all(ctx)
        for number in range(12):
            channels = 1 + number % 3 * (cols > 1)
            base = rig.rng.randrange(rig.words - 3)
            for samples in (4, 1, 1):  # at once another batch of the same layer
                await rig.train(ctx, base, rig.signals(samples, channels, windows, 11), 11)
            last = base + (channels - 1) // cols, (channels - 1) % cols
            if number % 2:
                await rig.host_read(ctx, *last)
            else:
                await rig.forward(ctx, [last[0]])
        await rig.read_all(ctx)

    rig.run(bench)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("samples, windows", [(1, 4), (4, 1), (2, 2)])
def test_extremes(sign, samples, windows):
    """The largest signals at the largest windows: sums to the last of 44 bits, biases to both ends."""
    m = machine(2)
    rig = Rig(m, seed=3)
    largest = [[[(sign * (127 << 10), MAX_WEIGHT)] * windows] * 5] * samples
    small = [[[(-sign * (127 << 10), MAX_WEIGHT >> 3)] * windows] * 5] * samples

    async def bench(ctx):
        for j, word in enumerate([*WORD, 0, -1, 1]):
            rig.bias[2 + j // 2][j % 2] = word
        await rig.write_all(ctx)
        await rig.train(ctx, 2, largest, 11)
        assert {rig.bias[2 + j // 2][j % 2] for j in range(5)} == {WORD[sign > 0]}
        await rig.forward(ctx, range(rig.words))
        for _ in range(2):
            await rig.train(ctx, 2, small, 0)
        assert WORD[sign > 0] not in {rig.bias[2 + j // 2][j % 2] for j in range(5)}
        await rig.read_all(ctx)

    rig.run(bench)


def test_rounding_is_fair():
    """A change of a quarter of a step, 64 times: about 16 steps, by the random bits alone."""
    m = machine(2)
    rig = Rig(m, seed=4)
    before = [100, -100]

    async def bench(ctx):
        rig.bias[0][:] = before
        await rig.write_all(ctx)
        for _ in range(64):
            await rig.train(ctx, 0, [[[(1 << 17 - 4, 4 << 1)], [(-1 << 17 - 4, 4 << 1)]]], 2)
        await rig.read_all(ctx)

    rig.run(bench)
    moved = [after - start for after, start in zip(rig.bias[0], before, strict=True)]
    assert 8 < moved[0] < 24 and -24 < moved[1] < -8
