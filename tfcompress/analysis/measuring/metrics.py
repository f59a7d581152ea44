"""The metric that a search must hold: of predictions and labels, with its paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.model.directions import direction

#: What a user may give: `None`, a name, a Keras metric, or a function of labels and predictions.
MetricLike = Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of predictions, in units of which `max_drop` is given.

    Attributes:
        name: What it is called.
        minimized: Whether less is better.
        function: `function(labels, predictions)`: one number, or one per sample.
    """

    name: str
    minimized: bool
    function: Callable[[Any, Any], Any]

    def value(self, labels: Any, predictions: Any) -> float:
        """The metric of predictions."""
        return float(np.mean(np.asarray(self.function(labels, predictions))))

    def per_sample(self, labels: Any, predictions: Any) -> np.ndarray | None:
        """One number per sample, `(n,)`; `None` for a metric that is not a mean over samples."""
        values = np.asarray(self.function(labels, predictions), np.float64)
        count = len(tree.flatten(predictions)[0])
        if values.ndim == 0 or len(values) != count:
            return None
        return values.reshape(count, -1).mean(1)

    def drop(self, reference: float, value: float) -> float:
        """How much worse a value is than the reference; negative where it is better."""
        return (reference - value) * (-1 if self.minimized else 1)


def resolve_metric(metric: MetricLike, model: keras.Model) -> Metric:
    """What `metric=` stands for.

    Args:
        metric: `None` (the first metric that the model was compiled with, else accuracy), the name
            of a Keras metric, a `keras.metrics.Metric`, or a function `(labels, predictions)` that
            returns one number, or one per sample. Of a function more is better, unless its name
            says that it is a loss or an error.
        model: The model.

    Raises:
        TypeError: Something else.
        ValueError: A name that Keras does not know.
    """
    if isinstance(metric, Metric):
        return metric
    if metric is None:
        metric = _compiled(model) or "accuracy"
    if isinstance(metric, str):
        if metric in _ACCURACY:
            return Metric("accuracy", False, accuracy)
        try:
            metric = keras.metrics.get(metric)
        except ValueError as error:
            raise ValueError(
                "Expected `metric` to be the name of a Keras metric, a keras.metrics.Metric or a "
                f"function (labels, predictions). Received: {metric!r}."
            ) from error
    if isinstance(metric, keras.metrics.Metric):
        if metric.name in _ACCURACY:
            return Metric(metric.name, False, accuracy)
        return Metric(metric.name, _is_minimized(metric.name), _stateful(metric))
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(name, _is_minimized(name), metric)
    raise TypeError(
        "Expected `metric` to be None, a name, a keras.metrics.Metric or a function "
        f"(labels, predictions). Received: {metric!r} of type {type(metric).__name__}."
    )


def accuracy(labels: Any, predictions: Any) -> np.ndarray:
    """Whether each sample's class is right, `(n,)`.

    Labels are class numbers or one-hot; one output channel is a probability (where all lie in
    [0, 1]) or a logit of the positive class.

    Raises:
        ValueError: Several outputs, of which accuracy would have to choose one, or labels that are
            no class of the outputs.
    """
    flat, wanted = tree.flatten(predictions), tree.flatten(labels)
    if len(flat) != 1 or len(wanted) != 1:
        raise ValueError(
            "Expected one output and one array of labels for accuracy. Received: "
            f"{len(flat)} outputs and {len(wanted)} arrays of labels. Pass metric=, a function of "
            "labels and predictions."
        )
    y, p = np.asarray(wanted[0]), np.asarray(flat[0])
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
    return (found == y).reshape(len(p), -1).mean(1)


_ACCURACY = {
    *("accuracy", "acc", "sparse_categorical_accuracy", "categorical_accuracy"),
    "binary_accuracy",
}


def check_labels(labels: Any, metric: Metric) -> None:
    """Refuses data without labels, which every metric needs."""
    if labels is None:
        raise ValueError(
            f"Expected labels for the metric {metric.name!r}: data as (x, y), or batches of them. "
            "Received: inputs alone."
        )


def _compiled(model: keras.Model) -> Any:
    """The first metric that the model was compiled with; `None` for none."""
    if not getattr(model, "compiled", False):
        return None
    config = model.get_compile_config() or {}
    given = config.get("metrics") or config.get("weighted_metrics")
    leaves = [m for m in _leaves(given) if m is not None]
    if not leaves:
        return None
    first = leaves[0]
    return keras.saving.deserialize_keras_object(first) if isinstance(first, dict) else first


def _leaves(given: Any) -> list[Any]:
    if isinstance(given, Mapping) and "class_name" not in given:
        return [leaf for part in given.values() for leaf in _leaves(part)]
    if isinstance(given, (list, tuple)):
        return [leaf for part in given for leaf in _leaves(part)]
    return [given]


def _is_minimized(name: str) -> bool:
    try:
        return direction(name) == "min"
    except ValueError:
        return name in ("mean_squared_error", "mean_absolute_error")


def _stateful(metric: keras.metrics.Metric) -> Callable[[Any, Any], Any]:
    def compute(labels: Any, predictions: Any) -> float:
        metric.reset_state()
        metric.update_state(labels, predictions)
        return float(metric.result())

    return compute
