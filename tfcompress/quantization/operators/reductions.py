"""Reductions over axes: sums and means are rounded, the largest and smallest only moved."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.norm_steps import MeanOverAxes, SumOverAxes
from tfcompress.quantization.operators.normalization import inner_axes, serialized
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import along_axis

_reason = along_axis("axis")


def _as_layer(cls: type[keras.Layer]) -> Callable[[Builder, Node], Value | None]:
    def rule(b: Builder, node: Node) -> Value | None:
        """A layer that rounds as the runtime does."""
        operation = node.operation
        if len(node.inputs) != 1 or not node.inputs[0].is_float or _reason(node) is not None:
            return None
        axes, original = (
            inner_axes(operation.axis, len(node.inputs[0].shape)),
            serialized(operation),
        )
        keepdims = operation.keepdims
        return b.call(lambda n: cls(axes, keepdims, original=original, name=n), "", *node.inputs)

    return rule


register(
    *(ops.max, ops.min, ops.amax, ops.amin),
    spec=OperatorSpec(role=Role.MOVE, call_reason=_reason),
)
for _function, _cls in {ops.mean: MeanOverAxes, ops.sum: SumOverAxes}.items():
    register(
        _function,
        spec=OperatorSpec(role=Role.AVERAGE, decompose=_as_layer(_cls), call_reason=_reason),
    )
