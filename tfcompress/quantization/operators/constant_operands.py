"""Operations on a tensor and a constant array, as layers whose weights are not trained.

`ops.conv(x, kernel)` is a convolution, `ops.matmul(x, matrix)` a dense layer, `x + positions` a sum
and `x * window` a product with int8 constants.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.model.graph import Node, Value
from tfcompress.model.merging import Weight
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.on_codes import Call, OnCodes, product_with
from tfcompress.quantization.operators.own_weights import layer_of_weight
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.trained_sum import fits


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyArray(OnCodes, keras.layers.Layer):
    """y = x · constant array, which the runtime holds in int8 codes of one scale.

    In inference the products are rounded as XNNPACK does, to the bit.

    Args:
        values: The array; it broadcasts to the shape of x.
    """

    channels_like = keras.layers.Identity

    def __init__(self, values: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.values = np.asarray(values, np.float32).tolist()
        self.supports_masking = True

    def on_grid(self) -> np.ndarray:
        """The array on the grid of its codes."""
        values = np.asarray(self.values, np.float32)
        step = np.abs(values).max() / np.float32(127)
        return (np.round(values / step) * step).astype(np.float32)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        if self.reads_codes(call_index):
            return super().call(inputs, training, call_index)
        # A float model, or a float part of one.
        return inputs * tf.constant(self.values, inputs.dtype)

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.constant(self.on_grid(), inputs.dtype)

    def rounded(self, call: Call) -> tf.Tensor:
        return product_with(self.on_grid(), call)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[Callable]:
        values = np.asarray(self.values, np.float32)
        return [lambda x: ops.multiply(x, values)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "values": self.values}


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A product with int8 constants."""
    return forms.multiply_constant(x, call.operation.on_grid()) if call.reads_codes else None


register(
    MultiplyArray,
    spec=OperatorSpec(
        role=Role.ARITHMETIC,
        quantized=lambda layer: MultiplyArray.from_config(layer.get_config()),
        lower=_lower,
    ),
)


def as_constant_layer(b: Builder, node: Node) -> Value | None:
    """A layer that is not trained."""
    call = _call_on_array(node)
    if call is None:
        return None
    x, values, is_first = call
    kind = type(node.operation).__name__
    if changes_nothing(node, kind, values, is_first):
        return b.call(lambda n: keras.layers.Identity(name=n), "", x)
    factor = {"Multiply": values, "Divide": None, "TrueDivide": None}.get(kind, 0)
    if factor is None and is_first and np.all(values):
        factor = 1 / values
    if isinstance(factor, np.ndarray):
        is_inside = x.shape == node.output.shape and fits(factor.shape, x.shape)
        if not is_inside or not np.any(factor):
            return None
        return b.call(lambda n: MultiplyArray(factor, name=n), "", x)
    if kind == "Subtract" and is_first:
        kind, values = "Add", -values
    make = _made(node, kind, x, values, is_first)
    return None if make is None else b.call(make, "", x)


def changes_nothing(node: Node, kind: str, values: Any, is_first: bool) -> bool:
    """Whether a constant operand leaves the tensor as it is, which the converter makes of it.

    Args:
        node: The call on a tensor and a constant.
        kind: Class name of its operation.
        values: The constant.
        is_first: Whether the tensor is the first operand.
    """
    neutral = {"Add": 0.0, "Multiply": 1.0}.get(kind)
    if is_first:
        neutral = {"Subtract": 0.0, "Divide": 1.0, "TrueDivide": 1.0}.get(kind, neutral)
    is_neutral = neutral is not None and bool(np.all(np.asarray(values) == neutral))
    return is_neutral and node.inputs[0].shape == node.output.shape


def _call_on_array(node: Node) -> tuple[Value, np.ndarray, bool] | None:
    """The tensor and the array of a call on both, and whether the tensor is the first."""
    if len(node.inputs) != 1 or len(node.args) != 2 or not node.inputs[0].is_float or node.kwargs:
        return None
    arrays = [a for a in node.args if is_array(a)]
    if len(arrays) != 1:
        return None
    values = np.asarray(arrays[0], np.float32)
    return (node.inputs[0], values, isinstance(node.args[0], Value)) if values.size else None


def is_array(argument: Any) -> bool:
    """Whether an argument of a call is a constant array."""
    is_given = tf.is_tensor(argument) or isinstance(argument, (np.ndarray, list, tuple))
    return is_given and np.ndim(argument) > 0


def _made(
    node: Node, kind: str, x: Value, values: np.ndarray, is_first: bool
) -> Callable[[str], keras.Layer] | None:
    """Makes the layer that a user's own layer with such a weight would become."""
    weight = Weight(keras.Variable(values, trainable=False, name="constant"), values.shape)
    args = (x, weight) if is_first else (weight, x)
    call: Any = types.SimpleNamespace(
        operation=node.operation, args=args, kwargs={}, inputs=[x], output=node.output
    )
    return layer_of_weight(call, weight, kind)


def _reason(node: Node) -> str:
    if len(node.inputs) > 1:
        return "its kernel is computed in the model"
    return "its options are those of no layer that LiteRT runs in int8"


for _function in (ops.conv, ops.depthwise_conv, ops.conv_transpose):
    register(
        _function,
        spec=OperatorSpec(role=Role.KERNEL, decompose=as_constant_layer, call_reason=_reason),
    )
