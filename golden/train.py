"""Training on any backend: epochs, progress, checkpoints.

A backend holds a network and trains it sample by sample, or batch by batch: the float model, the bit-exact
model and the compiled Verilog are used through the same few methods, so this loop is the same for
all, and whoever reads one training has read them all. Everything random comes from the seed: the
initial weights from `initial_parameters`, the order of epoch `n` from `epoch_order(seed, n)`; what
a backend draws itself (LFSR steps) is in its state.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import numpy as np

from golden.checkpoint import (
    Checkpoint,
    Parameters,
    load_checkpoint,
    named,
    paired,
    save_checkpoint,
    weights_sha256,
)
from golden.data import Dataset, require_fit
from spec.errors import SpecError
from spec.network import Network

__all__ = [
    "Average",
    "Backend",
    "Epoch",
    "Parameters",
    "Progress",
    "TrainReport",
    "TrainResult",
    "TrainingInterrupted",
    "accuracy",
    "check_average",
    "epoch_order",
    "initial_codes",
    "initial_parameters",
    "initial_windowed_codes",
    "network_identity",
    "train_epochs",
]

SECONDS_A_CHUNK = 0.2
"""How long a call of `Backend.train` should take: a bar that moves, and Ctrl-C that is heard."""
SECONDS_A_CHECKPOINT = 30.0
"""How much work a power cut may cost."""
STREAM_INITIAL, STREAM_ORDER = 0, 1
"""Random streams of one seed."""


@dataclass(frozen=True)
class TrainReport:
    """What `Backend.train` saw: `predictions` int64 `(N,)`, made before each sample's own update;
    `cycles` of the design's clock for these samples, None where there is no clock.
    """

    predictions: np.ndarray
    cycles: int | None = None


class Backend(Protocol):
    """A network that can be trained, sample by sample or in mini-batches.

    `train` on samples A and then B must leave the same state as one call on both; and a backend
    that is given the `state_dict` of another with an equal `identity` must go on to bit-equal
    weights. A backend that has an attribute `batch` updates once for so many samples of a call, and
    for those left at its end: with it, A must be whole batches, as `train_epochs` sees to.
    """

    @property
    def network(self) -> Network:
        """What is trained."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What must be equal for two runs to reach bit-equal weights: at least `network` (see
        `network_identity`), `rule`, `arithmetic`; the machine where it matters. Equal for the
        bit-exact model and the Verilog, so that either resumes the other.
        """
        ...

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """One update a sample (or batch), in order. x: int8 codes `(N, features)`; labels: int `(N,)`, 0…K-1."""
        ...

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Class of each row of x, int64 `(N,)`: the lowest class with the largest score. Changes no
        state.
        """
        ...

    def parameters(self) -> Parameters:
        """Copies of weights and biases, in layer order."""
        ...

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces weights and biases."""
        ...

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the next sample depends on (parameters, LFSR step counts), as copies."""
        ...

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Epoch:
    """A finished epoch. Accuracies in percent: `train_accuracy` of the predictions made while
    training, `test_accuracy` after it; `cycles` of this epoch's training, None where a part of it
    had no clock.
    """

    epoch: int
    train_accuracy: float
    test_accuracy: float
    weights_sha256: str
    cycles: int | None


@dataclass(frozen=True)
class Average:
    """The mean of the weights after each of the last `epochs` epochs, as a backend holds it: codes,
    rounded half up; or floats in its own precision, of a mean in float64. `test_accuracy` in
    percent.
    """

    epochs: int
    test_accuracy: float
    weights_sha256: str
    parameters: Parameters = field(compare=False, repr=False)


