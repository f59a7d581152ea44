"""The batches that recipes and their tfmot processes train on; free of any Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

BATCH = 128


def steady(data: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches without tf.data's autotuner: nothing in these pipelines is left to it.

    Where there is one, every epoch of `fit` may end with a wait for its thread, which sleeps for
    longer and longer: seen up to as long as the epoch itself took (TensorFlow 2.21, one core).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def flip_and_shift(image: tf.Tensor, seed: int | None = None) -> tf.Tensor:
    """Flips a photograph and moves it by up to 4 pixels."""
    padded = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
    moved = tf.image.random_crop(padded, tf.shape(image), seed=seed)
    moved = tf.ensure_shape(moved, image.shape)
    return tf.image.random_flip_left_right(moved, seed=seed)


#: Data set → what its images may go through. Digits stay as they are.
AUGMENTATIONS = {
    "fashion_mnist": tf.image.random_flip_left_right,
    "cifar10": flip_and_shift,
}


def batches(
    x: Any,
    y: np.ndarray,
    seed: int,
    augment: Callable | None = None,
    batch_size: int = BATCH,
) -> tf.data.Dataset:
    """Shuffled whole batches of arrays; `augment` takes one image."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=seed)
    if augment is not None:
        data = data.map(lambda image, label: (augment(image), label), num_parallel_calls=2)
    data = data.batch(min(batch_size, len(y)), drop_remainder=True)
    return steady(data.prefetch(2))


def shifted(x: np.ndarray, y: np.ndarray, seed: int, batch_size: int = 256) -> tf.data.Dataset:
    """Shuffled batches of digits, each moved by up to a pixel.

    A digit's border is empty, so rolling it cuts nothing off. Indices are shuffled, not images,
    and a batch is gathered at once: small networks would otherwise wait for their data.
    """
    images, labels = tf.constant(x), tf.constant(y)

    def load(indices):
        by = tf.random.uniform([2], -1, 2, tf.int32, seed=seed)
        return tf.roll(tf.gather(images, indices), by, [1, 2]), tf.gather(labels, indices)

    data = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed)
    data = data.batch(min(batch_size, len(x)), drop_remainder=True).map(load)
    return steady(data.prefetch(4))


def augmented(x: np.ndarray, y: np.ndarray, seed: int) -> tf.data.Dataset:
    """Shuffled batches, flipped and moved by up to 4 pixels: the same for the same seed."""
    data = tf.data.Dataset.from_tensor_slices((np.arange(len(x)), y)).shuffle(len(x), seed=seed)

    def load(index, label):
        # uint8 in memory, float32 only where it is needed.
        return tf.cast(flip_and_shift(tf.gather(images, index), seed), tf.float32), label

    images = tf.constant(x.astype(np.uint8))
    data = data.map(load, num_parallel_calls=2).batch(BATCH, drop_remainder=True)
    return steady(data.prefetch(2))


def load_arrays(path: str):
    """Reads `(x_train, y_train), (x_test, y_test)` from an `.npz`."""
    with np.load(path) as file:
        return (
            (file["x_train"], file["y_train"]),
            (file["x_test"].astype(np.float32), file["y_test"]),
        )
