"""Operators that compare codes: positions of the largest, and the largest themselves."""

from __future__ import annotations

import tensorflow as tf
from keras import ops

from tfcompress.model.graph import Node
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import along_axis


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


register(ops.top_k, spec=OperatorSpec(role=Role.SELECT, call_reason=_top_k_reason))
