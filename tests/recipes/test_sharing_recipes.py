"""The recipes of sharing and factorization run, resume and make their tables, on a few images."""

import types

import keras
import numpy as np
import pytest

from recipes import cluster, deep_compression, factorize, share_models


@pytest.fixture
def images(monkeypatch):
    """Every data set is a hundred and some random images."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (128, 28, 28, 1)).astype("float32")
    y = (np.arange(128) % 10).astype("int32")
    for recipe in (deep_compression, factorize, share_models):
        monkeypatch.setattr(recipe.datasets, "load", lambda *_: ((x, y), (x[:50], y[:50])))


def test_deep_compression(images, tmp_path, capsys):
    options = types.SimpleNamespace(
        network="lenet300",
        seeds=["0"],
        sparsities=["0.9"],
        clusters=[],
        epochs=["1", "1", "1"],
        train_samples=0,
        data_dir=None,
        output=str(tmp_path),
    )
    experiment = deep_compression.Experiment(options)
    experiment.run(0)
    rows = experiment.results.rows
    assert [row["stage"] for row in rows] == ["float", "pruned", "shared"]
    sizes = [int(row["packed_bytes"]) for row in rows]
    assert sizes[0] > 5 * sizes[1] > 6 * sizes[2]
    assert float(rows[2]["zeros"]) == pytest.approx(0.9, abs=0.01)
    assert max(int(k) for k in rows[2]["distinct"].split("/")) <= 17
    assert int(rows[2]["packed_bytes"]) <= int(rows[2]["huffman_bytes"])
    experiment.run(0)
    assert experiment.results.rows == rows
    assert "shared" in experiment.table()


def tiny_net():
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(16, 3, strides=4, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


def test_factorize(images, tmp_path, monkeypatch):
    monkeypatch.setattr(factorize, "small_vgg", tiny_net)
    options = types.SimpleNamespace(
        seeds=["0"],
        variants=["float", *factorize.VARIANTS],
        target_macs=0.5,
        epochs=1,
        extra_epochs=1,
        extra_learning_rate=1e-3,
        train_samples=0,
        data_dir=None,
    )
    text = factorize.fashion(options, tmp_path)
    assert "best" in text
    control, *others = factorize.Results(tmp_path / "factorize.csv", factorize.KEY).rows
    assert [row["variant"] for row in others] == ["best", "spatial+svd", "weighted"]
    assert all(int(row["macs"]) <= 0.5 * int(control["macs"]) for row in others)


def small_net(*_):
    inputs = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Conv2D(8, 3, strides=4, use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(
        inputs, keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(x)), name="small"
    )


def test_cluster(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (256, 28, 28, 1)).astype("float32"), np.arange(256) % 10
    settings = types.SimpleNamespace(
        seeds=["0"], clusters=["4"], init="linear", epochs=1, learning_rate=1e-3, tfmot=False
    )
    results = cluster.Results(tmp_path / "cluster.csv", cluster.KEY)
    cluster.run(settings, results, ((x, y), (x[:50], y[:50])), small_net())
    _, plain, shared = results.rows
    assert [row["variant"] for row in results.rows] == ["float", "int8", "int8, 4"]
    # Four values, and as many again behind a negative γ, which a step at 1e-3 does not make.
    assert int(shared["codes"]) == 4 < int(plain["codes"])
    assert int(shared["gzip_bytes"]) < int(plain["gzip_bytes"])
    assert "int8, 4" in cluster.table(results.rows)


def test_share_models(images, tmp_path, monkeypatch):
    monkeypatch.setattr(share_models.models, "build", small_net)
    settings = types.SimpleNamespace(
        seeds=["0"], epochs=1, joint_epochs=1, joint_learning_rate=1e-3
    )
    results = share_models.Results(tmp_path / "share.csv", share_models.KEY)
    data = {task: share_models.datasets.load(task) for task in share_models.TASKS}
    share_models.run(settings, tmp_path, results, data)
    (row,) = results.rows
    assert int(row["one_bytes"]) < int(row["sum_bytes"])
    assert "1" in share_models.table(results.rows)
