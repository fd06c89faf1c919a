"""hdl.windowed.pe alone: every port in its cycle, sums over windows and tiles, corner codes, the host, the way back."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.pe import WINDOW_BITS, WindowPe, west_bits
from spec.machine import load_machine


def machine(delta_bits=18, fraction_bits=20, gradient_bits=44, **changes):
    values = {"delta_bits": delta_bits, "fraction_bits": fraction_bits, "gradient_bits": gradient_bits, **changes}
    return replace(load_machine("tiny"), **values)


MACHINES = [machine(), machine(18, 24, 48), machine(16, 16, 40), machine(12, 8, 32)]
BACK = [machine(rule="bp", cols=2), machine(18, 24, 48, rule="bp", cols=8), machine(15, 8, 24, rule="bp", cols=4)]
FACTOR = 2047 * 8
"""The largest signal on its way back, of 8-fold slope."""


def sat16(v):
    return max(-(1 << 15), min((1 << 15) - 1, v))


def step(op=None, addr=0, act=0, neg=1, delta=0, psum=0, first=0, last=0, begins=0, ends=0, skip=0):
    """A step, or (`op` None) a cycle without one; `begins` and `ends` a window, `first` and `last` of a tile.

    `psum` comes from above, in a BACK step from the west.
    """
    return {"op": op, "addr": addr, "act": act, "neg": neg, "delta": delta, "psum": psum, "skip": skip,
            "first": first, "last": last, "begins": begins, "ends": ends, "random": 0}  # fmt: skip


def host(op, addr, word=0, *, m, hit=1):
    """A host operation, on this PE if `hit`; a write's word comes from above."""
    psum = word << m.fraction_bits if op == "HOST_WRITE" else 0
    return step(op, addr, act=hit, delta=hit, psum=psum)


def tile(addr, windows, deltas, gaps=lambda: 0):
    """An update of a word: `windows` of `(act, neg[, skip])`, a delta each; no delta but where a window ends."""
    steps = []
    for number, (positions, delta) in enumerate(zip(windows, deltas, strict=True)):
        for place, (act, neg, *skip) in enumerate(positions):
            ends = place == len(positions) - 1
            steps.append(step(
                "UPDATE", addr, act, neg, delta if ends else ~delta, psum=99,
                first=number == 0, last=number == len(windows) - 1, begins=place == 0, ends=ends,
                skip=any(skip),
            ))  # fmt: skip
            steps += [step(delta=7, neg=0, psum=5)] * gaps()
    return steps


