"""Operators that compare codes: positions of the largest, and the largest themselves."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import SAMPLES, along_axis
from tfcompress.quantization.operators.tracing import traced


def _lower_position(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """Without the comparisons by which Keras tells −0 from 0."""
    operation = call.operation
    is_largest = type(operation).__name__ == "Argmax"
    find = tf.argmax if is_largest else tf.argmin
    found = find(x, axis=operation.axis, output_type=tf.int32)
    return tf.expand_dims(found, operation.axis) if operation.keepdims else found


register(
    *(ops.argmax, ops.argmin),
    spec=OperatorSpec(role=Role.SELECT, lower=_lower_position, call_reason=along_axis("axis")),
)


def _top_k_reason(node: Node) -> str | None:
    return None if len(node.inputs[0].shape) > 1 else "it chooses among the samples of a batch"


def _sort(b: Builder, node: Node) -> list[Value] | None:
    """The largest, of which there are as many as values, in reverse order."""
    x, axis = node.inputs[0], node.operation.axis
    if axis is None or axis % len(x.shape) == 0 or x.shape[axis] is None:
        return None
    last = len(x.shape) - 1

    def composed(operation: Any, x: Any) -> Any:
        y = x if axis % len(x.shape) == last else ops.swapaxes(x, axis, last)
        y = ops.flip(ops.top_k(y, int(y.shape[last]))[0], axis=last)
        return y if axis % len(x.shape) == last else ops.swapaxes(y, axis, last)

    return traced(composed)(b, node)


def _sort_reason(node: Node) -> str | None:
    axis, x = node.operation.axis, node.inputs[0]
    if axis is None or axis % len(x.shape) == 0:
        return SAMPLES
    return "the size of its axis is not known"


register(ops.sort, spec=OperatorSpec(role=Role.SELECT, decompose=_sort, call_reason=_sort_reason))
register(ops.top_k, spec=OperatorSpec(role=Role.SELECT, call_reason=_top_k_reason))
