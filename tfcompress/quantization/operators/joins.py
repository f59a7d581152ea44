"""Operations whose inputs and output share one range: concatenation, maximum and minimum."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.arithmetic import chain
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constants import scalar_argument
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


def _constant_operand(operands: Any) -> str | None:
    """Reason for a join of anything but tensors of the graph."""
    if all(isinstance(operand, Value) for operand in keras.tree.flatten(operands)):
        return None
    return "one of its operands is a constant, which no range is known for"


def _relu(b: Builder, node: Node) -> Value | None:
    """maximum(x, 0) → ReLU."""
    if scalar_argument(node) != 0:
        return None
    return b.call(lambda name: layers.ReLU(name=name), "", node.inputs[0])


def _call_reason(node: Node) -> str | None:
    return _constant_operand(node.args[:2])


def _concatenate_reason(node: Node) -> str | None:
    return _constant_operand(node.args[0])


register(layers.Concatenate, spec=OperatorSpec(role=Role.JOIN))
register(layers.Maximum, layers.Minimum, spec=OperatorSpec(role=Role.JOIN, decompose=chain))
register(ops.concatenate, spec=OperatorSpec(role=Role.JOIN, call_reason=_concatenate_reason))
register(ops.maximum, spec=OperatorSpec(role=Role.JOIN, decompose=_relu, call_reason=_call_reason))
register(ops.minimum, spec=OperatorSpec(role=Role.JOIN, call_reason=_call_reason))
