"""A tensor and a number: sums, products and quotients, each one op in LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.graph import Node, Value, producer
from tfcompress.model.rewrite import fresh
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constant_operands import as_constant_layer
from tfcompress.quantization.operators.elementwise import ElementwiseFunction, as_table
from tfcompress.quantization.operators.on_codes import Call, OnCodes, product_with
from tfcompress.quantization.operators.per_channel import as_rescaling
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.runtime_arithmetic import sum_with_constant


class _WithConstant(OnCodes, keras.layers.Layer):
    """Computes with a number, in inference on the integers that the runtime computes with."""

    channels_like = keras.layers.Identity

    def __init__(self, value: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = float(value)
        self.supports_masking = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="tfcompress")
class AddConstant(_WithConstant):
    """x + value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(1.0, self.value, name=self.name)]

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + self.value

    def rounded(self, call: Call) -> tf.Tensor:
        def total(step: tf.Tensor) -> tf.Tensor:
            codes = tf.round(call.inputs / call.scale)
            return sum_with_constant(codes, call.scale, self.value, step)

        return call.rounding.round_by(total, call.outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyConstant(_WithConstant):
    """x · value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(self.value, name=self.name)]

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * self.value

    def rounded(self, call: Call) -> tf.Tensor:
        return product_with(self.value, call)


def plus(value: float) -> Callable[[str], AddConstant]:
    """Makes, for a builder, the part that adds a number."""
    return lambda name: AddConstant(value, name=name)


def times(value: float) -> Callable[[str], MultiplyConstant]:
    """Makes, for a builder, the part that multiplies by a number."""
    return lambda name: MultiplyConstant(value, name=name)


def scalar_argument(node: Node) -> float | None:
    """The number of `f(tensor, number)`; `None` for anything else."""
    is_first = node.args and isinstance(node.args[0], Value)
    if len(node.args) == 2 and is_first and isinstance(node.args[1], (int, float)):
        return float(node.args[1])
    return None


def _divide(b: Builder, node: Node) -> Value | None:
    """x / number → x · (1 / number), x / y → x · (1 / y), number / y as a table."""
    number = scalar_argument(node)
    if number == 1 and node.inputs[0].is_float:
        return b.call(lambda n: keras.layers.Identity(name=n), "", node.inputs[0])
    if number:
        return b.call(times(1.0 / number), "", node.inputs[0])
    if len(node.inputs) == 1:
        return as_rescaling(b, node) or as_constant_layer(b, node) or as_table(b, node)
    if len({len(value.shape) for value in node.inputs}) != 1:
        return None
    call = producer(keras.ops.reciprocal(node.inputs[1].spec))
    assert call is not None
    reciprocal = call[0]
    inverse = b.call(
        lambda n: ElementwiseFunction(fresh(reciprocal), name=n), "reciprocal", node.inputs[1]
    )
    return b.call(lambda n: keras.layers.Multiply(name=n), "", node.inputs[0], inverse)


def _negative(b: Builder, node: Node) -> Value:
    """x · (−1)."""
    return b.call(times(-1.0), "", node.inputs[0])


register(
    *(AddConstant, MultiplyConstant),
    spec=OperatorSpec(
        role=Role.ARITHMETIC,
        quantized=lambda layer: type(layer).from_config(layer.get_config()),
        # What rounds as the runtime does is not in the file.
        lower=lambda call, x: call.operation.real_values(x),
    ),
)
register(keras.ops.divide, keras.ops.true_divide, spec=OperatorSpec(decompose=_divide))
register(keras.ops.negative, spec=OperatorSpec(decompose=_negative))
