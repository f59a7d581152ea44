"""The dense nets of BNN-PYNQ on MNIST: three hidden layers of 64 (TFC) or 256 units (SFC).

Published (Xilinx BNN-PYNQ): TFC 93.17 with weights and activations of 1 bit, 96.60 with 2; SFC
97.81 and 98.66. Here W1 are two values per channel and no activation has less than 2 bits; the
input has 8, where BNN-PYNQ rounds it too. In float first, then on with few bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from benchmarks.low_bits_parts.row import Part, Settings
from recipes.batches import shifted, steady
from tfcompress.tools import datasets

BATCH, FLOAT_EPOCHS, EPOCHS = 128, 8, 12

_WEIGHTS = {
    "W1": tfc.WeightScheme(2, quantizer=tfc.BinaryWeights()),
    "W2": tfc.WeightScheme(2, narrow_range=False, quantizer=tfc.LSQ()),
    "W4": tfc.WeightScheme(4, quantizer=tfc.LSQ()),
    "W8": tfc.WeightScheme(),
}
_ACTIVATIONS = {
    "A2": tfc.ActivationScheme(2, quantizer=tfc.LSQPlus()),
    "A8": tfc.ActivationScheme(),
}
_UNITS = {"TFC": 64, "SFC": 256}
ROWS = (
    *("TFC W1A2", "TFC W2A2", "SFC W1A2", "SFC W2A2"),
    *("TFC W2A8", "TFC W1A8", "SFC W2A8", "SFC W1A8", "SFC W4A8", "SFC W8A8"),
)


def dense_net(units: int) -> keras.Model:
    """Flatten, three dense layers with batch norm and ReLU, ten logits; input 0..255."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    for _ in range(3):
        x = layers.Dense(units, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def fit(model: keras.Model, data: Any, epochs: int, rate: float, steps: int, callbacks=()) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss)
    model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> str:
    return f"{100 * np.mean(logits.argmax(-1) == labels):.2f}"


def measure(name: str, seed: int, epochs: int, settings: Settings) -> Mapping[str, Any]:
    net, bits = name.split()
    (images, labels), (test_images, test_labels) = datasets.load("mnist", settings.data_dir)
    keras.utils.set_random_seed(seed)
    data, steps = steady(shifted(images, labels, seed, BATCH)), len(labels) // BATCH
    model = dense_net(_UNITS[net])
    fit(model, data, FLOAT_EPOCHS, 2e-3, steps)
    scheme = tfc.Scheme(_WEIGHTS[bits[:2]], _ACTIVATIONS[bits[2:]])
    config = tfc.QuantizationConfig(
        scheme,
        by_type={"Rescaling": tfc.Scheme(), "Flatten": tfc.Scheme()},
        # The logits keep 8 bits, which is what the highest of them is read from.
        by_name={"logits": tfc.Scheme(scheme.weights)},
    )
    trained = tfc.quantize(model, config, calibration_data=images[:512])
    total = epochs * steps
    schedule = tfc.callbacks.QuantizationSchedule(0, total * 3 // 4, total * 9 // 10)
    fit(trained, data, epochs, 2e-3, steps, [schedule])
    found = {
        "learning_rate": 2e-3,
        "keras_accuracy": accuracy(trained.predict(test_images, verbose=0), test_labels),
    }
    path = settings.folder / "mnist.tflite"
    report = tfc.export_tflite(trained, path, verify_data=test_images[:500])
    outputs = next(iter(tfc.Runner(path).predict(test_images).values()))
    stored = [row.stored for row in report.layers if row.stored]
    return {
        **found,
        "file_accuracy": accuracy(outputs, test_labels),
        "equal": f"{100 * report.agreement:.2f}",
        "bytes": report.num_bytes,
        "stored": " ".join(f"{stored.count(kind)}×{kind}" for kind in dict.fromkeys(stored)),
    }


PART = Part(ROWS, EPOCHS, measure)
