"""The metric of a file or a model on data."""

from __future__ import annotations

import os
from typing import Any

import keras

from tfcompress.analysis.measuring.files import predict, run_file
from tfcompress.analysis.measuring.metrics import MetricLike, resolve_metric
from tfcompress.analysis.measuring.samples import read_samples
from tfcompress.model.compilation import functional_as_compiled
from tfcompress.model.subclassed import functional_for


def evaluate_file(
    file: str | os.PathLike | keras.Model,
    model: keras.Model,
    data: Any,
    *,
    metric: MetricLike = None,
) -> float:
    """The metric of a `.tflite`, run by LiteRT with XNNPACK, or of a Keras model.

    Args:
        file: The path of a `.tflite`, or a Keras model.
        model: The model that it was made of, which has the order of inputs and outputs.
        data: `(x, y)` as arrays, or batches. Sample weights behind the labels count for
            `weighted_metrics` alone, as in the `evaluate` of Keras.
        metric: By default the model's first compiled metric, else accuracy; see `sensitivity`.

    Raises:
        ValueError: No labels, data that do not fit, or neither a metric nor labels that accuracy
            could be taken of.
    """
    functional = functional_as_compiled(model, data)
    held = read_samples(data, functional)
    # Nothing is compared: which values are better does not matter.
    found = resolve_metric(metric, functional, mode="max").of(held, functional)
    if file is model:
        outputs = predict(functional, held)
    elif isinstance(file, keras.Model):
        outputs = predict(functional_for(file, held.inputs), held)
    else:
        outputs = run_file(file, functional, held)
    return found.value(held.labels, outputs)
