"""What `distill.py` trains: the networks, and the views of an image that their teachers see."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import layers


def dense_net(units: int, dropout: float = 0.0) -> keras.Model:
    """Hinton's two hidden layers, with dropout on the hidden units and some on the pixels."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dropout(0.4 * dropout)(x)
    for _ in range(2):
        x = layers.Dense(units, activation="relu")(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def fashion_net(
    filters: Sequence[int], units: int, dropout: float = 0.0, strided: bool = False
) -> keras.Model:
    """Three convolutions with batch norm, halved by pooling, and a dense embedding.

    `strided` halves in the first convolution already.
    """
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for i, n in enumerate(filters):
        strides = 2 if strided and i == 0 else 1
        x = layers.Conv2D(n, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(name=f"map_{i}")(layers.BatchNormalization()(x))
        if strides == 1:
            x = layers.MaxPooling2D()(x)
    x = layers.Dense(units, activation="relu", name="embedding")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.Dropout(dropout)(x)))


def fashion_student() -> keras.Model:
    """A tenth of the teacher's parameters, and few multiplications at full size."""
    return fashion_net((8, 16, 32), 40, strided=True)


def jitter(image):
    """Moves a 28×28 image by up to two pixels in any direction."""
    return tf.image.random_crop(tf.pad(image, [[2, 2], [2, 2], [0, 0]]), (28, 28, 1))


def averaged(model: keras.Model, views: Sequence[Callable]) -> keras.Model:
    """Averages the outputs over views of an image: what augmentation taught, without the noise."""
    inputs = keras.Input(model.input.shape[1:], name="image")
    return keras.Model(inputs, layers.average([model(view(inputs)) for view in views]))


#: A digit in all places that are up to a pixel away. Its border is empty: rolling cuts nothing off.
DIGIT_VIEWS = [
    functools.partial(keras.ops.roll, shift=move, axis=(1, 2))
    for move in itertools.product((-1, 0, 1), repeat=2)
]

#: A piece of clothing, and its mirror image.
CLOTHING_VIEWS = [lambda image: image, functools.partial(keras.ops.flip, axis=2)]
