"""The processing element that sums gradients over windows, against the golden model and the PE's table of cycles."""

from dataclasses import dataclass

import cocotb
import numpy as np

from golden.arith import sat
from golden.fixed import moved
from golden.windowed import gradient, gradient_sums
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline
from spec.lfsr import STATE_BITS
from spec.machine import WEIGHT_BITS, Machine

# Cycles from a step's read address, as the contract has them.
OPERANDS, PASSED_ON, CONTROL, ADDEND, RESULT, READABLE = 1, 2, 2, 3, 4, 5
WINDOW, COARSE_WINDOW = 128, 8
"""Positions that fit into a window's sum, and with inputs that are shifted by 4."""
COARSE = 4


@dataclass
class Window:
    """A window's inputs, slopes (True: 1/8) and shifted signal."""

    acts: np.ndarray
    neg: np.ndarray
    delta: int


class Bench:
    """Schedules steps one after the other, and keeps the memory and what `psum_out` must show in each cycle."""

    def __init__(self, timeline: Timeline):
        self.machine: Machine = context.design().machine
        self.fraction = self.machine.fraction_bits
        self.timeline = timeline
        self.rng = context.rng("steps")
        self.t = timeline.now + 2
        self.memory: dict[int, int] = {}
        self.readable: dict[int, int] = {}
        self.sums: dict[int, tuple[int | None, object]] = {}

    def pick(self, low: int, high: int) -> int:
        """A number of the range, often a corner of it."""
        if self.rng.integers(3):
            return int(self.rng.integers(low, high + 1))
        return min(max(int(self.rng.choice([low, low + 1, -1, 0, 1, high - 1, high])), low), high)

    def random(self) -> tuple[int, int]:
        """What the port `random` carries, and what it means: F bits, zeros below those of an LFSR."""
        bits = min(self.fraction, STATE_BITS)
        code = self.pick(0, (1 << bits) - 1)
        return code, code << (self.fraction - bits)

    def free(self) -> int:
        """A word that can be read now."""
        return int(self.rng.choice([addr for addr in self.memory if self.readable.get(addr, 0) <= self.t]))

    def stored(self, addr: int, cycle: int, value: int) -> None:
        """A word is on the write port in this cycle."""
        self.timeline.drive(cycle, write_addr=addr)
        self.memory[addr] = value
        self.readable[addr] = cycle - RESULT + READABLE

    def passed(self, t: int, inputs: object, act: int, neg: int, delta: int | None) -> None:
        """What goes on to the neighbours."""
        self.timeline.expect(t + PASSED_ON, "act_out", act, inputs)
        self.timeline.expect(t + PASSED_ON, "neg_out", neg, inputs)
        if delta is not None:
            self.timeline.expect(t + PASSED_ON, "delta_out", delta, inputs)

    def forward(self, addr: int, act: int, psum: int) -> None:
        """One step of a forward pass."""
        t, drive = self.t, self.timeline.drive
        drive(t, read_addr=addr)
        drive(t + OPERANDS, forward=1, window_first=1, act_in=act, neg_in=1)
        drive(t + CONTROL, add=1)
        drive(t + ADDEND, psum_in=psum)
        inputs = {"t": t, "forward": addr, "w": self.memory[addr], "act": act, "psum": psum}
        self.passed(t, inputs, act, 1, None)
        self.sums[t + RESULT] = act * self.memory[addr] + psum, inputs
        self.t += 1

    def host(self, addr: int, act: int, delta: int, psum: int, write: bool) -> None:
        """A host's step; it means this PE where the product of `act` and `delta`, both 0 or 1, is 1."""
        t, drive = self.t, self.timeline.drive
        code, _ = self.random()
        drive(t, read_addr=addr)
        drive(t + OPERANDS, window_first=1, act_in=act, neg_in=1, delta_in=delta)
        drive(t + CONTROL, add=1, host_read=not write)
        drive(t + ADDEND, psum_in=psum, random=code, host_write=write)
        chosen = act * delta
        inputs = {"t": t, "host": addr, "write": write, "chosen": chosen, "psum": psum, "random": code}
        self.passed(t, inputs, act, 1, delta)
        if chosen and write:
            self.stored(addr, t + RESULT, sat((psum + chosen) >> self.fraction, WEIGHT_BITS))
        if chosen and not write:
            # The word and, below it, something that is not the contract's; it must not carry.
            word = self.memory[addr]
            self.timeline.expect(t + RESULT, "psum_out", word, inputs, lambda total: total >> self.fraction)
            self.sums[t + RESULT] = None, inputs
        else:
            self.sums[t + RESULT] = chosen + psum, inputs
        self.t += 1

    def update(self, addr: int, windows: list[Window], idle: bool) -> None:
        """A tile of an update, position by position, and with cycles between them if `idle`."""
        drive, fraction = self.timeline.drive, self.fraction
        code, random = self.random()
        before = self.memory[addr]
        change = 0
        for number, window in enumerate(windows):
            one = np.zeros(len(window.acts), dtype=np.int64)
            sums = gradient_sums(window.acts[:, None], window.neg[:, None], one)
            change += int(gradient(sums, np.array([[-window.delta]]), 0)[0, 0])
            for index, (act, neg) in enumerate(zip(window.acts, window.neg, strict=True)):
                self.t += int(idle and self.rng.integers(3) == 0)
                t = self.t
                first, last = index == 0, index == len(one) - 1
                ends = last and number == len(windows) - 1
                inputs = {"t": t, "update": addr, "w": before, "window": number, "position": index, "random": code}
                drive(t, read_addr=addr)
                drive(t + OPERANDS, window_first=first, act_in=int(act), neg_in=int(neg))
                drive(t + CONTROL, add=last, update=1, load=last and number == 0)
                self.passed(t, inputs, int(act), int(neg), window.delta if last else None)
                if last:
                    drive(t + OPERANDS, delta_in=window.delta)
                    drive(t + ADDEND, store=ends)
                    if number == 0:
                        drive(t + ADDEND, random=code)
                    self.sums[t + RESULT] = (before << fraction) + random + change, inputs
                if ends:
                    weight, total, bits = (np.array([value]) for value in (before, change, random))
                    self.stored(addr, t + RESULT, int(moved(weight, total, bits, fraction)[0]))
                self.t += 1

    def check_sums(self) -> None:
        """`psum_out` in every cycle: it changes where a step adds, and nowhere else."""
        held: int | None = None
        inputs: object = ""
        for cycle in range(min(self.sums), max(self.sums) + 20):
            held, inputs = self.sums.get(cycle, (held, inputs))
            if held is not None:
                self.timeline.expect(cycle, "psum_out", held, inputs)


