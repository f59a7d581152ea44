"""Whole networks after training steps on real images: the file computes what the model does."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from recipes.models import build


def resized_digits(digits, size, channels=3, count=200):
    # In the 256 grey levels that photographs have.
    images = np.round(tf.image.resize(digits[0][0][:count], size).numpy() * 255) / np.float32(255)
    return np.repeat(images, channels, axis=-1), digits[0][1][:count]


def mobilenet(digits):
    images, labels = resized_digits(digits, (32, 32))
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(2.0, offset=-1.0)(inputs)
    body = keras.applications.MobileNet(
        input_tensor=x, alpha=0.25, weights=None, include_top=False, pooling="avg"
    )
    return keras.Model(inputs, layers.Dense(10, name="logits")(body.output)), images, labels


def mobilenet_v2(digits):
    images, labels = resized_digits(digits, (64, 64))
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    return model, images * 2.0 - 1.0, labels


def resnet8(digits):
    images, labels = resized_digits(digits, (32, 32))
    return build("resnet8", (32, 32, 3), 10), images * 255.0, labels


def ds_cnn(digits):
    images, labels = resized_digits(digits, (49, 10), 1)
    return build("ds_cnn", (49, 10, 1), 10), images, labels


@pytest.mark.parametrize(
    "make", [mobilenet, mobilenet_v2, resnet8, ds_cnn], ids=lambda make: make.__name__
)
def test_networks_after_training_steps(make, digits, tmp_path):
    model, images, labels = make(digits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Statistics of these images, not of initialization.
    tfc.reestimate_batch_norm(model, images)
    quantized = tfc.quantize(model, calibration_data=images[:64])
    assert not quantized.plan.float_layers
    # Two steps run sooner than the graph of a deep network is traced.
    quantized.compile(keras.optimizers.SGD(1e-2), loss, run_eagerly=True)
    quantized.fit(images, labels, batch_size=50, steps_per_epoch=2, verbose=0)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=images)
    assert not report.float_tensors
    assert not report.unverified
    assert report.fully_delegated
    (parity,) = report.parity["serving_default"]
    assert parity.samples >= 200
    assert parity.distinct >= 64
    # Sums, products and residual additions are exact; a mean may end on a tie.
    assert parity.equal >= 0.99
    assert parity.within_one >= 0.999
