"""`entrain train --average N`: the mean of the last epochs' weights, in its file, in metrics.json and on the screen."""

import json
import os
import shlex
import signal

import numpy as np
import pytest

from golden.checkpoint import load_checkpoint, load_weights, write_atomically
from golden.fast import FastModel
from golden.windowed_fast import FastWindowedModel
from sim.cli import main
from sim.cli.common import invoked
from spec.machine import load_machine
from spec.network import load_network

TINY, CONVOLUTIONS = ("tiny", 5), ("conv-tiny", 72)
"""Networks and machines of one name, and features."""
KEYS = ("average_epochs", "average_test_accuracy", "average_weights_sha256")


@pytest.fixture
def words(tmp_path):
    """The command line of a small training into a folder of `tmp_path`, with a data set made for it."""

    def make(out, *more, of=TINY):
        name, features = of
        draw = np.random.RandomState(2)
        images = draw.randint(0, 256, (60, features)).astype(np.uint8)
        np.savez(tmp_path / "data.npz", x=images, y=np.arange(60) % 3)
        line = ["--machine", name, "--network", name, "--data", tmp_path / "data.npz", "--out", tmp_path / out]
        return ["train", "--quiet", *map(str, line), *more]

    return make


def metrics(tmp_path, out):
    return json.loads((tmp_path / out / "metrics.json").read_text())


def interrupted_at(monkeypatch, backend, call):
    """Ctrl-C in a backend's call of `train`, counted from 1."""
    train, calls = backend.train, []

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return train(self, *arguments)

    monkeypatch.setattr(backend, "train", stopped)


@pytest.mark.parametrize("of, backend", [(TINY, "golden"), (CONVOLUTIONS, "golden"), (CONVOLUTIONS, "float")])
def test_the_mean_is_beside_the_last_epochs_weights(words, tmp_path, capsys, of, backend):
    more = ("--backend", backend, "--epochs", "4")
    after = []
    for epochs in (3, 4):
        assert main(words(f"{epochs}", "--backend", backend, "--epochs", str(epochs), of=of)) == 0
        after.append(dict(np.load(tmp_path / f"{epochs}/weights.npz")))
    plain = metrics(tmp_path, "4")
    assert [plain[key] for key in KEYS] == [None] * 3 and "average.npz" not in plain["files"]
    capsys.readouterr()
    assert main(words("a", *more, "--average", "2", of=of)) == 0
    out, found = capsys.readouterr().out, metrics(tmp_path, "a")
    for key in ("weights_sha256", "test_accuracy", "history", "samples"):
        assert found[key] == plain[key]
    assert (tmp_path / "a/weights.npz").read_bytes() == (tmp_path / "4/weights.npz").read_bytes()
    # Golden: codes, rounded half up. Float: the backend's float32 of a mean in float64.
    mean = dict(np.load(tmp_path / "a/average.npz"))
    assert list(mean) == list(after[0])
    for key, array in mean.items():
        exact = (after[0][key].astype(np.float64) + after[1][key]) / 2
        expected = np.floor(exact + 0.5) if backend == "golden" else exact
        assert array.dtype == after[0][key].dtype and np.array_equal(array, expected.astype(array.dtype))
    assert found["average_epochs"] == 2 and set(KEYS) <= set(found["units"])
    assert found["average_weights_sha256"] not in (plain["weights_sha256"], None)
    assert set(found["files"]) | {"metrics.json", "run.json"} == {path.name for path in (tmp_path / "a").iterdir()}
    right = f"{found['average_test_accuracy']:.2f} %"
    assert f"mean weights    {right}  (last 2 epochs; {tmp_path / 'a/average.npz'})\n" in out


@pytest.mark.parametrize("of, model", [(TINY, FastModel), (CONVOLUTIONS, FastWindowedModel)])
def test_its_test_accuracy_is_that_of_the_file(words, tmp_path, of, model):
    from golden.data import load_dataset

    assert main(words("a", "--epochs", "3", "--average", "3", of=of)) == 0
    network = load_network(of[0])
    backend = model(network, load_machine(of[0]))
    backend.load_parameters(load_weights(tmp_path / "a/average.npz", network.shapes))
    data = load_dataset(str(tmp_path / "data.npz"), network)
    right = 100 * float(np.mean(backend.predict(data.x_test) == data.y_test))
    assert metrics(tmp_path, "a")["average_test_accuracy"] == right


