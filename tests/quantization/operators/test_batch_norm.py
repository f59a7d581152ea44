"""Batch norm of a quantized model, against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.operators.batch_norm import QuantizedBatchNormalization


def pair(shape, **options):
    """A Keras batch norm and ours with the same random variables."""
    theirs = layers.BatchNormalization(momentum=0.9, epsilon=1e-2, **options)
    ours = QuantizedBatchNormalization.from_config(theirs.get_config())
    random = np.random.default_rng(0)
    for layer in (theirs, ours):
        layer.build(shape)
    for a, b in zip(theirs.weights, ours.weights[: len(theirs.weights)], strict=True):
        assert a.name == b.name
        value = random.uniform(0.5, 1.5, a.shape)
        a.assign(value)
        b.assign(value)
    return theirs, ours


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (8, 3), (6, 5, 3)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}], ids=str
)
def test_training_and_inference_are_those_of_keras(shape, options):
    theirs, ours = pair(shape, **options)
    x = tf.constant(np.random.default_rng(1).normal(2.0, 3.0, shape).astype(np.float32))
    weights = tf.constant(np.random.default_rng(2).normal(size=shape).astype(np.float32))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    results = []
    for layer in (theirs, ours):
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * weights)
        gradients = tape.gradient(loss, [x, *variables])
        results.append([y, *gradients, layer.moving_mean, layer.moving_variance])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(b), tf.convert_to_tensor(a), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (8, 3)], ids=str)
def test_frozen_it_normalizes_by_statistics_that_stay_and_still_trains(shape):
    theirs, ours = pair(shape)
    ours.frozen.assign(1.0)
    before = ours.moving_mean.numpy(), ours.moving_variance.numpy()
    x = tf.constant(np.random.default_rng(1).normal(2.0, 3.0, shape).astype(np.float32))
    results = []
    for layer, training in ((theirs, False), (ours, True)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(y**2)
        results.append([y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])])
    for a, b in zip(*results, strict=True):
        assert np.abs(a).min() > 0
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.moving_mean, before[0])
    np.testing.assert_array_equal(ours.moving_variance, before[1])


def test_not_trainable_means_inference_as_in_keras():
    theirs, ours = pair((6, 3))
    theirs.trainable = ours.trainable = False
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-5)


def test_what_stands_before_a_frozen_batch_norm_still_trains(small_model, images):
    quantized = tfc.quantize(small_model, calibration_data=images)
    quantized.get_layer("bn").trainable = False
    kernel = quantized.get_layer("conv").kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(images, training=True) ** 2)
    assert np.abs(tape.gradient(loss, kernel.value)).max() > 0


def test_reestimation_averages_over_batches_frozen_or_not():
    x = np.random.default_rng(0).normal(3.0, 2.0, (96, 5)).astype(np.float32)
    model = keras.Sequential([keras.Input((5,)), layers.BatchNormalization(name="bn")])
    quantized = tfc.quantize(model, calibration_data=x)
    quantized.get_layer("bn").frozen.assign(1.0)
    ranges = [w.copy() for w in quantized.get_layer("bn_quantizer").get_weights()]
    for candidate in (model, quantized):
        bn = candidate.get_layer("bn")
        tfc.reestimate_batch_norm(candidate, tf.data.Dataset.from_tensor_slices(x).batch(32))
        read = x
        if candidate is quantized:
            read = quantized.get_layer(quantized.layers[1].name)(x).numpy()
        batches = read.reshape(3, 32, 5)
        np.testing.assert_allclose(bn.moving_mean, batches.mean(1).mean(0), rtol=1e-4)
        np.testing.assert_allclose(bn.moving_variance, batches.var(1).mean(0), rtol=1e-3)
        assert bn.momentum == 0.99
        assert bn.trainable
    assert float(quantized.get_layer("bn").frozen.numpy()) == 1.0
    for a, b in zip(ranges, quantized.get_layer("bn_quantizer").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="with batch normalization"):
        tfc.reestimate_batch_norm(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), x)
    with pytest.raises(ValueError, match="at least one sample"):
        tfc.reestimate_batch_norm(model, [])


def test_a_channel_that_batch_norm_switches_off_has_the_bias_of_the_file(tmp_path):
    """γ = 0, as the last batch norm of a residual branch begins: β alone is left."""
    inputs = keras.Input((6, 6, 3), name="image")
    norm = layers.BatchNormalization(name="norm")
    outputs = norm(layers.Conv2D(24, 3, use_bias=False, name="conv")(inputs))
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    norm.gamma.assign(np.repeat([0.0, 1.0], [20, 4]) * 0.05)
    norm.beta.assign(random.normal(0, 0.1, 24))
    images = random.normal(size=(32, 6, 6, 3)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement > 0.999
