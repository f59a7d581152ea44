"""Why a call stays in float: what was asked for, and what LiteRT has no int8 form of."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.roles import (
    Role,
    activation_of,
    is_op,
    role,
    unsupported_options,
)
from tfcompress.quantization.placement.plan import AS_CONFIGURED


def float_reason(node: Node, is_configured: bool) -> str | None:
    """Why a call stays in float, in words for the report; `None` where it runs in int8.

    Args:
        node: The call.
        is_configured: Whether its operation has a scheme. Calls that only move codes need none.
    """
    operation = node.operation
    if isinstance(operation, FakeQuantize):
        return "it is a quantizer"
    found = role(operation)
    if not is_configured and found is not Role.MOVE:
        return AS_CONFIGURED
    if found is None:
        return unsupported_options(operation) or _unknown_reason(operation)
    if not all(v.is_float for v in (*node.inputs, *node.outputs)):
        return "it does not take and give floating point tensors"
    if found is Role.ARITHMETIC and _array_operand(node):
        return "one of its operands is a constant array"
    if found is Role.JOIN and _constant_operand(node):
        return "one of its operands is a constant, which no range is known for"
    return None


def _unknown_reason(operation: Any) -> str:
    cls = type(operation)
    if isinstance(operation, keras.Layer) and not cls.__module__.startswith("keras."):
        return f"{cls.__name__} is a custom layer, whose arithmetic is not known"
    activation = activation_of(operation)
    if activation is not None:
        return f"LiteRT has no int8 form of {activation}"
    return f"LiteRT has no int8 form of {cls.__name__}"


def _constant_operand(node: Node) -> bool:
    """Whether a join (concatenate, maximum, minimum) takes anything but tensors of the graph."""
    if isinstance(node.operation, keras.Layer):
        return False
    operands = node.args[0] if is_op(node.operation, "Concatenate") else node.args[:2]
    return not all(isinstance(a, Value) for a in keras.tree.flatten(operands))


def _array_operand(node: Node) -> bool:
    """Whether a constant operand is an array rather than a number."""
    if isinstance(node.operation, keras.Layer):
        return False
    constants = [a for a in node.args if not isinstance(a, Value)]
    return any(getattr(c, "size", 1) != 1 and not isinstance(c, (int, float)) for c in constants)
