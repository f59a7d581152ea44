"""A tensor and a number: sums, products and quotients, each one op in LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.graph import Node, Value, producer
from tfcompress.model.linking import Linked, Links
from tfcompress.model.rewrite import fresh
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constant_operands import as_constant_layer
from tfcompress.quantization.operators.elementwise import ElementwiseFunction, as_table
from tfcompress.quantization.operators.per_channel import as_rescaling
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.runtime_arithmetic import (
    OPERAND_STEP,
    addend_scale,
    factor_scale,
    runtime_sum,
)
from tfcompress.quantization.placement.upstream import upstream_quantizer


class _WithConstant(Linked, keras.layers.Layer):
    """Computes with a number, in inference on the integers that the runtime computes with.

    Where the codes of the input or the rounding of the output are not known (a tensor in float, no
    range yet, 16-bit computation) the real values are computed.
    """

    channels_like = keras.layers.Identity

    def __init__(self, value: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = float(value)
        self.supports_masking = True
        # Call index → the quantizer of the input, and the one that rounds the output, past a ReLU.
        self._sources, self._roundings = Links(), Links()

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self._sources.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._roundings.set(call_index, quantizer)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = self.real(inputs)
        source: TensorQuantizer | None = self._sources.get(call_index)
        rounding: TensorQuantizer | None = self._roundings.get(call_index)
        if training or source is None or rounding is None or self.compute_dtype != "float32":
            return outputs
        scale = source.active_scale()
        safe = tf.where(scale > 0, scale, 1.0)
        exact = self.rounded(rounding, tf.round(inputs / safe), safe, outputs)
        # Its gradient is that of the real value, for layers that are frozen in training.
        return outputs + tf.stop_gradient(tf.where(scale > 0, exact, outputs) - outputs)

    def real(self, x: tf.Tensor) -> tf.Tensor:
        """What is computed of real values."""
        raise NotImplementedError

    def rounded(
        self, quantizer: TensorQuantizer, codes: tf.Tensor, scale: tf.Tensor, outputs: tf.Tensor
    ) -> tf.Tensor:
        """The same of codes, on the grid of the output's quantizer."""
        raise NotImplementedError

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="tfcompress")
class AddConstant(_WithConstant):
    """x + value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(1.0, self.value, name=self.name)]

    def real(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.value

    def rounded(
        self, quantizer: TensorQuantizer, codes: tf.Tensor, scale: tf.Tensor, outputs: tf.Tensor
    ) -> tf.Tensor:
        def total(step: tf.Tensor) -> tf.Tensor:
            own = tf.maximum(addend_scale(self.value), step * np.float32(OPERAND_STEP))
            code = tf.round(np.float32(self.value) / own)
            return runtime_sum([codes, code], [scale, own], step)

        return quantizer.round_by(total, outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyConstant(_WithConstant):
    """x · value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(self.value, name=self.name)]

    def real(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.value

    def rounded(
        self, quantizer: TensorQuantizer, codes: tf.Tensor, scale: tf.Tensor, outputs: tf.Tensor
    ) -> tf.Tensor:
        own = factor_scale(self.value)
        code = np.round(np.float32(self.value) / own)
        return quantizer.round_sum(codes * code, scale * own)


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
        lower=lambda call, x: call.operation.real(x),
    ),
)
register(keras.ops.divide, keras.ops.true_divide, spec=OperatorSpec(decompose=_divide))
register(keras.ops.negative, spec=OperatorSpec(decompose=_negative))
