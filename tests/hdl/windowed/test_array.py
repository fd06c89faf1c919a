"""hdl.windowed.array: skew, totals, sums over windows, host access, the way back, cycle by cycle against integers."""

import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.op import Op
from hdl.windowed.array import WindowArray
from hdl.windowed.pe import WindowPe
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import load_machine

WORD = (-(1 << 15), (1 << 15) - 1)
ACT = (-128, 127)


def machine(rows, cols, **changes):
    values = {"rows": rows, "cols": cols, "fraction_bits": 20, "gradient_bits": 44, "delta_bits": 18}
    return replace(load_machine("tiny"), **{**values, **changes})


class Script:
    """A program for the array and the equations of what it must do; whatever it does not say is noise."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.t = 1
        self.steps = {}  # cycle -> values of the step ports
        self.acts, self.negs, self.skips, self.deltas = {}, {}, {}, {}  # (cycle, row or column) -> value
        self.coarse = {}  # cycle -> value, from then on
        self.hosts = {}  # cycle -> (row, column, word), from then on
        self.results = {}  # (cycle, column) -> (total, its fraction bits)
        self.backs = {}  # cycle -> total of a row
        self.back_end = -m.rows  # cycle of the last step of a row tile
        self.w = np.zeros((m.weight_depth, m.rows, m.cols), dtype=np.int64)
        self.readable = [0] * m.weight_depth  # cycle from which a word can be read
        self.tiles = 0

    def code(self, low, high):
        return self.rng.choice([low, high, 0, 1, self.rng.randint(low, high)])

    def codes(self, shape, low, high):
        return np.array([self.code(low, high) for _ in range(int(np.prod(shape)))]).reshape(shape)

    def drain(self):
        self.t += self.m.rows + self.m.cols + 6

    def step(self, op, addr, first, last, window_first=None, window_last=None, diagonal=None, back=None):
        """The next cycle's step; None is a port that the operation does not look at."""
        self.steps[self.t] = {"op": op, "addr": addr, "first": first, "last": last, "window_first": window_first,
                              "window_last": window_last, "diagonal": diagonal, "back": back}  # fmt: skip
        self.t += 1

    # The host.

    def host_write(self, row, col, addr, word):
        self.hosts[self.t] = (row, col, word)
        self.step(Op.HOST_WRITE, addr, 1, 1)
        self.w[addr, row, col] = word
        self.drain()

    def host_read(self, row, col, addr):
        assert self.t >= self.readable[addr]
        self.hosts[self.t] = (row, col, self.code(*WORD))
        self.results[self.t + self.m.rows + col + 5, col] = (int(self.w[addr, row, col]), self.m.random_bits)
        self.step(Op.HOST_READ, addr, 1, 1)
        self.drain()

    def write_all(self, addrs, diagonal=False):
        for addr in addrs:
            for r, c in np.ndindex(self.m.rows, self.m.cols):
                if r == c or not diagonal:
                    self.host_write(r, c, addr, self.code(*WORD))

    def read_all(self, addrs):
        self.t = max([self.t, *(self.readable[addr] for addr in addrs)])
        for addr in addrs:
            for r, c in np.ndindex(self.m.rows, self.m.cols):
                self.host_read(r, c, addr)

    # Section 2: z = Σ w·x.

    def forward(self, addrs, gaps=lambda: 0):
        """A position of len(addrs) steps."""
        x = self.codes((len(addrs), self.m.rows), *ACT)
        for s, addr in enumerate(addrs):
            assert self.t >= self.readable[addr]
            for r in range(self.m.rows):
                self.acts[self.t + r + 1, r] = int(x[s, r])
            end = self.t
            self.step(Op.FORWARD, addr, s == 0, s == len(addrs) - 1, back=0)
            self.t += gaps()
        z = np.einsum("sr,src->c", x, self.w[addrs])
        for c in range(self.m.cols):
            self.results[end + self.m.rows + c + 5, c] = (int(z[c]), 0)

    # rules.md, section 6: r = Σ w·s. The lanes carry -s.

    def back(self, addrs, s=None, gaps=lambda: 0):
        """A row tile of len(addrs) steps; its last one R cycles after the last one of the row tile before it."""
        m = self.m
        s = self.codes((len(addrs), m.cols), -FACTOR, FACTOR) if s is None else np.full((len(addrs), m.cols), s)
        for n, addr in enumerate(addrs):
            if n == len(addrs) - 1:
                self.t = max(self.t, self.back_end + m.rows)
                self.back_end = self.t
            assert self.t >= self.readable[addr]
            for c in range(m.cols):
                self.deltas[self.t + c, c] = int(s[n, c])
            self.step(Op.FORWARD, addr, n == 0, n == len(addrs) - 1, back=1)
            self.t += gaps()
        for r, total in enumerate(np.einsum("sc,src->r", s, self.w[addrs])):
            self.backs[self.back_end + r + m.cols + 5] = int(total)

    # Section 3: D = Σ_win A·(-d << left).

    def update(
        self, addr, windows, x=None, neg=None, d=None, left=None, coarse=0, diagonal=0, gaps=lambda: 0, skip=None
    ):
        """A tile whose windows have the given numbers of positions; random where nothing else is said."""
        m, positions = self.m, sum(windows)
        largest = (1 << m.signal_bits - 1) - 1
        x = self.codes((positions, m.rows), *ACT) if x is None else np.full((positions, m.rows), x)
        neg = self.codes((positions, m.cols), 0, 1) if neg is None else np.full((positions, m.cols), neg)
        d = self.codes((len(windows), m.cols), -largest, largest) if d is None else np.full((len(windows), m.cols), d)
        left = coarse + self.rng.randint(0, m.delta_bits - m.signal_bits) if left is None else left
        if not m.learning.transposes:
            skip = 0
        skip = self.codes((positions, m.cols), 0, 1) if skip is None else np.full((positions, m.cols), skip)
        window_of = np.repeat(np.arange(len(windows)), windows)

        for p, window in enumerate(window_of):
            ends = p == positions - 1 or window_of[p + 1] != window
            for r in range(m.rows):
                self.acts[self.t + r + 1, r] = int(x[p, r])
            for c in range(m.cols):
                self.negs[self.t + c, c] = int(neg[p, c])
                self.skips[self.t + c, c] = int(skip[p, c])
                if ends:
                    self.deltas[self.t + c, c] = -int(d[window, c]) << (left - coarse)
            assert self.t >= self.readable[addr]
            end = self.t
            flags = (window == 0, window == len(windows) - 1) if ends else (None, None)
            self.step(Op.UPDATE, addr, *flags, p == 0 or window_of[p - 1] != window, ends, diagonal)
            self.t += gaps()

        weighed = np.where(neg[:, None, :], x[:, :, None], x[:, :, None] << 3) * (1 - skip[:, None, :])
        A = np.array([weighed[window_of == window].sum(axis=0) for window in range(len(windows))])
        D = (A * (-d << left)[:, None, :]).sum(axis=0)
        sums = (self.w[addr] << m.fraction_bits) + self.random() + D
        new = np.clip(sums >> m.fraction_bits, *WORD)
        self.w[addr] = np.where(np.eye(m.rows, m.cols, dtype=bool), new, self.w[addr]) if diagonal else new
        self.readable[addr] = end + 5
        self.tiles += 1

    def random(self):
        """rand_F of each PE before this tile: the LFSR's top bits, or the LFSR above zeros."""
        F, found = self.m.fraction_bits, np.zeros((self.m.rows, self.m.cols), dtype=np.int64)
        for r, c in np.ndindex(found.shape):
            state = int(SEQUENCE[(offset(self.m, r * self.m.cols + c) + self.tiles) % PERIOD])
            found[r, c] = state >> (16 - F) if F < 16 else state << (F - 16)
        return found

    def set_coarse(self, value):
        self.drain()
        self.coarse[self.t] = value
        self.drain()

    def run(self, check=True):
        """Plays the script and compares results in every cycle and column; returns how many there were."""
        self.drain()
        dut, rng = WindowArray(self.m, check=check), self.rng
        noise = lambda low, high: rng.choice([low, high])  # noqa: E731
        names = {"first": 1, "last": 1, "window_first": 1, "window_last": 1, "diagonal": 1,
                 "addr": self.m.weight_depth - 1}  # fmt: skip
        learns, transposes, found, rows = self.m.learning.learns, self.m.learning.transposes, {}, {}
        if not learns:
            names = {"first": 1, "last": 1, "addr": self.m.weight_depth - 1}
        if transposes:
            names["back"] = 1

        async def bench(ctx):
            for t in range(self.t):
                step = self.steps.get(t, {"op": rng.choice(list(Op))})
                ctx.set(dut.step_valid, t in self.steps)
                ctx.set(dut.step_op, step["op"])
                for name, top in names.items():
                    value = step.get(name)
                    ctx.set(getattr(dut, f"step_{name}"), noise(0, top) if value is None else int(value))
                for r in range(self.m.rows):
                    ctx.set(dut.act[r], self.acts.get((t, r), noise(*ACT)))
                for c in range(self.m.cols) if learns else ():
                    ctx.set(dut.neg[c], self.negs.get((t, c), noise(0, 1)))
                    ctx.set(dut.delta[c], self.deltas.get((t, c), noise(-self.m.max_delta, 1)))
                    if transposes:
                        ctx.set(dut.skip[c], self.skips.get((t, c), noise(0, 1)))
                if transposes and ctx.get(dut.back_valid):
                    rows[t] = ctx.get(dut.back_data)
                if t in self.coarse:
                    ctx.set(dut.coarse, self.coarse[t])
                if t in self.hosts:
                    row, col, word = self.hosts[t]
                    ctx.set(dut.host_row, row)
                    ctx.set(dut.host_col, col)
                    ctx.set(dut.host_data, word)
                for c in range(self.m.cols):
                    if ctx.get(dut.result_valid[c]):
                        shift = self.results.get((t, c), (0, 0))[1]
                        found[t, c] = (ctx.get(dut.result_data[c]) >> shift, shift)
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        assert found == self.results
        assert rows == self.backs
        return len(found)


