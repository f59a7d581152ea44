"""Why a call stays in float: what was asked for, and what has no int8 form."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.model.graph import Node
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.registry import (
    Role,
    activation_of,
    has_int16_form,
    keras_class,
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
    entry = operator_of(operation)
    inputs = [] if entry.takes_integers else node.inputs
    results = [] if found is Role.SELECT else node.outputs
    if not all(v.is_float for v in (*inputs, *results)):
        return "it reads or gives a mask or indices, which hold no codes"
    call_reason = entry.call_reason
    return None if call_reason is None else call_reason(node)


def int16_reason(node: Node) -> str | None:
    """Why a call with an int8 form has none of 16-bit activations; `None` where it has one."""
    if has_int16_form(node):
        return None
    name = activation_of(node.operation) or keras_class(node.operation).__name__
    return f"tfcompress has no form of {name}{_options(node.operation)} with 16-bit activations yet"


def _unknown_reason(operation: Any) -> str:
    cls = type(operation)
    if isinstance(operation, keras.Layer) and not cls.__module__.startswith("keras."):
        return f"{cls.__name__} is a custom layer, whose arithmetic is not known"
    if isinstance(operation, keras.layers.Lambda):
        return "its function is not known; register_operator describes one that has a name"
    name = activation_of(operation) or keras_class(operation).__name__
    return f"tfcompress has no int8 form of {name}{_options(operation)} yet"


def _options(operation: Any) -> str:
    """The options that make an otherwise known operation another one."""
    if isinstance(operation, keras.layers.Softmax):
        return f" over axes {list(operation.axis)}"
    return ""
