"""hdl.dense.pe alone: every port in its cycle, corner codes, and the host's way in."""

import random

import pytest
from amaranth.sim import Simulator

from hdl.dense.pe import Pe, word_lsb
from spec.machine import Machine


def machine(**changes):
    values = {
        "name": "test", "rows": 2, "cols": 2, "weight_depth": 16, "activation_depth": 8,
        "max_neurons": 8, "max_fan_in": 8, "bias_depth": 8, "max_layers": 2, "delta_bits": 18,
        "fraction_bits": 12, "result_fifo_depth": 8,
    }
    return Machine(**{**values, **changes})


def sat16(v):
    return max(-(1 << 15), min((1 << 15) - 1, v))


def drive(dut, steps):
    """Runs one step a cycle, each port in its own cycle; returns psum_out and writes by step.

    A step is a dict of `addr, op, act, delta, psum, random, west`; op as in hdl.dense.array.Op, or BACK, or None.
    """
    found, rule = [], dut.machine.learning
    # Without an update's way through the adder the host reads a word as a product.
    forward = ("FORWARD",) if rule.learns else ("FORWARD", "HOST_READ")

    async def bench(ctx):
        idle = {"addr": 0, "op": None, "act": 0, "delta": 0, "psum": 0, "random": 0, "west": 0}
        at = lambda cycle: steps[cycle] if 0 <= cycle < len(steps) else idle  # noqa: E731
        for t in range(len(steps) + 5):
            ctx.set(dut.read_addr, at(t)["addr"])
            ctx.set(dut.forward, at(t - 1)["op"] in forward)
            ctx.set(dut.act_in, at(t - 1)["act"])
            ctx.set(dut.delta_in, at(t - 1)["delta"])
            if t >= 2:
                if at(t - 2)["op"] != "BACK":
                    assert ctx.get(dut.act_out) == at(t - 2)["act"]
                if at(t - 2)["op"] not in forward:
                    assert ctx.get(dut.delta_out) == at(t - 2)["delta"]
            if rule.learns:
                ctx.set(dut.update, at(t - 2)["op"] == "UPDATE")
                ctx.set(dut.host_read, at(t - 2)["op"] == "HOST_READ")
                ctx.set(dut.random, at(t - 3)["random"])
            if rule.transposes:
                ctx.set(dut.back, at(t - 1)["op"] == "BACK")
                ctx.set(dut.west, at(t - 2)["op"] == "BACK")
                ctx.set(dut.psum_west, at(t - 3)["west"])
            ctx.set(dut.host_write, at(t - 3)["op"] == "HOST_WRITE")
            ctx.set(dut.psum_in, at(t - 3)["psum"])
            ctx.set(dut.write_addr, at(t - 4)["addr"])
            if 0 <= t - 4 < len(steps):
                found.append(ctx.get(dut.psum_out))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def expect(m, steps):
    """What `drive` must return, from the equations of the architecture page."""
    weights, sums, writes = {}, [], []
    F = word_lsb(m)
    for t, step in enumerate(steps):
        while writes and writes[0][0] <= t:
            _, addr, word = writes.pop(0)
            weights[addr] = word
        w = weights.get(step["addr"], 0)
        if step["op"] == "BACK":
            sums.append(step["west"] + w * step["delta"])
            continue
        p = step["act"] * (w if step["op"] == "FORWARD" else step["delta"])
        if step["op"] == "UPDATE":
            psum = (w << F) + step["random"] + p
        elif step["op"] == "HOST_READ" and not m.learning.learns:
            psum = step["psum"] + step["act"] * w
        elif step["op"] == "HOST_READ" and p & 1:
            psum = (w << F) + (step["random"] & ~1) + p
        else:
            psum = step["psum"] + p
        sums.append(psum)
        if step["op"] == "UPDATE" or (step["op"] == "HOST_WRITE" and p & 1):
            writes.append((t + 5, step["addr"], sat16(psum >> F)))
    return sums


