"""hdl.windowed.column_memory: layers of samples in, any order out, each column in its cycle, against lists."""

import random
from dataclasses import dataclass, replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.column_memory import ColumnMemory
from spec.machine import load_machine


def machine(cols, slope_depth=64, signal_depth=48, delta_bits=18, rule="lls"):
    values = {"rows": 8, "cols": cols, "gradient_bits": 44, "delta_bits": delta_bits, "rule": rule}
    return replace(load_machine("tiny"), slope_depth=slope_depth, signal_depth=signal_depth, **values)


@dataclass(frozen=True)
class Layer:
    samples: int
    channels: int
    windows: int
    positions: int


class Script:
    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.t = 1
        self.starts, self.slopes, self.deltas = {}, {}, {}  # cycle -> what is written, or slope_base
        self.reads = {}  # cycle t of a step -> (slope address, signal address, columns)
        self.negs, self.signals = {}, {}  # (cycle, column) -> expected
        self.read = 0

    def code(self):
        top = self.m.max_delta
        return self.rng.choice([-top, top, 0, self.rng.randint(-top, top)])

    def layer(self, layer, gap=lambda: 0, reads=40, settle=True, base=0):
        """Sample by sample slopes, then signals, here and there a read; then many, the first of what came last."""
        cols = self.m.cols
        tiles = -(-layer.channels // cols)
        words, banks = [], [{} for _ in range(cols)]  # what the equations say
        self.starts[self.t] = base
        self.base = base
        self.t += 1
        for b in range(layer.samples):
            for _ in range(tiles * layer.positions):
                bits = self.rng.getrandbits(cols)
                words.append(bits)
                self.slopes[self.t] = bits
                self.t += 1 + gap()
            for j in range(layer.channels):
                for w in range(layer.windows):
                    value = self.code()
                    banks[j % cols][(b * tiles + j // cols) * layer.windows + w] = value
                    ends = w == layer.windows - 1
                    self.deltas[self.t] = value, ends, ends and j == layer.channels - 1
                    self.t += 1 + gap()
            self.t += ColumnMemory.WRITE_LATENCY - 1
            if b % 2 == 0:  # of the first tile
                window = self.rng.randrange(layer.windows)
                self.ask(words, banks, self.rng.randrange(len(words)), window, min(cols, layer.channels))
        sample_tiles = [(b, jt) for b in range(layer.samples) for jt in range(tiles)]
        for number in range(reads):
            b, jt = self.rng.choice(sample_tiles)
            position, window = self.rng.randrange(layer.positions), self.rng.randrange(layer.windows)
            if number == 0:  # as early as it can be
                (b, jt), position, window = sample_tiles[-1], layer.positions - 1, layer.windows - 1
            tile = b * tiles + jt
            used = min(cols, layer.channels - jt * cols)
            if number % 5 == 4:
                used = self.rng.randint(0, used)
            self.ask(words, banks, tile * layer.positions + position, tile * layer.windows + window, used)
            self.t += gap()
        self.t += cols + 2 if settle else 0

    def ask(self, words, banks, slope, signal, used):
        """A step in the next cycle: its addresses in this one."""
        self.reads[self.t] = self.base + slope, signal, used
        for c in range(self.m.cols):
            self.negs[self.t + 1 + c, c] = words[slope] >> c & 1
            self.signals[self.t + 1 + c, c] = banks[c][signal] if c < used else 0
            self.read += 1
        self.t += 1

    def run(self):
        m, rng = self.m, self.rng
        dut = ColumnMemory(m)

        async def bench(ctx):
            for t in range(self.t + m.cols + 3):
                ctx.set(dut.layer_start, t in self.starts)
                if m.learning.waits:
                    ctx.set(dut.slope_base, self.starts.get(t, rng.randrange(m.slope_depth)))
                ctx.set(dut.slope_valid, t in self.slopes)
                ctx.set(dut.slope, self.slopes.get(t, rng.getrandbits(m.cols)))
                noise = self.code(), rng.randrange(2), rng.randrange(2)
                value, channel_last, sample_last = self.deltas.get(t, noise)
                if t in self.deltas and not channel_last:
                    sample_last = 0
                ctx.set(dut.delta_valid, t in self.deltas)
                ctx.set(dut.delta_value, value)
                ctx.set(dut.delta_channel_last, channel_last)
                ctx.set(dut.delta_sample_last, sample_last)
                anywhere = rng.randrange(m.slope_depth), rng.randrange(m.signal_depth), rng.randint(0, m.cols)
                slope, signal, used = self.reads.get(t, anywhere)
                ctx.set(dut.slope_addr, slope)
                ctx.set(dut.signal_addr, signal)
                ctx.set(dut.signal_channels, used)
                for c in range(m.cols):
                    if (t, c) in self.negs:
                        assert ctx.get(dut.neg[c]) == self.negs[t, c], (t, c)
                        assert ctx.get(dut.delta[c]) == self.signals[t, c], (t, c)
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


@pytest.mark.parametrize("cols", [1, 2, 5, 8])
def test_layers_without_a_gap(cols):
    """Tiles that end early, channels of one window, layers of one channel; each layer from word 0 on."""
    script = Script(machine(cols), cols)
    for channels in (1, cols, cols + 1, 2 * cols - 1, 2 * cols):
        for windows in (1, 3):
            script.layer(Layer(3, channels, windows, 2 * windows), settle=windows == 1)
    script.run()
    assert script.read > 300 * cols


@pytest.mark.parametrize("seed, cols", [(0, 2), (1, 4), (2, 8)])
def test_random_layers(seed, cols):
    script = Script(machine(cols, delta_bits=14 + seed), seed)
    rng = script.rng
    for _ in range(12):
        layer = Layer(rng.randint(1, 3), rng.randint(1, 3 * cols), rng.randint(1, 5), rng.randint(1, 7))
        script.layer(layer, lambda: rng.choice([0, 0, 1, 4]))
    script.run()


@pytest.mark.parametrize("cols", [2, 4])
def test_slopes_of_layers_beside_each_other(cols):
    """Where the rule waits: each layer's from its base on; signals still from word 0."""
    script = Script(machine(cols, rule="dfa"), cols)
    for base in (0, 20, 7, 63 - 2 * 2 * 3):
        script.layer(Layer(2, 2 * cols - 1, 2, 3), base=base)
    # What a layer's signals do in between leaves the slopes of others where they are.
    words = [script.rng.getrandbits(cols) for _ in range(9)]
    for base, part in ((30, words[:4]), (10, words[4:])):
        script.starts[script.t] = base
        for bits in part:
            script.t += 1
            script.slopes[script.t] = bits
        script.t += 1
    script.starts[script.t] = 30
    script.t += 1
    for n in range(3):
        script.deltas[script.t] = script.code(), 1, n == 2
        script.t += 1
    for base, part in ((10, words[4:]), (30, words[:4])):
        script.base = base
        for number in range(len(part)):
            script.ask(part, [{0: 0}] * cols, number, 0, 0)
    script.run()


def test_full_memories():
    """To the last word, of depths that are no power of two; then anew. More slopes than words harm no signal."""
    script = Script(machine(3, slope_depth=36, signal_depth=12), 4)
    for _ in range(2):
        script.layer(Layer(2, 6, 3, 9))
    script.starts[script.t] = 0
    for _ in range(100):
        script.t += 1
        script.slopes[script.t] = 7
    script.t += 1
    script.layer(Layer(2, 5, 3, 9))
    script.run()


def test_a_layer_that_is_left_in_the_middle():
    """The next begins in bank 0, at its word 0."""
    script = Script(machine(3), 5)
    script.starts[script.t] = 0
    for n in range(8):
        script.t += 1
        script.slopes[script.t] = n
        script.deltas[script.t] = script.code(), n in (1, 3, 5, 7), 0  # three channels of two, then a fourth
    script.t += 1
    script.layer(Layer(2, 5, 3, 9))
    script.run()
