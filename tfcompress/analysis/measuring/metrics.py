"""The metric that a search must hold: of predictions and labels, with its paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from keras import tree

from tfcompress.analysis.measuring.accuracy import accuracy, class_check
from tfcompress.analysis.measuring.keras_metrics import (
    Compiled,
    compiled_metrics,
    of_keras,
    weigher,
)
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.model.compilation import output_keys
from tfcompress.model.directions import direction_of

#: What a user may give: `None`, a name, a Keras metric, or a function of labels and predictions.
MetricLike = Any
#: Which values are better: `"auto"` asks the class and the name of the metric.
Mode = Literal["auto", "min", "max"]


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """A number of predictions, in units of which `max_drop` is given.

    Attributes:
        name: What it is called.
        minimized: Whether less is better.
        function: `function(labels, predictions)`: one number, or one per sample. With weights
            `function(labels, predictions, weights)`: one number, or `(values, weights)` per sample.
        weights: What samples, or positions in them, count; `None` where all count alike.
        weigh: `weigh(samples, model)` gives the weights; `None` where samples have none.
    """

    name: str
    minimized: bool
    function: Callable[..., Any]
    weights: np.ndarray | None = None
    weigh: Callable[[Samples, keras.Model], np.ndarray | None] | None = None

    def of(self, samples: Samples, model: keras.Model) -> Metric:
        """The metric of samples: with their weights, where these count.

        Args:
            samples: Samples with labels.
            model: The functional model that they are for.

        Raises:
            ValueError: Samples without labels, which every metric needs, or weights that no mean
                can be taken with.
        """
        check_labels(samples.labels, self)
        weights = None if self.weigh is None else self.weigh(samples, model)
        if weights is not None and not (np.all(weights >= 0) and np.sum(weights) > 0):
            raise ValueError(
                f"Expected sample weights >= 0, some of them above 0, for {self.name!r}. "
                f"Received: weights from {np.min(weights):g} to {np.max(weights):g}."
            )
        return dataclasses.replace(self, weights=weights, weigh=None)

    def of_rows(self, rows: np.ndarray) -> Metric:
        """The metric of some of the samples."""
        if self.weights is None:
            return self
        return dataclasses.replace(self, weights=self.weights[rows])

    def value(self, labels: Any, predictions: Any) -> float:
        """The metric of predictions."""
        values, weights = self._values(labels, predictions)
        if weights is None:
            return float(np.mean(values))
        return float(np.sum(values * weights) / max(float(np.sum(weights)), 1e-12))

    def per_sample(
        self, labels: Any, predictions: Any
    ) -> tuple[np.ndarray, np.ndarray | None] | None:
        """`(values, weights)` per sample, `(n,)` each; `None` for no mean over samples.

        The weights are `None` where all samples count alike.
        """
        values, weights = self._values(labels, predictions)
        count = len(tree.flatten(predictions)[0])
        if values.ndim == 0 or len(values) != count:
            return None
        return values.reshape(count, -1).mean(1), weights

    def drop(self, reference: float, value: float) -> float:
        """How much worse a value is than the reference; negative where it is better."""
        return (reference - value) * (-1 if self.minimized else 1)

    def _values(self, labels: Any, predictions: Any) -> tuple[np.ndarray, np.ndarray | None]:
        if self.weights is None:
            return np.asarray(self.function(labels, predictions), np.float64), None
        found = self.function(labels, predictions, self.weights)
        values, weights = found if isinstance(found, tuple) else (found, None)
        return np.asarray(values, np.float64), weights


def resolve_metric(metric: MetricLike, model: keras.Model, mode: Mode = "auto") -> Metric:
    """What `metric=` stands for.

    Args:
        metric: `None` (the first metric that the model was compiled with, else accuracy), the name
            of a metric that it was compiled with as `evaluate` prints it, the name of a Keras
            metric, a `keras.metrics.Metric`, or a function `(labels, predictions)` that returns one
            number, or one per sample.
        model: The functional model, compiled as the user's.
        mode: Whether less is better (`"min"`) or more (`"max"`); by default the class of the
            metric decides, then its name.

    Raises:
        TypeError: Something else.
        ValueError: A name that neither the model nor Keras knows, a metric of one output for a
            model of several, or neither the class nor the name tells whether more is better.
    """
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"`mode` must be 'auto', 'min' or 'max'. Received: {mode!r}")
    if isinstance(metric, Metric):
        return metric
    known = compiled_metrics(model)
    if metric is None and not known:
        return _default(model, mode)
    chosen = known[0] if metric is None else None
    if isinstance(metric, str):
        chosen = next((each for each in known if each.name == metric), None)
        if chosen is None:
            _check_one_output(model, metric)
            chosen = Compiled(metric, _by_name(metric, known))
    elif isinstance(metric, keras.metrics.Metric):
        _check_one_output(model, metric.name)
        chosen = Compiled(metric.name, metric)
    if chosen is not None:
        minimized = _is_minimized(chosen.identifier, chosen.name, mode)
        return Metric(chosen.name, minimized, of_keras(chosen, model), None, weigher(chosen, model))
    if callable(metric) and not isinstance(metric, type):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(name, _is_minimized(metric, name, mode), metric)
    raise TypeError(
        "Expected `metric` to be None, a name, a keras.metrics.Metric or a function "
        f"(labels, predictions). Received: {metric!r} of type {type(metric).__name__}."
    )


def _default(model: keras.Model, mode: Mode) -> Metric:
    """Accuracy, of labels that are classes."""
    plain = Compiled("accuracy", accuracy)
    check, function = class_check(model), of_keras(plain, model)

    def compute(labels: Any, predictions: Any, weights: Any = None) -> Any:
        check(labels, predictions)
        return function(labels, predictions, weights)

    return Metric(plain.name, mode == "min", compute, None, weigher(plain, model))


def check_labels(labels: Any, metric: Metric) -> None:
    """Refuses data without labels, which every metric needs."""
    if labels is None:
        raise ValueError(
            f"Expected labels for the metric {metric.name!r}: data as (x, y), or batches of them. "
            "Received: inputs alone."
        )


def _by_name(name: str, known: list[Compiled]) -> Any:
    if name.lower() in ("accuracy", "acc"):
        return accuracy
    try:
        found = keras.metrics.get(name)
    except (ValueError, TypeError) as error:
        compiled = ", ".join(repr(each.name) for each in known) or "no metric"
        raise ValueError(
            "Expected `metric` to be the name of a Keras metric, a keras.metrics.Metric or a "
            f"function (labels, predictions). Received: {name!r}; the model was compiled with "
            f"{compiled}."
        ) from error
    return found


def _check_one_output(model: keras.Model, name: str) -> None:
    keys = output_keys(model)
    if len(keys) != 1:
        raise ValueError(
            f"Expected a model of one output for the metric {name!r}. Received: {len(keys)} "
            f"outputs, {', '.join(keys)}. Pass metric=, a function of labels and predictions, or "
            "the name of a metric that the model was compiled with for one of them."
        )


def _is_minimized(metric: Any, name: str, mode: Mode) -> bool:
    if mode != "auto":
        return mode == "min"
    if metric is accuracy:
        return False
    found = direction_of(metric, name)
    if found is None:
        raise ValueError(
            "Expected a metric whose class or name tells whether more of it is better. Received: "
            f"{name!r}. Say it by mode='max' or mode='min'."
        )
    return found == "min"


__all__ = ["Metric", "MetricLike", "Mode", "accuracy", "check_labels", "resolve_metric"]
