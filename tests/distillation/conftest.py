"""Small models and data shared by the tests of distillation."""

import keras
import numpy as np
import pytest
from keras import layers


@pytest.fixture
def make_net():
    """Builds conv → batch norm → ReLU → pooling → logits on 8×8×1 images."""

    def build(channels, name, head_activation=None, **kwargs):
        inputs = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(channels, 3, padding="same", name="conv", **kwargs)(inputs)
        x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        outputs = layers.Dense(10, activation=head_activation, name="head")(x)
        return keras.Model(inputs, outputs, name=name)

    return build


@pytest.fixture
def images():
    """64 images and labels."""
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 1), np.float32), rng.integers(0, 10, 64)


@pytest.fixture
def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
