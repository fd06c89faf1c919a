"""The training loop and its files: resumed to the same bits, refused when foreign, never half written."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden import checkpoint as checkpoint_module
from golden import train as train_module
from golden.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    named,
    save_checkpoint,
    save_weights,
    weights_sha256,
)
from golden.data import Dataset
from golden.fast import FastModel
from golden.float_model import FloatBackend, float_baselines
from golden.train import (
    Backend,
    Epoch,
    Parameters,
    Progress,
    TrainingInterrupted,
    TrainReport,
    epoch_order,
    initial_codes,
    initial_parameters,
    train_epochs,
)
from golden.windowed_fast import FastWindowedModel
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import FullyConnected, Network, Recipe, load_network

NETWORK = Network("net", (6,), 3, "walsh", (FullyConnected(5), FullyConnected(3)), Recipe(5, 4))
SAMPLES = 37


@pytest.fixture
def dataset() -> Dataset:
    """Three noisy patterns of six pixels: learnt in an epoch or two, not at once."""
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, SAMPLES + 20).astype(np.int64)
    patterns = random.randint(0, 256, (3, 6))
    raw = np.clip(patterns[labels] + random.randint(-60, 61, (len(labels), 6)), 0, 255)
    raw = raw.astype(np.uint8)
    train, test = slice(None, SAMPLES), slice(SAMPLES, None)
    return Dataset("toy", raw[train], labels[train], raw[test], labels[test], 255, 3, (6,))


class Probe:
    """A backend whose weights are a hash of all it was fed, in order: no sample may be lost or doubled.

    It counts 7 cycles a sample, and raises a signal (or an exception) when it has seen `stop_at`
    samples in this process.
    """

    def __init__(self, stop_at: int | None = None, how: int | BaseException = signal.SIGINT):
        self.network = NETWORK
        self.seen = 0
        self._code = np.zeros((1, 1), np.int16)
        self._stop_at, self._how = stop_at, how

    def identity(self) -> dict[str, str]:
        return {"network": "n", "rule": "lls", "arithmetic": "probe"}

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        for row, label in zip(x, labels, strict=True):
            digest = hashlib.sha256(self._code.tobytes() + row.tobytes() + bytes([label]))
            self._code = np.frombuffer(digest.digest()[:2], "<i2").reshape(1, 1)
            self.seen += 1
            if self.seen == self._stop_at:
                if isinstance(self._how, BaseException):
                    raise self._how
                os.kill(os.getpid(), self._how)
        return TrainReport(labels.copy(), 7 * len(labels))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x), np.int64)

    def parameters(self) -> Parameters:
        return [(self._code.copy(), np.zeros(1, np.int16))]

    def load_parameters(self, parameters: Parameters) -> None:
        self._code = parameters[0][0]

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"code": self._code.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self._code = state["code"]


def run(
    backend: Backend,
    dataset: Dataset,
    epochs: int = 3,
    path: Path | None = None,
    seed: int = 4,
    average: int | None = None,
):
    return train_epochs(backend, dataset, epochs, seed, path, Progress(quiet=True), average=average)


BACKENDS: dict[str, Callable[[], Backend]] = {
    "float": lambda: FloatBackend(NETWORK, "lls", 3),
    "float64": lambda: FloatBackend(NETWORK, "bp", 3, dtype=np.float64),
    "golden, dense": lambda: FastModel(load_network("tiny"), load_machine("tiny"), 3),
    "golden, windowed": lambda: FastWindowedModel(load_network("conv-tiny"), load_machine("conv-tiny"), 3),
}


def noise(network: Network) -> Dataset:
    """Images and labels without a relation: weights go on changing."""
    random, shape = np.random.RandomState(1), network.input_shape
    raw = random.randint(0, 256, (SAMPLES + 20, network.features)).astype(np.uint8)
    labels = random.randint(0, 3, len(raw)).astype(np.int64)
    labels[:3] = range(3)
    train, test = slice(None, SAMPLES), slice(SAMPLES, None)
    return Dataset("noise", raw[train], labels[train], raw[test], labels[test], 255, 3, shape, network.input)


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Names, types and values."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def test_every_epoch_is_another_permutation_of_the_seed() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(epoch_order(0, 1, 50), orders[1])


def test_initial_codes_are_the_initial_parameters_rounded() -> None:
    shapes = ((6, 5), (5, 3))
    exact, codes = initial_parameters(shapes, 2), initial_codes(shapes, 2)
    for (w, b), (wc, bc), bias_lsb in zip(exact, codes, (2.0**-14, 2.0**-11), strict=True):
        assert wc.dtype == bc.dtype == np.int16
        assert np.abs(wc * 2.0**-14 - w).max() <= 2.0**-15
        assert np.abs(bc * bias_lsb - b).max() <= bias_lsb / 2
    # One input: the bound is 1.0, still far inside of sQ2.14.
    assert initial_codes([(1, 1000)], 0)[0][0].max() <= 2**14


def test_a_network_is_named_by_what_its_training_depends_on() -> None:
    """In checkpoints that exist, too: the line of a network without batches stays as it is."""
    line = "6-5-3 walsh (hidden_rate_shift 5, output_rate_shift 4, temperature_shift 0)"
    assert train_module.network_identity(NETWORK) == line
    assert train_module.network_identity(replace(NETWORK, name="other")) == line
    recipe = NETWORK.recipe
    others = [
        replace(NETWORK, input="signed"),
        replace(NETWORK, recipe=replace(recipe, batch=2)),
        replace(NETWORK, recipe=replace(recipe, batch=3)),
        replace(NETWORK, recipe=replace(recipe, batch=3, gain_shift=1)),
        replace(NETWORK, input="signed", recipe=replace(recipe, batch=3)),
    ]
    assert len({line, *map(train_module.network_identity, others)}) == 6


def test_the_result_tells_what_happened(dataset: Dataset) -> None:
    told: list[Epoch] = []
    backend = Probe()
    result = train_epochs(backend, dataset, 3, 4, None, Progress(quiet=True), told.append)
    assert backend.seen == result.samples == 3 * SAMPLES
    assert result.cycles == 3 * SAMPLES * 7
    assert tuple(told) == result.history
    assert [entry.epoch for entry in told] == [1, 2, 3]
    assert {entry.cycles for entry in told} == {7 * SAMPLES}
    assert {entry.train_accuracy for entry in told} == {100.0}
    zeros = 100 * float(np.mean(dataset.y_test == 0))
    assert result.test_accuracy == zeros
    assert result.weights_sha256 == weights_sha256(backend.parameters())
    assert len({entry.weights_sha256 for entry in told}) == 3


def test_every_epoch_feeds_every_sample_once_in_its_own_order(dataset: Dataset) -> None:
    fed: list[np.ndarray] = []
    told: list[np.ndarray] = []

    class Recorder(Probe):
        def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
            fed.append(x)
            told.append(labels)
            return super().train(x, labels)

    run(Recorder(), dataset, seed=9)
    order = np.concatenate([epoch_order(9, epoch, SAMPLES) for epoch in range(3)])
    assert np.array_equal(np.concatenate(fed), dataset.x_train[order])
    assert np.array_equal(np.concatenate(told), dataset.y_train[order])


def test_chunks_do_not_matter(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(Probe(), dataset).history
    for chunk in (1, 5, 1000):
        monkeypatch.setattr(train_module, "_next_chunk", lambda *_, chunk=chunk: chunk)
        assert run(Probe(), dataset).history == expected


@pytest.mark.parametrize("stop_at", [1, 20, SAMPLES - 1, SAMPLES, SAMPLES + 1, 3 * SAMPLES - 1])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_uninterrupted(
    stop_at: int, how: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 4)
    path = tmp_path / "run.ckpt"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = Probe(stop_at, how)
    with pytest.raises(TrainingInterrupted, match=f"saved in {path}"):
        run(first, dataset, path=path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert first.seen < 3 * SAMPLES or stop_at == 3 * SAMPLES - 1
    second = Probe()
    result = run(second, dataset, path=path)
    assert first.seen + second.seen == 3 * SAMPLES
    assert result.history == run(Probe(), dataset).history
    assert (result.samples, result.cycles) == (3 * SAMPLES, 3 * SAMPLES * 7)


@pytest.mark.parametrize("stop_at", [1, 20, SAMPLES, SAMPLES + 1, 2 * SAMPLES + 12])
def test_batches_are_whole_but_an_epochs_last(stop_at: int, dataset: Dataset, tmp_path: Path) -> None:
    """Whatever time a chunk takes, and wherever a training was interrupted."""
    path = tmp_path / "run.ckpt"
    calls: list[int] = []

    class Batched(Probe):
        batch = 5

        def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
            calls.append(len(x))
            # The batches are hashed one by one, so that it is seen how they were cut.
            for first in range(0, len(x), self.batch):
                last = slice(first, first + self.batch)
                self._code = self._code ^ np.int16(len(x[last]))
                super().train(x[last], labels[last])
            return TrainReport(labels.copy(), 7 * len(labels))

    expected = run(Batched(), dataset)
    assert sum(calls) == 3 * SAMPLES
    calls.clear()
    with pytest.raises(TrainingInterrupted):
        run(Batched(stop_at), dataset, path=path)
    before = load_checkpoint(path).progress
    assert before["sample"] % 5 == 0 or before["sample"] == SAMPLES
    assert run(Batched(), dataset, path=path).history == expected.history
    assert {calls[0] % 5, sum(calls)} <= {0, 3 * SAMPLES}
    # Only the last call of an epoch may be anything but whole batches.
    assert sum(size % 5 != 0 for size in calls) == 3


@pytest.mark.parametrize("seconds", [0.0, 1e-3, 0.03, 10.0])
def test_a_chunk_is_whole_batches(seconds: float) -> None:
    for samples, batch in ((1, 1), (7, 1), (7, 5), (64, 64), (100, 64)):
        chunk = train_module._next_chunk(samples, seconds, batch)
        assert chunk % batch == 0
        assert batch <= chunk < 2 * samples + batch


def test_a_second_interrupt_ends_at_once(dataset: Dataset, tmp_path: Path) -> None:
    class Twice(Probe):
        def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().train(x, labels)

    backend = Twice()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(backend, dataset, path=tmp_path / "run.ckpt")
    assert not isinstance(caught.value, TrainingInterrupted)
    assert backend.seen == 0 and not list(tmp_path.iterdir())


def test_an_error_or_a_kill_loses_nothing_that_was_saved(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(ZeroDivisionError):
        run(Probe(2 * SAMPLES + 5, ZeroDivisionError()), dataset, path=path)
    assert load_checkpoint(path).progress["epoch"] == 2
    backend = Probe()
    assert run(backend, dataset, path=path).history == run(Probe(), dataset).history
    assert backend.seen == SAMPLES


def test_a_finished_training_is_not_repeated_and_can_be_longer(
    dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    result = run(Probe(), dataset, path=path)
    again = Probe()
    assert run(again, dataset, path=path).history == result.history
    assert again.seen == 0
    assert weights_sha256(again.parameters()) == result.weights_sha256
    longer = run(again, dataset, epochs=5, path=path)
    assert again.seen == 2 * SAMPLES
    assert longer.history == run(Probe(), dataset, epochs=5).history


def test_checkpoints_are_written_as_time_passes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "SECONDS_A_CHECKPOINT", 0.0)
    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 4)
    path = tmp_path / "run.ckpt"
    with pytest.raises(ZeroDivisionError):
        run(Probe(SAMPLES + 11, ZeroDivisionError()), dataset, path=path)
    progress = load_checkpoint(path).progress
    # The first chunk of a run is one sample, later ones four here: 37 = 1 + 9·4, then 8 of 11.
    assert (progress["epoch"], progress["sample"], progress["cycles"]) == (1, 8, 8 * 7)


@pytest.mark.parametrize("rule", ["lls", "dfa"])
def test_float_training_resumes_to_equal_bits(rule: str, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    whole = FloatBackend(NETWORK, rule, 3)
    expected = run(whole, dataset, epochs=4)
    run(FloatBackend(NETWORK, rule, 3), dataset, epochs=1, path=path)
    resumed = FloatBackend(NETWORK, rule, 3)
    result = run(resumed, dataset, epochs=4, path=path)
    assert result.history == expected.history
    for (w, b), (v, a) in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert np.array_equal(w, v) and np.array_equal(b, a)
    assert len({entry.weights_sha256 for entry in expected.history}) == 4


def test_a_killed_process_leaves_a_checkpoint_to_resume(dataset: Dataset, tmp_path: Path) -> None:
    """SIGKILL while checkpoints are written without a pause: whatever is there is whole."""
    path = tmp_path / "run.ckpt"
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_train as t
        t.train_module.SECONDS_A_CHECKPOINT = 0.0
        t.train_module._next_chunk = lambda *_: 1
        dataset = t.dataset.__wrapped__()
        print("started", flush=True)
        t.run(t.Probe(), dataset, 10000, {str(path)!r})
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    deadline = threading.Event()
    while not path.exists() and process.poll() is None:
        deadline.wait(0.01)
    deadline.wait(0.2)
    process.kill()
    process.communicate()
    saved = load_checkpoint(path)
    done = saved.progress["epoch"] * SAMPLES + saved.progress["sample"]
    assert done > 0
    epochs = saved.progress["epoch"] + 1
    backend = Probe()
    result = run(backend, dataset, epochs=epochs, path=path)
    assert backend.seen == epochs * SAMPLES - done
    assert result.history == run(Probe(), dataset, epochs=epochs).history


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("seed", {"seed": 5}),
        ("data", {"data": True}),
        ("rule", {"backend": FloatBackend(NETWORK, "bp", 3)}),
        ("rates", {"backend": FloatBackend(NETWORK, "lls", 3, hidden_rate=0.1)}),
        ("arithmetic", {"backend": FloatBackend(NETWORK, "lls", 3, dtype=np.float64)}),
        ("basis", {"backend": FloatBackend(NETWORK, "lls", 3, basis="sine")}),
        (
            "network",
            {
                "backend": FloatBackend(
                    Network("net", (6,), 3, "walsh", (FullyConnected(3),), Recipe(5, 4)), "lls", 3
                )
            },
        ),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    key: str, change: dict, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    run(FloatBackend(NETWORK, "lls", 3), dataset, epochs=1, path=path)
    before = path.read_bytes()
    if "data" in change:
        dataset = replace(dataset, y_train=np.roll(dataset.y_train, 1))
    backend = change.get("backend", FloatBackend(NETWORK, "lls", 3))
    kept = weights_sha256(backend.parameters())
    with pytest.raises(SpecError, match=f"checkpoint has {key} .*, this run has") as caught:
        run(backend, dataset, 2, path, change.get("seed", 4))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert path.read_bytes() == before and weights_sha256(backend.parameters()) == kept


def test_a_longer_or_broken_checkpoint_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Probe(), dataset, epochs=3, path=path)
    with pytest.raises(SpecError, match="has 3 epochs, more than epochs = 2"):
        run(Probe(), dataset, epochs=2, path=path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    for content in (b"", b"x", whole[:-30], whole[:middle] + b"\xff\xff\xff" + whole[middle + 3 :]):
        path.write_bytes(content)
        with pytest.raises(SpecError, match="must be a checkpoint") as caught:
            run(Probe(), dataset, path=path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    saved = Checkpoint(
        {**Probe().identity(), "seed": "4", "data": dataset.sha256}, {"epoch": 0}, {}
    )
    save_checkpoint(path, saved)
    with pytest.raises(SpecError, match="does not fit"):
        run(Probe(), dataset, path=path)
    np.savez(path.with_suffix(".npz"), meta=np.array(json.dumps({"format": "other"})))
    with pytest.raises(SpecError, match="format 'other'"):
        load_checkpoint(path.with_suffix(".npz"))


def test_wrong_arguments_are_refused(dataset: Dataset) -> None:
    with pytest.raises(SpecError, match="epochs: must be 1 or more, got 0"):
        run(Probe(), dataset, epochs=0)
    for seed in (-1, 2**32):
        with pytest.raises(SpecError, match=f"seed: must lie in .*, got {seed}"):
            run(Probe(), dataset, seed=seed)
    with pytest.raises(SpecError, match="labels must lie in 0…2"):
        run(Probe(), replace(dataset, classes=4))


@pytest.mark.parametrize("clocks", ["yes no", "no yes", "yes no yes", "yes yes"])
def test_cycles_are_those_of_whole_epochs_or_none(
    clocks: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that a backend with a clock and one without take turns in, in its second epoch of three."""

    class Clockless(Probe):
        def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
            return TrainReport(super().train(x, labels).predictions)

    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 4)
    path, last = tmp_path / "run.ckpt", clocks.split()[-1]
    run(Probe(), dataset, epochs=1, path=path)
    for clock in clocks.split()[:-1]:
        with pytest.raises(TrainingInterrupted):
            run((Probe if clock == "yes" else Clockless)(9), dataset, path=path)
    result = run((Probe if last == "yes" else Clockless)(), dataset, path=path)
    whole = 7 * SAMPLES
    second = whole if "no" not in clocks else None
    assert [entry.cycles for entry in result.history] == [whole, second, whole if last == "yes" else None]
    assert result.cycles == (3 * whole if second else None)


