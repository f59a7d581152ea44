"""Tensors whose range LiteRT prescribes, where they meet a constant beyond it.

The output of a sigmoid holds no code for 2.5. What fills or pads it with such a constant needs a
range of its own, to which the file rounds the codes first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.model.graph import Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.clipping import ClipTo
from tfcompress.quantization.operators.registry import Role, keeps_codes, operator_of, role


def with_room_for(b: Builder, x: Value, constants: Any) -> Value:
    """A tensor, or an identity of it whose range can hold the constants.

    Args:
        b: The builder, at the call that joins them.
        x: The tensor.
        constants: A number, or an array of them.

    Returns:
        `x` where its range is free, or holds them.
    """
    found = _prescribed_range(x)
    if found is None:
        return x
    low, high = found
    step = (high - low) / 255
    if np.min(constants) >= low - step and np.max(constants) <= high + step:
        return x
    return b.call(lambda name: ClipTo(name=name), "range", x)


def _prescribed_range(value: Value) -> tuple[float, float] | None:
    node = value.node
    if node is None:
        return None
    found = role(node.operation)
    if found is Role.FIXED:
        return operator_of(node.operation).fixed_range
    if not keeps_codes(node.operation):
        return None
    ranges = [_prescribed_range(v) for v in node.inputs if v.is_float]
    # A join has the range of its first free input.
    return None if found is Role.JOIN and None in ranges else ranges[0]