MACHINES = [{}, {"fraction_bits": 12, "gradient_bits": 40}, {"fraction_bits": 24, "gradient_bits": 48},
            {"fraction_bits": 16, "gradient_bits": 38, "delta_bits": 14}]  # fmt: skip


BACK = [{"rule": "bp"}, {"rule": "bp", "fraction_bits": 12, "gradient_bits": 36, "delta_bits": 15}]
FACTOR = 2047 * 8
"""The largest signal on its way back, of 8-fold slope."""


@pytest.mark.parametrize("rows, cols", [(1, 1), (2, 2), (3, 2), (2, 3), (4, 4)])
@pytest.mark.parametrize("changes", [*MACHINES[:2], BACK[0]])
def test_forward_and_update_without_a_gap(rows, cols, changes):
    """A pass, at once an update of the same words, at once a pass over what it wrote; windows of 1 to 8."""
    script = Script(machine(rows, cols, **changes), seed=rows * 10 + cols)
    addrs = list(range(6))
    script.write_all(addrs)
    for _ in range(3):
        for _ in range(4):
            script.forward(addrs[:3])
            script.forward(addrs[3:4])  # S = 1: a total a cycle
        for n in range(6):
            script.update(n, [n + 1, n % 3 + 1, 8 - n] if n % 2 else [6 - n])
        for n in (4, 5):  # tiles of one window of one position, the shortest there are
            script.t = max(script.t, script.readable[n])
            script.update(n, [1])
        script.forward(addrs[:3])
        script.t = max(script.t, *script.readable)
    script.forward(addrs)
    script.read_all(addrs)
    assert script.run() == cols * (3 * 9 + 1) + 6 * rows * cols


