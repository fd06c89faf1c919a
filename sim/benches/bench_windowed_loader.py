"""The loader: packets good and bad into a ring of slots, batches begun and released, against a plain model."""

from collections import deque
from dataclasses import dataclass, field

import cocotb

from sim.benches import context
from sim.benches.streams import Cycles, signed, stalls, start
from spec.machine import Machine
from spec.network import NO_LABEL

KEYWORDS = ("begin", "release")
"""Ports that are keywords of Verilog, so that the list of inputs lacks them."""


@dataclass
class Ring:
    """What the contract says of samples and slots; a cycle's events come together at its end."""

    slots: int
    waiting: int = 0
    unlabelled: bool = False
    begun: int = 0
    next_slot: int = 0
    labels: dict[int, int] = field(default_factory=dict)
    live: deque = field(default_factory=deque)

    @property
    def free(self) -> bool:
        """Whether a packet can come."""
        return len(self.live) < self.slots

    def arrive(self, label: int) -> None:
        """A sample is complete."""
        self.labels[self.next_slot] = label
        self.live.append(self.next_slot)
        self.next_slot = (self.next_slot + 1) % self.slots
        if label == NO_LABEL:
            self.unlabelled = True
        else:
            self.waiting += 1

    def begin(self, count: int) -> None:
        """Labelled samples begin; where none waits, the unlabelled one."""
        self.begun += count
        if self.waiting:
            self.waiting -= count
        else:
            self.unlabelled = False

    def release(self, count: int) -> None:
        """The oldest that have begun are needed no longer."""
        self.begun -= count
        for _ in range(count):
            self.live.popleft()


