"""Trains on the generated Verilog: the host's part (program, weights, samples), against the compiled design."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from golden.checkpoint import Parameters
from golden.fixed import IntegerModel, StepResult, checked_samples
from golden.train import TrainReport
from hdl.dense.core import Core
from hdl.verilog import to_verilog
from sim.rtl.host import bias_addresses, control, padding_addresses, program_writes, weight_addresses
from sim.rtl.library import compile_core, load_library
from spec import memory_map
from spec.basis import Basis
from spec.lfsr import PERIOD
from spec.machine import Machine
from spec.network import Network
from spec.program import compile_program
from spec.timing import Phase

__all__ = ["RtlBackend", "RtlError"]

_PHASES, _LAYERS = 8, 256
"""Sizes of the driver's table of cycles; see ``driver.cpp``."""
_ERRORS = {
    -1: "the core hangs: no beat on any of its ports for {patience} cycles",
    -2: "a result has more beats than the program asks for",
    -3: "a result has fewer beats than the program asks for",
}


class RtlError(RuntimeError):
    """The design broke its contract (it hangs, or a result has a wrong length)."""


class RtlBackend(IntegerModel):
    """The compiled core as a training backend: the bit-exact model's interface, and its bits.

    Parameters
    ----------
    network, machine
        What to build. The first use of a design compiles it (half a minute at 8x8), later ones do not.
    seed : int
        Of the initial weights, the same as the bit-exact model's.
    train_hidden : bool
        False freezes the hidden layers.
    cache : Path, optional
        Where compiled designs are kept.
    report : callable, optional
        Gets a line before something long starts.

    ``TrainReport.cycles`` are those of the design's own counters, all phases but ``wait``: a sample's cycles
    are the same whatever the host does, the wait for the next one is not.

    Raises
    ------
    SpecError
        When the network does not fit the machine.
    RtlError
        When the design hangs or breaks its contract otherwise.
    """

    def __init__(
        self,
        network: Network,
        machine: Machine,
        seed: int = 0,
        train_hidden: bool = True,
        *,
        cache: Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._handle = None
        self.machine = machine
        self._program = program = compile_program(network, machine, train_hidden)
        core = Core(machine, network.classes, Basis(network.basis, network.classes))
        if report:
            report(f"generating and compiling the RTL of {machine.name} (once for each design) ...")
        text = to_verilog(core, "top")
        self._library = load_library(compile_core(text, cache))
        self._handle = self._library.core_open()
        # No sample takes this long without a beat, so a design that does, hangs.
        steps = sum(d.col_tiles * max(d.row_tiles, machine.cols) for d in program.layers)
        self._patience = 4 * steps + PERIOD + 10_000
        self._weight_addresses = [weight_addresses(machine, layer) for layer in program.layers]
        if self._register("ID") != memory_map.ID_VALUE:
            raise RtlError(f"register ID reads {self._register('ID'):#x}")
        self._write(*program_writes(machine, program))
        self._control(scores=False)
        # The padding of the tiles; whatever is in it must not reach a sum. Updates keep it at 0.
        self._write(padding_addresses(machine, program), 0)
        super().__init__(network, machine, seed, train_hidden)

    def __del__(self) -> None:
        if self._handle:
            self._library.core_close(self._handle)
            self._handle = None

    @property
    def update_steps(self) -> int:
        """Update steps of the array since reset, modulo 65535; setting it advances the LFSRs."""
        return self._register("UPDATE_STEPS")

    @update_steps.setter
    def update_steps(self, steps: int) -> None:
        self._advance("ADVANCE_ARRAY", steps - self.update_steps)

    @property
    def bias_steps(self) -> int:
        """Steps of the bias unit's LFSR since reset, modulo 65535; setting it advances the LFSR."""
        return self._register("BIAS_STEPS")

    @bias_steps.setter
    def bias_steps(self, steps: int) -> None:
        self._advance("ADVANCE_BIAS", steps - self.bias_steps)

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """One training step a sample, in order; predictions are from before each update."""
        before = self.cycles_by_phase()
        words = self._run(*checked_samples(self.network, x, labels))
        # The counters have 32 bits and wrap.
        spent = {p: (n - before[p]) % 2**32 for p, n in self.cycles_by_phase().items()}
        cycles = sum(n for phase, n in spent.items() if phase != Phase.WAIT)
        return TrainReport((words[:, -1] & 0xFF).astype(np.int64), cycles)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 ``(N,)``. Nothing is trained."""
        words = self._run(*checked_samples(self.network, x, None))
        return (words[:, -1] & 0xFF).astype(np.int64)

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 ``(features,)``, with its class scores; trains on it unless ``label`` is None."""
        samples = checked_samples(
            self.network, np.asarray(x)[None], None if label is None else np.array([label])
        )
        signalled = [bool(d.is_output or (d.train and label is not None)) for d in self.layers]
        self._control(scores=True)
        words = self._run(*samples, beats=sum(signalled) * self.network.classes + 1)[0]
        self._control(scores=False)
        rows = iter(words[:-1].view(np.int32).astype(np.int64).reshape(-1, self.network.classes))
        scores = tuple(next(rows) if present else None for present in signalled)
        return StepResult(int(words[-1]) & 0xFF, scores)

    def parameters(self) -> Parameters:
        """Copies of the parameters, int16, read over the bus."""
        return [
            (
                _low16(self._read(addresses)).reshape(layer.n_out, layer.n_in),
                _low16(self._read(bias_addresses(self.machine, layer))),
            )
            for addresses, layer in zip(self._weight_addresses, self._program.layers, strict=True)
        ]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters over the bus (integers that fit int16; SpecError otherwise)."""
        checked = self._checked_parameters(parameters)
        for addresses, layer, (weight, bias) in zip(
            self._weight_addresses, self._program.layers, checked, strict=True
        ):
            self._write(addresses, weight.ravel())
            self._write(bias_addresses(self.machine, layer), bias)

    def cycles_by_phase(self) -> dict[Phase, int]:
        """The design's cycle counters (32 bits, wrapping), by phase."""
        addresses = [memory_map.register_address(f"CYCLES_{phase.name}") for phase in Phase]
        return dict(zip(Phase, map(int, self._read(np.array(addresses))), strict=True))

    def trace(self) -> np.ndarray:
        """Cycles by phase and layer since reset, from the ports ``phase``, ``layer``: uint64 ``(8, 256)``."""
        counts = np.zeros((_PHASES, _LAYERS), np.uint64)
        self._library.core_trace(self._handle, counts.ctypes.data)
        return counts

    # ---- host side ---------------------------------------------------------------------------------

    def _control(self, scores: bool) -> None:
        value = control("enable", "scores") if scores else control("enable")
        self._write([memory_map.register_address("CTRL")], value)

    def _advance(self, command: str, steps: int) -> None:
        if steps % PERIOD:
            self._write([memory_map.register_address(command)], steps % PERIOD)
            idle = 1 << memory_map.register_bit("STATUS", "idle")
            while not self._register("STATUS") & idle:
                pass

    def _register(self, name: str) -> int:
        return int(self._read(np.array([memory_map.register_address(name)]))[0])

    def _read(self, addresses: np.ndarray) -> np.ndarray:
        return self._bus(addresses, np.zeros(len(addresses), np.uint32), write=False)

    def _write(self, addresses, data) -> None:
        addresses = np.asarray(addresses)
        words = np.broadcast_to(np.asarray(data).astype(np.int64), addresses.shape)
        self._bus(addresses, words.astype(np.uint32), write=True)

    def _bus(self, addresses: np.ndarray, data: np.ndarray, write: bool) -> np.ndarray:
        addresses = np.ascontiguousarray(addresses, np.uint32)
        data = np.ascontiguousarray(data, np.uint32)
        code = self._library.core_bus(
            self._handle, write, len(addresses), addresses.ctypes.data, data.ctypes.data, self._patience
        )  # fmt: skip
        self._check(code)
        return data

    def _run(self, x: np.ndarray, labels: np.ndarray, beats: int = 1) -> np.ndarray:
        """Samples int8 ``(N, features)`` with labels through the core: result words uint32 ``(N, beats)``."""
        labels = labels.astype(np.uint8)
        words = np.zeros((len(x), beats), np.uint32)
        code = self._library.core_run(
            self._handle, len(x), x.shape[1], x.ctypes.data, labels.ctypes.data, beats,
            words.ctypes.data, self._patience,
        )  # fmt: skip
        self._check(code)
        return words

    def _check(self, code: int) -> None:
        if code < 0:
            raise RtlError(_ERRORS[code].format(patience=self._patience))


def _low16(words: np.ndarray) -> np.ndarray:
    return (words & 0xFFFF).astype(np.uint16).view(np.int16)
