"""Operations whose inputs and output share one range: concatenation, maximum and minimum."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.arithmetic import chain
from tfcompress.quantization.operators.clipping import with_number
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import along_axis, samples_reason


def _constant_operand(operands: Any) -> str | None:
    """Reason for a join of anything but tensors of the graph."""
    if all(isinstance(operand, Value) for operand in keras.tree.flatten(operands)):
        return None
    return "one of its operands is a constant, which no range is known for"


def _call_reason(node: Node) -> str | None:
    return _constant_operand(node.args[:2])


def _concatenate_reason(node: Node) -> str | None:
    return _constant_operand(node.args[0]) or along_axis("axis")(node)


def _stack_reason(node: Node) -> str | None:
    return _constant_operand(node.args[0]) or along_axis("axis", adds=True)(node)


def _append_reason(node: Node) -> str | None:
    return _call_reason(node) or along_axis("axis")(node)


def _hstack_reason(node: Node) -> str | None:
    return _constant_operand(node.args[0]) or samples_reason(node)


register(
    layers.Concatenate,
    spec=OperatorSpec(role=Role.JOIN, call_reason=along_axis("axis"), int16=True),
)
register(layers.Maximum, layers.Minimum, spec=OperatorSpec(role=Role.JOIN, decompose=chain))
register(
    ops.concatenate,
    spec=OperatorSpec(role=Role.JOIN, call_reason=_concatenate_reason, int16=True),
)
for _function in (ops.maximum, ops.minimum):
    _rule = with_number(_function is ops.maximum)
    register(
        _function, spec=OperatorSpec(role=Role.JOIN, decompose=_rule, call_reason=_call_reason)
    )
register(ops.stack, spec=OperatorSpec(role=Role.JOIN, call_reason=_stack_reason))
register(ops.append, spec=OperatorSpec(role=Role.JOIN, call_reason=_append_reason))
register(ops.hstack, spec=OperatorSpec(role=Role.JOIN, call_reason=_hstack_reason))
