"""Quantized gradients: LeNet-5 on MNIST from random weights, an epoch.

"sent" rows round every gradient in front of Adam (`QuantizedGradients`, error feedback), "back"
rows the gradient that flows back through each layer's output (`GradientScheme`, DoReFa-Net), in an
int8 model. Their controls are "float" and "int8".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

import tfcompress as tfc
from benchmarks.low_bits_parts.mnist import accuracy
from benchmarks.low_bits_parts.row import Part, Settings
from recipes import models
from recipes.batches import shifted
from tfcompress.tools import datasets

EPOCHS, BATCH, RATE = 1, 128, 1e-3

ROWS = (
    *("float", "sent 8 stochastic", "sent 6 stochastic", "sent 4 stochastic"),
    *("int8", "back 8 stochastic", "back 6 stochastic", "back 4 stochastic"),
    *("back 8 nearest", "back 6 nearest", "back 4 nearest", "sent 4 nearest"),
)


def measure(name: str, seed: int, epochs: int, settings: Settings) -> Mapping[str, Any]:
    (images, labels), (test_images, test_labels) = datasets.load("mnist", settings.data_dir)
    keras.utils.set_random_seed(seed)
    model = models.build("lenet5", (28, 28, 1), 10)
    steps = epochs * (len(labels) // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps))
    kind, bits, rounding = name.split() if " " in name else (name, "0", "")
    if kind == "sent":
        optimizer = tfc.QuantizedGradients(optimizer, int(bits), rounding)
    if kind in ("int8", "back"):
        gradients = tfc.GradientScheme(int(bits), rounding) if kind == "back" else None
        scheme = tfc.Scheme(gradients=gradients)
        # No correction of the biases of weights that are random yet.
        model = tfc.quantize(model, scheme, calibration_data=images[:256], bias_correction=False)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = shifted(images, labels, seed, BATCH)
    model.fit(data, epochs=epochs, verbose=0, shuffle=False)
    predicted = model.predict(test_images, batch_size=500, verbose=0)
    return {"learning_rate": RATE, "keras_accuracy": accuracy(predicted, test_labels)}


PART = Part(ROWS, EPOCHS, measure)