@dataclass(frozen=True)
class TrainResult:
    """A finished training: `history` has one entry an epoch, earlier runs of a resumed training
    included; `samples` and `cycles` count all of them; `seconds` is this run's wall clock;
    `average` is None where none was asked for.
    """

    history: tuple[Epoch, ...]
    samples: int
    cycles: int | None
    seconds: float
    average: Average | None = None

    @property
    def test_accuracy(self) -> float:
        """Percent, after the last epoch."""
        return self.history[-1].test_accuracy

    @property
    def weights_sha256(self) -> str:
        """Of the final weights."""
        return self.history[-1].weights_sha256


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a training between two samples; the message says where it can be
    resumed.
    """


def epoch_order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of the samples in an epoch (0, 1, …): a permutation of 0…samples-1, int64."""
    # RandomState, not Generator: its stream is promised never to change.
    return np.random.RandomState([STREAM_ORDER, seed, epoch]).permutation(samples)


def initial_parameters(shapes: Iterable[tuple[int, int]], seed: int) -> Parameters:
    """Random float64 parameters for layers `(n_in, n_out)`: uniform in ±1/sqrt(n_in), bias
    included.
    """
    random = np.random.RandomState([STREAM_INITIAL, seed])
    parameters = []
    for n_in, n_out in shapes:
        bound = n_in**-0.5
        weight = random.uniform(-bound, bound, (n_out, n_in))
        parameters.append((weight, random.uniform(-bound, bound, n_out)))
    return parameters


def initial_codes(shapes: Sequence[tuple[int, int]], seed: int) -> Parameters:
    """`initial_parameters` as the machine's int16 codes: weights with 14 fraction bits, biases with
    `7 + in_frac`, where the input of the first layer has 7 fraction bits and later inputs have 4.
    """
    parameters = []
    for index, (weight, bias) in enumerate(initial_parameters(shapes, seed)):
        parameters.append((_codes(weight, 14), _codes(bias, 7 + (7 if index == 0 else 4))))
    return parameters


def initial_windowed_codes(shapes: Sequence[tuple[int, int]], seed: int, gain_shift: int) -> Parameters:
    """`initial_parameters · 2^gain_shift` as int16 codes with 14 fraction bits, biases too: where
    `docs/convolutions.md` is the arithmetic. `shapes`: `(taps, channels)` of each layer.
    """
    drawn = initial_parameters(shapes, seed)
    return [(_codes(weight, 14 + gain_shift), _codes(bias, 14 + gain_shift)) for weight, bias in drawn]