class Bench:
    """A cycle at a time: what is sent, what the map memory takes, what the sequencer does."""

    def __init__(self, cycles: Cycles):
        self.cycles = cycles
        self.dut = cycles.dut
        design = context.design()
        self.machine: Machine = design.machine
        self.classes = design.classes
        self.rng = context.rng("loader")
        self.noise = context.rng("noise")
        self.inputs = [*KEYWORDS, *(name for name in context.inputs() if not name.startswith("samples__"))]
        self.beats: deque[tuple[int, int]] = deque()
        self.held: tuple[int, int] | None = None
        self.ring = Ring(1)
        self.layout: dict[str, int] = {}
        self.index = 0
        self.bad = {"bad_label": False, "bad_length": False}
        self.asked: int | None = None
        self.written = self.samples = 0

    def packet(self, length: int, label: int) -> None:
        """A packet of so many random elements and its label."""
        self.beats.extend((int(data), 0) for data in self.rng.integers(256, size=length))
        self.beats.append((label, 1))

    def element(self) -> int:
        """Where the next element of the packet belongs."""
        rows = self.layout["input_words"] * self.machine.rows
        gaps = self.index // self.layout["input_row"] * self.layout["input_gap"]
        return self.ring.next_slot * rows + self.index + gaps

    def take(self, data: int, last: int) -> None:
        """A beat was taken: what the ring becomes in the next cycle."""
        length = self.layout["length"]
        if not last:
            self.index = min(self.index + 1, length + 1)
            return
        if self.index != length:
            self.bad["bad_length"] = True
        elif data != NO_LABEL and data >= self.classes:
            self.bad["bad_label"] = True
        else:
            self.ring.arrive(data)
            self.samples += 1
        self.index = 0

    async def cycle(self, moves: bool, ready: bool, drives: dict[str, int]) -> None:
        """One cycle: `moves`, the source may send; `ready`, the memory takes an element; `drives`, other inputs."""
        dut, ring, rng = self.dut, self.ring, self.rng
        if self.held is None and moves and self.beats:
            self.held = self.beats.popleft()
        label_slot = None
        if ring.live and rng.integers(2):
            label_slot = int(rng.choice(list(ring.live)))
        values = {"enable": 1, "load_ready": ready, "begin": 0, "release": 0, "restart": 0, "clear_errors": 0}
        values |= self.layout | drives
        if label_slot is not None:
            values["label_slot"] = label_slot
        for name in self.inputs:
            handle = getattr(dut, name)
            handle.value = int(values[name]) if name in values else int(self.noise.integers(1 << len(handle)))
        data, last = self.held or (int(self.noise.integers(256)), int(self.noise.integers(2)))
        dut.samples__valid.value = self.held is not None
        dut.samples__payload.value = data | last << 8

        await self.cycles.sample()
        now = f"cycle {self.cycles.now}, {self.layout}, {ring}"
        for name, golden in {"waiting": ring.waiting, "unlabelled": ring.unlabelled, **self.bad}.items():
            got = int(getattr(dut, name).value)
            assert got == golden, f"{name}: got {got}, golden {int(golden)}, {now}"
        may = values["enable"] and ready and ring.free and not ring.unlabelled
        got = int(dut.samples__ready.value)
        assert got == may, f"samples.ready: got {got}, golden {int(may)}, {now}"
        moved = self.held is not None and may
        wanted = moved and not last and self.index < self.layout["length"]
        came = int(dut.load_valid.value) and ready
        assert came == wanted, f"load_valid: got {came}, golden {int(wanted)}, element {self.index}, {now}"
        if wanted:
            seen = int(dut.load_element.value), signed(int(dut.load_data.value), 8)
            golden = self.element(), signed(data, 8)
            assert seen == golden, f"load_element, load_data: got {seen}, golden {golden}, element {self.index}, {now}"
            self.written += 1
        if self.asked is not None:
            got = int(dut.label.value)
            assert got == self.asked, f"label: got {got}, golden {self.asked}, {now}"
        self.asked = None if label_slot is None else ring.labels[label_slot]
        await self.cycles.next()

        if drives.get("begin"):
            ring.begin(drives["begin_count"])
        if drives.get("release"):
            ring.release(drives["release_count"])
        if drives.get("clear_errors"):
            self.bad = dict.fromkeys(self.bad, False)
        if moved:
            self.take(data, last)
            self.held = None
        if drives.get("restart"):
            self.ring, self.index, self.asked = Ring(ring.slots), 0, None

    def choose(self) -> dict[str, int]:
        """What the sequencer does in a cycle: often nothing."""
        ring, rng = self.ring, self.rng
        chosen: dict[str, int] = {}
        if rng.integers(12) == 0 and (ring.waiting or ring.unlabelled):
            chosen |= {"begin": 1, "begin_count": int(rng.integers(1, ring.waiting + 1)) if ring.waiting else 1}
            chosen["begin_count"] = min(chosen["begin_count"], self.machine.max_batch)
        if rng.integers(8) == 0 and ring.begun:
            count = int(rng.integers(1, min(ring.begun, self.machine.max_batch) + 1))
            chosen |= {"release": 1, "release_count": count}
        return chosen

    async def run(self, layout: dict[str, int], packets: int, pattern: str) -> None:
        """One program: packets of all kinds until all are taken; then a restart, in the middle of a packet perhaps."""
        rng, length = self.rng, layout["length"]
        self.layout = layout
        self.ring = Ring(layout["input_slots"], next_slot=0)
        for number in range(packets):
            label = int(rng.choice([0, self.classes - 1, int(rng.integers(self.classes)), NO_LABEL]))
            wrong = int(rng.choice([self.classes, NO_LABEL - 1, int(rng.integers(self.classes, NO_LABEL))]))
            kind = int(rng.integers(10)) if number else 9
            if kind == 0:
                self.packet(length, wrong)
            elif kind == 1:
                size = int(rng.choice([0, length - 1, length + 1, 3 * length, int(rng.integers(length))]))
                self.packet(size, int(rng.choice([label, wrong])))
            else:
                self.packet(length, label)
        source, memory = stalls(pattern, rng), stalls(str(rng.choice(["none", "random", "bursts"])), rng)
        idle = 0
        while self.beats or self.held or idle < 20:
            idle = 0 if self.beats or self.held else idle + 1
            chosen = self.choose() | {"enable": int(rng.integers(20) > 0)}
            if rng.integers(60) == 0:
                # The contract does not say what becomes of an error in the same cycle: no beat may come.
                chosen |= {"enable": 0, "clear_errors": 1}
            await self.cycle(next(source), next(memory), chosen)
        self.packet(int(rng.integers(length + 1)), 0)
        for _ in range(int(rng.integers(length + 2))):
            await self.cycle(True, True, self.choose())
        while self.ring.begun:
            count = min(self.ring.begun, self.machine.max_batch)
            await self.cycle(False, True, {"release": 1, "release_count": count})
        await self.cycle(False, True, {"enable": 0, "restart": 1})
        self.beats.clear()
        self.held = None


@cocotb.test()
async def programs(dut):
    """Rings of one slot to the most, rows with gaps and without, every stall pattern."""
    cycles = await start(dut)
    bench = Bench(cycles)
    machine, rng = bench.machine, context.rng("programs")
    patterns = ["none", "every_other", "random", "bursts"]
    for turn in range(context.parameter("programs")):
        slots = [2 * machine.max_batch, 1, 2, int(rng.integers(1, 2 * machine.max_batch + 1))][turn % 4]
        row = int(rng.integers(1, 12))
        length = row * int(rng.integers(1, 5))
        gap = int(rng.integers(machine.rows)) if turn % 3 else 0
        words = -(-(length + (length // row - 1) * gap) // machine.rows)
        layout = {"length": length, "input_row": row, "input_gap": gap, "input_words": words, "input_slots": slots}
        await bench.run(layout, context.parameter("packets"), patterns[turn % 4])
    assert bench.samples and bench.written > bench.samples
