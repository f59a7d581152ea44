"""Models and helpers that the tests of sharing start from."""

import keras
import numpy as np
import pytest
from keras import layers


def _compiled(model, rate=2e-3):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def _accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(-1) == data[1]).mean())


@pytest.fixture(scope="session")
def compiled():
    """Compiles a classifier and returns it."""
    return _compiled


@pytest.fixture(scope="session")
def accuracy():
    """Share of right answers on `(x, y)`."""
    return _accuracy


@pytest.fixture(scope="package")
def trained(digits):
    """A convolutional net with batch norm, some γ negative, that knows the digits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv2")(x)
    outputs = layers.Dense(10, name="logits")(layers.Flatten()(x))
    model = _compiled(keras.Model(inputs, outputs, name="digits"), 5e-3)
    gamma = np.where(np.arange(16) % 4 == 0, -1.0, 1.0)
    model.get_layer("norm").gamma.assign(gamma)
    model.fit(*digits[0], batch_size=64, epochs=6, verbose=0)
    assert _accuracy(model, digits[1]) > 0.9
    return model
