"""Models to prune: of many kinds of layers, and one that looks at removed weights as it runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers


class Watched(keras.Model):
    """A network that records the largest removed weight that any forward pass has seen.

    Attributes:
        masks: The masks to look at, as `(layer name, mask variable)`; read while the step is
            traced. Set them by `watch`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 3, activation="relu", name="convolution")
        self.normalization = layers.BatchNormalization(name="normalization")
        self.flatten = layers.Flatten()
        self.logits = layers.Dense(3, name="logits")
        self.leak = self.add_weight(
            name="leak", shape=(), initializer="zeros", trainable=False, aggregation="mean"
        )
        self.watch([])

    def watch(self, masks):
        # Past Keras' tracking: the masks are not the model's own weights.
        object.__setattr__(self, "masks", masks)

    def call(self, x, training=False):
        for name, mask in self.masks:
            kernel = tf.convert_to_tensor(self.get_layer(name).kernel)
            removed = tf.where(tf.convert_to_tensor(mask), tf.zeros_like(kernel), kernel)
            self.leak.assign(
                tf.maximum(
                    tf.cast(self.leak, tf.float32),
                    tf.cast(tf.reduce_max(tf.abs(removed)), tf.float32),
                )
            )
        x = self.normalization(self.convolution(x), training=training)
        return self.logits(self.flatten(x))


@pytest.fixture
def watched():
    """Returns a maker of built and compiled `Watched` models."""

    def make(optimizer="adam", **compile_options):
        keras.utils.set_random_seed(1)
        model = Watched()
        model(np.zeros((1, 6, 6, 2), np.float32))
        model.compile(optimizer, cross_entropy(), **compile_options)
        return model

    make.kind = Watched
    return make


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="session")
def blobs():
    """96 images (6, 6, 2) in three classes that a small network separates."""
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    centers = rng.normal(size=(3, 6, 6, 2))
    return (centers[y] + rng.normal(size=(96, 6, 6, 2))).astype(np.float32), y.astype(np.int32)


class Odd(layers.Layer):
    """A layer that is not in the table of kernels."""

    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 8))

    def call(self, x):
        return x @ self.matrix


@pytest.fixture
def odd():
    return Odd


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.DepthwiseConv2D(3, name="depthwise")(x))
    x = layers.Dense(16, activation="relu", name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(3, name="logits")(Odd(name="odd")(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