def test_foreign_data_are_named_beside_their_hashes(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Probe(), dataset, epochs=1, path=path)
    other = replace(dataset, name="other", y_train=np.roll(dataset.y_train, 1))
    with pytest.raises(SpecError) as caught:
        run(Probe(), other, path=path)
    assert str(caught.value) == (
        f"{path}: checkpoint has data toy (SHA-256 {dataset.sha256[:12]}...), this run has other "
        f"(SHA-256 {other.sha256[:12]}...); continue with the same data, or train into another folder (--out)"
    )
    # A checkpoint from before there were names is one too.
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    del meta["names"]
    checkpoint_module.write_atomically(path, {**arrays, "meta": np.array(json.dumps(meta))})
    with pytest.raises(SpecError, match=f"checkpoint has data {dataset.sha256}, this run has other"):
        run(Probe(), other, path=path)
    assert run(Probe(), dataset, path=path).history == run(Probe(), dataset).history


def test_a_file_that_is_no_archive_is_not_advised_to_be_unpickled(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    for content in (b"hello", b"\x80\x04K\x01."):
        path.write_bytes(content)
        for load in (load_checkpoint, load_weights):
            with pytest.raises(SpecError) as caught:
                load(path)
            assert "it is no .npz archive of plain arrays" in str(caught.value)
            assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.npz"
    save_weights(path, initial_parameters([(3, 2)], 0))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module.os, step, fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(path, initial_parameters([(3, 2)], 1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.npz"]


def test_the_new_file_is_flushed_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*arguments: object, name: str = name, original=original) -> None:
            calls.append(name)
            original(*arguments)

        monkeypatch.setattr(checkpoint_module.os, name, spy)
    save_weights(tmp_path / "weights.npz", initial_parameters([(3, 2)], 0))
    assert calls == ["fsync", "replace", "fsync"]


def test_weights_come_back_as_saved_and_equal_files_are_equal_bytes(tmp_path: Path) -> None:
    parameters = initial_codes([(4, 3), (3, 2)], 1)
    save_weights(tmp_path / "a.npz", parameters)
    save_weights(tmp_path / "b", parameters)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_weights(tmp_path / "a.npz", [(4, 3), (3, 2)])
    for (w, b), (v, a) in zip(parameters, found, strict=True):
        assert w.dtype == v.dtype and np.array_equal(w, v) and np.array_equal(b, a)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive.files == ["layer0_weight", "layer0_bias", "layer1_weight", "layer1_bias"]
    with pytest.raises(SpecError, match=r"layer1_weight: shape must be \(5, 3\), got \(2, 3\)"):
        load_weights(tmp_path / "a.npz", [(4, 3), (3, 5)])
    with pytest.raises(SpecError, match="must hold 1 layers, got 2"):
        load_weights(tmp_path / "a.npz", [(4, 3)])
    np.savez(tmp_path / "c.npz", weight=parameters[0][0])
    with pytest.raises(SpecError, match="keys must be layer0_weight"):
        load_weights(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_text("no")
    with pytest.raises(SpecError, match="must be weights"):
        load_weights(tmp_path / "d.npz")


def test_the_hash_is_over_little_endian_codes_in_layer_order() -> None:
    weight, bias = np.array([[1, -2], [3, 32767]]), np.array([-32768, 5])
    expected = hashlib.sha256(bytes.fromhex("0100feff0300ff7f" + "00800500")).hexdigest()
    for kind in ("<i2", ">i2", "<i8", ">i4"):
        assert weights_sha256([(weight.astype(kind), bias.astype(kind))]) == expected
    fortran = np.asfortranarray(weight.astype(np.int16))
    assert weights_sha256([(fortran, bias)]) == expected
    assert weights_sha256([(weight.T, bias)]) != expected
    floats = hashlib.sha256(bytes.fromhex("0000803f" + "00000040")).hexdigest()
    for kind in ("<f4", ">f4"):
        assert weights_sha256([(np.array([[1.0]], kind), np.array([2.0], kind))]) == floats
    for code in (32768, -32769):
        with pytest.raises(ValueError, match="outside of int16"):
            weights_sha256([(np.array([[code]]), bias)])
    with pytest.raises(ValueError, match="integers or floats"):
        weights_sha256([(np.array([[True]]), bias)])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_a_line_an_epoch_elsewhere(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 9)
    monkeypatch.setattr(Progress, "INTERVAL", 0.0)
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        train_epochs(Probe(), dataset, 2, 0, None, Progress(stream))
    zeros = 100 * float(np.mean(dataset.y_test == 0))
    lines = plain.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in plain.getvalue()
    assert lines[1].startswith(f"epoch 2/2: training 100.00 %, test {zeros:.2f} % (0:0")
    assert terminal.getvalue().count("\n") == 2
    shown = terminal.getvalue().split("\r")
    assert any("epoch 2/2 [#" in text and "ETA 0:00" in text for text in shown)
    named = io.StringIO()
    train_epochs(Probe(), dataset, 2, 0, None, Progress(named, name="float bp"))
    assert named.getvalue().splitlines() == [f"float bp: {line}" for line in lines]


def test_training_runs_outside_of_the_main_thread(dataset: Dataset) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(run(Probe(), dataset)))
    thread.start()
    thread.join()
    assert results[0].history == run(Probe(), dataset).history


def test_baselines_train_each_rule_from_each_seed(dataset: Dataset) -> None:
    results = float_baselines(NETWORK, dataset, 2, (0, 1), ("bp", "frozen"), Progress(quiet=True))
    assert list(results) == ["bp", "frozen"]
    hashes = {result.weights_sha256 for runs in results.values() for result in runs}
    assert len(hashes) == 4
    direct = run(FloatBackend(NETWORK, "frozen", 1), dataset, epochs=2, seed=1)
    assert results["frozen"][1].history == direct.history


@pytest.mark.parametrize("average", [1, 2, 3, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_an_average_is_the_mean_of_the_weights_after_the_last_epochs(name: str, average: int) -> None:
    backend, plain = BACKENDS[name](), BACKENDS[name]()
    data, epochs, after = noise(backend.network), 5, []

    def keep(_: Epoch) -> None:
        after.append(named(backend.parameters()))

    result = train_epochs(backend, data, epochs, 4, None, Progress(quiet=True), keep, average)
    without = run(plain, data, epochs)
    # The training itself is that without an average, to what its next sample depends on.
    assert without.average is None and result.history == without.history
    assert equal(backend.state_dict(), plain.state_dict())
    expected = {}
    for key, last in after[-1].items():
        total = np.zeros(last.shape)
        for arrays in after[-average:]:
            total += arrays[key]
        mean = total / average
        expected[key] = (np.floor(mean + 0.5) if last.dtype == np.int16 else mean).astype(last.dtype)
    mean = result.average
    assert mean is not None and mean.epochs == average
    assert equal(named(mean.parameters), expected)
    assert equal(expected, after[-1]) == (average == 1)
    assert mean.weights_sha256 == weights_sha256(mean.parameters)
    plain.load_parameters(mean.parameters)
    assert mean.test_accuracy == 100 * float(np.mean(plain.predict(data.x_test) == data.y_test))
    # And it goes on as if nothing had been tested.
    plain = BACKENDS[name]()
    run(plain, data, epochs)
    labels = data.y_train[:6]
    backend.train(data.x_train[:6], labels)
    plain.train(data.x_train[:6], labels)
    assert equal(backend.state_dict(), plain.state_dict())


class Scripted(Probe):
    """Its weights after each epoch are given; one sample an epoch is enough to tell them apart."""

    def __init__(self, script: list[list[int]]):
        super().__init__()
        self._script = [np.array([codes], np.int16) for codes in script]
        self._code = self._script[0]
        self.tested: list[np.ndarray] = []

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        self.seen += len(x)
        self._code = self._script[(self.seen - 1) // SAMPLES]
        return TrainReport(labels.copy())

    def predict(self, x: np.ndarray) -> np.ndarray:
        self.tested.append(self._code)
        return super().predict(x)


@pytest.mark.parametrize(
    ("script", "mean"),
    [
        ([[-3, -1, 0, 1, 3], [0, 0, 0, 0, 0]], [-1, 0, 0, 1, 2]),
        ([[-4, -5, 4, 5, 7], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [-1, -2, 1, 2, 2]),
        ([[-32768, 32767, -32768, 32767, 32766]] * 3, [-32768, 32767, -32768, 32767, 32766]),
        ([[-32768, 32767, -32768], [-32767, 32766, 32767]], [-32767, 32767, 0]),
    ],
)
def test_the_mean_of_codes_rounds_half_up(script: list, mean: list, dataset: Dataset) -> None:
    backend = Scripted([[9] * len(mean), *script])
    result = run(backend, dataset, len(script) + 1, average=len(script))
    assert result.average is not None
    ((weight, bias),) = result.average.parameters
    assert weight.dtype == bias.dtype == np.int16
    assert weight.tolist() == [mean] and bias.tolist() == [0]
    # Tested: after every epoch, then the mean; the last epoch's weights are back.
    assert [codes.tolist() for codes in backend.tested] == [[[9] * len(mean)], *([codes] for codes in script), [mean]]
    assert backend.parameters()[0][0].tolist() == [script[-1]]


def test_the_mean_of_codes_holds_for_any_number_of_epochs() -> None:
    for epochs in (1, 2, 3, 10**9, 2**46 - 1):
        codes = np.array([[-32768, 32767, -1, 0, 1]])
        ((weight, _),) = train_module._mean([(codes * epochs, codes[0] * epochs)], epochs)
        assert weight.tolist() == codes.tolist()


@pytest.mark.parametrize("stops", [(5,), (SAMPLES,), (2 * SAMPLES,), (2 * SAMPLES + 9,), (4 * SAMPLES - 1,), (50, 90)])
@pytest.mark.parametrize("name", BACKENDS)
def test_an_average_is_resumed_to_equal_bits(
    name: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before, between and in the epochs that it is the mean of: 2, 3 and 4 of 4."""
    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 4)
    path, whole = tmp_path / "run.ckpt", BACKENDS[name]()
    data = noise(whole.network)
    expected = run(whole, data, 4, average=3)
    for stop in stops:
        backend = BACKENDS[name]()
        train, seen = backend.train, []
        if path.exists():
            progress = load_checkpoint(path).progress
            seen = [None] * (progress["epoch"] * SAMPLES + progress["sample"])

        def stopped(x: np.ndarray, labels: np.ndarray, train=train, seen=seen, stop=stop) -> TrainReport:
            seen.extend(x)
            if len(seen) - len(x) < stop <= len(seen):
                os.kill(os.getpid(), signal.SIGINT)
            return train(x, labels)

        monkeypatch.setattr(backend, "train", stopped)
        with pytest.raises(TrainingInterrupted, match=f"saved in {path}"):
            run(backend, data, 4, path, average=3)
    resumed = BACKENDS[name]()
    result = run(resumed, data, 4, path, average=3)
    assert result.history == expected.history
    assert result.average == expected.average
    assert result.average is not None and expected.average is not None
    assert equal(named(result.average.parameters), named(expected.average.parameters))
    assert equal(resumed.state_dict(), whole.state_dict())
    # The checkpoint has the last epoch's weights. Nothing is left to train, and the mean is there again.
    assert equal(load_checkpoint(path).state, whole.state_dict())
    assert run(BACKENDS[name](), data, 4, path, average=3).average == expected.average


@pytest.mark.parametrize("stop_at", [1, SAMPLES, 2 * SAMPLES + 5, 5 * SAMPLES - 1])
@pytest.mark.parametrize("average", [1, 2, 5])
def test_the_sum_is_exact_wherever_it_was_interrupted(
    average: int, stop_at: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With codes of all 16 bits, saved after every chunk; an error loses what came after the last of these."""
    monkeypatch.setattr(train_module, "_next_chunk", lambda *_: 4)
    monkeypatch.setattr(train_module, "SECONDS_A_CHECKPOINT", 0.0)
    path = tmp_path / "run.ckpt"
    expected = run(Probe(), dataset, 5, average=average)
    with pytest.raises(ZeroDivisionError):
        run(Probe(stop_at, ZeroDivisionError()), dataset, 5, path, average=average)
    result = run(Probe(), dataset, 5, path, average=average)
    assert (result.history, result.average) == (expected.history, expected.average)


def test_a_training_with_an_average_can_be_longer(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Probe(), dataset, 3, path, average=2)
    longer = run(Probe(), dataset, 5, path, average=2)
    whole = run(Probe(), dataset, 5, average=2)
    assert (longer.history, longer.average) == (whole.history, whole.average)
    # One epoch longer, the mean needs an epoch that is in the sum of the other, inseparably.
    with pytest.raises(SpecError, match="has 5 epochs, but not the sum of the weights from epoch 5 on"):
        run(Probe(), dataset, 6, path, average=2)
    assert run(Probe(), dataset, 6, path, average=1).average == run(Probe(), dataset, 6, average=1).average


def test_a_checkpoint_without_the_sum_is_refused_once_it_is_needed(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Probe(), dataset, 2, path)
    # As trainings wrote it before there were averages.
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    del meta["progress"]["summed_from"]
    assert not any(name.startswith("sums/") for name in arrays)
    checkpoint_module.write_atomically(path, {**arrays, "meta": np.array(json.dumps(meta))})
    old = path.read_bytes()
    for epochs, average, said in (
        (4, 3, "the sum of the weights from epoch 2 on, for an average of 3 epochs; continue with an average of at "
         "most 2 epochs, or"),
        (3, 3, "from epoch 1 on, for an average of 3 epochs; continue with an average of at most 1 epochs, or"),
        (2, 1, "from epoch 2 on, for an average of 1 epochs; continue without an average, or"),
    ):
        with pytest.raises(SpecError, match=f"checkpoint has 2 epochs, but not .*{said}") as caught:
            run(Probe(), dataset, epochs, path, average=average)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert path.read_bytes() == old
    expected = run(Probe(), dataset, 4, average=2).average
    with pytest.raises(ZeroDivisionError):
        run(Probe(SAMPLES + 3, ZeroDivisionError()), dataset, 4, path, average=2)
    # Now it has a sum, from epoch 3 on, of the mean of 2 of 4 and no other.
    said = "has 3 epochs, .*from epoch 2 on.*; continue with an average of 2 or at most 1 epochs, or train into"
    with pytest.raises(SpecError, match=said):
        run(Probe(), dataset, 4, path, average=3)
    assert run(Probe(), dataset, 4, path, average=2).average == expected
    # A run without an average adds nothing to it, so does not keep it.
    assert run(Probe(), dataset, 4, path).average is None
    assert run(Probe(), dataset, 4, path, average=2).average == expected
    run(Probe(), dataset, 5, path)
    assert load_checkpoint(path).sums == {} and load_checkpoint(path).progress["summed_from"] is None
    with pytest.raises(SpecError, match="continue without an average, or"):
        run(Probe(), dataset, 5, path, average=1)


@pytest.mark.parametrize(
    "change",
    [
        {"sums/layer0_bias": None},
        {"sums/layer0_weight": None, "sums/layer0_bias": None},
        {"sums/layer0_weight": np.zeros((1, 1))},
        {"sums/layer0_bias": np.zeros(1, np.int16)},
        {"sums/layer0_weight": np.zeros((1, 2), np.int64)},
        {"sums/layer1_weight": np.zeros((1, 1), np.int64), "sums/layer1_bias": np.zeros(1, np.int64)},
    ],
)
def test_a_sum_that_is_not_of_these_weights_is_refused(change: dict, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Probe(), dataset, 2, path, average=2)
    with np.load(path) as archive:
        arrays = {**archive, **change}
    checkpoint_module.write_atomically(path, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(SpecError, match="checkpoint does not fit this backend"):
        run(Probe(), dataset, 2, path, average=2)


@pytest.mark.parametrize("average", [0, -1, 4])
def test_an_average_of_no_or_too_many_epochs_is_refused(average: int, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"average: must lie in 1…3, the epochs, got {average}"):
        run(Probe(), dataset, 3, tmp_path / "run.ckpt", average=average)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("call", "how"), [(3, TrainingInterrupted), (4, KeyboardInterrupt)])
def test_ctrl_c_while_the_mean_is_tested_loses_nothing(
    call: int, how: type, dataset: Dataset, tmp_path: Path
) -> None:
    """In the test of the last epoch, and in that of the mean: all is trained and saved."""

    class Stopped(Probe):
        calls = 0

        def predict(self, x: np.ndarray) -> np.ndarray:
            Stopped.calls += 1
            if Stopped.calls == call:
                os.kill(os.getpid(), signal.SIGINT)
            return super().predict(x)

    path, backend = tmp_path / "run.ckpt", Stopped()
    with pytest.raises(how) as caught:
        run(backend, dataset, path=path, average=2)
    assert isinstance(caught.value, TrainingInterrupted) == (call == 3)
    if call == 3:
        assert str(caught.value) == f"interrupted before the test of the mean weights; saved in {path}"
    expected = run(Probe(), dataset, average=2)
    # The backend has the last epoch's weights.
    assert weights_sha256(backend.parameters()) == expected.weights_sha256
    rest = Probe()
    result = run(rest, dataset, path=path, average=2)
    assert rest.seen == 0 and (result.history, result.average) == (expected.history, expected.average)


def test_the_mean_is_told_in_a_line(dataset: Dataset) -> None:
    stream = io.StringIO()
    result = train_epochs(Probe(), dataset, 3, 4, None, Progress(stream), average=2)
    assert result.average is not None
    line = stream.getvalue().splitlines()[-1]
    assert line == f"mean weights of epochs 2 to 3: test {result.average.test_accuracy:.2f} %"
