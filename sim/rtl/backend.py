"""Trains on the generated Verilog: the host's part (program, weights, samples), against the compiled design."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from golden.checkpoint import Parameters
from golden.fixed import StatefulModel, StepResult, checked_samples
from golden.train import TrainReport
from hdl.core import core_for
from hdl.verilog import to_verilog
from sim.rtl.host import Place, Writes, control, host_for
from sim.rtl.library import compile_core, load_library
from spec import memory_map
from spec.basis import Basis
from spec.errors import SpecError
from spec.lfsr import PERIOD
from spec.machine import Machine
from spec.network import NO_LABEL, Network
from spec.timing import Phase

__all__ = ["RtlBackend", "RtlError", "core_verilog"]

_PHASES, _LAYERS = 8, 256
"""Sizes of the driver's table of cycles; see ``driver.cpp``."""
_HUNG, _TOO_LONG, _TOO_SHORT, _UNASKED = -1, -2, -3, -4
_ERRORS = {
    _HUNG: "the core hangs: no beat on any of its ports for {patience} cycles",
    _TOO_LONG: "a result has more beats than the program asks for",
    _TOO_SHORT: "a result has fewer beats than the program asks for",
    _UNASKED: "the bus answers a read that nobody made",
}
_WORD, _LAST = 0xFFFF_FFFF, 1 << 32
"""A beat of the results: its word, and the bit that says that it is a result's last."""


class RtlError(RuntimeError):
    """The design broke its contract (it hangs, or a result has a wrong length)."""


@lru_cache(maxsize=4)
def core_verilog(machine: Machine, classes: int, basis: Basis) -> str:
    """The Verilog of a core, top module ``top``: all networks of so many classes and a basis run on it."""
    return to_verilog(core_for(machine, classes, basis), "top")