def _codes(values: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Floats as int16 codes: rounded half up, saturated."""
    codes = np.floor(values * 2**fraction_bits + 0.5)
    return np.clip(codes, -(2**15), 2**15 - 1).astype(np.int16)


def network_identity(network: Network) -> str:
    """The parts of a network that its training depends on, as a line; its name is not one of them."""
    values = asdict(network.recipe)
    del values["rate_shifts"]  # a training's identity has the rule, and its rate
    if network.windowed:
        shape = "x".join(map(str, network.input_shape))
        layers = "-".join([f"{shape} {network.input}", *map(str, network.layers)])
    else:
        # The batch is 1; the gain and the coding are named only where they are not the usual ones,
        # so that the line is that of networks from before there were others.
        del values["batch"]
        if values["gain_shift"] == 0:
            del values["gain_shift"]
        coding = "" if network.input == "unsigned" else f" {network.input}"
        layers = "-".join(map(str, (network.features, *(n_out for _, n_out in network.shapes)))) + coding
    recipe = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"{layers} {network.basis} ({recipe})"


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Percent of predictions that are right."""
    return 100.0 * float(np.mean(predictions == labels))


class Progress:
    """Tells on a stream how far a training is: on a terminal one line that is rewritten, else a
    line an epoch.

    `quiet` says nothing at all; `name` of the training begins each line. One object serves one
    training.
    """

    INTERVAL = 0.1
    WIDTH = 24

    def __init__(self, stream: IO[str] | None = None, quiet: bool = False, name: str = ""):
        self._stream = sys.stderr if stream is None else stream
        self._name = f"{name}: " if name else ""
        self._quiet = quiet
        self._live = not quiet and self._stream.isatty()
        self._shown = 0
        self._last = 0.0
        self._began = time.monotonic()
        self._done_before: int | None = None

    def start(self, done: int) -> None:
        """The clock starts now, `done` samples came from a checkpoint."""
        self._began, self._done_before = time.monotonic(), done

    def update(
        self, done: int, total: int, epoch: int, epochs: int, correct: int, seen: int
    ) -> None:
        """Samples done of total; the epoch (from 0) of epochs; its right predictions of those seen."""
        now = time.monotonic()
        if not self._live or (now - self._last < self.INTERVAL and done < total):
            return
        self._last = now
        rate = (done - (self._done_before or 0)) / max(now - self._began, 1e-9)
        filled = self.WIDTH * done // total
        bar = "#" * filled + "." * (self.WIDTH - filled)
        left = f"ETA {_duration((total - done) / rate)}" if rate > 0 else "ETA –"
        right = f"{100 * correct / seen:5.1f} % right" if seen else ""
        self._rewrite(f"{self._name}epoch {epoch + 1}/{epochs} [{bar}] {rate:,.0f} samples/s, {left}, {right}")

    def epoch(self, entry: Epoch, epochs: int) -> None:
        """An epoch has ended."""
        took = _duration(time.monotonic() - self._began)
        self.line(
            f"epoch {entry.epoch}/{epochs}: training {entry.train_accuracy:.2f} %, "
            f"test {entry.test_accuracy:.2f} % ({took})"
        )

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        self.clear()
        print(f"{self._name}{text}", file=self._stream, flush=True)

    def clear(self) -> None:
        """Takes the rewritten line off the terminal, so that others can write there."""
        if self._live and self._shown:
            self._rewrite("")
            self._stream.write("\r")
            self._stream.flush()
            self._shown = 0

    def _rewrite(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._shown))
        self._stream.flush()
        self._shown = len(text)


