"""Slow operators are named by layer and timed; uint8 inputs and inputs of unknown size."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.export.lint import lint_file


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype="uint8", name="image")
    shared = layers.Conv2D(4, 3, activation="gelu", padding="same", name="shared")
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    x = shared(layers.Conv2D(4, 1, name="first")(x))
    x = ops.silu(layers.PReLU("ones", shared_axes=[1, 2], name="prelu")(shared(x)))
    x = layers.Lambda(lambda t: tf.math.atan2(t, t), name="angle")(x)
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Dense(4, "gelu", name="inner")])
    x = layers.Dense(3, "softmax", name="out")(layers.Flatten()(inner(x)))
    return keras.Model(inputs, x, name="slow")


def test_slow_operators_are_named_and_timed(model):
    report = tfc.lint(model)
    found = [(entry.layer, entry.operator) for entry in report]
    assert found.count(("shared", "GELU")) == 2
    # LiteRT's own kernel, or a table where that is not sure to give the same codes.
    assert {"GELU", "GATHER"} & {operator for layer, operator in found if layer == "inner"}
    assert ("out", "SOFTMAX") in found
    assert ("angle", "ATAN2") in found
    assert {e.operator for e in report if e.is_float} >= {"ATAN2"}
    assert all(e.milliseconds > 0 for e in report if e.operator in ("GELU", "SOFTMAX"))
    assert report.milliseconds > 0
    assert "replace_activations(model, {'gelu': 'silu'})" in str(report)
    # The plan says so, too.
    plan = tfc.plan(model)
    assert next(e for e in plan if e.name == "out").outside == ("SOFTMAX",)
    assert "shared runs outside XNNPACK (GELU). Use instead: relu or silu" in str(plan)


def test_activations_are_replaced_and_weights_kept(model):
    new = tfc.replace_activations(
        model, {"gelu": "relu", "swish": "relu6", "prelu": "relu", "softmax": "linear"}
    )
    assert new.get_layer("shared").activation is keras.activations.relu
    assert new.get_layer("inner").activation is keras.activations.relu
    assert len(new.get_layer("shared")._inbound_nodes) == 2
    assert isinstance(new.get_layer("prelu"), layers.Activation)
    for name in ("first", "shared", "inner", "out"):
        before = model.get_layer("sequential") if name == "inner" else model
        np.testing.assert_array_equal(new.get_layer(name).kernel, before.get_layer(name).kernel)
    assert not {"GELU", "SOFTMAX"} & {e.operator for e in tfc.lint(new, measure=False)}
    with pytest.raises(ValueError, match=r"which are \['gelu', .*Received: \['elu'\]"):
        tfc.replace_activations(model, {"elu": "relu"})
    with pytest.raises(ValueError, match=r"Keras' name or as a function. Received: 'nothing'"):
        tfc.replace_activations(model, {"nothing": "relu"})


@pytest.mark.parametrize("convert", [layers.Rescaling(1 / 255), lambda x: ops.cast(x, "float32")])
def test_pixels_of_uint8_are_inputs(convert, tmp_path):
    inputs = keras.Input((6, 6, 3), dtype="uint8", name="image")
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(convert(inputs)))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3)).astype("uint8")
    assert not tfc.plan(model).float_layers
    quantized = tfc.quantize(model, calibration_data=pixels)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=pixels)
    assert report.agreement == 1.0
    assert tfc.Runner(tmp_path / "m.tflite").inputs["image"].dtype == np.uint8
    expected = model(pixels)
    difference = np.abs(tfc.strip(quantized)(pixels) - expected)
    assert difference.max() < 0.05 * np.ptp(expected)


def test_inputs_of_unknown_size_are_exported_at_named_sizes(tmp_path):
    inputs = keras.Input((None, 6), name="sequence")
    x = layers.Conv1D(8, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.GlobalAveragePooling1D()(x)))
    data = np.random.default_rng(0).normal(size=(16, 20, 6)).astype("float32")
    quantized = tfc.quantize(model, calibration_data=data)
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match=r"known shape.*input_shapes="):
        tfc.export_tflite(quantized, path)
    with pytest.raises(ValueError, match=r"that fit the inputs .*'sequence': \(12, 5\)"):
        tfc.export_tflite(quantized, path, input_shapes={"short": (12, 5)})
    report = tfc.export_tflite(quantized, path, input_shapes={"short": (12, 6), "long": (20, 6)})
    assert set(report.parity) == {"short", "long"}
    assert report.agreement >= 0.99
    assert report.verified_on["long"] == "calibration data"
    assert report.constant_num_bytes < sum(report.signature_num_bytes.values()) * 0.7


def test_a_name_that_is_no_text_is_a_damaged_file(int8_file):
    summary = tfc.inspect_tflite(int8_file)
    name = next(
        name
        for op in summary.ops
        if len(name := summary.tensor(op.outputs[0], op.subgraph).name.encode()) > 2
    )
    damaged = int8_file.replace(name, b"\xe5(" + name[2:])
    assert damaged != int8_file
    with pytest.raises(ValueError, match=r"^Expected .*Received: .*damaged"):
        lint_file(damaged, [], "model", measure=False)
