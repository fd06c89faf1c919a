"""The processing element against the cycle table of docs/architecture.md, section 2."""

import cocotb

from golden.arith import sat
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline
from spec.machine import WEIGHT_BITS

FORWARD, UPDATE, HOST_READ, HOST_WRITE = range(4)
# Cycles from a step's read address, as section 2 has them.
OPERANDS, PASSED_ON, CONTROL, ADDEND, RESULT, READABLE = 1, 2, 2, 3, 4, 5


def step(timeline: Timeline, t: int, op: int, addr: int, memory: dict[int, int], **data: int) -> None:
    """Schedule one step of the PE and what must come of it; updates ``memory``.

    ``data``: act, delta, psum and random.
    """
    machine = context.design().machine
    fraction = machine.fraction_bits
    act, delta, psum, random = (data[name] for name in ("act", "delta", "psum", "random"))
    inputs = {"t": t, "op": op, "addr": addr, "w": memory.get(addr), **data}
    timeline.drive(t, read_addr=addr)
    timeline.drive(t + OPERANDS, act_in=act, delta_in=delta, forward=op == FORWARD)
    timeline.drive(t + CONTROL, update=op == UPDATE, host_read=op == HOST_READ)
    timeline.drive(t + ADDEND, psum_in=psum, random=random, host_write=op == HOST_WRITE)
    timeline.drive(t + RESULT, write_addr=addr)
    timeline.expect(t + PASSED_ON, "act_out", act, inputs)
    if op != FORWARD:
        timeline.expect(t + PASSED_ON, "delta_out", delta, inputs)
    product = act * (memory[addr] if op == FORWARD else delta)
    total = product + psum
    if op == UPDATE:
        total = product + (memory[addr] << fraction) + random
    if op == HOST_READ and product & 1:
        total = product + (memory[addr] << fraction) + (random & ~1)
    timeline.expect(t + RESULT, "psum_out", total, inputs)
    if op == UPDATE or (op == HOST_WRITE and product & 1):
        memory[addr] = sat(total >> fraction, WEIGHT_BITS)


@cocotb.test()
async def steps(dut):
    """Random steps back to back, corner codes often, every memory word read back at the end."""
    machine = context.design().machine
    rng = context.rng("steps")
    cycles = await start(dut)
    noise = ("read_addr", "write_addr", "act_in", "delta_in", "psum_in", "random")
    timeline = Timeline(cycles, context.rng("noise"), noise)
    fraction = machine.fraction_bits
    largest = 127 << (machine.delta_bits - 8)

    def pick(low: int, high: int) -> int:
        corners = (low, low + 1, -1, 0, 1, high - 1, high)
        chosen = corners[rng.integers(len(corners))] if rng.integers(3) == 0 else rng.integers(low, high + 1)
        return min(max(int(chosen), low), high)

    def random_bits() -> int:
        return pick(0, (1 << fraction) - 1)

    memory: dict[int, int] = {}
    t = cycles.now + 2
    weights = [-32768, 32767, 0, -1, 1] + [pick(-32768, 32767) for _ in range(machine.weight_depth)]
    for addr in range(machine.weight_depth):
        step(
            timeline, t, HOST_WRITE, addr, memory,
            act=1, delta=1, psum=weights[addr] << fraction, random=random_bits(),
        )  # fmt: skip
        t += 1
    assert memory == dict(enumerate(weights[: machine.weight_depth]))

    busy: dict[int, int] = {}
    above = (machine.rows - 1) << 22  # what the rows above can send down in a forward step
    for _ in range(600):
        t += int(rng.integers(4) == 0)
        free = [addr for addr in memory if busy.get(addr, 0) <= t]
        addr = int(rng.choice(free))
        op = int(rng.integers(4))
        if op in (FORWARD, UPDATE):
            delta = pick(-largest, largest)
            act, psum = pick(-128, 127), pick(-above, above)
        else:
            # The host's lanes carry 1 in one row and one column: elsewhere the product is 0.
            act, delta = int(rng.integers(2)), int(rng.integers(2))
            psum = pick(-32768, 32767) << fraction
        step(timeline, t, op, addr, memory, act=act, delta=delta, psum=psum, random=random_bits())
        # Earlier the write has not arrived; a word that is not written may be read at once.
        busy[addr] = t + READABLE if op in (UPDATE, HOST_WRITE) else 0
        t += 1
    t += READABLE
    for addr in memory:
        step(
            timeline, t, HOST_READ, addr, memory,
            act=1, delta=1, psum=pick(-above, above), random=(1 << fraction) - 1,
        )  # fmt: skip
        t += 1
    await timeline.run()
    assert timeline.checked >= 3 * machine.weight_depth + 600
