"""Sums, differences, products and quotients with a constant per channel, as a Rescaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder

_RULES: dict[str, Callable[[np.ndarray], tuple[Any, Any]]] = {
    "Add": lambda c: (1.0, c),
    "Subtract": lambda c: (1.0, -c),
    "Multiply": lambda c: (c, 0.0),
    "Divide": lambda c: (1.0 / c, 0.0),
    "TrueDivide": lambda c: (1.0 / c, 0.0),
}


def rescaling_of(node: Node) -> tuple[Any, Any] | None:
    """`(scale, offset)` of a call on a tensor and an array; `None` for any other call.

    The array holds one number or one per channel. Each of both is a number or a list.
    """
    kind = type(node.operation).__name__
    if kind not in _RULES or len(node.args) != 2 or len(node.inputs) != 1:
        return None
    x, constant = node.args
    if constant is node.inputs[0] and kind in ("Add", "Multiply"):
        x, constant = constant, x
    is_array = tf.is_tensor(constant) or isinstance(constant, (np.ndarray, list, tuple))
    if x is not node.inputs[0] or not is_array or not is_per_channel(node, np.shape(constant)):
        return None
    scale, offset = _RULES[kind](np.ravel(np.asarray(constant, np.float32)))
    return _listed(scale), _listed(offset)


def as_rescaling(b: Builder, node: Node) -> Value | None:
    """A Rescaling, where an operand is an array of one number per channel."""
    found = rescaling_of(node)
    if found is None:
        return None
    return b.call(lambda name: layers.Rescaling(*found, name=name), "", node.inputs[0])


def is_per_channel(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operand of that shape is one number, or one per channel, of the only input."""
    x, count = node.inputs[0], math.prod(shape)
    fits = count == 1 or (count == x.shape[-1] and shape[-1] == count)
    same_shape = x.shape == node.output.shape and len(shape) <= len(x.shape)
    return fits and same_shape and x.is_float and 2 <= len(x.shape) <= 4


def _listed(value: Any) -> Any:
    if isinstance(value, float):
        return value
    return float(value[0]) if value.size == 1 else value.tolist()
