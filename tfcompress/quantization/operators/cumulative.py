"""Cumulative sums: a product with a triangle of ones, whose sums the runtime rounds once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.code_sums import SumOfCodes
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import SAMPLES


@keras.saving.register_keras_serializable(package="tfcompress")
class CumulativeSum(SumOfCodes, layers.Layer):
    """y[i] = x[0] + … + x[i] along an axis.

    Args:
        axis: The axis, 1 or more.
    """

    def __init__(self, axis: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = int(axis)

    def build(self, input_shape: Any) -> None:
        self._adds_channels = self.axis == len(input_shape) - 1
        self.built = True

    @property
    def channels_like(self) -> type:
        """Along positions each channel by itself; sums of channels have no rule."""
        return type(self) if self._adds_channels else layers.MaxPooling2D

    def weight(self) -> float:
        return 1.0

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.cumsum(inputs, self.axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[Callable]:
        return [lambda x: ops.cumsum(x, axis=self.axis)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A 1×1 convolution whose kernel is a triangle of ones."""
    axis, rank = call.operation.axis, len(x.shape)
    order = [i for i in range(rank) if i != axis] + [axis]
    rows = tf.transpose(x, order)
    size = int(x.shape[axis])
    kernel = np.triu(np.ones((size, size), np.float32))[None, None]
    y = tf.nn.conv2d(tf.reshape(rows, (1, 1, -1, size)), tf.constant(kernel), 1, "VALID")
    return tf.transpose(tf.reshape(y, rows.shape), np.argsort(order))


def _cumsum(b: Builder, node: Node) -> Value | None:
    """A layer for one axis of known size."""
    axis, x = node.operation.axis, node.inputs[0]
    if axis is None or axis % len(x.shape) == 0 or x.shape[axis] is None:
        return None
    axis = axis % len(x.shape)
    return b.call(lambda n: CumulativeSum(axis, name=n), "", x)


def _reason(node: Node) -> str | None:
    axis, x = node.operation.axis, node.inputs[0]
    if axis is None or axis % len(x.shape) == 0:
        return SAMPLES
    return "the size of its axis is not known"


# Of integers, such as positions of tokens, LiteRT has one.
register(ops.cumsum, spec=OperatorSpec(role=Role.AVERAGE, decompose=_cumsum, call_reason=_reason))
register(
    CumulativeSum,
    spec=OperatorSpec(
        role=Role.AVERAGE,
        quantized=lambda layer: CumulativeSum.from_config(layer.get_config()),
        lower=_lower,
    ),
)