class RtlBackend(StatefulModel):
    """The compiled core, under its machine's rule, as a training backend: the bit-exact models' interface, and their
    bits.

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

    ``TrainReport.cycles`` are those of the design's own counters, all phases but ``wait``: a batch's cycles
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
        self._host = host = host_for(network, machine, train_hidden)
        super().__init__(network, machine, train_hidden)
        if report:
            report(f"generating and compiling the RTL of {machine.name} (once for each design) ...")
        text = core_verilog(machine, network.classes, self.basis)
        self._library = load_library(compile_core(text, cache))
        self._handle = self._library.core_open()
        self._patience = host.patience + PERIOD
        if self._register("ID") != memory_map.ID_VALUE:
            raise RtlError(f"register ID reads {self._register('ID'):#x}")
        self._batch_now = host.batch
        self._write(host.program_writes())
        self._control(scores=False)
        # The padding of the tiles; whatever is in it must not reach a sum. Updates keep it at 0.
        padding = host.padding()
        self._write((padding, np.zeros_like(padding)))
        self.load_parameters(host.initial_parameters(seed))
        self.load_trained_scores(self.trained)

    def __del__(self) -> None:
        if self._handle:
            self._library.core_close(self._handle)
            self._handle = None

    @property
    def batch(self) -> int:
        """Samples an update; those left at the end of a call of `train` are a shorter batch."""
        return self._host.batch

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
        """One training step a batch, in order; predictions are from before each update.

        SpecError on a machine for inference.
        """
        if not self.machine.learning.learns:
            raise SpecError(f"machine {self.machine.name}", "cannot train: its rule is inference")
        before = self.cycles_by_phase()
        predictions, _ = self._run(*checked_samples(self.network, x, np.asarray(labels)), self.batch)
        # The counters have 32 bits and wrap.
        spent = {p: (n - before[p]) % 2**32 for p, n in self.cycles_by_phase().items()}
        cycles = sum(n for phase, n in spent.items() if phase != Phase.WAIT)
        return TrainReport(predictions, cycles)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 ``(N,)``. Nothing is trained."""
        return self._run(*checked_samples(self.network, x, None), 1)[0]

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 ``(features,)``, with its class scores; a batch of its own, to train on, unless ``label`` is
        None or the rule ``inference``.
        """
        return self.run(np.asarray(x)[None], None if label is None else np.array([label]))[0]

    def run(self, x: np.ndarray, labels: np.ndarray | None) -> list[StepResult]:
        """Samples int8 ``(N, features)``, batch after batch, with their class scores; trains on them unless ``labels``
        is None.
        """
        codes, checked = checked_samples(self.network, x, labels)
        signalled = self._signalled(labels is not None)
        self._control(scores=True)
        predictions, scores = self._run(codes, checked, 1 if labels is None else self.batch, scores=True)
        self._control(scores=False)
        results = []
        for prediction, formed in zip(predictions, scores, strict=True):
            rows = iter(formed)
            results.append(StepResult(int(prediction), tuple(next(rows) if there else None for there in signalled)))
        return results

    def parameters(self) -> Parameters:
        """Copies of the parameters, int16, read over the bus."""
        return [self._read_place(place) for place in self._host.places]

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters over the bus (integers that fit int16; SpecError otherwise)."""
        self._write(self._host.parameter_writes(self._checked_parameters(parameters)))

    def trained_scores(self) -> list[np.ndarray]:
        """What is trained of the hidden layers' scores: int32 ``(rows, lanes)``, read over the bus."""
        places = self._host.score_places
        return [self._read(place.ravel()).view(np.int32).reshape(place.shape) for place in places]

    def load_trained_scores(self, codes: Sequence[np.ndarray]) -> None:
        """Replaces what is trained of the hidden layers' scores over the bus (codes of 24 bits, else SpecError)."""
        super().load_trained_scores(codes)
        self._write(self._host.score_writes(self.trained))

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

    def _signalled(self, labelled: bool) -> tuple[bool, ...]:
        """The layers whose class scores are reported for a sample."""
        signalled = self._host.signalled
        return tuple(there and (labelled or n == len(signalled) - 1) for n, there in enumerate(signalled))

    def _run(
        self, x: np.ndarray, labels: np.ndarray, batch: int, scores: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Checked samples, all labelled or none, in batches, of which the last may be shorter.

        Predictions, int64 ``(N,)``, and with ``scores`` (CTRL has them already) int64 ``(N, layers, K)``: those of the
        layers that form any.
        """
        layers = sum(self._signalled(bool(np.any(labels != NO_LABEL)))) if scores else 0
        whole = len(x) // batch * batch
        found = [
            self._stream(x[part], labels[part], size, layers)
            for part, size in ((slice(whole), batch), (slice(whole, None), len(x) - whole))
            if len(x[part])
        ]
        if not found:
            return np.zeros(0, np.int64), np.zeros((0, layers, self.network.classes), np.int64)
        predictions, formed = zip(*found, strict=True)
        return np.concatenate(predictions), np.concatenate(formed)

    def _stream(
        self, x: np.ndarray, labels: np.ndarray, batch: int, layers: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Samples in whole batches: `_run`'s results. ``layers`` report their scores."""
        if labels[0] != NO_LABEL and batch != self._batch_now:
            self._write(([memory_map.register_address("BATCH")], [batch]))
            self._batch_now = batch
        classes, labels = self.network.classes, labels.astype(np.uint8)
        # Of a batch: scores layer by layer, in a layer sample by sample; then a summary a sample.
        batches = len(x) // batch
        words = np.zeros((batches, batch * (layers * classes + 1)), np.uint64)
        x = np.ascontiguousarray(x)
        code = self._library.core_run(
            self._handle, len(x), x.shape[1], x.ctypes.data, labels.ctypes.data, words.size,
            words.ctypes.data, self._patience,
        )  # fmt: skip
        self._check(code)
        summary = np.arange(words.shape[1]) >= words.shape[1] - batch
        last = words & _LAST != 0
        if np.any(wrong := last != summary):
            self._check(_TOO_SHORT if last[wrong][0] else _TOO_LONG)
        words &= _WORD
        predictions = (words[:, summary] & 0xFF).astype(np.int64).ravel()
        scores = words[:, ~summary].astype(np.uint32).view(np.int32).astype(np.int64)
        scores = scores.reshape(batches, layers, batch, classes).swapaxes(1, 2)
        return predictions, scores.reshape(len(x), layers, classes)

    def _control(self, scores: bool) -> None:
        value = control("enable", "scores") if scores else control("enable")
        self._write(([memory_map.register_address("CTRL")], [value]))

    def _advance(self, command: str, steps: int) -> None:
        if steps % PERIOD:
            self._write(([memory_map.register_address(command)], [steps % PERIOD]))
            idle = 1 << memory_map.register_bit("STATUS", "idle")
            # A read takes a cycle or more.
            for _ in range(self._patience):
                if self._register("STATUS") & idle:
                    return
            self._check(_HUNG)

    def _register(self, name: str) -> int:
        return int(self._read(np.array([memory_map.register_address(name)]))[0])

    def _read_place(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """A layer's parameters, int16."""
        weight, bias = (_low16(self._read(addresses.ravel())) for addresses in place)
        return weight.reshape(place.weights.shape), bias

    def _read(self, addresses: np.ndarray) -> np.ndarray:
        return self._bus(addresses, np.zeros(len(addresses), np.uint32), write=False)

    def _write(self, writes: Writes | tuple[list[int], list[int]]) -> None:
        addresses, data = writes
        self._bus(np.asarray(addresses), np.asarray(data), write=True)

    def _bus(self, addresses: np.ndarray, data: np.ndarray, write: bool) -> np.ndarray:
        addresses = np.ascontiguousarray(addresses, np.uint32)
        data = np.ascontiguousarray(data, np.uint32)
        code = self._library.core_bus(
            self._handle, write, len(addresses), addresses.ctypes.data, data.ctypes.data, self._patience
        )  # fmt: skip
        self._check(code)
        return data

    def _check(self, code: int) -> None:
        if code < 0:
            raise RtlError(_ERRORS[code].format(patience=self._patience))


def _low16(words: np.ndarray) -> np.ndarray:
    return (words & 0xFFFF).astype(np.uint16).view(np.int16)
