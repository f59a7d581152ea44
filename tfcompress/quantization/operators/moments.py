"""Variance, standard deviation and Euclidean norm over axes of one sample."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.elementwise import CODE_TABLE, CodeTable
from tfcompress.quantization.operators.norm_steps import (
    Centered,
    MeanOverAxes,
    Normalized,
    NormPart,
    SumOfSquares,
)
from tfcompress.quantization.operators.normalization import (
    has_known_axes,
    inner_axes,
    number_of,
    serialized,
)
from tfcompress.quantization.operators.registry import OperatorSpec, register


@keras.saving.register_keras_serializable(package="tfcompress")
class Root(NormPart, CodeTable):
    """√(x · factor), value by value."""

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = float(factor)

    def function(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(x * self.factor)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


def _axes(node: Node) -> list[int] | None:
    """The axes of a reduction; `None` where it goes over samples or its sizes are not known."""
    axis, rank = node.operation.axis, len(node.inputs[0].shape)
    if axis is None or len(node.inputs) != 1:
        return None
    axes = inner_axes(axis, rank)
    return axes if has_known_axes(node, axes) else None


def _squares_about_mean(b: Builder, node: Node, axes: list[int]) -> Value:
    mean = b.call(lambda n: MeanOverAxes(axes, name=n), "mean", node.inputs[0])
    centered = b.call(lambda n: Centered(name=n), "centered", node.inputs[0], mean)
    return b.call(lambda n: Normalized(name=n), "square", centered, centered)


def _variance(b: Builder, node: Node) -> Value | None:
    """The mean, x − mean, its square, the mean of that."""
    axes = _axes(node)
    if axes is None:
        return None
    keepdims, original = node.operation.keepdims, serialized(node.operation)
    square = _squares_about_mean(b, node, axes)
    return b.call(lambda n: MeanOverAxes(axes, keepdims, original=original, name=n), "", square)


def _deviation(b: Builder, node: Node) -> Value | None:
    """The variance, then √ by a table."""
    axes = _axes(node)
    if axes is None:
        return None
    keepdims, original = node.operation.keepdims, serialized(node.operation)
    square = _squares_about_mean(b, node, axes)
    variance = b.call(lambda n: MeanOverAxes(axes, keepdims, name=n), "variance", square)
    return b.call(lambda n: Root(original=original, name=n), "", variance)


def _norm(b: Builder, node: Node) -> Value | None:
    """Σ of squares, then √ by a table."""
    operation, x = node.operation, node.inputs[0]
    axes = _axes(node)
    # Of a matrix, order 2 is another norm.
    is_euclidean = operation.ord in (None, "fro") or (operation.ord == 2 and len(axes or ()) == 1)
    if axes is None or not is_euclidean:
        return None
    keepdims, original = operation.keepdims, serialized(operation)
    if axes == list(range(axes[0], len(x.shape))) and None not in x.shape[1:]:
        total = b.call(lambda n: SumOfSquares(axes[0], keepdims, name=n), "squares", x)
        return b.call(lambda n: Root(original=original, name=n), "", total)
    size = number_of(x, axes)
    square = b.call(lambda n: Normalized(name=n), "square", x, x)
    total = b.call(lambda n: MeanOverAxes(axes, keepdims, name=n), "squares", square)
    return b.call(lambda n: Root(size, original=original, name=n), "", total)


register(ops.var, spec=OperatorSpec(decompose=_variance))
register(ops.std, spec=OperatorSpec(decompose=_deviation))
register(ops.norm, spec=OperatorSpec(decompose=_norm))
register(Root, spec=CODE_TABLE)
