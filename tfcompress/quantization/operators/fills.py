"""Constants among codes: padding, and `where` with a constant condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.comparisons import choose
from tfcompress.quantization.operators.free_ranges import with_room_for
from tfcompress.quantization.operators.masked_scores import masked_scores
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import SAMPLES


@keras.saving.register_keras_serializable(package="tfcompress")
class PadWith(keras.layers.Layer):
    """Pads with a number, which is rounded to the codes of what it pads.

    Args:
        paddings: (before, after) for every axis but that of the samples.
        value: The number.
    """

    def __init__(self, paddings: Sequence[Sequence[int]], value: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.paddings = [[int(n) for n in pair] for pair in paddings]
        self.value = float(value)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.pad(inputs, [[0, 0], *self.paddings], constant_values=self.value)

    def compute_output_shape(self, input_shape: Any) -> Any:
        sizes = zip(input_shape[1:], self.paddings, strict=True)
        return (input_shape[0], *(None if n is None else n + sum(pair) for n, pair in sizes))

    def stripped(self) -> list[Callable]:
        paddings = [[0, 0], *self.paddings]
        return [lambda x: ops.pad(x, paddings, constant_values=self.value)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "paddings": self.paddings, "value": self.value}


@keras.saving.register_keras_serializable(package="tfcompress")
class FillWhere(keras.layers.Layer):
    """x where a constant mask is true, else a constant, rounded to the codes of x.

    Args:
        mask: True or false, of a shape that broadcasts against x.
        value: A number, or an array, likewise.
    """

    def __init__(self, mask: Any, value: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = np.asarray(mask, bool).tolist()
        self.value = np.asarray(value, np.float32).tolist()

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.constant(self.mask), inputs, tf.constant(self.value, inputs.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[Callable]:
        mask, value = np.asarray(self.mask), np.asarray(self.value, np.float32)
        return [lambda x: ops.where(mask, x, value)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask": self.mask, "value": self.value}


def _pad(b: Builder, node: Node) -> Value | None:
    """Padding with a number other than 0: a constant among codes."""
    number = _pad_number(node)
    if number is None or number == 0 or node.operation.mode != "constant":
        return None
    paddings = _paddings(node)[1:]
    x = with_room_for(b, node.inputs[0], number)
    return b.call(lambda n: PadWith(paddings, number, name=n), "", x)


def _paddings(node: Node) -> list:
    given = list(node.operation.pad_width)
    return given * len(node.inputs[0].shape) if len(given) == 1 else given


def _pad_number(node: Node) -> float | None:
    given = node.kwargs.get("constant_values", node.args[1] if len(node.args) > 1 else None)
    if given is None:
        return 0.0
    return None if isinstance(given, Value) or np.size(given) != 1 else float(np.ravel(given)[0])


def _pad_reason(node: Node) -> str | None:
    if any(_paddings(node)[0]):
        return SAMPLES
    known = node.operation.mode in ("constant", "reflect", "symmetric")
    known = known and _pad_number(node) is not None
    return None if known else f"tfcompress has no int8 form of padding by {node.operation.mode!r}"


def _where(b: Builder, node: Node) -> Value | None:
    """A choice by comparisons of codes; a constant where the condition is constant, too."""
    mask, *branches = _where_arguments(node)
    if isinstance(mask, Value) and not mask.is_float and len(branches) == 2:
        return choose(b, mask, branches, node.output.shape)
    if len(node.inputs) != 1 or isinstance(mask, Value) or mask is None or len(branches) != 2:
        return None
    x = node.inputs[0]
    is_first = branches[0] is x
    value = branches[1 if is_first else 0]
    if value is None or not _fits(np.shape(mask), x) or not _fits(np.shape(value), x):
        return None
    kept = np.asarray(mask, bool) if is_first else ~np.asarray(mask, bool)
    return masked_scores(b, x, value, kept, False) or b.call(
        lambda n: FillWhere(kept, value, name=n), "", with_room_for(b, x, value)
    )


def _fits(shape: tuple[int, ...], x: Value) -> bool:
    """Whether a constant broadcasts against x, and does not widen it."""
    own = x.shape[len(x.shape) - len(shape) :] if len(shape) <= len(x.shape) else None
    return own is not None and all(n in (1, m) for n, m in zip(shape, own, strict=True))


def _where_arguments(node: Node) -> list:
    names = ("condition", "x1", "x2")
    return [*node.args, *(node.kwargs[n] for n in names[len(node.args) :] if n in node.kwargs)]


def _where_reason(node: Node) -> str | None:
    mask, *branches = _where_arguments(node)
    if isinstance(mask, Value):
        return "its condition is no mask, or one of its branches widens the other"
    tensors = len(branches) == 2 and all(isinstance(branch, Value) for branch in branches)
    return None if tensors else "it takes a constant of another shape"


register(ops.pad, spec=OperatorSpec(role=Role.MOVE, decompose=_pad, call_reason=_pad_reason))
register(
    ops.where,
    spec=OperatorSpec(
        role=Role.JOIN, takes_integers=True, decompose=_where, call_reason=_where_reason
    ),
)
register(PadWith, FillWhere, spec=OperatorSpec(role=Role.RESAMPLE))
