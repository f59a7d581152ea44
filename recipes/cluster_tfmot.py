"""tfmot's clustering on the same weights, then int8: run by `cluster.py` in its own process."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np

from recipes.legacy import resnet8, run_module, scaled


def in_subprocess(
    model: Any, data: tuple, path: pathlib.Path, k: int, epochs: int, seed: int, rate: float
) -> None:
    """Runs `cluster` on the weights of a Keras 3 model, in a process of its own.

    Args:
        model: The ResNet-8 of `recipes.models`, or one whose layers were made in its order.
        data: `(x_train, y_train), (x_test, y_test)`.
        path: Where the `.tflite` goes.
        k: See `cluster`, and so the rest.
        epochs: Epochs.
        seed: Seed.
        rate: Learning rate.
    """
    run_module("recipes.cluster_tfmot", model, data, path, k, epochs, seed, rate)


def cluster(
    weights: str, data: str, path: str, k: int, epochs: int, seed: int, rate: float
) -> None:
    """Clusters, trains, strips, quantizes by calibration, and writes a `.tflite`.

    Args:
        weights: An `.npz` of the ResNet-8's arrays in the order of creation.
        data: An `.npz` with `x_train`, `y_train`, `x_test`, `y_test`.
        path: Where the file goes.
        k: Clusters per kernel.
        epochs: Epochs.
        seed: Seed of shuffling, augmentation and calibration samples.
        rate: Learning rate at the start of the cosine decay.
    """
    import tensorflow as tf

    # Touched before tfmot is imported, `tf.keras` stays what it is.
    _ = tf.keras.layers
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from recipes.batches import augmented, load_arrays

    tf_keras.utils.set_random_seed(seed)
    (x, y), _ = load_arrays(data)
    model = resnet8(tf_keras, weights)
    clustering = tfmot.clustering.keras
    clustered = clustering.cluster_weights(
        model,
        number_of_clusters=k,
        cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
    )
    batches = augmented(x, y, seed).map(lambda image, label: (scaled(image), label))
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clustered.compile(tf_keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    clustered.fit(batches, epochs=epochs, verbose=2)
    plain = clustering.strip_clustering(clustered)
    # The file takes the pixels that ours take.
    inputs = tf_keras.Input((32, 32, 3), batch_size=1)
    pixels = tf_keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    whole = tf_keras.Model(inputs, plain(pixels))
    chosen = np.random.default_rng(seed).choice(len(x), 512, replace=False)

    def samples():
        for i in chosen:
            yield [x[i : i + 1].astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_keras_model(whole)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    pathlib.Path(path).write_bytes(converter.convert())


if __name__ == "__main__":
    weights, data, path, k, epochs, seed, rate = sys.argv[1:]
    cluster(weights, data, path, int(k), int(epochs), int(seed), float(rate))
