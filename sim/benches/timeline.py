"""Drives and checks a block whose contract is a table of cycles.

A bench writes down what each port carries in which cycle and what must be seen in which cycle; a
port for which nothing is written down gets a random value (data) or 0 (control), so that a block
which looks one cycle too early or too late sees garbage. Outputs named as pulses must be 0 in every
cycle in which nothing is expected of them: that is how each result comes exactly once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sim.benches.streams import Cycles, signed

__all__ = ["Timeline", "View"]

View = Callable[[int], int]
"""What of a port's code is compared."""


class Timeline:
    """The table of one bench.

    ``noise`` names the input ports that get random values where nothing is scheduled; ``pulses``
    the outputs that must be 0 where nothing is expected.
    """

    def __init__(
        self,
        cycles: Cycles,
        rng: np.random.Generator,
        noise: Iterable[str] = (),
        pulses: Iterable[str] = (),
    ):
        self._cycles = cycles
        self._dut = cycles.dut
        self._rng = rng
        self._noise = tuple(noise)
        self._pulses = tuple(pulses)
        self._drives: dict[int, dict[str, int]] = defaultdict(dict)
        self._expected: dict[int, list[tuple[str, int, Any, View | None]]] = defaultdict(list)
        self._dirty: set[str] = set()
        self.checked = 0
        """Comparisons made so far, those of pulses that rest at 0 left out."""

    @property
    def now(self) -> int:
        """The present cycle."""
        return self._cycles.now

    def drive(self, cycle: int, **ports: int) -> None:
        """Let ports carry values in one cycle."""
        assert cycle >= self.now, f"cycle {cycle} is over, it is {self.now}"
        for name, value in ports.items():
            previous = self._drives[cycle].setdefault(name, int(value))
            assert previous == int(value), f"cycle {cycle}: {name} is wanted to be {previous} and {value}"

    def expect(self, cycle: int, port: str, value: int, inputs: Any = "", view: View | None = None) -> None:
        """A port must carry a value in one cycle; ``inputs`` goes into the message when it does
        not.

        ``view`` maps the port's code, read as a signed number, to what is compared with ``value``.
        """
        assert cycle >= self.now, f"cycle {cycle} is over, it is {self.now}"
        self._expected[cycle].append((port, int(value), inputs, view))

    async def run(self, until: int | None = None) -> None:
        """Run through the cycles before ``until`` (default: to the end of the table)."""
        if until is None:
            until = 1 + max([self.now, *self._drives, *self._expected])
        while self.now < until:
            self._drive_now()
            await self._cycles.sample()
            self._check_now()
            await self._cycles.next()

    def _drive_now(self) -> None:
        drives = self._drives.pop(self.now, {})
        for name in self._noise:
            if name not in drives:
                handle = getattr(self._dut, name)
                handle.value = int(self._rng.integers(1 << len(handle)))
        for name in self._dirty - drives.keys():
            getattr(self._dut, name).value = 0
        for name, value in drives.items():
            handle = getattr(self._dut, name)
            handle.value = value & ((1 << len(handle)) - 1)
        self._dirty = {name for name in drives if name not in self._noise}

    def _check_now(self) -> None:
        expected = self._expected.pop(self.now, [])
        for port, value, inputs, view in expected:
            handle = getattr(self._dut, port)
            bits = len(handle)
            got = signed(int(handle.value), bits)
            got, golden = (view(got), value) if view else (got, signed(value, bits))
            self.checked += 1
            assert got == golden, (
                f"{port}: beat {self.checked}, cycle {self.now}: got {got}, golden {golden}, inputs {inputs}"
            )
        named = {port for port, *_ in expected}
        for port in self._pulses:
            if port not in named:
                assert int(getattr(self._dut, port).value) == 0, (
                    f"{port}: cycle {self.now}: came although nothing was expected"
                )
