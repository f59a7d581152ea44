"""Reductions over axes: sums and means are rounded, the largest and smallest only moved."""

from __future__ import annotations

from keras import ops

from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import along_axis

register(
    *(ops.max, ops.min, ops.amax, ops.amin),
    spec=OperatorSpec(role=Role.MOVE, call_reason=along_axis("axis")),
)
register(
    *(ops.mean, ops.sum),
    spec=OperatorSpec(role=Role.AVERAGE, call_reason=along_axis("axis")),
)