def drive(dut, steps):
    """Runs one step a cycle, each port in its own cycle; returns psum_out by step, of BACK steps as the east has it."""
    found = []
    fraction, low = dut.machine.fraction_bits, west_bits(dut.machine)
    transposes = dut.machine.learning.transposes

    async def bench(ctx):
        at = lambda cycle: steps[cycle] if 0 <= cycle < len(steps) else step()  # noqa: E731
        for t in range(len(steps) + 5):
            s0, s1, s2, s3, s4 = (at(t - age) for age in range(5))
            ctx.set(dut.read_addr, s0["addr"])
            ctx.set(dut.forward, s1["op"] == "FORWARD")
            ctx.set(dut.window_first, s1["begins"] if s1["op"] == "UPDATE" else s1["op"] is not None)
            ctx.set(dut.act_in, s1["act"])
            ctx.set(dut.neg_in, s1["neg"])
            ctx.set(dut.delta_in, s1["delta"])
            if t >= 2:
                assert (ctx.get(dut.act_out), ctx.get(dut.neg_out)) == (s2["act"], s2["neg"])
                if s2["op"] != "FORWARD":
                    assert ctx.get(dut.delta_out) == s2["delta"]
            update = s2["op"] == "UPDATE"
            ctx.set(dut.add, s2["ends"] if update else s2["op"] is not None)
            ctx.set(dut.update, update)
            ctx.set(dut.load, update and s2["ends"] and s2["first"])
            ctx.set(dut.host_read, s2["op"] == "HOST_READ")
            ctx.set(dut.store, s3["op"] == "UPDATE" and s3["ends"] and s3["last"])
            ctx.set(dut.host_write, s3["op"] == "HOST_WRITE")
            ctx.set(dut.psum_in, ~s3["psum"] if s3["op"] == "BACK" else s3["psum"])
            if transposes:
                ctx.set(dut.skip_in, s1["skip"])
                ctx.set(dut.back, s1["op"] == "BACK")
                ctx.set(dut.west, s2["op"] == "BACK")
                ctx.set(dut.psum_west, s3["psum"] if s3["op"] == "BACK" else ~s3["psum"] % (1 << low - 1))
                assert t < 2 or ctx.get(dut.skip_out) == s2["skip"]
            ctx.set(dut.random, s3["random"] >> max(0, fraction - 16))
            ctx.set(dut.write_addr, s4["addr"])
            if 0 <= t - 4 < len(steps):
                psum, half = ctx.get(dut.psum_out), 1 << low - 1
                found.append((psum + half) % (2 * half) - half if s4["op"] == "BACK" else psum)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def expect(m, steps):
    """What `drive` must return: section 3's sums, window by window; None where psum_out means nothing."""
    F, found = m.fraction_bits, []
    window, total = [], None
    writes = []  # (cycle from which it is read, addr, word)
    for t, s in enumerate(steps):
        w = ([word for since, addr, word in writes if addr == s["addr"] and since <= t] or [0])[-1]
        if s["op"] == "FORWARD":
            total = s["psum"] + s["act"] * w
        elif s["op"] == "BACK":
            total = s["psum"] + s["delta"] * w
        elif s["op"] == "HOST_READ":
            hit = s["act"] * s["delta"] & 1
            total = (w << F) + (s["random"] & ~1) + 1 if hit else s["psum"] + s["act"] * s["delta"]
        elif s["op"] == "HOST_WRITE":
            total = s["psum"] + s["act"] * s["delta"]
            if s["act"] * s["delta"] & 1:
                writes.append((t + 5, s["addr"], total >> F))
        elif s["op"] == "UPDATE":
            added = 0 if s["skip"] else s["act"] if s["neg"] else s["act"] << 3
            window = ([] if s["begins"] else window) + [added]
            if s["ends"]:
                start = (w << F) + s["random"] if s["first"] else total
                assert start is not None
                total = start + sum(window) * s["delta"]
                if s["last"]:
                    writes.append((t + 5, s["addr"], sat16(total >> F)))
        assert total is None or -(1 << m.psum_bits - 1) <= total < 1 << m.psum_bits - 1
        found.append(total)
        if s["op"] == "BACK":
            total = None  # what is above its bits means nothing
    return found


def check(m, steps, rng):
    """`drive` gives what is expected; random bits change every cycle, with zeros below the LFSR's 16."""
    for s in steps:
        code = rng.choice([0, 1, (1 << m.fraction_bits) - 1, rng.getrandbits(m.fraction_bits)])
        s["random"] = code >> max(0, m.fraction_bits - 16) << max(0, m.fraction_bits - 16)
    expected = expect(m, steps)
    found = drive(WindowPe(m), steps)
    known = [t for t, value in enumerate(expected) if value is not None]
    assert [(t, found[t]) for t in known] == [(t, expected[t]) for t in known]
    return found


@pytest.mark.parametrize("m", MACHINES)
def test_host_writes_and_reads_every_corner(m):
    words = [-(1 << 15), -1, 0, 1, (1 << 15) - 1, 0x1234]
    steps = [host("HOST_WRITE", i, w, m=m) for i, w in enumerate(words)]
    steps += [host("HOST_WRITE", i, 77, hit=0, m=m) for i in range(len(words))]  # not this PE
    reads = [host("HOST_READ", i, m=m) for i in range(len(words)) for _ in range(4)]
    found = check(m, steps + reads + [host("HOST_READ", 0, hit=0, m=m)], random.Random(1))
    assert [v >> m.fraction_bits for v in found[-len(reads) - 1 : -1]] == [w for w in words for _ in range(4)]


