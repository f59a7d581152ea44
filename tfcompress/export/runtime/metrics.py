"""Metrics of predictions against labels: classification, binary decisions, regression."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

Metric = Callable[..., Any]

#: Names of a second argument for which scikit-learn's metrics take scores, not predicted classes.
_SCORES = ("y_score", "y_scores", "y_prob", "y_proba", "probas_pred", "outputs")
_BINS = 15


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """One class of a classification.

    Attributes:
        name: Of the class; its number where no names are given.
        precision: Of the samples that are called so, the share that is.
        recall: Of the samples that are so, the share that is called so.
        f1: Harmonic mean of both.
        samples: How many samples are of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    samples: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score` found. What does not apply to the task is `None` or empty.

    Attributes:
        task: `"classification"`, `"binary"` or `"regression"`.
        samples: How many samples (positions, in a segmentation) were scored.
        accuracy: Share of right classes.
        precision: Mean over the classes that occur, each weighted alike (macro average).
        recall: Likewise.
        f1: Likewise.
        calibration_error: Expected calibration error over 15 bins, Σ |bin|/n · |accuracy − mean
            confidence| (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
        confusion: Row: true class; column: predicted class; number of samples.
        classes: Every class.
        mean_absolute_error: In the unit of the targets.
        root_mean_squared_error: Likewise.
        largest_error: Largest absolute error.
        r2: Share of the variance that is explained; `None` where the targets have none.
        metrics: Results of metrics that were given.
    """

    task: str
    samples: int
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    calibration_error: float | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    classes: tuple[ClassScores, ...] = ()
    mean_absolute_error: float | None = None
    root_mean_squared_error: float | None = None
    largest_error: float | None = None
    r2: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, float]:
        """`("accuracy", …)`, or `("mean absolute error", …)` of a regression."""
        if self.accuracy is not None:
            return "accuracy", self.accuracy
        return "mean absolute error", self.mean_absolute_error or 0.0


def score(
    labels: np.ndarray,
    outputs: np.ndarray,
    metrics: Mapping[str, Metric] | None = None,
    class_names: list[str] | None = None,
) -> Scores:
    """Scores predictions.

    The task follows from the shapes: whole numbers against one output per class (also per
    position), one-hot rows, 0 and 1 against one output, else targets in the shape of the outputs.

    Args:
        labels: Class numbers of shape `(n, …)`, one-hot rows, or targets.
        outputs: What a model gives, of shape `(n, …)`: probabilities, logits or values.
        metrics: Name → function of labels and predicted classes (or values), as in scikit-learn.
            It gets the outputs themselves if its second argument is called `y_score` or `y_proba`,
            as scikit-learn's that need them, or if it is a `keras.metrics.Metric`.
        class_names: Class number → name.

    Raises:
        ValueError: Labels that do not fit the outputs.
    """
    labels, outputs = np.asarray(labels), np.asarray(outputs, np.float64)
    if len(labels) != len(outputs):
        raise ValueError(
            f"Expected a label for every sample. Received: {len(labels)} labels for "
            f"{len(outputs)} samples"
        )
    task, labels = _task(labels, outputs)
    if task == "regression":
        found = _regression(labels, outputs)
        predicted = outputs
    else:
        probabilities = class_probabilities(outputs, task)
        predicted = probabilities.argmax(-1)
        found = _classification(task, labels, probabilities, class_names)
    if not metrics:
        return found
    flat = outputs.reshape(-1, outputs.shape[-1]) if task == "classification" else outputs
    values = {name: _custom(f, labels, predicted, flat) for name, f in metrics.items()}
    return dataclasses.replace(found, metrics=values)


def _task(labels: np.ndarray, outputs: np.ndarray) -> tuple[str, np.ndarray]:
    """The task, and flat labels for it."""
    is_whole = labels.dtype.kind in "iub"
    squeezed = labels.reshape(outputs.shape[:-1]) if _fits(labels, outputs.shape[:-1]) else None
    if outputs.shape[-1] > 1 and outputs.ndim > 1:
        if is_whole and squeezed is not None:
            _check_classes(squeezed, outputs.shape[-1])
            return "classification", squeezed.ravel()
        if labels.shape == outputs.shape and _is_one_hot(labels):
            return "classification", labels.argmax(-1).ravel()
    if is_whole and labels.size == outputs.size and set(np.unique(labels)) <= {0, 1}:
        return "binary", labels.astype(np.int64).ravel()
    if labels.size == outputs.size and len(labels) == len(outputs):
        return "regression", labels.astype(np.float64).reshape(outputs.shape)
    raise ValueError(
        f"Expected labels that fit outputs of shape {outputs.shape}: class numbers of shape "
        f"{outputs.shape[:-1]}, or targets of shape {outputs.shape}. Received: {labels.dtype} of "
        f"shape {labels.shape}"
    )


def _fits(labels: np.ndarray, shape: tuple[int, ...]) -> bool:
    return labels.shape == shape or labels.shape == (*shape, 1)


def _check_classes(labels: np.ndarray, count: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise ValueError(
            f"Expected class numbers 0 to {count - 1}, for {count} outputs. Received: "
            f"{labels.min()} to {labels.max()}"
        )


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all())


def class_probabilities(outputs: np.ndarray, task: str) -> np.ndarray:
    """Rows of class probabilities: the outputs where they are such, else their softmax."""
    if task == "binary":
        x = outputs.ravel()
        p = x if x.min(initial=0) >= 0 and x.max(initial=1) <= 1.001 else 1 / (1 + np.exp(-x))
        return np.stack([1 - p, p], -1)
    rows = outputs.reshape(-1, outputs.shape[-1])
    sums = rows.sum(-1, keepdims=True)
    # Codes of probabilities sum to 1 within their rounding.
    if rows.min(initial=0) >= 0 and np.all(np.abs(sums - 1) < 0.1):
        return rows / sums
    shifted = np.exp(rows - rows.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _classification(
    task: str, labels: np.ndarray, probabilities: np.ndarray, names: list[str] | None
) -> Scores:
    count = probabilities.shape[-1]
    predicted = probabilities.argmax(-1)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    right = np.diag(confusion).astype(np.float64)
    true, called = confusion.sum(1), confusion.sum(0)
    recall = np.divide(right, true, out=np.zeros(count), where=true > 0)
    precision = np.divide(right, called, out=np.zeros(count), where=called > 0)
    f1 = np.divide(2 * right, true + called, out=np.zeros(count), where=true + called > 0)
    # As scikit-learn: classes that neither occur nor are predicted do not count.
    occurs = (true + called) > 0
    classes = tuple(
        ClassScores(
            names[i] if names and len(names) == count else str(i),
            float(precision[i]),
            float(recall[i]),
            float(f1[i]),
            int(true[i]),
        )
        for i in range(count)
    )
    return Scores(
        task,
        len(labels),
        accuracy=float(np.mean(predicted == labels)),
        precision=float(precision[occurs].mean()),
        recall=float(recall[occurs].mean()),
        f1=float(f1[occurs].mean()),
        calibration_error=_calibration_error(probabilities, predicted == labels),
        confusion=tuple(map(tuple, confusion.tolist())),
        classes=classes,
    )


def _calibration_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
    confidence = probabilities.max(-1)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(bins, is_right - confidence, _BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _regression(targets: np.ndarray, outputs: np.ndarray) -> Scores:
    error = outputs - targets
    variance = float(np.sum((targets - targets.mean(0)) ** 2))
    return Scores(
        "regression",
        len(targets),
        mean_absolute_error=float(np.abs(error).mean()),
        root_mean_squared_error=math.sqrt(float(np.mean(error**2))),
        largest_error=float(np.abs(error).max()),
        r2=1 - float(np.sum(error**2)) / variance if variance > 0 else None,
    )


def _custom(
    metric: Metric, labels: np.ndarray, predicted: np.ndarray, outputs: np.ndarray
) -> float:
    if isinstance(metric, keras.metrics.Metric):
        metric.reset_state()
        metric.update_state(labels, outputs.astype(np.float32))
        return float(metric.result())
    return float(metric(labels, outputs if _wants_scores(metric) else predicted))


def _wants_scores(metric: Metric) -> bool:
    try:
        names = list(inspect.signature(metric).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[1] in _SCORES
