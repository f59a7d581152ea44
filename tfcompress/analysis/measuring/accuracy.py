"""Accuracy of classes, as Keras' `"accuracy"` chooses it by the shapes of labels and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.model.compilation import loss_names


def accuracy(labels: Any, predictions: Any) -> np.ndarray:
    """Whether each sample's class is right, `(n,)`.

    Labels are class numbers or one-hot; one output channel is a probability (where all lie in
    [0, 1]) or a logit of the positive class.

    Raises:
        ValueError: Several outputs, of which accuracy would have to choose one, or labels that are
            no class of the outputs.
    """
    return right(labels, predictions).mean(1)


def right(labels: Any, predictions: Any) -> np.ndarray:
    """As `accuracy`, before the mean over the positions of a sample: `(n, positions)`."""
    y, p = _one_of_each(labels, predictions)
    if p.shape[-1] == 1 or p.ndim == 1:
        edge = 0.5 if np.all((p >= 0) & (p <= 1)) else 0.0
        found, y = (p.reshape(len(p), -1) > edge), y.reshape(len(y), -1) > 0.5
    else:
        found = p.argmax(-1)
        y = y.argmax(-1) if y.shape == p.shape else y.reshape(found.shape)
        if y.size and not (y.min() >= 0 and y.max() < p.shape[-1]):
            raise ValueError(
                f"Expected class numbers from 0 to {p.shape[-1] - 1}, for as many outputs. "
                f"Received: labels from {y.min()} to {y.max()}."
            )
    return (found == y).reshape(len(p), -1)


def class_check(model: keras.Model) -> Callable[[Any, Any], None]:
    """What refuses to take accuracy of a model that was compiled without a metric.

    Args:
        model: The functional model.

    Returns:
        A function of labels and predictions. It refuses labels that are not one class of each
        sample, where no loss says that they are.
    """
    has_entropy = any("entropy" in (name or "") for name in loss_names(model))

    def check(labels: Any, predictions: Any) -> None:
        y, p = _one_of_each(labels, predictions)
        several = p.ndim > 1 and p.shape[-1] > 1
        is_numeric = np.issubdtype(y.dtype, np.number) or y.dtype == bool
        if several and y.shape == p.shape:
            flags = bool(np.isin(y, (0, 1)).all())
            classes = bool(np.all(y.sum(-1) == 1)) if flags else has_entropy
        elif several:
            classes = is_numeric and bool(np.all(y == np.floor(y)))
        else:
            classes = has_entropy or bool(np.isin(y, (0, 1)).all())
        if not classes:
            raise ValueError(
                "Expected a metric: the model was compiled without one, and its labels are not one "
                f"class of each sample, of which accuracy could be taken. Received: labels of "
                f"shape {y.shape} for outputs of shape {p.shape}. Pass metric=, such as 'mae', or "
                "keras.metrics.BinaryAccuracy(...) where a sample has several classes."
            )

    return check


def _one_of_each(labels: Any, predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    flat, wanted = tree.flatten(predictions), tree.flatten(labels)
    if len(flat) != 1 or len(wanted) != 1:
        raise ValueError(
            "Expected one output and one array of labels for accuracy. Received: "
            f"{len(flat)} outputs and {len(wanted)} arrays of labels. Pass metric=, a function of "
            "labels and predictions."
        )
    return np.asarray(wanted[0]), np.asarray(flat[0])
