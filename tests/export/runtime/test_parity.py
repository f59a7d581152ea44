"""The measure of agreement itself, and positive controls: what is wrong must be seen."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.export.lowering import calls
from tfcompress.export.runtime import parity as parity_module
from tfcompress.export.runtime.codes import TensorInfo
from tfcompress.export.runtime.parity import _compare, run_model
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize

INFO = TensorInfo("y", 0, (1, 3), np.dtype(np.int8), 0.5, 10)


def test_differences_are_counted_in_steps():
    expected = np.float32([[0.0, 0.5, -1.0], [500.0, -500.0, 0.2]])
    codes = np.int8([[10, 12, 8], [127, -128, 10]])
    parity = _compare("y", expected, codes, INFO)
    assert (parity.equal, parity.within_one, parity.largest) == (5 / 6, 1.0, 1.0)
    assert (parity.distinct, parity.samples) == (5, 2)
    # 0.5 is 11 in the model and 12 in the file: the same largest value.
    assert parity.top1 == 1.0


def test_top1_accepts_ties_and_counts_other_choices():
    expected = np.float32([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    tie = np.int8([[10, 12, 10], [10, 10, 12]])
    parity = _compare("y", expected, tie, INFO)
    assert parity.top1 == 0.5
    assert _compare("y", expected[:, :1], tie[:, :1], INFO).top1 is None


def test_a_float_output_has_steps_of_its_span():
    info = TensorInfo("y", 0, (1, 2), np.dtype(np.float32), 0.0, 0)
    expected = np.float32([[0.0, 255.0], [100.0, 50.0]])
    parity = _compare("y", expected, expected + np.float32([[0.2, 0], [0, 2.0]]), info)
    assert (parity.equal, parity.largest) == (0.75, 2.0)


@pytest.mark.parametrize(
    ("eager_values", "calls"), [(10**9, 1), (4 * 320, 5), (1, None)], ids=["one", "some", "traced"]
)
def test_outputs_do_not_depend_on_how_the_model_is_run(eager_values, calls, monkeypatch):
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    hidden = layers.Dense(300, activation="relu")(layers.Add()([inputs["a"], inputs["b"]]))
    outputs = [layers.Dense(10)(hidden), layers.Dense(2)(hidden)]
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(17, 8)).astype(np.float32) for _ in range(2)]
    expected = model.predict(dict(zip("ab", arrays, strict=True)), verbose=0)
    monkeypatch.setattr(parity_module, "_EAGER_VALUES", eager_values)
    found, call = [], model.call
    monkeypatch.setattr(model, "call", lambda *a, **k: found.append(1) or call(*a, **k))
    for wanted, got in zip(expected, run_model(model, arrays), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert calls is None or len(found) == calls


@pytest.fixture(scope="module")
def trained(digits):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", bias_initializer="uniform", name="first")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", bias_initializer="uniform", name="middle")(x)
    x = layers.Dense(8, bias_initializer="uniform", name="out")(layers.Flatten()(x))
    return tfc.quantize(keras.Model(inputs, x), calibration_data=digits[0][0][:200])


def agreement(model, tmp_path):
    # A limit, so that a low agreement is no warning.
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, allow_float=True, min_agreement=0.0)
    return report.agreement


def test_a_sound_model_agrees(trained, tmp_path):
    assert agreement(trained, tmp_path) >= 0.99


def test_a_bias_off_its_grid_is_seen(trained, tmp_path, monkeypatch):
    # Half a step of the output is many steps of the bias' own grid.
    shift = 0.5 * float(trained.get_layer("out_quantizer").scale.numpy())
    bake = calls.bake

    def off(layer, call_index):
        kernel, bias, baked = bake(layer, call_index)
        if layer.name == "out":
            bias = bias + np.float32(shift)
            baked = dataclasses.replace(baked, bias=bias)
        return kernel, bias, baked

    monkeypatch.setattr(calls, "bake", off)
    assert agreement(trained, tmp_path) < 0.97


def test_a_missing_rounding_is_seen(trained, tmp_path, monkeypatch):
    quantizer = calls.Lowering._quantizer

    def skip(self, node, x):
        return x if node.operation.source == "middle" else quantizer(self, node, x)

    monkeypatch.setattr(calls.Lowering, "_quantizer", skip)
    assert agreement(trained, tmp_path) < 0.97


def test_two_roundings_in_a_row_are_refused(trained, tmp_path, monkeypatch):
    quantizer = calls.Lowering._quantizer

    def twice(self, node, x):
        y = quantizer(self, node, x)
        if node.operation.source != "first":
            return y
        low, high = self._quantizers[node][0]
        return tf.quantization.fake_quant_with_min_max_args(y, 3 * low, 3 * high)

    monkeypatch.setattr(calls.Lowering, "_quantizer", twice)
    with pytest.raises(ValueError, match="'middle': Expected an int8 input"):
        tfc.export_tflite(trained, tmp_path / "model.tflite")


def test_the_planner_never_chains_two_quantizers_on_one_tensor(trained):
    for layer in trained.layers:
        if isinstance(layer, FakeQuantize):
            assert not isinstance(layer.input._keras_history.operation, FakeQuantize)
