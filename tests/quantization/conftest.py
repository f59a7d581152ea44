"""A small model of every common part, quantized once."""

import keras
import numpy as np
import pytest
from keras import layers


@pytest.fixture(scope="session")
def images(digits):
    """64 real images of 8×8 pixels, one channel, in 0..1."""
    return digits[0][0][:64]


@pytest.fixture
def small_model():
    """Convolution + batch norm + ReLU, depthwise, dense; with biases that are not zero."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.DepthwiseConv2D(3, bias_initializer="uniform", name="depthwise")(x)
    x = layers.Flatten(name="flatten")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits", bias_initializer="uniform")(x))
    random = np.random.default_rng(0)
    for variable in model.get_layer("bn").weights:
        low = -0.5 if variable.name in ("beta", "moving_mean") else 0.5
        variable.assign(random.uniform(low, 1.5, variable.shape))
    return model
