"""Norms of one sample: layer, RMS, group, instance and unit norm, step by step in int8."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.quantization.operators.norm_steps import rounded_square_sum

NORMS = {
    "layer": lambda x: layers.LayerNormalization(name="layer")(x),
    "layer_of_steps": lambda x: layers.LayerNormalization()(layers.Reshape((16, 8))(x)),
    "layer_flat": lambda x: layers.LayerNormalization()(layers.Flatten()(x)),
    "layer_without_weights": lambda x: layers.LayerNormalization(scale=False, center=False)(x),
    "layer_over_all_axes": lambda x: layers.LayerNormalization(axis=(1, 2, 3))(x),
    "layer_over_steps": lambda x: layers.LayerNormalization(axis=1)(layers.Reshape((16, 8))(x)),
    "rms": lambda x: layers.RMSNormalization()(x),
    "group": lambda x: layers.GroupNormalization(groups=4)(x),
    "group_of_all": lambda x: layers.GroupNormalization(groups=1, scale=False, center=False)(x),
    "instance": lambda x: layers.GroupNormalization(groups=-1, scale=False)(x),
    "unit": lambda x: layers.UnitNormalization()(layers.Flatten()(x)),
    "normalize": lambda x: ops.normalize(x, axis=-1),
    "variance": lambda x: ops.var(x, axis=(1, 2), keepdims=True),
    "deviation": lambda x: ops.std(x, axis=-1),
    "norm": lambda x: ops.norm(x, axis=-1),
    "norm_over_rows": lambda x: ops.norm(x, axis=1, keepdims=True),
}


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    model = keras.Model(inputs, {name: norm(x) for name, norm in NORMS.items()})
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable.name in ("gamma", "scale"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name == "beta":
            variable.assign(random.normal(0, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(200, 6, 6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(model, images):
    return tfc.quantize(model, calibration_data=images[:64])


def signal_to_noise(exact, rounded):
    return 10 * np.log10(np.square(exact).sum() / np.square(rounded - exact).sum())


def test_the_file_computes_what_the_model_computes_and_nearly_the_norm(
    model, quantized, images, tmp_path
):
    assert not quantized.plan.float_layers
    outside = {entry.name: entry.outside for entry in quantized.plan}
    assert outside["layer"] == ("BATCH_MATMUL", "GATHER")
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=images)
    assert not report.float_tensors
    parities = {p.output: p for p in report.parity["serving_default"]}
    assert {n: p for n, p in parities.items() if p.equal < 0.998 or p.largest > 3} == {}
    # What 8 bits of the convolution before, and of each step, leave of the norm in float.
    exact, rounded = model(images), quantized(images)
    ratios = {name: signal_to_noise(exact[name], rounded[name]) for name in NORMS}
    assert min(ratios.values()) > 29


def test_they_are_stripped_to_the_layers_that_they_come_from(model, quantized, images):
    plain = tfc.strip(quantized)
    kinds = collections.Counter(type(operation).__name__ for operation in plain.operations)
    assert kinds == collections.Counter(type(o).__name__ for o in model.operations)
    for name, expected in plain(images).items():
        np.testing.assert_allclose(expected, model(images)[name], atol=0.1)
    kept = plain.get_layer("layer"), model.get_layer("layer")
    for left, right in zip(*(layer.weights for layer in kept), strict=True):
        np.testing.assert_array_equal(left, right)


def test_outlying_channels_and_rows_of_unlike_size_leave_a_usable_norm():
    random = np.random.default_rng(0)
    normal = random.normal(size=(200, 96)).astype(np.float32)
    rows = normal * np.exp(random.uniform(0, np.log(4), (200, 1))).astype(np.float32)
    channels = normal * np.where(np.arange(96) < 3, np.float32(20), np.float32(1))
    # In decibels. Of the input's own 8 bits the float norm has 41, 35 and 23.
    for data, least in ((normal, 35), (rows, 30), (channels, 19)):
        inputs = keras.Input((96,), name="x")
        norm = layers.LayerNormalization(scale=False, center=False)
        quantized = tfc.quantize(keras.Model(inputs, norm(inputs)), calibration_data=data)
        assert signal_to_noise(norm(data), quantized(data)) > least


def test_a_norm_trains_in_int8_steps(images):
    inputs = keras.Input((6, 6, 4))
    x = layers.LayerNormalization(name="norm")(layers.Conv2D(8, 3)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Activation("gelu")(x))
    quantized = tfc.quantize(keras.Model(inputs, layers.Dense(1)(x)))
    quantized.compile(keras.optimizers.Adam(0.01), "mse")
    target = np.abs(images).mean((1, 2, 3))[:, None]
    before = quantized.get_layer("norm").gamma.numpy()
    losses = quantized.fit(images, target, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert np.abs(quantized.get_layer("norm").gamma - before).min() > 0


def runtime_code(total, step, scale):
    """gemmlowp's two roundings, in Python's integers."""
    fraction, exponent = np.frexp(np.float64(np.float32(step)) ** 2 / np.float64(np.float32(scale)))
    high = (total * round(float(fraction) * 2**31) + 2**30) >> 31
    return (high + ((1 << -exponent) >> 1)) >> -exponent


def test_sums_of_squares_are_rounded_as_the_runtime_does():
    random = np.random.default_rng(0)
    for _ in range(5):
        step, scale = np.float32(random.uniform(0.01, 0.1)), np.float32(random.uniform(0.02, 2.0))
        totals = random.integers(0, 255 * scale / step**2, 2000)
        arguments = tf.constant(totals, tf.int32), tf.constant(step), tf.constant(scale)
        expected = [runtime_code(int(t), step, scale) for t in totals]
        np.testing.assert_array_equal(rounded_square_sum(*arguments, False), expected)
        even = np.rint(totals.astype(np.float32) * (step * step / scale))
        np.testing.assert_array_equal(rounded_square_sum(*arguments, True), even)


def test_they_train_in_mixed_precision(images):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input(images.shape[1:])
        x = layers.Conv2D(8, 3)(inputs)
        model = keras.Model(inputs, {name: norm(x) for name, norm in NORMS.items()})
    finally:
        keras.config.set_dtype_policy(policy)
    quantized = tfc.quantize(model, calibration_data=images[:32])
    outputs, expected = quantized(images[:8], training=True), model(images[:8])
    for name, value in outputs.items():
        difference = tf.cast(value, tf.float32) - tf.cast(expected[name], tf.float32)
        assert float(tf.reduce_mean(tf.abs(difference))) < 0.1, name
