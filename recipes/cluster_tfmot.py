"""tfmot's clustering on the same weights, then int8: run by `cluster.py` in its own process.

tfmot works on the legacy Keras, and importing it flips `tf.keras` for the whole process.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from recipes.prune_tfmot import _in_order_of_creation, _number, _resnet8


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
    (x, y), (x_test, y_test) = data
    arrays = []
    for kind in ("Conv2D", "BatchNormalization", "Dense"):
        same = [layer for layer in model.layers if type(layer).__name__ == kind]
        for layer in sorted(same, key=_number):
            arrays += layer.get_weights()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, name)) for name in ("weights.npz", "data.npz")]
        np.savez(files[0], *arrays)
        x, x_test = x.astype(np.uint8), x_test.astype(np.uint8)
        np.savez(files[1], x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        arguments = [*files, str(path), str(k), str(epochs), str(seed), str(rate)]
        command = [sys.executable, "-m", "recipes.cluster_tfmot", *arguments]
        subprocess.run(command, check=True)


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
    model = _resnet8(tf_keras)
    with np.load(weights) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    for layer, group in _in_order_of_creation(model, arrays):
        layer.set_weights(group)
    clustering = tfmot.clustering.keras
    clustered = clustering.cluster_weights(
        model,
        number_of_clusters=k,
        cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
    )
    batches = augmented(x, y, seed).map(lambda image, label: (image / 127.5 - 1.0, label))
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clustered.compile(tf_keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    clustered.fit(batches, epochs=epochs, verbose=2)
    plain = clustering.strip_clustering(clustered)
    # The file takes the pixels that ours take.
    inputs = tf_keras.Input((32, 32, 3), batch_size=1)
    scaled = tf_keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    whole = tf_keras.Model(inputs, plain(scaled))
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
