"""The metric of a file or a model on data."""

from __future__ import annotations

import os
from typing import Any

import keras

from tfcompress.analysis.measuring.files import predict, run_file
from tfcompress.analysis.measuring.metrics import MetricLike, check_labels, resolve_metric
from tfcompress.analysis.measuring.samples import read_samples
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
        data: `(x, y)` as arrays, or batches.
        metric: By default the model's first compiled metric, else accuracy; see `sensitivity`.

    Raises:
        ValueError: No labels, or data that do not fit.
    """
    model = functional_for(model)
    held = read_samples(data, model)
    found = resolve_metric(metric, model)
    check_labels(held.labels, found)
    is_model = isinstance(file, keras.Model)
    outputs = predict(file, held) if is_model else run_file(file, model, held)
    return found.value(held.labels, outputs)