def host(op, addr, word=0, *, m, hit=1, random_bits=0):
    psum = word << word_lsb(m) if op == "HOST_WRITE" else 0
    return {"addr": addr, "op": op, "act": hit, "delta": hit, "psum": psum, "random": random_bits, "west": 99}


@pytest.mark.parametrize("rule", ["lls", "bp", "inference"])
def test_host_writes_and_reads_every_corner(rule):
    m = machine(rule=rule)
    words = [-(1 << 15), -1, 0, 1, (1 << 15) - 1, 0x1234]
    steps = [host("HOST_WRITE", i, w, m=m) for i, w in enumerate(words)]
    steps += [host("HOST_WRITE", i, 77, hit=0, m=m) for i in range(len(words))]  # not this PE
    steps += [host("HOST_READ", i, random_bits=r, m=m)
              for i in range(len(words)) for r in (0, 1, (1 << m.random_bits) - 1)]
    steps += [host("HOST_READ", 0, hit=0, random_bits=5, m=m)]
    found = drive(Pe(m), steps)
    reads = [v >> m.random_bits for v in found[2 * len(words) : -1]]
    assert reads == [w for w in words for _ in range(3)]
    assert found[-1] == 0


@pytest.mark.parametrize("rule", ["lls", "bp", "inference"])
def test_random_steps(rule):
    """All operations mixed, at the widths of each preset; no address is used twice within five."""
    last = (8, 1) if rule != "bp" else (12, 1)
    for seed, (delta_bits, fraction_bits) in enumerate([(18, 12), (16, 10), (12, 4), last]):
        m = machine(delta_bits=delta_bits, fraction_bits=fraction_bits, rule=rule)
        ops = ["FORWARD", "FORWARD", "HOST_READ", None]
        ops += ["UPDATE", "UPDATE"] * m.learning.learns + ["BACK", "BACK"] * m.learning.transposes
        rng = random.Random(seed)
        corner = lambda low, high: rng.choice([low, high, 0, 1, rng.randint(low, high)])  # noqa: E731,B023
        steps = [host("HOST_WRITE", a, corner(-(1 << 15), (1 << 15) - 1), m=m) for a in range(16)]
        top = m.max_delta if m.learning.learns else 1
        lanes = (1 << 15) * 2047 * (m.cols - 1)
        for i in range(600):
            op = rng.choice(ops)
            hit = rng.randrange(2)
            steps.append({
                "addr": (i * 7) % 16, "op": op,
                "act": hit if op == "HOST_READ" else corner(-128, 127),
                "delta": hit if op == "HOST_READ" else corner(-2047, 2047) if op == "BACK" else corner(-top, top),
                "psum": corner(-(m.rows - 1 << 22), m.rows - 1 << 22),
                "random": corner(0, (1 << fraction_bits) - 1) * m.learning.learns,
                "west": corner(-lanes, lanes),
            })
        assert drive(Pe(m), steps) == expect(m, steps)


def test_update_saturates_and_rounds_at_the_edges():
    m = machine()
    F = m.fraction_bits
    top = (1 << 15) - 1
    cases = [
        (top, 127, m.max_delta, 0, top), (-top - 1, -128, m.max_delta, 0, -top - 1),
        (0, -1, 1, 0, -1), (0, -1, 1, 1, 0), (5, 1, (1 << F) - 1, 0, 5), (5, 1, (1 << F) - 1, 1, 6),
        (-5, 1, -(1 << F), 0, -6), (top, 1, 1, (1 << F) - 1, top), (-7, 0, 0, (1 << F) - 1, -7),
    ]
    steps = [host("HOST_WRITE", i, case[0], m=m) for i, case in enumerate(cases)]
    steps += [{"addr": i, "op": "UPDATE", "act": a, "delta": d, "psum": 99, "random": r}
              for i, (_, a, d, r, _) in enumerate(cases)]
    steps += [host("HOST_READ", i, m=m) for i in range(len(cases))]
    found = drive(Pe(m), steps)[-len(cases) :]
    assert [v >> F for v in found] == [case[-1] for case in cases]
