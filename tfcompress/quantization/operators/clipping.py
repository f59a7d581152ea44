"""Values held between two numbers: `clip`, and `maximum` and `minimum` with a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.requantized import Requantized

_LOW, _HIGH = 1 - 1e-6, 1 - 3e-6


@keras.saving.register_keras_serializable(package="tfcompress")
class ClipTo(Requantized, keras.layers.Layer):
    """min(max(x, low), high), rounded together with the operator before it.

    Bounds are taken some millionths nearer to zero. In a range that ends at one of them the other
    may lie half way between two codes, where rounding decides otherwise in the file.

    Args:
        low: Smallest value; `None` for none.
        high: Largest value; `None` for none.
    """

    channels_like = keras.layers.Identity

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low = None if low is None else float(low)
        self.high = None if high is None else float(high)
        self.supports_masking = True

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        x = inputs if training else self.infer(inputs, call_index)
        y = x if self.low is None else ops.maximum(x, self.low * _LOW)
        return y if self.high is None else ops.minimum(y, self.high * _HIGH)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[Callable]:
        low = [] if self.low is None else [lambda x: ops.maximum(x, self.low)]
        return low + ([] if self.high is None else [lambda x: ops.minimum(x, self.high)])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "low": self.low, "high": self.high}


def _lower_clip(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """Rounding clips; MAXIMUM and MINIMUM of codes where its range reaches further."""
    low, high = call.operation.low, call.operation.high
    relu = "relu" if low == 0 else None
    if call.reads_codes:
        # Several operators give the codes to be clipped: an identity rounds them to the new range.
        y = forms.channel_affine(x, np.float32(1.0), None, relu)
    else:
        y = tf.nn.relu(x) if relu else x
    ranges = call.output_ranges
    if low is not None and relu is None and not _ends_at(ranges, 0, low):
        y = tf.maximum(y, np.float32(low * _LOW))
    if high is not None and not _ends_at(ranges, 1, high):
        # Of 1 the converter would make an operator without an int8 form.
        y = tf.minimum(y, np.float32(high * _HIGH))
    return y


def _ends_at(ranges: tuple[tuple[float, float], ...] | None, side: int, bound: float) -> bool:
    """Whether rounding to the ranges already clips at `bound`, to the code."""
    if ranges is None:
        return False
    beyond = [(r[1] - bound) if side else (bound - r[0]) for r in ranges]
    steps = [(high - low) / 255 for low, high in ranges]
    return all(b < 0.49 * step for b, step in zip(beyond, steps, strict=True))


def _clip(b: Builder, node: Node) -> Value | None:
    """ReLU or ReLU6, where it is one."""
    low, high = _bounds(node)
    if low is None and high is None:
        return None
    return clipped(b, node.inputs[0], low, high)


def clipped(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """A tensor held between two numbers: a ReLU or ReLU6, where it is one."""
    variant = f"{low}_{high}"
    if low == 0 and high in (None, 6.0):
        return b.call(lambda n: layers.ReLU(high, name=n), "", x, variant=variant)
    return b.call(lambda n: ClipTo(low, high, name=n), "", x, variant=variant)


def _bounds(node: Node) -> tuple[float | None, float | None]:
    bounds = [getattr(node.operation, name) for name in ("x_min", "x_max")]
    if len(node.inputs) != 1 or any(b is not None and np.size(b) != 1 for b in bounds):
        return None, None
    low, high = (None if b is None or np.isinf(b) else float(np.ravel(b)[0]) for b in bounds)
    return low, high


def with_number(is_maximum: bool) -> Callable[[Builder, Node], Value | None]:
    """The decomposition of `maximum` or `minimum` of a tensor and a number."""

    def rule(b: Builder, node: Node) -> Value | None:
        """ReLU or clipping, where one of the operands is a number."""
        numbers = [a for a in (*node.args, *node.kwargs.values()) if not isinstance(a, Value)]
        if len(node.inputs) != 1 or len(numbers) != 1 or np.size(numbers[0]) != 1:
            return None
        number = float(np.ravel(numbers[0])[0])
        low, high = (number, None) if is_maximum else (None, number)
        return clipped(b, node.inputs[0], low, high)

    return rule


register(ClipTo, spec=OperatorSpec(role=Role.RELU, lower=_lower_clip))
register(ops.clip, spec=OperatorSpec(decompose=_clip))
