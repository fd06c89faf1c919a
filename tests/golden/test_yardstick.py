"""The yardstick's `machine` setting against the float model, and every setting on a few images."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from golden.data import Dataset
from golden.float_model import FloatBackend
from golden.train import epoch_order
from spec.network import load_network

pytest.importorskip("torch")

from bench.yardstick import SETTINGS, Run, Trainer, main  # noqa: E402


def dataset(network, count):
    random = np.random.RandomState(0)
    shape = network.input_shape
    x = random.randint(0, 256, (count, int(np.prod(shape)))).astype(np.uint8)
    y = random.randint(0, network.classes, count)
    return Dataset("noise", x, y, x[:12], y[:12], 255, network.classes, shape, network.input)


@pytest.mark.parametrize("rule", ["lls", "bp", "dfa", "frozen"])
@pytest.mark.parametrize("name, count", [("smallconv-cifar10", 24), ("smallconv-kws", 14), ("conv-tiny", 41)])
def test_machine_is_the_float_model(name, count, rule):
    """Over an epoch whose last batch is a shorter one."""
    network = load_network(name)
    data = dataset(network, count)
    seeds = (0, 3)
    trainer = Trainer(network, data, SETTINGS["machine"], rule, [Run(seed) for seed in seeds], 1)
    trainer.train_epoch(0)
    found = trainer.parameters()
    tested = trainer.test()
    for r, seed in enumerate(seeds):
        backend = FloatBackend(network, rule, seed)
        order = epoch_order(seed, 0, count)
        backend.train(data.x_train[order], data.y_train[order])
        for (w, b), (W, B) in zip(found, backend.parameters(), strict=True):
            np.testing.assert_allclose(w[r], W, rtol=0, atol=1e-6)
            np.testing.assert_allclose(b[r], B, rtol=0, atol=1e-6)
        assert abs(tested[r] - 100 * np.mean(backend.predict(data.x_test) == data.y_test)) < 1e-3


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("rule", ["lls", "bp", "dfa", "frozen"])
def test_every_setting_trains(setting, rule):
    network = load_network("conv-tiny")
    # Twice the weights, so that there is something to clip.
    network = replace(network, recipe=replace(network.recipe, gain_shift=1))
    trainer = Trainer(network, dataset(network, 40), SETTINGS[setting], rule, [Run(0)], 2)
    before = trainer.parameters()[0][0].copy()
    trainer.train_epoch(0)
    trainer.train_epoch(1)
    moved = not np.array_equal(before, trainer.parameters()[0][0])
    # Clipping moves the first layer from its initial weights already.
    assert moved == (rule != "frozen" or setting == "machine-clip")
    assert all(0 <= a <= 100 for a in trainer.test())
    assert np.isfinite(trainer.parameters()[0][0]).all()


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `python -m bench.yardstick` on a small data set of `tmp_path`; its exit status."""
    data = dataset(load_network("conv-tiny"), 40)
    np.savez(tmp_path / "data.npz", x=data.raw_train.reshape(-1, 6, 6, 2), y=np.arange(40) % 3)
    (tmp_path / "text.npz").write_text("no archive")
    monkeypatch.chdir(tmp_path)

    def call(*words):
        defaults = ["--data", "data.npz", "--network", "conv-tiny", "--epochs", "2", "--device", "cpu", "--out", "out"]
        monkeypatch.setattr(sys, "argv", ["yardstick", *defaults, *words])
        try:
            return main()
        except SystemExit as end:
            return end.code

    return call


def test_it_writes_what_was_reached(command, tmp_path, capsys):
    assert command("--setting", "machine", "--rule", "bp") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]
    assert metrics["test_accuracy"] == metrics["history"][-1]["test_accuracy"]
    assert f"{metrics['test_accuracy']:.2f} %  (machine, bp)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, named",
    [
        (["--data", "none.npz"], "none.npz"),
        (["--data", "text.npz"], "text.npz"),
        (["--network", "none"], "--network: must be"),
        (["--network", "smallconv-kws"], "490 features"),
        (["--setting", "best"], "--setting: must be one of reference"),
        (["--rule", "hebb"], "--rule: must be one of lls"),
        (["--basis", "none"], "--basis: must be one of square"),
        (["--epochs", "0"], "--epochs: must be"),
        (["--epochs", "many"], "--epochs: invalid int value"),
        (["--seed", "-1"], "--seed: must be"),
        (["--rate", "0"], "--rate: must be"),
        (["--temperature", "nan"], "--temperature: must be"),
        (["--device", "tpu"], "--device: must be one of cpu"),
        (["--out", "text.npz"], "--out: must be a folder: text.npz"),
        (["--momentum", "1"], "--momentum"),
    ],
)
def test_wrong_input_is_refused_in_a_line(command, tmp_path, capsys, words, named):
    assert command(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "error: " in captured.err and named in captured.err
    assert not (tmp_path / "out").exists()
