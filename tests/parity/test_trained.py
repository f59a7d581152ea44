"""Trained classifiers on real test images: the file decides as the Keras model does."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.tools import datasets

pytestmark = pytest.mark.data


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_file_decides_as_the_model(name, data_dir, tmp_path):
    (x, y), (x_test, y_test) = datasets.load(name, data_dir)
    images, labels, test = x[:6000], y[:6000], x_test[:1000]
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=64, epochs=2, verbose=0)
    quantized = tfc.quantize(model, calibration_data=images[:256])
    quantized.compile(keras.optimizers.Adam(2e-4), loss, metrics=["accuracy"])
    quantized.fit(images, labels, batch_size=64, epochs=1, verbose=0)
    # Trained, so that agreement says something.
    assert quantized.evaluate(test, y_test[:1000], verbose=0)[1] > 0.8
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=np.float32(test))
    (parity,) = report.parity["serving_default"]
    assert parity.samples == 1000
    assert parity.top1 >= 0.998
    assert parity.equal >= 0.99
