"""Nets of attention: a vision transformer and an encoder of text."""

from __future__ import annotations

import keras
from keras import layers, ops

from benchmarks.tasks import data
from benchmarks.tasks.task import Split, Task, accuracy, cross_entropy


@keras.saving.register_keras_serializable(package="benchmarks")
class Positions(layers.Layer):
    """Adds a trained vector for each position."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.vectors = self.add_weight(
            name="vectors", shape=input_shape[1:], initializer=keras.initializers.RandomNormal(0.02)
        )
        self.built = True

    def call(self, x):
        return x + self.vectors


def encoder(x, heads: int, hidden: int):
    """A transformer block that normalizes first (Xiong et al. 2020)."""
    size = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.MultiHeadAttention(heads, size // heads)(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.Dense(size)(layers.Dense(hidden, activation="gelu")(y))
    return layers.Add()([x, y])


def vit(train: Split | None = None) -> keras.Model:
    """A vision transformer (Dosovitskiy et al. 2021): 64 patches of 4×4, three blocks of 48."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Reshape((64, 48))(layers.Conv2D(48, 4, strides=4)(x))
    x = Positions()(x)
    for _ in range(3):
        x = encoder(x, 3, 96)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def text(train: Split | None = None) -> keras.Model:
    """An encoder of words with masked padding; the class is read from the first position."""
    tokens = keras.Input((data.WORDS,), dtype="int32", name="tokens")
    x = layers.Embedding(data.VOCABULARY, 48, mask_zero=True)(tokens)
    x = Positions()(x)
    for _ in range(2):
        x = encoder(x, 3, 96)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(tokens, layers.Dense(len(data.PACKAGES), name="logits")(ops.take(x, 0, 1)))


_COMMON = {"metric": "accuracy, %", "loss": cross_entropy, "score": accuracy}

TASKS = (
    Task(
        name="vit",
        about="vision transformer, CIFAR-10 (JPEG Q75)",
        load=lambda folder: data.pictures("cifar10", 5000, 1000, folder),
        build=vit,
        epochs=4,
        extra_epochs=1,
        **_COMMON,
    ),
    Task(
        name="text",
        about="transformer encoder with masked padding, words of Python's source",
        load=data.passages,
        build=text,
        epochs=4,
        extra_epochs=1,
        **_COMMON,
    ),
)