@pytest.mark.parametrize("of, model", [(TINY, FastModel), (CONVOLUTIONS, FastWindowedModel)])
def test_it_goes_on_after_ctrl_c_among_the_averaged_epochs(words, tmp_path, monkeypatch, capsys, of, model):
    monkeypatch.setattr("golden.train._next_chunk", lambda *_: 16)
    more = ("--epochs", "5", "--average", "3")
    assert main(words("whole", *more, of=of)) == 0
    line = words("parts", *more, of=of)
    with monkeypatch.context() as patch:
        # The first epoch of 48 samples is four calls, others are three: this is in epoch 4 of 5.
        interrupted_at(patch, model, 12)
        capsys.readouterr()
        assert main(line) == 130
    said = capsys.readouterr().err
    assert f"go on with: {invoked()} {shlex.join(line)} --resume" in said
    progress = load_checkpoint(tmp_path / "parts/checkpoint.npz").progress
    assert progress["epoch"] == 3 and progress["sample"] > 0 and progress["summed_from"] == 3
    assert main([*line, "--resume"]) == 0
    whole, parts = metrics(tmp_path, "whole"), metrics(tmp_path, "parts")
    assert {key: parts[key] for key in (*KEYS, "history")} == {key: whole[key] for key in (*KEYS, "history")}
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "parts").iterdir()}
    for name in ("average.npz", "weights.npz", "checkpoint.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    # Longer, it goes on from the last epoch's weights, with another mean.
    assert main(words("whole", "--epochs", "8", "--average", "3", "--resume", of=of)) == 0
    assert main(words("eight", "--epochs", "8", "--average", "3", of=of)) == 0
    assert (tmp_path / "whole/average.npz").read_bytes() == (tmp_path / "eight/average.npz").read_bytes()
    assert (tmp_path / "whole/weights.npz").read_bytes() == (tmp_path / "eight/weights.npz").read_bytes()


def test_rtl_reaches_the_mean_of_golden_from_its_sum(words, tmp_path, monkeypatch):
    more = ("--epochs", "4", "--average", "3")
    assert main(words("golden", *more)) == 0
    with monkeypatch.context() as patch:
        patch.setattr("golden.train._next_chunk", lambda *_: 16)
        interrupted_at(patch, FastModel, 11)
        assert main(words("rtl", *more)) == 130
    assert load_checkpoint(tmp_path / "rtl/checkpoint.npz").progress["summed_from"] == 2
    assert main(words("rtl", *more, "--backend", "rtl", "--resume")) == 0
    golden, rtl = metrics(tmp_path, "golden"), metrics(tmp_path, "rtl")
    assert [rtl[key] for key in KEYS] == [golden[key] for key in KEYS]
    assert rtl["weights_sha256"] == golden["weights_sha256"]
    for name in ("average.npz", "weights.npz"):
        assert (tmp_path / "rtl" / name).read_bytes() == (tmp_path / "golden" / name).read_bytes()


@pytest.mark.parametrize(
    "more, named",
    [
        (["--average", "0"], ["--average", "'0'", "from 1"]),
        (["--average", "-1"], ["--average"]),
        (["--average", "two"], ["--average", "'two'"]),
        (["--average", "11"], ["--average: must be at most --epochs, 10, got 11"]),
        (["--epochs", "3", "--average", "4"], ["--average: must be at most --epochs, 3, got 4"]),
    ],
)
def test_wrong_numbers_are_refused(words, tmp_path, capsys, more, named):
    assert main(words("a", *more)) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 1 and lines[0].startswith("entrain train: error:")
    assert all(name in lines[0] for name in named), lines
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("backend", ["golden", "rtl"])
def test_a_checkpoint_without_the_sum_is_refused(words, tmp_path, capsys, monkeypatch, backend):
    """One line, before anything is compiled, and nothing is touched; as long as it lacks no epoch, it goes on."""
    assert main(words("a", "--epochs", "2")) == 0
    # As it was before there were averages.
    path = tmp_path / "a/checkpoint.npz"
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays["meta"]))
    del meta["progress"]["summed_from"]
    write_atomically(path, {**arrays, "meta": np.array(json.dumps(meta))})
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        patch.setenv("ENTRAIN_CACHE", str(tmp_path / "cache"))
        assert main(words("a", "--epochs", "3", "--average", "2", "--resume", "--backend", backend)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert f"{path}: checkpoint has 2 epochs, but not the sum of the weights from epoch 2 on" in captured.err
    assert "continue with an average of at most 1 epochs, or train into another folder (--out)" in captured.err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert main(words("a", "--epochs", "4", "--average", "2", "--resume")) == 0
    assert main(words("b", "--epochs", "4", "--average", "2")) == 0
    assert (tmp_path / "a/average.npz").read_bytes() == (tmp_path / "b/average.npz").read_bytes()


def test_help_teaches_it(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    # The option, the file, and an example.
    assert "--average N" in text and "\n  average.npz  " in text and "--average 5" in text
