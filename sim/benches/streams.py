"""Clock, streams and scoreboard that the benches share.

Time discipline, the same on every simulator: a cycle begins with the rising edge; everything that a
bench drives changes right after it, and everything is sampled at the falling edge, when
combinational paths have settled. So a value that is sampled in cycle ``t`` is the value in cycle
``t`` of the documents.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import Event, FallingEdge, RisingEdge

from sim.benches import context

__all__ = [
    "PATTERNS",
    "Cycles",
    "Driver",
    "Monitor",
    "Scoreboard",
    "Stalls",
    "signed",
    "start",
    "stalls",
]

Stalls = Iterator[bool]
"""For each cycle: may the stream move?"""

PATTERNS = ("none", "every_other", "random", "bursts")
"""What every stream is tested with; :func:`stalls` knows ``slow`` as well."""


def signed(value: int, bits: int) -> int:
    """The two's complement meaning of the lowest ``bits`` bits of ``value``."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def stalls(pattern: str, rng: np.random.Generator) -> Stalls:
    """An endless generator of permissions: ``none`` stalls never, ``every_other`` each second
    cycle, ``random`` one cycle in two at random, ``bursts`` runs and pauses of 1 to 40 cycles,
    ``slow`` lets every 97th cycle pass."""
    if pattern not in (*PATTERNS, "slow"):
        raise ValueError(f"stall pattern: expected one of {', '.join(PATTERNS)}, slow, got {pattern!r}")
    moving = False
    while True:
        if pattern == "bursts":
            for _ in range(int(rng.integers(1, 41))):
                yield moving
            moving = not moving
        elif pattern == "slow":
            yield from [False] * 96
            yield True
        elif pattern == "random":
            yield bool(rng.integers(2))
        else:
            yield moving or pattern == "none"
            moving = not moving


async def start(dut: Any, **inputs: int) -> "Cycles":
    """Start the clock and reset the design with every input at 0 (or at the value in ``inputs``).

    Returns the cycle counter; cycle 0 is the cycle it returns in, right after a rising edge.
    """
    for name in context.inputs():
        getattr(dut, name).value = inputs.get(name, 0)
    dut.rst.value = 1
    Clock(dut.clk, 10, unit="ns").start()
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    return Cycles(dut)


@dataclass
class Cycles:
    """Counts clock cycles and runs through them."""

    dut: Any
    now: int = 0

    async def sample(self) -> None:
        """Wait for the sampling point of the present cycle."""
        await FallingEdge(self.dut.clk)

    async def next(self) -> None:
        """Wait for the begin of the next cycle."""
        await RisingEdge(self.dut.clk)
        self.now += 1


@dataclass
class Scoreboard:
    """Compares what comes out with what the golden model says, in order, and counts.

    ``expect`` queues a golden value together with the inputs that lead to it, ``got`` takes a value
    of the design and fails at once when it differs or when nothing was expected; ``done`` fails
    when something never came.
    """

    name: str
    queue: deque = field(default_factory=deque)
    beat: int = 0

    def expect(self, value: Any, inputs: Any = "", at: int | None = None) -> None:
        """Queue a value; ``at`` is the cycle in which it must be seen, when the latency is part of
        the contract."""
        self.queue.append((value, inputs, at))

    def got(self, value: Any, now: int | None = None) -> None:
        """Take the next value of the design, seen in cycle ``now``."""
        when = "" if now is None else f", cycle {now}"
        assert self.queue, f"{self.name}: extra beat {self.beat}{when}: got {value}, expected none"
        golden, inputs, at = self.queue.popleft()
        assert value == golden, f"{self.name}: beat {self.beat}{when}: got {value}, golden {golden}, inputs {inputs}"
        assert at is None or at == now, (
            f"{self.name}: beat {self.beat}: value {value} came in cycle {now}, the contract says {at}, inputs {inputs}"
        )
        self.beat += 1

    def done(self, beats: int) -> None:
        """The end: nothing may be missing, and exactly ``beats`` beats must have been compared."""
        assert not self.queue, (
            f"{self.name}: {len(self.queue)} beats missing after beat {self.beat}; "
            f"the next would be {self.queue[0][0]}, inputs {self.queue[0][1]}"
        )
        assert self.beat == beats, f"{self.name}: compared {self.beat} beats, expected {beats}"


class Driver:
    """Drives a stream: once ``valid`` is up, it stays up with the same payload until ``ready``.

    ``fields`` maps names of payload signals to the keys of the beats; ``pattern`` gives the idle
    cycles.
    """

    def __init__(self, dut: Any, prefix: str, permissions: Stalls):
        self._clk = dut.clk
        self._valid = getattr(dut, f"{prefix}__valid")
        self._ready = getattr(dut, f"{prefix}__ready")
        self._payload = getattr(dut, f"{prefix}__payload")
        self._permissions = permissions
        self._valid.value = 0

    async def send(self, beats: Iterable[int]) -> None:
        """Send every beat (payload as one number), and return in the cycle after the last
        transfer."""
        for beat in beats:
            while not next(self._permissions):
                await RisingEdge(self._clk)
            self._valid.value = 1
            self._payload.value = int(beat)
            while True:
                await FallingEdge(self._clk)
                moved = int(self._ready.value) == 1
                await RisingEdge(self._clk)
                if moved:
                    break
            self._valid.value = 0


class Monitor:
    """Takes a stream with back-pressure and checks its rules: while ``valid`` waits for ``ready``,
    it stays and the payload holds."""

    def __init__(self, dut: Any, prefix: str, permissions: Stalls, sink: Callable[[int], None]):
        self._clk = dut.clk
        self._name = prefix
        self._valid = getattr(dut, f"{prefix}__valid")
        self._ready = getattr(dut, f"{prefix}__ready")
        self._payload = getattr(dut, f"{prefix}__payload")
        self._permissions = permissions
        self._sink = sink
        self._ready.value = 0
        self._moving = Event()
        self._moving.set()
        self._task = cocotb.start_soon(self._run())

    async def _run(self) -> None:
        waiting: int | None = None
        while True:
            if not self._moving.is_set():
                self._ready.value = 0
                await self._moving.wait()
            ready = next(self._permissions)
            self._ready.value = ready
            await FallingEdge(self._clk)
            valid = int(self._valid.value)
            if waiting is not None:
                assert valid, f"{self._name}: valid fell before ready"
                held = int(self._payload.value)
                assert held == waiting, f"{self._name}: payload changed from {waiting:#x} to {held:#x} while it waited"
            waiting = None
            if valid and ready:
                self._sink(int(self._payload.value))
            elif valid:
                waiting = int(self._payload.value)
            await RisingEdge(self._clk)

    def check(self) -> None:
        """Raise what the monitor's task raised, if it died (cocotb would fail the test as well)."""
        if self._task.done():
            self._task.result()

    def pause(self) -> None:
        """Take nothing, and cost no time, until :meth:`resume`; what comes meanwhile has to wait."""
        self._moving.clear()

    def resume(self) -> None:
        """Take beats again. Call it right after a rising edge."""
        self._moving.set()
