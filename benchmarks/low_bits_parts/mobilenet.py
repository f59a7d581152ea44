"""MobileNetV2-0.35 on CIFAR-10 at 64 pixels: depthwise kernels, where few bits hurt most.

The rows are those of Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training":
at 4 bits weights swing between two levels, which dampening and freezing stop, and which batch-norm
statistics computed anew after training forgive. Every row trains on from one float model, as in
`accuracy`; it is trained from random weights where `--mobilenet` names no file yet, and kept there.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from benchmarks.low_bits_parts import accuracy
from benchmarks.low_bits_parts.row import Part, Settings
from recipes.batches import augmented
from tfcompress.tools import datasets

EPOCHS, FLOAT_EPOCHS, RATE = 1, 8, 3e-3

_METHODS = ("min-max", "LSQ", "LSQ and dampening", "LSQ and freezing", "LSQ re-estimated")
#: Where the statistics of batch norms move to the last step, which is where swinging shows.
_FREE = tuple(name for name in accuracy.ROWS if "free statistics" in name)
ROWS = (
    *("float", "float16 file", "dynamic-range file"),
    *(f"{bits} {method}" for bits in ("W4A4", "W4A8") for method in _METHODS),
    *_FREE,
)


def mobilenet() -> keras.Model:
    """MobileNetV2 of a third of the width; images of 32 pixels are enlarged to 64 in the model."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.UpSampling2D(name="enlarged")(layers.Rescaling(1 / 127.5, offset=-1)(inputs))
    body = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, include_top=False, pooling="avg", input_tensor=x
    )
    for layer in body.layers:
        if isinstance(layer, layers.BatchNormalization):
            # Keras' 0.999 needs more steps than this trains for.
            layer.momentum = 0.99
    return keras.Model(inputs, layers.Dense(10, name="logits")(body.output))


def trained_float(path: pathlib.Path, data_dir: str | None) -> keras.Model:
    """The float model of all rows, from its file or trained now."""
    if not path.is_file():
        (images, labels), _ = datasets.load("cifar10", data_dir)
        keras.utils.set_random_seed(0)
        model = mobilenet()
        steps = FLOAT_EPOCHS * (len(labels) // accuracy.BATCH)
        rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss)
        data = augmented(images, labels, 0)
        model.fit(data, epochs=FLOAT_EPOCHS, verbose=0, shuffle=False)
        model.save(path)
    return keras.saving.load_model(path, compile=False)


def measure(name: str, seed: int, epochs: int, settings: Settings) -> Mapping[str, Any]:
    model = trained_float(settings.mobilenet, settings.data_dir)
    return accuracy.measure(name, seed, epochs, settings, model)


PART = Part(ROWS, EPOCHS, measure)
