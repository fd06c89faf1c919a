"""hdl.dense.array: skew, totals, updates, host access, all cycle by cycle against plain integers."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.dense.array import Array
from hdl.op import Op
from spec.lfsr import SEQUENCE, offset
from spec.machine import Machine


def machine(rows, cols, **changes):
    values = {
        "name": "test", "rows": rows, "cols": cols, "weight_depth": 32, "activation_depth": 8,
        "max_neurons": 16, "max_fan_in": 64, "bias_depth": 8, "max_layers": 2, "delta_bits": 18,
        "fraction_bits": 12, "result_fifo_depth": 8,
    }
    return Machine(**{**values, **changes})


class Script:
    """Steps with their operands, and the equations of what they must do."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.steps = {}  # cycle -> (op, addr, first, last)
        self.acts = {}  # (cycle, row) -> act visible in that cycle
        self.deltas = []  # in the order of delta_pop
        self.pops = {}  # cycle -> column
        self.hosts = {}  # cycle -> (row, col, data), from then on
        self.results = []  # (cycle, value)
        self.backs = set()  # cycles of BACK steps
        self.back_deltas = {}  # (cycle, column) -> signal visible in that cycle
        self.back_results = []  # (cycle, value)
        self.w = {}
        self.updates = 0
        self.t = 2

    def code(self, low, high):
        return self.rng.choice([low, high, 0, 1, self.rng.randint(low, high)])

    def drain(self):
        self.t += self.m.rows + self.m.cols + 8

    def host_write(self, r, c, addr, word):
        self.hosts[self.t] = (r, c, word)
        self.steps[self.t] = (Op.HOST_WRITE, addr, 1, 1)
        self.w[r, c, addr] = word
        self.drain()

    def host_read(self, r, c, addr):
        self.hosts[self.t] = (r, c, self.code(-(1 << 15), (1 << 15) - 1))
        self.steps[self.t] = (Op.HOST_READ, addr, 1, 1)
        self.results.append((self.t + self.m.rows + c + Array.LATENCY, self.w[r, c, addr]))
        self.drain()

    def noise(self):
        """Acts that nothing asked for, so that a lane read in a wrong cycle shows."""
        for cycle in range(self.t + self.m.rows + 2):
            for r in range(self.m.rows):
                self.acts.setdefault((cycle, r), self.code(-128, 127))
            for c in range(self.m.cols):
                self.back_deltas.setdefault((cycle, c), self.code(-2048, 2047))

    def tiles(self, op, base, row_tiles, col_tiles):
        m = self.m
        x = [[self.code(-128, 127) for _ in range(m.rows)] for _ in range(row_tiles)]
        start = self.t
        for jt in range(col_tiles):
            self.t = start + jt * max(row_tiles, m.cols)
            d = [self.code(-m.max_delta, m.max_delta) for _ in range(m.cols)]
            for c in range(m.cols):
                if op == Op.UPDATE:
                    self.pops[self.t + c] = c
            self.deltas += d if op == Op.UPDATE else []
            totals = [0] * m.cols
            for it in range(row_tiles):
                addr = base + jt * row_tiles + it
                self.steps[self.t] = (op, addr, it == 0, it == row_tiles - 1)
                for r in range(m.rows):
                    self.acts[self.t + r + 1, r] = x[it][r]
                    for c in range(m.cols):
                        totals[c] += x[it][r] * self.w[r, c, addr]
                        if op == Op.UPDATE:
                            self.update(r, c, addr, d[c] * x[it][r])
                self.updates += op == Op.UPDATE
                self.t += 1
            if op == Op.FORWARD:
                for c in range(m.cols):
                    self.results.append((self.t - 1 + m.rows + c + Array.LATENCY, totals[c]))
        self.drain()

    def back(self, base, row_tiles, col_tiles, drain=True):
        """The way back, column tiles fastest; without `drain` other steps may follow at once."""
        m = self.m
        delta = [[self.code(-2047, 2047) for _ in range(m.cols)] for _ in range(col_tiles)]
        start = self.t
        for it in range(row_tiles):
            self.t = start + it * max(col_tiles, m.rows)
            totals = [0] * m.rows
            for jt in range(col_tiles):
                addr = base + jt * row_tiles + it
                self.steps[self.t] = (Op.FORWARD, addr, jt == 0, jt == col_tiles - 1)
                self.backs.add(self.t)
                for c in range(m.cols):
                    self.back_deltas[self.t + c + 1, c] = delta[jt][c]
                    for r in range(m.rows):
                        totals[r] += delta[jt][c] * self.w[r, c, addr]
                self.t += 1
            for r in range(m.rows):
                self.back_results.append((self.t - 1 + r + m.cols + Array.LATENCY, totals[r]))
        if drain:
            self.drain()

    def update(self, r, c, addr, product):
        m = self.m
        state = SEQUENCE[(offset(m, r * m.cols + c) + self.updates) % 65535]
        word = (self.w[r, c, addr] << m.fraction_bits) + (int(state) >> (16 - m.fraction_bits))
        word = (word + product) >> m.fraction_bits
        self.w[r, c, addr] = max(-(1 << 15), min((1 << 15) - 1, word))

    def run(self):
        """Plays the script; checks delta_pop and sums of the way back in every cycle; (cycle, result_data) pairs."""
        self.drain()
        self.noise()
        dut = Array(self.m, check=True)
        found, deltas, rule = [], list(self.deltas), self.m.learning
        back_results = []

        async def bench(ctx):
            for t in range(self.t):
                op, addr, first, last = self.steps.get(t, (Op.UPDATE, 3, 1, 1))
                ctx.set(dut.step_valid, t in self.steps)
                ctx.set(dut.step_op, op)
                ctx.set(dut.step_addr, addr)
                ctx.set(dut.step_first, first)
                ctx.set(dut.step_last, last)
                for r in range(self.m.rows):
                    ctx.set(dut.act[r], self.acts[t, r])
                if t in self.hosts:
                    row, col, word = self.hosts[t]
                    ctx.set(dut.host_row, row)
                    ctx.set(dut.host_col, col)
                    ctx.set(dut.host_data, word)
                if rule.learns:
                    assert ctx.get(dut.delta_pop) == (t in self.pops), t
                    ctx.set(dut.delta, deltas.pop(0) if t in self.pops else -5)
                if rule.transposes:
                    # Without a step, or in one of another kind, it means nothing.
                    ctx.set(dut.step_back, t in self.backs or op != Op.FORWARD and self.rng.randrange(2))
                    for c in range(self.m.cols):
                        ctx.set(dut.back_delta[c], self.back_deltas[t, c])
                    if ctx.get(dut.back_valid):
                        back_results.append((t, ctx.get(dut.back_data)))
                if ctx.get(dut.result_valid):
                    host = max((h for h in self.steps if h < t), key=lambda h: h)
                    is_host = self.steps[host][0] == Op.HOST_READ
                    shift = self.m.random_bits if is_host else 0
                    found.append((t, ctx.get(dut.result_data) >> shift))
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        assert back_results == self.back_results
        return found


