"""Why a call stays in float: what was asked for, and what LiteRT has no int8 form of."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.model.graph import Node
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.registry import (
    Role,
    activation_of,
    operator_of,
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
    call_reason = operator_of(operation).call_reason
    return None if call_reason is None else call_reason(node)


def _unknown_reason(operation: Any) -> str:
    cls = type(operation)
    if isinstance(operation, keras.Layer) and not cls.__module__.startswith("keras."):
        return f"{cls.__name__} is a custom layer, whose arithmetic is not known"
    activation = activation_of(operation)
    if activation is not None:
        return f"LiteRT has no int8 form of {activation}"
    return f"LiteRT has no int8 form of {cls.__name__}"
