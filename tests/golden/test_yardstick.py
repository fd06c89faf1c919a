"""The yardstick's `machine` setting against the float model, and every setting on a few images."""

import numpy as np
import pytest

from golden.data import Dataset
from golden.float_model import FloatBackend
from golden.train import epoch_order
from spec.network import load_network

pytest.importorskip("torch")

from bench.yardstick import SETTINGS, Run, Trainer  # noqa: E402


def dataset(network, count=40):
    random = np.random.RandomState(0)
    shape = network.input_shape
    x = random.randint(0, 256, (count, int(np.prod(shape)))).astype(np.uint8)
    y = random.randint(0, network.classes, count)
    return Dataset("noise", x, y, x[:20], y[:20], 255, network.classes, shape, network.input)


@pytest.mark.parametrize("rule", ["lls", "bp", "dfa", "frozen"])
@pytest.mark.parametrize("name", ["smallconv-cifar10", "smallconv-kws"])
def test_machine_is_the_float_model(name, rule):
    network = load_network(name)
    data = dataset(network)
    seeds = (0, 3)
    trainer = Trainer(network, data, SETTINGS["machine"], rule, [Run(seed) for seed in seeds], 1)
    trainer.train_epoch(0)
    found = trainer.parameters()
    tested = trainer.test()
    for r, seed in enumerate(seeds):
        backend = FloatBackend(network, rule, seed)
        order = epoch_order(seed, 0, 40)
        backend.train(data.x_train[order], data.y_train[order])
        for (w, b), (W, B) in zip(found, backend.parameters(), strict=True):
            np.testing.assert_allclose(w[r], W, rtol=0, atol=1e-6)
            np.testing.assert_allclose(b[r], B, rtol=0, atol=1e-6)
        assert abs(tested[r] - 100 * np.mean(backend.predict(data.x_test) == data.y_test)) < 1e-3


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("rule", ["lls", "bp", "dfa", "frozen"])
def test_every_setting_trains(setting, rule):
    network = load_network("smallconv-cifar10")
    trainer = Trainer(network, dataset(network), SETTINGS[setting], rule, [Run(0)], 2)
    before = trainer.parameters()[0][0].copy()
    trainer.train_epoch(0)
    trainer.train_epoch(1)
    moved = not np.array_equal(before, trainer.parameters()[0][0])
    # Clipping moves the first layer from its initial weights already.
    assert moved == (rule != "frozen" or setting == "machine-clip")
    assert all(0 <= a <= 100 for a in trainer.test())
    assert np.isfinite(trainer.parameters()[0][0]).all()
