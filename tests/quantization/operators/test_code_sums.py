"""ReLUs, averages and sums whose scales let many codes fall exactly between two of the output."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.pruning.structure.rules.registry import find_rule


def first_rows(x, height, width):
    return x[:, :height, :width]


OPERATORS = {
    "relu": lambda x: layers.ReLU()(x),
    "relu_below_2": lambda x: layers.ReLU(2.0)(x),
    "activation": lambda x: layers.Activation("relu")(x),
    "activation_relu6": lambda x: layers.Activation("relu6")(x),
    "relu_op": lambda x: ops.relu(x),
    "relu6_op": lambda x: ops.relu6(x),
    "relu_function": lambda x: keras.activations.relu(x),
    "clip": lambda x: ops.clip(x, -1.5, 3.0),
    "clip_above": lambda x: ops.minimum(x, 0.3),
    "prelu": lambda x: layers.PReLU(keras.initializers.Constant(0.3))(x),
    "leaky_relu": lambda x: layers.LeakyReLU(0.3)(x),
    "average": lambda x: layers.AveragePooling2D(2)(x),
    "average_same": lambda x: layers.AveragePooling2D(2, 1, "same")(x),
    "average_1d": lambda x: layers.AveragePooling1D(2)(layers.Reshape((16, 16))(x)),
    "mean_of_4": lambda x: layers.GlobalAveragePooling2D()(layers.Cropping2D(3)(x)),
    "mean_of_36": lambda x: layers.GlobalAveragePooling2D(keepdims=True)(layers.Cropping2D(1)(x)),
    "mean_1d": lambda x: layers.GlobalAveragePooling1D()(layers.Reshape((16, 16))(x)),
    "mean_3d": lambda x: layers.GlobalAveragePooling3D()(layers.Reshape((4, 2, 8, 4))(x)),
    "mean_op": lambda x: ops.mean(first_rows(x, 3, 4), axis=(1, 2)),
    "mean_of_rows": lambda x: ops.mean(x, axis=1, keepdims=True),
    "mean_of_channels": lambda x: ops.mean(x, axis=-1),
    "sum_op": lambda x: ops.sum(first_rows(x, 2, 2), axis=(1, 2)),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
}
OF_CHANNELS = {
    "cumsum_of_channels": lambda x: ops.cumsum(x, axis=-1),
    "group_norm": lambda x: layers.GroupNormalization(2)(x),
}


@pytest.fixture(scope="module")
def images():
    # 120 codes above zero, of which a ReLU makes 255: every fourth lies half way between two. The
    # first are constant, so what is computed reaches to the ends of the range of the input.
    images = np.random.default_rng(0).normal(0, 1.5, (32, 8, 8, 4)).clip(-3.375, 3.0)
    images[:2], images[2] = 3.0, -3.375
    return images.astype(np.float32)


@pytest.fixture(scope="module")
def quantized(images):
    x = keras.Input((8, 8, 4), name="image")
    model = keras.Model(x, {n: make(x) for n, make in {**OPERATORS, **OF_CHANNELS}.items()})
    assert not tfc.plan(model).float_layers
    return tfc.quantize(model, calibration_data=images)


def test_the_file_rounds_as_the_model_does(quantized, images, tmp_path):
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(loaded, path, verify_data=images)
    assert not report.float_tensors
    parity = {p.output: p for p in report.parity["serving_default"]}
    assert {name: p.equal for name, p in parity.items() if p.equal < 1} == {}
    # Rounded from the real values, these would be others.
    (info,) = tfc.Runner(path).inputs.values()
    codes = np.clip(np.rint(images / np.float32(info.scale)) + info.zero_point, -128, 127)
    real = (codes - info.zero_point) * np.float64(np.float32(info.scale))
    found = tfc.Runner(path)
    steps = {name: np.float64(np.float32(o.scale)) for name, o in found.outputs.items()}
    for name, values in {
        "relu": np.maximum(real, 0),
        "mean_of_4": real[:, 3:5, 3:5].mean((1, 2)),
        "sum_op": real[:, :2, :2].sum((1, 2)),
    }.items():
        halves = np.abs(values / steps[name] % 1 - 0.5) < 1e-5
        assert halves.mean() > 0.02, name


def test_channels_pass_through_them(quantized):
    unknown = [layer.name for layer in quantized.layers[1:] if find_rule(layer) is None]
    # Sums of channels, which channels do not pass through: one of both cumulative sums.
    sums = [name for name in unknown if name.startswith(("cumsum", "group_norm"))]
    assert unknown == sums
    assert len([name for name in sums if name.startswith("cumsum")]) == 1


def test_they_are_stripped_to_what_they_were(quantized, images):
    plain = tfc.strip(quantized)
    found = quantized(images)
    for name, expected in plain(images).items():
        # The steps of a norm are rounded one by one.
        step = (0.15 if name == "group_norm" else 0.05) * float(np.abs(expected).max())
        np.testing.assert_allclose(found[name], expected, atol=step)
    kinds = {type(layer).__name__ for layer in plain.layers}
    assert not [kind for kind in kinds if kind.startswith("Quantized")]