@pytest.mark.parametrize("seed, m", list(enumerate(MACHINES + BACK)))
def test_random_tiles(seed, m):
    """Steps forward and back, tiles of every length back to back, gaps in them and between; no word within five."""
    rng, transposes = random.Random(seed), m.learning.transposes
    west = (m.cols - 1) * FACTOR << 15
    corner = lambda low, high: rng.choice([low, high, 0, 1, rng.randint(low, high)])  # noqa: E731
    steps = [host("HOST_WRITE", a, corner(-(1 << 15), (1 << 15) - 1), m=m) for a in range(32)]
    addr = 0
    for i in range(250):
        if rng.random() < 0.4:
            for _ in range(rng.randint(1, 4)):
                addr = (addr + 5) % 32
                if transposes and rng.random() < 0.5:
                    steps.append(step("BACK", addr, delta=corner(-FACTOR, FACTOR), psum=corner(-west, west)))
                else:
                    steps.append(step("FORWARD", addr, corner(-128, 127), psum=corner(-(1 << 22), 1 << 22)))
        else:
            addr = (addr + 5) % 32
            windows = [
                [
                    (corner(-128, 127), rng.randrange(2), transposes and rng.randrange(2))
                    for _ in range(rng.choice([1, 1, 2, 3, 9]))
                ]
                for _ in range(rng.choice([1, 1, 2, 3]))
            ]
            # Small signals too, so that weights do not all stick to their limits.
            top = rng.choice([m.max_delta, 40, 1 << m.delta_bits // 2])
            gaps = (lambda: rng.choice([0, 0, 1, 3])) if i % 3 == 0 else (lambda: 0)
            steps += tile(addr, windows, [corner(-top, top) for _ in windows], gaps)
    steps += [step()] * 5 + [host("HOST_READ", a, m=m) for a in range(32)]
    found = check(m, steps, rng)
    assert len({v >> m.fraction_bits for v in found[-32:]}) > 8


def test_the_largest_window():
    """128 positions of the most negative code are -2^17: the multiplier's operand at its limit."""
    m = machine()
    assert WINDOW_BITS == 18 and m.max_delta == 127 << 10
    # act, delta, the word after two windows of it: w - 2·2^17·(127·2^10)/2^20 = w - 32512 in the first.
    cases = [(3, -128, m.max_delta, 3 - 32512), (-3, -128, -m.max_delta, -3 + 32512),
             (3, 127, m.max_delta, 3 + 32258), (-3, 127, -2048, -3 - 508)]  # fmt: skip
    steps = [host("HOST_WRITE", i, case[0], m=m) for i, case in enumerate(cases)] + [step()] * 5
    for i, (_, act, delta, _) in enumerate(cases):
        steps += tile(i, [[(act, 0)] * 128] * 2, [delta] * 2)
    steps += [step()] * 5 + [host("HOST_READ", i, m=m) for i in range(len(cases))]
    found = check(m, steps, random.Random(9))
    assert [v >> m.fraction_bits for v in found[-len(cases) :]] == [case[-1] for case in cases]


@pytest.mark.parametrize("m", BACK)
def test_the_largest_sums_on_the_way_back(m):
    """Of as many products as there are columns, which the narrowest sum holds."""
    words = [-(1 << 15), (1 << 15) - 1]
    steps = [host("HOST_WRITE", i, word, m=m) for i, word in enumerate(words)] + [step()] * 5
    for sign, i in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        product = sign * FACTOR * words[i]
        steps.append(step("BACK", i, delta=sign * FACTOR, psum=(m.cols - 1) * product))
    found = check(m, steps, random.Random(3))[-4:]
    assert found == [m.cols * sign * FACTOR * words[i] for sign, i in ((1, 0), (-1, 0), (1, 1), (-1, 1))]
    assert max(found) < 1 << west_bits(m) - 1 <= 2 * max(found)


def test_only_the_largest_of_a_block_counts():
    """Four pixels a window, three of them skipped, of any slope and wherever the one is; or none at all."""
    m = BACK[0]
    steps = [step()] * 5
    for addr in range(5):
        steps += tile(addr, [[(100 + 8 * i, i % 2, i != addr) for i in range(4)]], [1 << 15])
    steps += [step()] * 5 + [host("HOST_READ", a, m=m) for a in range(5)]
    found = drive(WindowPe(m), steps)[-5:]
    assert [v >> m.fraction_bits for v in found] == [8 * 100 // 32, 108 // 32, 8 * 116 // 32, 124 // 32, 0]


@pytest.mark.parametrize("word, sign", [(-(1 << 15), 1), ((1 << 15) - 1, -1)])
def test_the_largest_sum(word, sign):
    """6 windows of 128 positions are the most that 38 bits hold, as in spec.windowed: 768·8·128·127·2^10 + 2^35
    is below 2^37. A sum beyond a word's range is not clipped on the way, only when it is written.
    """
    m = machine(gradient_bits=38)
    assert 768 * 8 * 128 * m.max_delta + (1 << 35) <= 1 << m.psum_bits - 1 < 896 * 8 * 128 * m.max_delta + (1 << 35)
    windows, delta = [[(-128, 0)] * 128] * 6, sign * m.max_delta
    steps = [host("HOST_WRITE", a, word, m=m) for a in (0, 1)] + [step()] * 5
    steps += tile(0, windows, [delta] * 6) + tile(1, windows * 2, [delta] * 6 + [-delta] * 6)
    steps += [step()] * 5 + [host("HOST_READ", a, m=m) for a in (0, 1)]
    found = check(m, steps, random.Random(2))
    assert [v >> m.fraction_bits for v in found[-2:]] == [word, word]


@pytest.mark.parametrize("m", MACHINES)
def test_update_saturates_and_rounds_at_the_edges(m):
    F, top, big = m.fraction_bits, (1 << 15) - 1, m.max_delta
    grain = 1 << max(0, F - 16)  # the LFSR's lowest bit
    most = (1 << F) - grain
    # word, one window's (act, neg), delta, random, word after it
    cases = [
        (top, [(127, 0)], big, 0, top), (-top - 1, [(-128, 0)], big, 0, -top - 1),
        (top, [(-128, 0)] * 8, -big, most, top), (-top - 1, [(127, 0)] * 8, -big, 0, -top - 1),
        (0, [(-1, 1)], 1, 0, -1), (0, [(-1, 1)], grain, grain, 0), (0, [(-1, 0)], grain, 7 * grain, -1),
        (5, [(1, 1)], grain, most, 6), (5, [(1, 1)], grain, most - grain, 5), (5, [(1, 0)], grain, most - 7 * grain, 6),
        (top, [(1, 1)], grain, most, top), (-7, [(0, 0), (0, 1)], big, most, -7), (-7, [(5, 0), (-40, 1)], big, 0, -7),
    ]  # fmt: skip
    steps = [host("HOST_WRITE", i, case[0], m=m) for i, case in enumerate(cases)]
    for i, (_, positions, delta, bits, _) in enumerate(cases):
        steps += [{**s, "random": bits} for s in tile(i, [positions], [delta])]
    steps += [step()] * 5 + [host("HOST_READ", i, m=m) for i in range(len(cases))]
    found = drive(WindowPe(m), steps)[-len(cases) :]
    assert [v >> F for v in found] == [case[-1] for case in cases]


@pytest.mark.parametrize("gap", range(1, 9))
def test_a_written_word_is_read_from_the_fifth_cycle_on(gap):
    """Simulation reads the old word before; the machine must not."""
    m = machine()
    steps = [host("HOST_WRITE", 3, 100, m=m)] + [step()] * 5
    steps += tile(3, [[(64, 0)], [(1, 1)]], [4 << 11, 0])
    steps += [step()] * (gap - 1) + [step("FORWARD", 3, act=2)]
    assert drive(WindowPe(m), steps)[-1] == 2 * (100 if gap < 5 else 104)