@pytest.mark.parametrize("seed, changes", list(enumerate(MACHINES + BACK)))
@pytest.mark.parametrize("rows, cols", [(3, 2), (2, 3)])
def test_random_programs(rows, cols, seed, changes):
    """Positions, tiles and row tiles in any order, cycles without a step anywhere."""
    script = Script(machine(rows, cols, **changes), seed)
    rng, addrs = script.rng, list(range(12))
    script.write_all(addrs)
    for number in range(80):
        gaps = (lambda: rng.choice([0, 0, 1, 4])) if number % 3 else (lambda: 0)
        free = [addr for addr in addrs if script.readable[addr] <= script.t]
        if rng.random() < 0.4:
            back = script.m.learning.transposes and rng.random() < 0.6
            (script.back if back else script.forward)(rng.choices(free, k=rng.randint(1, 4)), gaps=gaps)
        else:
            windows = [rng.choice([1, 1, 2, 3, 7]) for _ in range(rng.choice([1, 1, 2, 4]))]
            script.update(rng.choice(free), windows, neg=rng.choice([0, 1, None, None]), gaps=gaps)
    script.read_all(addrs)
    assert script.run() > 12 * rows * cols


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 2), (2, 3), (4, 4), (8, 8)])
@pytest.mark.parametrize("changes", BACK)
def test_back_without_a_gap(rows, cols, changes):
    """Row tiles of 1 to R + 2 steps, at once behind a pass and before an update, whose sums they leave alone."""
    script = Script(machine(rows, cols, weight_depth=64, **changes), seed=rows * 10 + cols)
    addrs = list(range(6))
    for addr, r, c in np.ndindex(len(addrs), rows, cols) if rows < 8 else ((n, n + 1, n) for n in addrs):
        script.host_write(r, c, addr, script.code(*WORD))
    script.forward(addrs)
    for steps in (rows + 2, 1, rows, 2, 1, 1):
        script.back(script.rng.choices(addrs, k=steps))
    script.forward([5])
    script.back([0, 1])
    for addr in addrs:
        script.update(addr, [4, 1])
    script.t = max(script.t, script.readable[0])
    script.back([0])
    script.t = max(script.readable)
    script.back(addrs)
    script.forward(addrs)
    if rows < 8:
        script.read_all(addrs)
    script.run()
    assert len(script.backs) == 9 * rows


