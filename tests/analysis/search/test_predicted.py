"""Budgets of a search: each has a cost of its own, in whatever order; inputs of any kind."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.figures import file_figures, operator_macs

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(160, 10)).astype("float32"), np.arange(160) % 4
MACS = 10 * 24 + 24 * 24 + 24 * 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10,), name="x")
    h = layers.Dense(24, "relu", name="first")(inputs)
    h = layers.Dense(24, "relu", name="second")(h)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    model.compile("adam", LOSS, metrics=["accuracy"])
    return model


def run(model, budget, x=X, y=Y, **options):
    train, validation = (x[:80], y[:80]), (x[80:], y[80:])
    given = {"options": ["sparsity=0.7"], "epochs": 0, "trials": 1, "samples": 32, "verbose": 0}
    return tfc.search(model, train, validation, budget=budget, **{**given, **options})


def test_bytes_and_bytes_under_gzip_in_any_order(net):
    whole = run(net, tfc.Bytes(1e6)).best.costs
    packed = tfc.Bytes(0.85 * whole.gzip_bytes, gzip=True)
    raw = tfc.Bytes(1.1 * whole.num_bytes)
    alone, first, last = run(net, packed), run(net, [packed, raw]), run(net, [raw, packed])
    assert alone.best.costs.gzip_bytes <= packed.limit < whole.gzip_bytes
    assert first.best.point.assignment == last.best.point.assignment == alone.best.point.assignment
    assert [p.costs for p in first.front] == [p.costs for p in last.front]


def test_each_latency_has_its_own_table(net):
    fast, slow = (tfc.Latency(n, table={"FULLY_CONNECTED": n}) for n in (1.0, 100.0))
    tight = tfc.Latency(1.5e-6 * MACS, table=fast.table)
    loose = tfc.Latency(1.5e-4 * MACS, table=slow.table)
    costs = run(net, [tight, loose]).best.costs
    assert tight.of(costs) == pytest.approx(MACS / 1e6)
    assert loose.of(costs) == pytest.approx(MACS / 1e4)
    with pytest.raises(ValueError, match="milliseconds of at most"):
        run(net, [loose, tfc.Latency(0.5e-6 * MACS, table=fast.table)])


def test_budgets_other_than_bytes_order_candidates_alike():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10,), name="x")
    h = layers.Dense(16, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    model.compile("adam", LOSS)
    budgets = [tfc.Macs(0.9), tfc.PeakMemory(100)]
    options = {"options": ["channels=0.5"]}
    first, last = run(model, budgets, **options), run(model, budgets[::-1], **options)
    assert [p.assignment for p in first.front] == [p.assignment for p in last.front]
    assert first.best.point.assignment == last.best.point.assignment


def test_products_of_each_operator_are_those_of_the_file(tmp_path):
    inputs = keras.Input((8, 8, 3), name="image")
    h = layers.Conv2D(4, 3, activation="relu")(inputs)
    h = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(h))
    model = keras.Model(inputs, layers.Dense(2)(h))
    x = RANDOM.normal(size=(8, 8, 8, 3)).astype("float32")
    quantized = tfc.quantize(model, calibration_data=x, verbose=0)
    tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=x)
    summary = tfc.inspect_tflite(tmp_path / "model.tflite")
    found = operator_macs(summary)
    assert found == {
        "CONV_2D": 6 * 6 * 4 * 27,
        "DEPTHWISE_CONV_2D": 4 * 4 * 4 * 9,
        "FULLY_CONNECTED": 4 * 2,
    }
    assert sum(found.values()) == file_figures(summary).macs


def test_inputs_of_token_numbers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    h = layers.GlobalAveragePooling1D()(layers.Embedding(30, 8, name="embedding")(inputs))
    h = layers.Dense(16, "relu", name="hidden")(h)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    model.compile("adam", LOSS, metrics=["accuracy"])
    x = RANDOM.integers(0, 30, size=(160, 6)).astype("int32")
    found = run(model, tfc.Bytes(1e6), x, options=["int4"])
    assert found.best.fits
    predicted = model.predict(x[80:], verbose=0).argmax(-1)
    assert found.baseline == pytest.approx(np.mean(predicted == Y[80:]))