SHAPES = [(1, 1), (2, 2), (3, 2), (2, 3), (4, 4)]


@pytest.mark.parametrize("rows, cols", SHAPES)
@pytest.mark.parametrize("delta_bits, fraction_bits", [(18, 12), (16, 10)])
def test_forward_update_and_host(rows, cols, delta_bits, fraction_bits):
    """Weights in, a forward pass, an update, a forward pass over what it wrote, weights out."""
    m = machine(rows, cols, delta_bits=delta_bits, fraction_bits=fraction_bits)
    script = Script(m, seed=rows * 10 + cols)
    sites = [(r, c, a) for r in range(rows) for c in range(cols) for a in range(12)]
    for site in sites:
        script.host_write(*site, script.code(-(1 << 15), (1 << 15) - 1))
    script.tiles(Op.FORWARD, 0, 4, 3)
    script.tiles(Op.UPDATE, 0, 4, 3)
    script.tiles(Op.FORWARD, 0, 4, 3)
    script.tiles(Op.UPDATE, 5, 1, 3)  # tiles shorter than the interval
    script.tiles(Op.FORWARD, 5, 1, 3)
    for site in sites:
        script.host_read(*site)
    assert script.run() == script.results


@pytest.mark.parametrize(
    "rows, cols, delta_bits, fraction_bits",
    [*((r, c, 18, 12) for r, c in SHAPES), (1, 5, 16, 10), (5, 1, 16, 10), (8, 4, 16, 10)],
)
def test_the_way_back(rows, cols, delta_bits, fraction_bits):
    """Mixed with all other steps, directly in front of an update and behind a forward pass; tiles short and long."""
    m = machine(rows, cols, delta_bits=delta_bits, fraction_bits=fraction_bits, rule="bp")
    script = Script(m, seed=rows * 10 + cols)
    sites = [(r, c, a) for r in range(rows) for c in range(cols) for a in range(12)]
    for site in sites:
        script.host_write(*site, script.code(-(1 << 15), (1 << 15) - 1))
    script.back(0, 4, 3, drain=False)
    script.tiles(Op.UPDATE, 0, 4, 3)
    script.tiles(Op.FORWARD, 0, 4, 3)
    script.back(0, 1, 12)
    script.back(3, 3, 1)
    script.back(0, 2, 5, drain=False)
    script.tiles(Op.FORWARD, 2, 2, 2)
    script.tiles(Op.UPDATE, 5, 1, 3)
    script.back(5, 1, 3, drain=False)
    script.tiles(Op.FORWARD, 5, 1, 3)
    for site in sites:
        script.host_read(*site)
    assert script.run() == script.results