def test_the_largest_rows_sums():
    """As many products as the widest layer of 5x5 kernels has, at the lane's and the words' ends."""
    m = machine(2, 2, rule="bp", max_neurons=4)
    script = Script(m, seed=1)
    for addr, word in enumerate(WORD):
        for r, c in np.ndindex(2, 2):
            script.host_write(r, c, addr, word)
    for addr, s in ((0, FACTOR), (0, -FACTOR), (1, FACTOR), (1, -FACTOR)):
        script.back([addr] * 50, s)
    script.drain()
    script.run()
    assert max(script.backs.values()) == 100 * FACTOR << 15 >= 1 << m.back_sum_bits - 2


@pytest.mark.parametrize("apart", [1, 2, 3])
def test_rows_end_one_a_cycle(apart):
    """Row tiles whose last steps come too soon after each other would share the one bus; `check` refuses them."""
    script = Script(machine(3, 2, rule="bp"), seed=2)
    for _ in range(2):
        script.back_end = -3
        script.back([0])
        script.t += apart - 1
    if apart < 3:
        with pytest.raises(AssertionError, match=f"ends {apart} cycles after"):
            script.run()
    else:
        script.run()


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 2), (2, 3), (4, 4)])
def test_without_learning(rows, cols):
    """Positions of any number of steps, a total a cycle too; words come and go as the host will have it."""
    script = Script(machine(rows, cols, rule="inference"), seed=rows * 10 + cols)
    addrs = list(range(6))
    script.write_all(addrs)
    for _ in range(3):
        for steps in ([0, 1, 2], [3], [4], [5], [1, 5]):
            script.forward(steps)
        script.host_write(rows - 1, 0, 3, script.code(*WORD))
        script.read_all(script.rng.sample(addrs, 2))
    script.read_all(addrs)
    assert script.run() == 3 * (5 * cols + 2 * rows * cols) + 6 * rows * cols


def test_8x8():
    script = Script(machine(8, 8), seed=8)
    for r in range(8):
        script.host_write(r, 7 - r, 1, script.code(*WORD))
    for addr in (0, 1, 2):
        script.update(addr, [4, 4], left=10)
    script.t = max(script.readable)
    script.forward([0, 1, 2])
    script.update(1, [1])
    script.t = max(script.readable)
    for addr in (0, 1, 2):  # words come out one by one, by a pass over each
        script.forward([addr])
        script.host_read(addr + 3, 6 - addr, addr)
    assert script.run() == 4 * 8 + 3


@pytest.mark.parametrize("x, d", [(-128, 127), (-128, -127), (127, 127), (127, -127)])
@pytest.mark.parametrize("neg", [0, 1])
def test_extremes(x, d, neg):
    """Largest windows at the largest signal, onto words at both ends: the operand reaches -2^17."""
    script = Script(machine(2, 2), seed=5)
    for addr, word in enumerate((*WORD, 0, -1)):
        for r, c in np.ndindex(2, 2):
            script.host_write(r, c, addr, word)
    for addr in range(4):
        script.update(addr, [128, 128, 1], x=x, neg=neg, d=d, left=10)
    script.t = max(script.readable)
    script.forward([0, 1, 2, 3])
    script.read_all(range(4))
    script.run()
    rises = (x > 0) == (d < 0)
    assert (script.w[1 if rises else 0] == WORD[rises]).all()  # saturated
    assert (script.w[0 if rises else 1] != WORD[not rises]).all()


def test_alternating_slopes():
    """neg and not, in turn by position and by column: 8-fold and single inputs in one window."""
    m = machine(3, 2)
    script = Script(m, seed=6)
    script.write_all([0, 1])
    for addr in (0, 1):
        p, c = np.indices((9, m.cols))
        script.update(addr, [4, 5], neg=(p + c + addr) % 2, left=9)
    script.read_all([0, 1])
    script.run()


