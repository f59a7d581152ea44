"""What a training step costs with each quantizer, as a ratio to min-max: ResNet-8, 64 images.

CPU seconds of `train_on_batch`, medians of interleaved rounds. "min-max twice" shows the noise.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.low_bits_parts.row import Part, Settings
from recipes import models

BATCH, ROUNDS = 64, 7

ROWS = {
    "min-max twice": tfc.Scheme(tfc.WeightScheme(4)),
    "LSQ": tfc.Scheme(tfc.WeightScheme(4, quantizer=tfc.LSQ())),
    "LSQ and LSQPlus": tfc.Scheme(
        tfc.WeightScheme(4, quantizer=tfc.LSQ()), tfc.ActivationScheme(quantizer=tfc.LSQPlus())
    ),
    "DoReFaWeights": tfc.Scheme(tfc.WeightScheme(4, quantizer=tfc.DoReFaWeights())),
    "TernaryWeights": tfc.Scheme(tfc.WeightScheme(2, quantizer=tfc.TernaryWeights())),
    "TrainedTernary": tfc.Scheme(tfc.WeightScheme(2, quantizer=tfc.TrainedTernary())),
    "BinaryWeights": tfc.Scheme(tfc.WeightScheme(2, quantizer=tfc.BinaryWeights())),
    "PowerOfTwoWeights": tfc.Scheme(tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights())),
    "APoT": tfc.Scheme(tfc.WeightScheme(4, quantizer=tfc.APoT())),
    "CodebookWeights": tfc.Scheme(tfc.WeightScheme(4, quantizer=tfc.CodebookWeights())),
    "PACT": tfc.QuantizationConfig(
        tfc.Scheme(tfc.WeightScheme(4)),
        by_type={
            "ReLU": tfc.Scheme(tfc.WeightScheme(4), tfc.ActivationScheme(quantizer=tfc.PACT()))
        },
    ),
    "gradients of 8 bits": tfc.Scheme(tfc.WeightScheme(4), gradients=tfc.GradientScheme(8)),
}


def _data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (BATCH, 32, 32, 3)).astype(np.float32)
    return images, random.integers(0, 10, BATCH)


def _compiled(config: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = models.build("resnet8", (32, 32, 3), 10)
    model = tfc.quantize(model, config, calibration_data=_data()[0], bias_correction=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    model.train_on_batch(*_data())
    return model


@functools.cache
def _min_max() -> keras.Model:
    return _compiled(tfc.Scheme(tfc.WeightScheme(4)))


def measure(name: str, seed: int, epochs: int, settings: Settings) -> Mapping[str, Any]:
    del seed, epochs, settings
    candidates = (_min_max(), _compiled(ROWS[name]))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for model, found in zip(candidates, times, strict=True):
            start = time.process_time()
            model.train_on_batch(*_data())
            found.append(time.process_time() - start)
    plain, this = map(np.median, times)
    return {"ratio": f"{this / plain:.2f}"}


PART = Part(tuple(ROWS), 0, measure)