@cocotb.test()
async def steps(dut):
    """Random steps back to back and with gaps, corner codes often, every memory word read back at the end."""
    cycles = await start(dut)
    noise = ("read_addr", "write_addr", "neg_in", "delta_in", "psum_in", "random")
    timeline = Timeline(cycles, context.rng("noise"), noise)
    bench = Bench(timeline)
    machine, rng = bench.machine, bench.rng
    fraction, largest = bench.fraction, machine.max_delta
    weights = [-32768, 32767, 0, -1, 1] + [bench.pick(-32768, 32767) for _ in range(machine.weight_depth)]
    for addr in range(machine.weight_depth):
        bench.memory[addr] = 0
        bench.host(addr, 1, 1, weights[addr] << fraction, write=True)
    assert bench.memory == dict(enumerate(weights[: machine.weight_depth]))
    bench.t += READABLE

    above = (machine.rows - 1) << 22  # what the rows above can send down in a forward step
    coarse_possible = fraction > STATE_BITS
    for turn in range(240):
        bench.t += int(rng.integers(4) == 0) * int(rng.integers(1, 4))
        kind = turn % 4
        if kind == 0:
            for _ in range(int(rng.integers(1, 8))):
                bench.forward(bench.free(), bench.pick(-128, 127), bench.pick(-above, above))
        elif kind == 1:
            act, delta = int(rng.integers(2)), int(rng.integers(2))
            psum = bench.pick(-32768, 32767) << fraction
            bench.host(bench.free(), act, delta, psum, write=bool(rng.integers(2)))
        else:
            coarse = coarse_possible and rng.integers(3) == 0
            limit = COARSE_WINDOW if coarse else WINDOW
            windows = []
            for _ in range(int(rng.choice([1, 1, 2, 5]))):
                size = int(rng.choice([1, 2, limit] if turn % 12 == 2 else [1, 1, 2, 4, 7]))
                acts = np.array([bench.pick(-128, 127) for _ in range(size)], dtype=np.int64)
                neg = rng.integers(2, size=size) == 1
                if size == limit:
                    acts[:], neg[:] = (-128, 127)[rng.integers(2)], False
                delta = bench.pick(-largest, largest) >> int(rng.choice([0, 0, 4, 10, 16]))
                windows.append(Window(acts << COARSE if coarse else acts, neg, delta))
            bench.update(bench.free(), windows, idle=bool(rng.integers(2)))
    bench.t += READABLE
    for addr in bench.memory:
        bench.host(addr, 1, 1, bench.pick(-above, above), write=False)
    bench.check_sums()
    await timeline.run()
    assert timeline.checked >= 3 * machine.weight_depth + 600