@pytest.mark.parametrize("rows, cols", [(2, 2), (3, 2), (4, 4)])
def test_depthwise_writes_the_diagonal_alone(rows, cols):
    """Words beside the diagonal are 0 and stay; all LFSRs step, as a tile of the other kind shows after it."""
    script = Script(machine(rows, cols), seed=7)
    script.write_all([0, 1, 2], diagonal=True)
    for _ in range(2):
        script.forward([0, 1, 2])
        for addr in (0, 1, 2):
            script.update(addr, [2, 3], diagonal=1, left=10)
        script.update(7, [2, 1], diagonal=0, left=10)
        script.t = max(script.readable)
    script.forward([0, 1, 2])
    beside = ~np.eye(rows, cols, dtype=bool)
    assert not script.w[:3, beside].any() and script.w[7, beside].any()
    script.read_all([0, 1, 2, 7])
    script.run()


@pytest.mark.parametrize("changes", MACHINES)
def test_coarse_shifts_what_enters_an_update(changes):
    """Not what goes forward, nor the host's 1; up to 16 fraction bits it is not there."""
    m = machine(3, 2, **changes)
    coarse = 4 if m.fraction_bits > 16 else 0
    script = Script(m, seed=11)
    script.set_coarse(1)
    script.write_all([0, 1, 2])
    script.forward([0, 1])
    for addr, windows in enumerate(([1], [8, 1, 8], [1, 1])):
        script.update(addr, windows, coarse=coarse)
    script.update(3, [8, 8], x=-128, neg=0, d=127, left=m.delta_bits - 8 + coarse, coarse=coarse)
    script.t = max(script.readable)
    script.forward([0, 1, 2])
    script.read_all([0, 1, 2, 3])
    script.set_coarse(0)
    script.update(0, [3])
    script.read_all([0])
    script.run()


def test_a_step_of_zeros_steps_the_lfsrs():
    """Tiles of one position with act 0 leave the words as they are, whatever the signal."""
    script = Script(machine(2, 2), seed=3)
    script.write_all(range(6))
    before = script.w.copy()
    for i in range(30):
        script.update(i % 6, [1], x=0)
    assert (script.w == before).all()
    script.drain()
    for addr in range(6):
        script.update(addr, [1])
    script.read_all(range(6))
    script.run()


@pytest.mark.parametrize("gap", range(1, 8))
@pytest.mark.parametrize("op", [Op.UPDATE, Op.HOST_WRITE])
def test_when_a_written_word_can_be_read(gap, op):
    """From the fifth cycle on; `check` refuses to read it before, when simulation gives the old word."""
    for check in (True, False):
        script = Script(machine(3, 2), seed=4)
        script.write_all([7])
        old = script.w[7].copy()
        if op == Op.UPDATE:
            script.update(7, [3, 2], x=127, d=-127, left=10)
        else:
            script.hosts[script.t] = (1, 1, 99)
            script.w[7, 1, 1] = 99
            script.step(op, 7, 1, 1)
        new = script.w[7].copy()
        assert (old != new).any()
        script.readable[7] = 0
        script.w[7] = old if gap < 5 else new
        script.t += gap - 1
        script.forward([7])
        if check and gap < 5:
            with pytest.raises(AssertionError, match=f"the step {gap} before"):
                script.run()
        else:
            script.run(check)


def test_the_multiplier_rests_within_a_window(monkeypatch):
    """A signal enters a column in the steps that apply it alone; in all others, and without a step, a 0."""
    m, pes = machine(3, 2), []
    original = WindowPe.__init__
    monkeypatch.setattr(WindowPe, "__init__", lambda pe, m: (pes.append(pe), original(pe, m))[1])
    dut, rng = WindowArray(m), random.Random(12)
    steps = [rng.choice([None, (Op.UPDATE, 0), (Op.UPDATE, 1), (Op.FORWARD, 1)]) for _ in range(200)]

    async def bench(ctx):
        for t, step in enumerate(steps):
            ctx.set(dut.step_valid, step is not None)
            op, window_last = step or (Op.UPDATE, 1)
            ctx.set(dut.step_op, op)
            ctx.set(dut.step_window_last, window_last)
            for c in range(m.cols):
                ctx.set(dut.delta[c], -t - 1)
                # The first row's PEs come first, in the order of columns; a lane's edge is a register.
                before = t - 1 - c
                applies = before >= 0 and steps[before] == (Op.UPDATE, 1)
                assert ctx.get(pes[c].delta_in) == (-t if applies else 0), (t, c)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
