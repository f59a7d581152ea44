"""Files of dense nets in 8, 4 and 2 bits: bytes, agreement, accuracy, and time beside int8.

LeNet-300-100 on MNIST is trained on for an epoch with its bits. The autoencoder has the shape of
MLPerf Tiny's (640, four layers of 128, 8, four of 128, 640), MobileNetV1-0.25 is that of Keras for
64 pixels, ResNet-8 that of MLPerf Tiny; these have random weights and data: they show bytes,
agreement and time. "packed" rows are exported with `pointwise_as_dense=True`, and the presets
"int4-packed" and "int2-packed" pack larger kernels too. `ratio` is the median time of the file over
that of the int8 file, in interleaved runs of one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from benchmarks.low_bits_parts.mnist import accuracy, fit
from benchmarks.low_bits_parts.row import Part, Settings
from recipes import models
from recipes.batches import shifted
from tfcompress.export import compare_latency
from tfcompress.tools import datasets

EPOCHS, BATCH, FLOAT_EPOCHS = 1, 128, 3

PRESETS = ("int8", "int4", "w2a8", "ternary", "binary", "int16x8")
#: Float files with smaller weights, by `export_tflite(weights=)`.
FLOATS = ("float16", "dynamic")
ROWS = (
    *(f"{net} {preset}" for net in ("lenet300", "autoencoder") for preset in (*PRESETS, *FLOATS)),
    *("mobilenet int4", "mobilenet int4 packed", "mobilenet w2a8 packed"),
    *(f"resnet8 {preset}" for preset in ("int4", "int4-packed", "int2-packed")),
)


def autoencoder() -> keras.Model:
    """The shape of MLPerf Tiny's: dense layers with batch norm and ReLU."""
    inputs = keras.Input((640,), name="spectrum")
    x = inputs
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = layers.Dense(units)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(640, name="logits")(x))


def mobilenet() -> keras.Model:
    """MobileNetV1-0.25 for 64 pixels, ten logits."""
    return keras.applications.MobileNet(
        input_shape=(64, 64, 3), alpha=0.25, weights=None, classes=10, classifier_activation=None
    )


_UNTRAINED = {
    "autoencoder": autoencoder,
    "mobilenet": mobilenet,
    "resnet8": lambda: models.build("resnet8", (32, 32, 3), 10),
}


@functools.cache
def _mnist(data_dir: str | None) -> Any:
    return datasets.load("mnist", data_dir)


@functools.cache
def _lenet300(seed: int, data_dir: str | None) -> keras.Model:
    (images, labels), _ = _mnist(data_dir)
    keras.utils.set_random_seed(seed)
    model = models.build("lenet300", (28, 28, 1), 10)
    fit(model, shifted(images, labels, seed, BATCH), FLOAT_EPOCHS, 1e-3, len(labels) // BATCH)
    return model


def measure(name: str, seed: int, epochs: int, settings: Settings) -> Mapping[str, Any]:
    net, preset, *packed = name.split()
    if net == "lenet300":
        (images, labels), (test_images, test_labels) = _mnist(settings.data_dir)
        model = _lenet300(seed, settings.data_dir)
    else:
        keras.utils.set_random_seed(seed)
        model = _UNTRAINED[net]()
        shape = (256, *model.input_shape[1:])
        images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        labels, test_images, test_labels = None, images, None
    reference = settings.folder / "int8.tflite"
    tfc.export_tflite(model, reference, calibration_data=images[:128], verify_samples=0)
    if preset in FLOATS:
        trained = keras.models.clone_model(model)
        trained.set_weights(model.get_weights())
    else:
        trained = tfc.quantize(model, preset, calibration_data=images[:128])
    if labels is not None:
        data, steps = shifted(images, labels, seed, BATCH), len(labels) // BATCH
        fit(trained, data, epochs, 5e-4, steps)
    path = settings.folder / "this.tflite"
    options: dict[str, Any] = {"pointwise_as_dense": bool(packed)}
    if preset in FLOATS:
        options = {"weights": preset}
    report = tfc.export_tflite(trained, path, verify_data=test_images[:256], **options)
    found = {}
    if test_labels is not None:
        outputs = next(iter(tfc.Runner(path).predict(test_images).values()))
        found["file_accuracy"] = accuracy(outputs, test_labels)
        predicted = trained.predict(test_images, verbose=0)
        found["keras_accuracy"] = accuracy(predicted, test_labels)
        found["learning_rate"] = 5e-4
    times = compare_latency({"int8": reference, "this": path}, num_threads=1)
    stored = [row.stored for row in report.layers if row.stored]
    return {
        **found,
        # Of a float file there are no steps that could be equal.
        "equal": "" if preset in FLOATS else f"{100 * report.agreement:.2f}",
        "bytes": report.num_bytes,
        "stored": " ".join(f"{stored.count(kind)}×{kind}" for kind in dict.fromkeys(stored)),
        "ratio": f"{times.ratios['this'].median:.3f}",
    }


PART = Part(ROWS, EPOCHS, measure)
