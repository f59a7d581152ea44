"""`accuracy_control` on a model with a planted bad layer."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.search.control import _first_that_holds


def spoilt_net():
    """A trained classifier in which int8 ruins `bad` alone.

    A channel of `first` is always zero; the weights that read it are a thousand times as large as
    all others, so that the scales of `bad` leave the others nothing. In float it does no harm.
    """
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 16)).astype("float32")
    y = (x @ rng.normal(size=(16, 4))).argmax(-1)
    inputs = keras.Input((16,), name="features")
    h = layers.Dense(24, activation="relu", name="first")(inputs)
    h = layers.Dense(24, activation="relu", name="bad")(h)
    h = layers.Dense(24, activation="relu", name="third")(h)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(x[:800], y[:800], epochs=12, batch_size=64, verbose=0)
    first, bad = model.get_layer("first"), model.get_layer("bad")
    kernel, bias = first.get_weights()
    kernel[:, 5], bias[5] = 0, -1
    first.set_weights([kernel, bias])
    kernel, bias = bad.get_weights()
    kernel[5] = 1000 * rng.choice([-1, 1], 24)
    bad.set_weights([kernel, bias])
    return model, (x[:256], y[:256]), (x[800:], y[800:])


@pytest.fixture(scope="module")
def spoilt():
    return spoilt_net()


def test_the_planted_layer_is_found_and_left_out(spoilt, tmp_path):
    model, (x, _), validation = spoilt
    found = tfc.accuracy_control(model, validation, calibration_data=x, max_drop=0.02, verbose=0)
    assert dict(found.restored) == {"bad": "float"}
    assert found.sensitivity.worst_first("int8")[0] == "bad"
    # With everything in int8 the drop is large, and what is returned exports as it was measured.
    assert found.attempts[0].drop.mean > 0.2
    report = tfc.export_tflite(found.model, tmp_path / "model.tflite")
    assert report.num_bytes == found.attempts[-1].num_bytes
    runner = tfc.Runner(tmp_path / "model.tflite")
    predicted = next(iter(runner.predict(validation[0]).values())).argmax(-1)
    measured = np.mean(predicted == validation[1])
    assert found.baseline - measured == pytest.approx(found.drop.mean, abs=1e-6)
    assert found.drop.mean <= 0.02
    assert "bad → float" in str(found)


def test_layers_of_few_bits_go_back_to_int8_first(tmp_path):
    model, (x, _), validation = spoilt_net()
    # Without the outliers.
    bad = model.get_layer("bad")
    kernel, bias = bad.get_weights()
    kernel[5] = 0
    bad.set_weights([kernel, bias])
    found = tfc.accuracy_control(
        model, validation, calibration_data=x, config="w2a8", max_drop=0.02, verbose=0
    )
    assert set(found.restored.values()) == {"int8"}
    assert 0 < len(found.restored) <= 4
    report = tfc.export_tflite(found.model, tmp_path / "model.tflite", verify_samples=0)
    bits = {layer.name: layer.num_bits for layer in report.layers}
    assert {bits[name] for name in found.restored} == {8}


def test_what_cannot_hold_is_refused(spoilt):
    model, (x, y), validation = spoilt
    with pytest.raises(ValueError, match="number >= 0"):
        tfc.accuracy_control(model, validation, calibration_data=x, max_drop=-1)
    with pytest.raises(ValueError, match="same object"):
        tfc.accuracy_control(model, (x, y), calibration_data=x)
    with pytest.raises(ValueError, match="same first 50 samples"):
        tfc.accuracy_control(model, (x[:50], y[:50]), calibration_data=x[:50])
    with pytest.raises(ValueError, match="Expected labels"):
        tfc.accuracy_control(model, validation[0], calibration_data=x)


def test_with_every_kernel_in_float_nothing_is_lost():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(2, name="only")])
    x = rng.normal(size=(400, 16)).astype("float32")
    # Both outputs are nearly equal, so that any rounding decides anew.
    kernel = rng.normal(size=(16, 1)) + 1e-4 * rng.normal(size=(16, 2))
    model.set_weights([kernel, np.zeros(2)])
    labels = model.predict(x, verbose=0).argmax(-1)
    found = tfc.accuracy_control(
        model, (x[200:], labels[200:]), calibration_data=x[:200], max_drop=0.0, verbose=0
    )
    assert dict(found.restored) == {"only": "float"}
    assert found.drop.mean == 0


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_the_fewest_that_hold_are_found(count):
    for first in range(count):
        tried = []

        def holds(index, first=first, tried=tried):
            tried.append(index)
            return index >= first

        assert _first_that_holds(count, holds) == first
        assert len(tried) <= 4 * np.log2(count + 1) + 3
    assert _first_that_holds(count, lambda i: False) is None