def train_epochs(
    backend: Backend,
    dataset: Dataset,
    epochs: int,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    average: int | None = None,
) -> TrainResult:
    """Trains for `epochs` epochs, each over the whole training set in the order of `epoch_order`.

    With a `checkpoint_path`, the training is saved there after every epoch, every 30 s, and when it
    is interrupted; if the file exists, the training goes on from it, to the same bits as without
    the interruption. A checkpoint of another network, rule, arithmetic, seed or data set, or of
    more epochs, raises SpecError. Ctrl-C and SIGTERM end the training between two chunks of samples
    with TrainingInterrupted; a second Ctrl-C ends it at once. `on_epoch` is called for every epoch
    that this run finishes.

    With `average`, 1…epochs, the mean of the weights after each of so many epochs, the last ones,
    is tested too; the backend and the checkpoint keep the weights of the last epoch. The sum behind
    the mean is in the checkpoint; `check_average` says which checkpoints have another.
    """
    if epochs < 1:
        raise SpecError(f"epochs: must be 1 or more, got {epochs}")
    if average is not None and not 1 <= average <= epochs:
        raise SpecError(f"average: must lie in 1…{epochs}, the epochs, got {average}")
    if not 0 <= seed < 2**32:
        raise SpecError(f"seed: must lie in 0…{2**32 - 1}, got {seed}")
    require_fit(dataset, backend.network)
    progress = Progress() if progress is None else progress
    path = None if checkpoint_path is None else Path(checkpoint_path)
    identity = {**backend.identity(), "seed": str(seed), "data": dataset.sha256}
    names = {"data": dataset.name}
    began = time.monotonic()

    run = _Run()
    summed_from = None if average is None else epochs - average + 1
    sums: Parameters = []
    if path is not None and path.exists():
        saved = load_checkpoint(path, identity, names)
        try:
            run = _Run.from_json(saved.progress)
            backend.load_state_dict(saved.state)
            sums = _loaded_sums(saved, backend.parameters())
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"{path}: checkpoint does not fit this backend ({error})") from None
        if (run.epoch, run.sample) > (epochs, 0):
            trained = run.epoch + run.sample / len(dataset.y_train)
            raise SpecError(
                f"{path}: checkpoint has {trained:.4g} epochs, more than epochs = {epochs}"
            )
        if average is not None:
            check_average(path, saved.progress, epochs, average)
        if summed_from is None or run.epoch < summed_from:
            run.summed_from, sums = None, []  # of a mean that another run wanted
        progress.line(f"resumed from {path}: epoch {run.epoch + 1}, sample {run.sample}")

    def save() -> None:
        if path is not None:
            save_checkpoint(path, Checkpoint(identity, run.to_json(), backend.state_dict(), names, named(sums)))

    def stop(where: str) -> NoReturn:
        rest = f"saved in {path}" if path is not None else "not saved"
        progress.clear()
        raise TrainingInterrupted(f"interrupted {where}; {rest}")

    samples = len(dataset.y_train)
    total = epochs * samples
    batch = getattr(backend, "batch", 1)
    progress.start(run.epoch * samples + run.sample)
    chunk, last_save = batch, time.monotonic()
    with _interruptible() as interrupted:
        while run.epoch < epochs:
            order = epoch_order(seed, run.epoch, samples)
            while run.sample < samples:
                if interrupted():
                    save()
                    stop(f"at epoch {run.epoch + 1}, sample {run.sample}")
                picked = order[run.sample : run.sample + chunk]
                labels = dataset.y_train[picked]
                start = time.monotonic()
                report = backend.train(dataset.x_train[picked], labels)
                now = time.monotonic()
                run.count(report, labels)
                if now - last_save > SECONDS_A_CHECKPOINT:
                    save()
                    last_save = time.monotonic()
                chunk = _next_chunk(len(picked), now - start, batch)
                done = run.epoch * samples + run.sample
                progress.update(done, total, run.epoch, epochs, run.correct, run.sample)
            parameters = backend.parameters()
            entry = run.finish_epoch(
                samples,
                accuracy(backend.predict(dataset.x_test), dataset.y_test),
                weights_sha256(parameters),
            )
            if summed_from is not None and run.epoch >= summed_from:
                run.summed_from, sums = summed_from, _added(sums, parameters)
            save()
            last_save = time.monotonic()
            progress.epoch(entry, epochs)
            if on_epoch is not None:
                on_epoch(entry)
        if average is not None and interrupted():
            stop("before the test of the mean weights")
    mean = None if average is None else _test_average(backend, dataset, sums, average)
    if mean is not None:
        progress.line(f"mean weights of epochs {summed_from} to {epochs}: test {mean.test_accuracy:.2f} %")
    cycles = [entry.cycles for entry in run.history if entry.cycles is not None]
    return TrainResult(
        tuple(run.history),
        total,
        sum(cycles) if len(cycles) == epochs else None,
        time.monotonic() - began,
        mean,
    )


def check_average(path: Path, progress: Mapping[str, Any], epochs: int, average: int) -> None:
    """Refuses a checkpoint (its path and `progress`) from which a training of `epochs` epochs cannot go on to a mean of
    the weights after the last `average` of them: some of these epochs have ended, and it has no sum
    from the first of them on.
    """
    first, done, had = epochs - average + 1, progress["epoch"], progress.get("summed_from")
    if done < first or had == first:
        return
    can = [str(epochs - had + 1)] if isinstance(had, int) and had <= epochs else []
    can += [f"at most {epochs - done}"] if done < epochs else []
    rest = f"with an average of {' or '.join(can)} epochs" if can else "without an average"
    raise SpecError(
        f"{path}: checkpoint has {done} epochs, but not the sum of the weights from epoch {first} on, for an "
        f"average of {average} epochs; continue {rest}, or train into another folder (--out)"
    )


