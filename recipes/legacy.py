"""A ResNet-8 in the legacy Keras, with the weights of a Keras 3 one, for the recipes' tfmot peers.

tfmot works on the legacy Keras, and importing it flips `tf.keras` for the whole process: a peer
runs as a module of its own (`run_module`) and gets weights and data as files.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np


def run_module(name: str, model: Any, data: tuple, *arguments: Any) -> str:
    """Runs `python -m name weights.npz data.npz *arguments` and returns its last line.

    Args:
        name: The module.
        model: The ResNet-8 of `recipes.models`, or one whose layers were made in its order.
        data: `(x_train, y_train), (x_test, y_test)`.
        *arguments: What else it takes.
    """
    (x, y), (x_test, y_test) = data
    arrays = arrays_of(model)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, name)) for name in ("weights.npz", "data.npz")]
        np.savez(files[0], *arrays)
        x, x_test = x.astype(np.uint8), x_test.astype(np.uint8)
        np.savez(files[1], x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        command = [sys.executable, "-m", name, *files, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return (done.stdout.splitlines() or [""])[-1]


def arrays_of(model: Any) -> list[np.ndarray]:
    """The arrays of a ResNet-8 of either Keras, in the order in which `resnet8` takes them."""
    arrays = []
    for kind in ("Conv2D", "BatchNormalization", "Dense"):
        same = [layer for layer in model.layers if type(layer).__name__ == kind]
        for layer in sorted(same, key=_number):
            arrays += layer.get_weights()
    return arrays


def resnet8(keras, weights: str):
    """The ResNet-8 of `recipes.models`, without the scaling of the pixels, which tfmot refuses.

    Args:
        keras: The legacy Keras, or Keras 3.
        weights: An `.npz` of its arrays in the order of creation.
    """
    model = _architecture(keras)
    with np.load(weights) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    for kind in ("conv2d", "batch_normalization", "dense"):
        same = [v for v in model.layers if v.name == kind or v.name.startswith(f"{kind}_")]
        for layer in sorted(same, key=_number):
            count = len(layer.get_weights())
            layer.set_weights(arrays[:count])
            del arrays[:count]
    return model


def scaled(image):
    """Pixels in 0…255 as that ResNet-8 takes them."""
    return image / 127.5 - 1.0


def _number(layer: Any) -> int:
    """The number that Keras put behind the name of a layer, in the order of creation."""
    digits = layer.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _architecture(keras):
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
