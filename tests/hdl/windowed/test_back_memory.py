"""hdl.windowed.back_memory: random words in, random steps out, each column in its cycle, against lists."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.back_memory import BackMemory
from spec.machine import load_machine

MOST = 2047
MEMORIES = ("slope", "index", "signal")
LATENCY = 2


def machine(cols, delta_bits=18, slope_depth=40, index_depth=33, signal_depth=24):
    values = {"rule": "bp", "rows": 8, "cols": cols, "delta_bits": delta_bits, "gradient_bits": 64}
    depths = {"slope_depth": slope_depth, "index_depth": index_depth, "signal_depth": signal_depth}
    return replace(load_machine("conv-tiny"), **values, **depths)


class Script:
    """What is set in each cycle, and what columns show."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.t, self.inputs, self.expected = 0, [], {}  # (cycle, column) -> neg, skip, delta
        self.depths = {"slope": m.slope_depth, "index": m.index_depth, "signal": m.signal_depth}
        self.slopes, self.indices = {}, {}
        self.signals = [{} for _ in range(m.cols)]

    def noise(self):
        """Of every input, but nothing is written and no step is asked for."""
        rng, m = self.rng, self.m
        words = {f"{name}_word": rng.randrange(depth) for name, depth in self.depths.items()}
        addresses = {f"{name}_addr": rng.randrange(depth) for name, depth in self.depths.items()}
        return {
            **words, **addresses, **{f"{name}_valid": 0 for name in MEMORIES}, "slope": rng.getrandbits(m.cols),
            "index": [rng.randrange(4) for _ in range(m.cols)], "signal_bank": rng.randrange(m.cols),
            "signal_value": rng.choice([-MOST, -1, 0, 1, MOST, rng.randint(-MOST, MOST)]),
            "channels": rng.randint(0, m.cols), "place": rng.randrange(4), "outside": rng.randrange(2),
            "back": rng.randrange(2),
        }  # fmt: skip

    def cycle(self, writes, step, **held):
        """Writes to memories and, if `step`, a step `LATENCY` cycles later."""
        m, at = self.m, {**self.noise(), **held}
        at |= {f"{name}_valid": 1 for name in writes}
        if step:
            at |= {"outside": self.rng.random() < 0.1, **step}
            for c in range(m.cols):
                neg = self.slopes.get(at["slope_addr"], 0) >> c & 1
                skip = held["pooled"] and self.indices.get(at["index_addr"], [0] * m.cols)[c] != at["place"]
                d = self.signals[c].get(at["signal_addr"], 0)
                if at["outside"] or c >= at["channels"]:
                    d = 0
                if at["back"]:
                    delta = 0 if skip else -d if neg else -8 * d
                else:
                    delta = -d << held["left_shift"]
                self.expected[self.t + LATENCY + c, c] = neg, skip, delta
        # A step of this cycle sees what was written before it.
        if "slope" in writes:
            self.slopes[at["slope_word"]] = at["slope"]
        if "index" in writes:
            self.indices[at["index_word"]] = at["index"]
        if "signal" in writes:
            self.signals[at["signal_bank"]][at["signal_word"]] = at["signal_value"]
        self.inputs.append(at)
        self.t += 1

    def phase(self, cycles, pooled, left_shift):
        """Writes and steps at random; some steps ask at once for what was written a cycle before."""
        rng, held, before = self.rng, {"pooled": pooled, "left_shift": left_shift}, {}
        asked = []  # signals' words, of the last steps
        for _ in range(cycles):
            writes = {name for name in MEMORIES if rng.randrange(2)}
            step = {f"{name}_addr": rng.randrange(depth) for name, depth in self.depths.items()} | before
            step = step if rng.random() < 0.8 else {}
            asked = [step.get("signal_addr"), *asked[: self.m.cols - 1]]
            words = {}
            for name in writes:  # not before the last column has read it
                read = asked if name == "signal" else [step.get(f"{name}_addr")]
                words[f"{name}_word"] = rng.choice([word for word in range(self.depths[name]) if word not in read])
            self.cycle(writes, {**step, **words} if step else step, **held, **words)
            before = {f"{name}_addr": words[f"{name}_word"] for name in writes if rng.randrange(2)}
        for _ in range(self.m.cols + LATENCY):
            self.cycle((), {}, **held)

    def run(self):
        m = self.m
        dut = BackMemory(m)
        shown = 0

        async def bench(ctx):
            nonlocal shown
            for t, at in enumerate(self.inputs):
                for name, value in at.items():
                    if name == "index":
                        for c in range(m.cols):
                            ctx.set(dut.index[c], value[c])
                    else:
                        ctx.set(getattr(dut, name), value)
                for c in range(m.cols):
                    if (t, c) in self.expected:
                        got = ctx.get(dut.neg[c]), ctx.get(dut.skip[c]), ctx.get(dut.delta[c])
                        assert got == self.expected[t, c], (t, c)
                        shown += got[2] != 0
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        return shown


@pytest.mark.parametrize("cols, delta_bits", [(1, 18), (2, 15), (3, 16), (8, 18)])
def test_random_steps(cols, delta_bits):
    script = Script(machine(cols, delta_bits), cols)
    for _ in range(2):
        for left_shift in range(delta_bits - 12 + 1):
            for pooled in (0, 1):
                script.phase(120, pooled, left_shift)
    assert script.run() > len(script.expected) // 4


def test_every_word():
    """Of depths that are powers of two, and of one."""
    for depths in ((32, 16, 8), (1, 1, 1), (2, 1, 4)):
        script = Script(machine(2, 18, *depths), 1)
        held = {"pooled": 1, "left_shift": 6}
        for word in range(max(depths)):
            names = [name for name, depth in zip(MEMORIES, depths, strict=True) if word < depth]
            for bank in range(2):
                script.cycle(names, {}, **held, **{f"{name}_word": word for name in names}, signal_bank=bank)
        for word in range(max(depths)):
            for back in (0, 1):
                addr = {f"{name}_addr": word % depth for name, depth in zip(MEMORIES, depths, strict=True)}
                script.cycle((), {**addr, "back": back, "channels": 2}, **held)
        for _ in range(2 + LATENCY):
            script.cycle((), {}, **held)
        script.run()
    assert BackMemory.LATENCY == LATENCY
