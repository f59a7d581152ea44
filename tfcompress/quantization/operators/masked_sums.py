"""Masks that are added to scores, as 0 or −1e9 or so: `scores + (1 - mask) * -1e9`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.model.graph import Node, Value, producer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.comparisons import MaskValues
from tfcompress.quantization.operators.constant_operands import is_array
from tfcompress.quantization.operators.constants import AddConstant, MultiplyConstant
from tfcompress.quantization.operators.free_ranges import with_room_for
from tfcompress.quantization.operators.masked_scores import FAR, MaskScores, is_ignored, moves


def masked_sum(b: Builder, node: Node) -> Value | None:
    """`scores ± bias` where the bias is 0 or ∓1e9 or so: a fill where it is not 0.

    Returns:
        `None` where no operand is such a bias, or more than a softmax or a maximum reads the sum.
    """
    if b.is_int16 or not is_ignored(b, node.output):
        return None
    is_sum = type(node.operation).__name__ == "Add"
    if len(node.inputs) == 1:
        return _constant_bias(b, node, 1.0 if is_sum else -1.0)
    if len(node.inputs) != 2:
        return None
    for scores, bias in (node.inputs, node.inputs[::-1])[: 2 if is_sum else 1]:
        if scores.shape != node.output.shape or len(bias.shape) > len(scores.shape):
            continue
        path = _moved_from(bias)
        source = path[0].inputs[0] if path else bias
        found = _mask_of(b, source, 1.0 if is_sum else -1.0)
        if found is not None:
            mask, filled = found
            for step in path:
                mask = _moved(b, step, mask)
            scores = with_room_for(b, scores, FAR)
            return b.call(functools.partial(_mask_scores, filled), "", scores, mask)
    return None


def _mask_scores(filled: bool, name: str) -> MaskScores:
    return MaskScores(filled, name=name)


def _moved_from(value: Value) -> list[Node]:
    """The calls that only moved a tensor on its way here, the first one first."""
    path: list[Node] = []
    while value.node is not None and moves(value.node):
        path.insert(0, value.node)
        value = value.node.inputs[0]
    return path


def _moved(b: Builder, step: Node, mask: Value) -> Value:
    config = step.operation.get_config()
    operation = b.part(
        lambda n: type(step.operation).from_config({**config, "name": n}), f"masked_{step.name}"
    )
    spec = keras.KerasTensor(step.output.shape, dtype="bool")
    args, kwargs = tree.map_structure(
        lambda leaf: mask if leaf is step.inputs[0] else leaf, (step.args, step.kwargs)
    )
    return b.insert(operation, args, kwargs, [spec])[0]


def _constant_bias(b: Builder, node: Node, sign: float) -> Value | None:
    """A bias that is a constant, such as a causal one."""
    bias = [a for a in node.args if not isinstance(a, Value)]
    if len(node.args) != 2 or not is_array(bias[0]) or (sign < 0 and node.args[1] is not bias[0]):
        return None
    values, x = sign * np.asarray(bias[0], np.float32), node.inputs[0]
    if x.shape != node.output.shape or not np.all((values == 0) | (values <= FAR)):
        return None
    x = with_room_for(b, x, FAR)
    return b.call(lambda n: MaskScores(mask=values == 0, name=n), "", x)


def _mask_of(b: Builder, bias: Value, sign: float) -> tuple[Value, bool] | None:
    """The mask by which a bias is 0 or far below, and which value of it means the latter."""
    found = _marks(bias)
    found = None if found is None else found.map(lambda x: sign * x)
    if found is None or 0.0 not in found.values or min(found.values) > FAR:
        return None
    filled = found.values[1] <= FAR
    marks = found.marks
    if not marks.is_float:
        return marks, filled
    compare = b.part(lambda n: _greater(marks, n), "masked")
    spec = keras.KerasTensor(marks.shape, dtype="bool")
    return b.insert(compare, (marks, sum(found.own) / 2), {}, [spec])[0], filled


@dataclasses.dataclass(frozen=True)
class _Marks:
    """A tensor of two values, and those of another that is computed from it.

    Attributes:
        marks: A mask, or a float tensor.
        own: Its values, the smaller one first.
        values: Those of the other tensor in these places.
    """

    marks: Value
    own: tuple[float, float]
    values: tuple[float, float]

    def map(self, function: Callable[[float], float]) -> _Marks:
        first, second = self.values
        return dataclasses.replace(self, values=(function(first), function(second)))


def _marks(value: Value) -> _Marks | None:
    """Where a tensor has which of two values; `None` where it may have more.

    Integers that are added to scores as 0 or far below are taken for 0 and 1, as masks are.
    """
    node = value.node
    if node is None or len(node.inputs) != 1:
        return None
    operation, given = node.operation, node.inputs[0]
    if isinstance(operation, MaskValues):
        return _Marks(given, (0.0, 1.0), (operation.false, operation.true))
    if not given.is_float:
        return _Marks(value, (0.0, 1.0), (0.0, 1.0)) if value.is_float else None
    found = _marks(given)
    if found is None:
        return None
    if moves(node):
        own = min(found.values), max(found.values)
        return _Marks(value, own, own)
    if isinstance(operation, AddConstant):
        return found.map(lambda x: x + operation.value)
    if isinstance(operation, MultiplyConstant):
        return found.map(lambda x: x * operation.value)
    if type(operation).__name__ == "Subtract" and isinstance(node.args[0], (int, float)):
        return found.map(lambda x: float(node.args[0]) - x)
    return None


def _greater(x: Value, name: str) -> Any:
    call = producer(ops.greater(keras.Input(batch_shape=x.shape, dtype=x.spec.dtype), 0.5))
    assert call is not None
    return type(call[0])(name=name)
