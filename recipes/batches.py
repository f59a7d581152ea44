"""The batches that recipes and their tfmot processes train on; free of any Keras."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

BATCH = 128


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
    return data.batch(min(batch_size, len(x)), drop_remainder=True).map(load).prefetch(4)


def augmented(x: np.ndarray, y: np.ndarray, seed: int) -> tf.data.Dataset:
    """Shuffled batches, flipped and moved by up to 4 pixels: the same for the same seed."""
    data = tf.data.Dataset.from_tensor_slices((np.arange(len(x)), y)).shuffle(len(x), seed=seed)

    def load(index, label):
        # uint8 in memory, float32 only where it is needed.
        image = tf.gather(images, index)
        padded = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
        moved = tf.image.random_crop(padded, tf.shape(image), seed=seed)
        return tf.cast(tf.image.random_flip_left_right(moved, seed=seed), tf.float32), label

    images = tf.constant(x.astype(np.uint8))
    return data.map(load, num_parallel_calls=2).batch(BATCH, drop_remainder=True).prefetch(2)


def load_arrays(path: str):
    """Reads `(x_train, y_train), (x_test, y_test)` from an `.npz`."""
    with np.load(path) as file:
        return (
            (file["x_train"], file["y_train"]),
            (file["x_test"].astype(np.float32), file["y_test"]),
        )
