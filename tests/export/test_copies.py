"""Copies and parts of a quantized model ship what its plan says, however they are made.

The file is looked at with the runtime: its operators and the types of their tensors.
"""

import pickle

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.export.test_float_islands import File, spread


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 1, (32, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(images):
    """conv (int8), then a branch of one layer in float and one of two, in float both."""
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(7, 3, activation="relu", name="conv")(image)
    mean = layers.GlobalAveragePooling2D(name="mean")(x)
    small = layers.Dense(5, name="small")(mean)
    largest = layers.GlobalMaxPooling2D(name="largest")(x)
    bent = layers.Activation("tanh", name="tanh")(layers.Add(name="sum")([largest, mean]))
    large = layers.Dense(6, name="large")(bent)
    model = spread(keras.Model(image, [small, large]))
    floats = tfc.QuantizationConfig(by_name=dict.fromkeys(["mean", "sum", "tanh"]))
    return tfc.quantize(model, floats, calibration_data=images)


def with_weights(copy, quantized):
    copy.set_weights(quantized.get_weights())
    return copy


def nested(quantized):
    given = keras.Input((8, 8, 4), name="image")
    return keras.Model(given, quantized(given))


def again(layer):
    return type(layer).from_config(layer.get_config())


COPIES = {
    "clone": lambda q: with_weights(keras.models.clone_model(q), q),
    "clone_function": lambda q: with_weights(keras.models.clone_model(q, clone_function=again), q),
    "part": lambda q: keras.Model(
        q.input, [q.get_layer(f"{name}_quantizer").output for name in ("small", "large")]
    ),
    "nested": nested,
    "config": lambda q: with_weights(type(q).from_config(q.get_config()), q),
    "pickle": lambda q: pickle.loads(pickle.dumps(q)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_ships_in_float_what_the_plan_has_in_float(kind, quantized, images, tmp_path):
    copy = COPIES[kind](quantized)
    report = tfc.export_tflite(copy, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement >= 0.98
    file = File((tmp_path / "model.tflite").read_bytes())
    types = {}
    for op in file.ops:
        types.setdefault(op["op_name"], set()).add(file.tensors[op["outputs"][0]]["dtype"])
    for name in ("MEAN", "ADD", "TANH"):
        assert types[name] == {np.float32}, name
    for name in ("CONV_2D", "FULLY_CONNECTED", "REDUCE_MAX"):
        assert types[name] == {np.int8}, name


def test_a_part_that_ends_in_float(quantized, images, tmp_path):
    part = keras.Model(quantized.input, quantized.get_layer("tanh").output)
    report = tfc.export_tflite(part, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement >= 0.98
    assert "TANH" in report.ops


@pytest.mark.parametrize("allow_float", [False, True])
def test_a_part_that_ends_before_a_quantizer_is_refused(quantized, allow_float, tmp_path):
    part = keras.Model(quantized.input, quantized.get_layer("conv").output)
    with pytest.raises(ValueError, match=r"do not for conv\. .*outputs of quantizers"):
        tfc.export_tflite(part, tmp_path / "model.tflite", allow_float=allow_float)


@pytest.mark.parametrize("allow_float", [False, True])
def test_a_part_that_begins_behind_a_quantizer_is_refused(quantized, allow_float, tmp_path):
    after = quantized.get_layer("mean_quantizer").output
    part = keras.Model(after, quantized.get_layer("small_quantizer").output)
    with pytest.raises(ValueError, match=r"do not for small\."):
        tfc.export_tflite(part, tmp_path / "model.tflite", allow_float=allow_float)


def test_layers_behind_a_quantized_model_are_named_or_float(quantized, images, tmp_path):
    given = keras.Input((8, 8, 4), name="image")
    small, large = quantized(given)
    x = layers.Concatenate(name="both")([small, large])
    x = layers.Add(name="twice")([x, x])
    model = keras.Model(given, layers.Dense(3, name="head")(x))
    with pytest.raises(ValueError, match=r"do not for twice, head\. .*added to"):
        tfc.export_tflite(model, tmp_path / "model.tflite", verify_data=images)
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(model, path, verify_data=images, allow_float=True)
    assert report.agreement >= 0.98
    head = next(la for la in report.layers if la.name == "head")
    assert head.num_bits == 32
    file = File(path.read_bytes())
    assert file.tensors[file.ops[-1]["outputs"][0]]["dtype"] == np.float32


def test_what_stands_between_two_quantized_models_is_float(images, tmp_path):
    """A plain sum between the quantizers of two models is in neither plan."""

    def net(name, channels):
        given = keras.Input((4,))
        return keras.Model(given, layers.Dense(channels, name=name)(given), name=f"net_{name}")

    data = images[:, 0, 0]
    left = tfc.quantize(net("left", 4), calibration_data=data)
    right = tfc.quantize(net("right", 4), calibration_data=data)
    top = tfc.quantize(net("top", 3), calibration_data=2 * data)
    given = keras.Input((4,), name="given")
    x = layers.Add(name="sum")([left(given), right(given)])
    model = keras.Model(given, top(x))
    with pytest.raises(ValueError, match=r"do not for sum\. .*added to"):
        tfc.export_tflite(model, tmp_path / "model.tflite", verify_data=data)
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(model, path, verify_data=data, allow_float=True)
    assert report.agreement >= 0.98
    file = File(path.read_bytes())
    sums = [op for op in file.ops if op["op_name"] == "ADD"]
    assert [file.tensors[op["outputs"][0]]["dtype"] for op in sums] == [np.float32]


def test_layers_in_float_do_not_hide_which_tokens_are_valid(tmp_path):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 5, name="table")(tokens)
    model = keras.Model(tokens, layers.Dense(3, name="head")(layers.Flatten()(x)))
    config = tfc.QuantizationConfig(by_name={"table": None})
    data = np.random.default_rng(0).integers(0, 20, (64, 6))
    quantized = tfc.quantize(model, config, calibration_data=data)
    copy = with_weights(keras.models.clone_model(quantized), quantized)
    report = tfc.export_tflite(copy, tmp_path / "model.tflite")
    assert report.verified_on == {"serving_default": "synthetic inputs"}
    assert report.agreement == 1.0
