"""tfmot's gradual pruning on the same weights: run by `prune.py` in a process of its own.

tfmot works on the legacy Keras, and importing it flips `tf.keras` for the whole process.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np


def in_subprocess(
    model: Any, data: tuple, sparsity: float, epochs: int, seed: int, rate: float
) -> tuple[float, float, float]:
    """Runs `prune` on the weights of a Keras 3 model, in a process of its own.

    Args:
        model: The ResNet-8 of `recipes.models`, or one whose layers were made in its order.
        data: `(x_train, y_train), (x_test, y_test)`.
        sparsity: See `prune`, and so the rest.
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
        arguments = [*files, str(sparsity), str(epochs), str(seed), str(rate)]
        command = [sys.executable, "-m", "recipes.prune_tfmot", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    before, after, zeros = map(float, done.stdout.splitlines()[-1].split()[1:])
    return before, after, zeros


def _number(layer: Any) -> int:
    """The number that Keras put behind the name of a layer, in the order of creation."""
    digits = layer.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def prune(
    weights: str, data: str, sparsity: float, epochs: int, seed: int, rate: float
) -> tuple[float, float, float]:
    """Returns the test error before and after (per cent), and the fraction of zeros.

    Args:
        weights: An `.npz` of the ResNet-8's arrays in the order of creation.
        data: An `.npz` with `x_train`, `y_train`, `x_test`, `y_test`.
        sparsity: Final sparsity.
        epochs: Epochs of pruning.
        seed: Seed of weights, shuffling and augmentation.
        rate: Learning rate at the start of the cosine decay.
    """
    import tensorflow as tf

    # Touched before tfmot is imported, `tf.keras` stays what it is.
    _ = tf.keras.layers
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from recipes.batches import augmented, load_arrays

    tf_keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = load_arrays(data)

    def scaled(image):
        return image / 127.5 - 1.0

    x_test = scaled(x_test)
    model = _resnet8(tf_keras)
    with np.load(weights) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    for layer, group in _in_order_of_creation(model, arrays):
        layer.set_weights(group)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    before = 1 - model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
    batches = augmented(x, y, seed).map(lambda image, label: (scaled(image), label))
    steps = epochs * len(batches)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        0.0, sparsity, 0, int(0.7 * steps), frequency=_frequency(steps)
    )
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    pruned.compile(tf_keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    update = tfmot.sparsity.keras.UpdatePruningStep()
    pruned.fit(batches, epochs=epochs, verbose=2, callbacks=[update])
    model = tfmot.sparsity.keras.strip_pruning(pruned)
    model.compile("sgd", loss, metrics=["accuracy"])
    after = 1 - model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
    kernels = [w.numpy() for w in model.trainable_weights if "kernel" in w.name]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    return 100 * before, 100 * after, float(zeros)


def _frequency(steps: int) -> int:
    # A divisor of the length of the schedule: tfmot has no update at its end otherwise.
    length = int(0.7 * steps)
    return max(d for d in range(1, 101) if length % d == 0)


def _resnet8(keras):
    """The ResNet-8 of `recipes.models` in the legacy Keras, without the scaling of the pixels.

    tfmot refuses a model with a `Rescaling` layer.
    """
    layers = keras.layers

    def convolution(x, filters, size, strides=1):
        options = {"kernel_regularizer": keras.regularizers.L2(1e-4), "padding": "same"}
        return layers.Conv2D(filters, size, strides, **options)(x)

    def conv_bn(x, filters, strides=1):
        return layers.BatchNormalization()(convolution(x, filters, 3, strides))

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv_bn(inputs, 16))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        branch = layers.ReLU()(conv_bn(x, filters, strides))
        branch = conv_bn(branch, filters)
        if strides > 1:
            x = convolution(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _in_order_of_creation(model, arrays):
    arrays = list(arrays)
    for kind in ("conv2d", "batch_normalization", "dense"):
        same = [
            layer
            for layer in model.layers
            if layer.name == kind or layer.name.startswith(f"{kind}_")
        ]
        for layer in sorted(same, key=_number):
            count = len(layer.get_weights())
            yield layer, arrays[:count]
            del arrays[:count]


if __name__ == "__main__":
    weights, data, sparsity, epochs, seed, rate = sys.argv[1:]
    result = prune(weights, data, float(sparsity), int(epochs), int(seed), float(rate))
    print("result", *result)