@pytest.mark.parametrize("rows, cols", SHAPES)
def test_inference(rows, cols):
    """Weights in, a forward pass, weights out; UPDATE is no operation."""
    script = Script(machine(rows, cols, rule="inference"), seed=rows * 10 + cols)
    sites = [(r, c, a) for r in range(rows) for c in range(cols) for a in range(12)]
    for site in sites:
        script.host_write(*site, script.code(-(1 << 15), (1 << 15) - 1))
    script.tiles(Op.FORWARD, 0, 4, 3)
    for address in range(12):
        script.steps[script.t] = (Op.UPDATE, address, 1, 1)
        script.t += 1
    script.tiles(Op.FORWARD, 5, 1, 3)
    for site in sites:
        script.host_read(*site)
    assert script.run() == script.results


def test_every_step_of_the_lfsrs_counts():
    """UPDATE steps with act 0 and first 0 step the LFSRs and leave the weights alone."""
    m = machine(2, 2)
    script = Script(m, seed=3)
    sites = [(r, c, a) for r in range(2) for c in range(2) for a in range(8)]
    for site in sites:
        script.host_write(*site, script.code(-(1 << 15), (1 << 15) - 1))
    for i in range(50):
        script.steps[script.t] = (Op.UPDATE, i % 8, 0, 0)
        for r in range(2):
            script.acts[script.t + r + 1, r] = 0
        script.updates += 1
        script.t += 1
    script.drain()
    script.tiles(Op.UPDATE, 0, 4, 2)
    for site in sites:
        script.host_read(*site)
    assert script.run() == script.results


@pytest.mark.parametrize("gap, fails", [(1, True), (4, True), (5, False)])
@pytest.mark.parametrize("op", [Op.UPDATE, Op.HOST_WRITE])
def test_check_refuses_a_read_before_the_write(gap, fails, op):
    script = Script(machine(2, 2), seed=4)
    script.steps[script.t] = (op, 7, 0, 0)
    script.steps[script.t + gap] = (Op.UPDATE, 7, 0, 0)
    if fails:
        with pytest.raises(AssertionError, match=f"the step {gap} before"):
            script.run()
    else:
        script.run()
