"""Metrics of Keras as functions of labels and predictions, with the values of `evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.analysis.measuring.accuracy import accuracy, right
from tfcompress.analysis.measuring.files import masks_of_outputs
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.model.compilation import by_output, output_keys
from tfcompress.model.graph import output_structure
from tfcompress.model.keras_private import compile_arguments, mean_function, padding_mask


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A metric that a model was compiled with, or could have been.

    Attributes:
        name: As `evaluate` prints it.
        identifier: The metric: of Keras, or a function of the user's own.
        output: The flat output that it is of.
        weighted: Whether sample weights count.
    """

    name: str
    identifier: Any
    output: int = 0
    weighted: bool = False


def compiled_metrics(model: keras.Model) -> list[Compiled]:
    """The metrics that a functional model was compiled with, in the order of `compile`.

    Raises:
        ValueError: Metrics of a model of several outputs that do not say of which one they are.
    """
    keys, given = output_keys(model), compile_arguments(model)
    found = []
    for argument in ("metrics", "weighted_metrics"):
        metrics = given.get(argument)
        if not metrics:
            continue
        if len(keys) == 1:
            parts = [tree.flatten(metrics)]
        elif isinstance(metrics, Mapping) or len(metrics) == len(keys):
            parts = by_output(model, metrics)
        else:
            raise ValueError(
                f"Expected `{argument}` of the compiled model as a list with an entry for each of "
                f"its outputs {keys}, or a dict by output. Received: {metrics!r}."
            )
        order = list(range(len(keys)))
        if isinstance(metrics, Mapping) and len(keys) > 1:
            order = [keys.index(key) for key in metrics if key in keys]
        weighted = argument == "weighted_metrics"
        for index in order:
            prefix = f"{keys[index]}_" if len(keys) > 1 else ""
            for each in tree.flatten(parts[index]):
                if each is not None:
                    name = f"{prefix}{_name(each)}"
                    found.append(Compiled(name, _identified(each), index, weighted))
    return found


def of_keras(metric: Compiled, model: keras.Model) -> Callable[..., Any]:
    """`function(labels, predictions, weights=None)` of a metric for one output.

    Without weights it gives one number, or one per sample where the metric is a mean over samples;
    with weights one number, or `(values, weights)` per sample.
    """
    # A folder of a search knows metrics by what they read: no names here that Keras counts up.
    index, identifier, keys = metric.output, metric.identifier, output_keys(model)
    keys = keys if len(keys) > 1 else [""]
    function = _function(identifier)

    def compute(labels: Any, predictions: Any, weights: Any = None) -> Any:
        y = _part(labels, index, keys, "labels")
        p = tree.flatten(predictions)[index]
        if function is right:
            return _reduced(right(y, p), weights)
        y, p = _tensor(y), _tensor(p)
        try:
            if function is not None:
                return _reduced(np.asarray(function(y, p), np.float64), weights)
            return _result(identifier, y, p, weights)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"Expected labels that the metric {_name(identifier)!r} can compare with the "
                f"outputs. Received: labels of shape {tuple(y.shape)} and outputs of shape "
                f"{tuple(p.shape)}. Pass another metric=."
            ) from error

    return compute


def weigher(
    metric: Compiled, model: keras.Model
) -> Callable[[Samples, keras.Model], np.ndarray | None] | None:
    """What gives the weights of samples for a metric as Keras has them; `None` for nothing.

    These are the sample weights, of a weighted metric, and the padding mask that the output has,
    of a metric that is a mean.
    """
    keys, index, weighted = output_keys(model), metric.output, metric.weighted
    symbol = tree.flatten(output_structure(model))[index]
    is_masked = padding_mask(symbol) is not None and _function(metric.identifier) is not None
    if not weighted and not is_masked:
        return None

    def weigh(samples: Samples, model: keras.Model) -> np.ndarray | None:
        found = None
        if weighted and samples.weights is not None:
            found = _part(samples.weights, index, keys, "sample weights").astype(np.float64)
        if is_masked:
            mask = masks_of_outputs(model, samples)[index].astype(np.float64)
            if found is None:
                return mask
            found = found.reshape(*found.shape, *[1] * (mask.ndim - found.ndim)) * mask
        return found

    return weigh


def _name(identifier: Any) -> str:
    if isinstance(identifier, str):
        return identifier
    name = getattr(identifier, "name", None) or getattr(identifier, "__name__", None)
    return str(name or type(identifier).__name__)


def _identified(identifier: Any) -> Any:
    """A Keras metric, or a function, for what `compile` takes."""
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        return accuracy
    return keras.metrics.get(identifier)


def _function(identifier: Any) -> Callable[[Any, Any], Any] | None:
    """What is averaged over samples; `None` for a metric that is no such mean."""
    if identifier is accuracy:
        return right
    if isinstance(identifier, keras.metrics.Metric):
        return mean_function(identifier)
    return identifier


def _part(given: Any, index: int, keys: list[str], name: str) -> np.ndarray:
    """The part of labels or weights that belongs to an output."""
    if isinstance(given, Mapping) and len(keys) > 1:
        if keys[index] not in given:
            raise ValueError(
                f"Expected {name} for the output {keys[index]!r}. Received: those of "
                f"{sorted(given)}."
            )
        return np.asarray(given[keys[index]])
    flat = tree.flatten(given)
    if len(flat) == 1 and name == "sample weights":
        # Keras weighs all outputs alike.
        return np.asarray(flat[0])
    if len(flat) != len(keys):
        raise ValueError(
            f"Expected {name} for each of the outputs {keys}. Received: {len(flat)} arrays."
        )
    return np.asarray(flat[index])


def _tensor(array: Any) -> tf.Tensor:
    """An array as Keras gives it to a metric: of 64 bits in float32."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = array.astype(keras.config.floatx())
    return tf.convert_to_tensor(array)


def _reduced(values: np.ndarray, weights: np.ndarray | None) -> Any:
    """Values per sample, `(n,)`, and with weights those of the samples, as Keras averages both."""
    if values.ndim == 0:
        return values
    if weights is None:
        return values.reshape(len(values), -1).mean(1)
    if weights.ndim > values.ndim and weights.shape[-1] == 1:
        weights = weights[..., 0]
    values = values.mean(tuple(range(min(weights.ndim, values.ndim), values.ndim)))
    weights = np.broadcast_to(weights, values.shape)
    totals = (values * weights).reshape(len(values), -1).mean(1)
    sums = weights.reshape(len(values), -1).mean(1)
    return np.divide(totals, sums, out=np.zeros_like(totals), where=sums != 0), sums


def _result(metric: keras.metrics.Metric, y: Any, p: Any, weights: Any) -> float:
    """One number of a metric that keeps a state: of several classes the mean."""
    metric.reset_state()
    try:
        metric.update_state(y, p, **({} if weights is None else {"sample_weight": weights}))
        return float(np.mean(np.asarray(metric.result())))
    finally:
        # It is the user's: Keras does not reset the states of a model that has seen no data.
        metric.reset_state()