def _added(sums: Parameters, parameters: Parameters) -> Parameters:
    """`sums` (none are zeros) and `parameters`, added up: codes exactly, in int64, where 2^46 epochs of 16 bits fit,
    twice for `_mean`; floats in float64.
    """
    if not sums:
        sums = [(_zeros_for_sum(weight), _zeros_for_sum(bias)) for weight, bias in parameters]
    pairs = zip(sums, parameters, strict=True)
    return [(weights + weight, biases + bias) for (weights, biases), (weight, bias) in pairs]


def _zeros_for_sum(array: np.ndarray) -> np.ndarray:
    return np.zeros(array.shape, np.int64 if array.dtype.kind in "iu" else np.float64)


def _loaded_sums(saved: Checkpoint, parameters: Parameters) -> Parameters:
    """The sums of a checkpoint, maybe none; ValueError or KeyError unless they can be those of the parameters."""
    sums = paired(saved.sums)
    if bool(sums) != (saved.progress.get("summed_from") is not None):
        raise ValueError("it has a part of a sum of weights")
    for layer, of_layer in zip(sums, parameters if sums else [], strict=True):
        for total, zeros in zip(layer, map(_zeros_for_sum, of_layer), strict=True):
            if (total.shape, total.dtype) != (zeros.shape, zeros.dtype):
                raise ValueError(f"sum of weights: {total.shape} {total.dtype}, not {zeros.shape} {zeros.dtype}")
    return sums


def _mean(sums: Parameters, epochs: int) -> Parameters:
    """Sums of so many epochs, divided: of codes rounded half up, and of 16 bits again as each of them was."""

    def divided(total: np.ndarray) -> np.ndarray:
        if total.dtype.kind == "i":
            # floor(total/epochs + 1/2) without fractions.
            return ((2 * total + epochs) // (2 * epochs)).astype(np.int16)
        return total / epochs

    return [(divided(weight), divided(bias)) for weight, bias in sums]


def _test_average(backend: Backend, dataset: Dataset, sums: Parameters, epochs: int) -> Average:
    """Tests the mean of the weights; the backend has its own again afterwards, whatever happens."""
    last = backend.parameters()
    try:
        backend.load_parameters(_mean(sums, epochs))
        mean = backend.parameters()
        right = accuracy(backend.predict(dataset.x_test), dataset.y_test)
    finally:
        backend.load_parameters(last)
    return Average(epochs, right, weights_sha256(mean), mean)


@dataclass
class _Run:
    """Where a training stands: whole epochs, samples into the next, what those counted; `cycles` is
    None when there are none yet, or when a part of them had no clock. `summed_from` is the first
    epoch (from 1) whose weights are in the sum for a mean, None where there is no sum.
    """

    epoch: int = 0
    sample: int = 0
    correct: int = 0
    cycles: int | None = None
    history: list[Epoch] = field(default_factory=list)
    summed_from: int | None = None

    def count(self, report: TrainReport, labels: np.ndarray) -> None:
        """Adds a chunk."""
        before = self.cycles if self.sample else 0
        self.sample += len(labels)
        self.correct += int(np.sum(report.predictions == labels))
        counted = report.cycles
        self.cycles = None if before is None or counted is None else before + int(counted)

    def finish_epoch(self, samples: int, test_accuracy: float, digest: str) -> Epoch:
        """Closes the epoch."""
        entry = Epoch(
            self.epoch + 1, 100.0 * self.correct / samples, test_accuracy, digest, self.cycles
        )
        self.history.append(entry)
        self.epoch, self.sample, self.correct, self.cycles = self.epoch + 1, 0, 0, None
        return entry

    def to_json(self) -> dict:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "_Run":
        """From what `to_json` gave."""
        return cls(**{**values, "history": [Epoch(**entry) for entry in values["history"]]})


def _next_chunk(samples: int, seconds: float, batch: int) -> int:
    """Samples that should take SECONDS_A_CHUNK, in whole batches; at most twice the last, as a
    first call may compile.
    """
    wanted = max(1, min(2 * samples, int(samples * SECONDS_A_CHUNK / max(seconds, 1e-6))))
    return -(-wanted // batch) * batch


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second Ctrl-C acts as ever."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: object) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
