"""Sums, differences and products of two tensors as the runtime computes them on their codes.

In inference these layers round as XNNPACK does, to the bit. Rounding the real value instead falls
on the other side of a half once in some hundred thousand values, and a deep residual network
amplifies that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, tree

from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.int16_arithmetic import sum_codes
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constant_operands import (
    as_constant_layer,
    changes_nothing,
)
from tfcompress.quantization.operators.constants import plus, times
from tfcompress.quantization.operators.masked_sums import masked_sum
from tfcompress.quantization.operators.per_channel import as_rescaling
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.runtime_arithmetic import runtime_sum
from tfcompress.quantization.placement.upstream import upstream_quantizer


class _Arithmetic(Linked):
    """Mixin: an operation on two tensors whose codes are known.

    Where they are not (a tensor in float, no range yet, 16-bit computation) the layer computes as
    Keras' own.
    """

    # Set by the Keras layer that the mixin is combined with.
    compute_dtype: str
    keras_class: type[keras.Layer]
    get_config: Callable[[], dict[str, Any]]

    # Call index → the quantizer that rounds the layer's output, past a fused ReLU.
    sum_quantizers: Links

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sum_quantizers = Links()
        # Call index → the quantizers of both inputs, or `None` each.
        self._operands = Links()

    def link(self, inputs: Any, call_index: int) -> None:
        quantizers = tuple(upstream_quantizer(tensor) for tensor in tree.flatten(inputs))
        self._operands.set(call_index, quantizers)

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self.sum_quantizers.set(call_index, quantizer)

    def call(
        self, inputs: list[tf.Tensor], training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = self._real(inputs)
        quantizer = self.sum_quantizers.get(call_index)
        operands: tuple = self._operands.get(call_index) or (None,)
        if training or quantizer is None or None in operands or self.compute_dtype != "float32":
            return outputs
        scales = [operand.active_scale() for operand in operands]
        # Where a scale is 0 there are no codes, and nothing of this is used.
        known = tf.reduce_all([scale > 0 for scale in scales])
        scales = [tf.where(known, scale, 1.0) for scale in scales]
        codes = [tf.round(x / scale) for x, scale in zip(inputs, scales, strict=True)]
        exact = self._rounded(quantizer, codes, scales, outputs)
        # Its gradient is that of the real sum, for layers that are frozen in training.
        return outputs + tf.stop_gradient(tf.where(known, exact, outputs) - outputs)

    def compute_output_spec(
        self, inputs: list[keras.KerasTensor], training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return super().compute_output_spec(inputs)  # type: ignore[misc]

    def _real(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """What is computed of real values."""
        return super().call(inputs)  # type: ignore[misc]

    def _rounded(
        self,
        quantizer: TensorQuantizer,
        codes: list[tf.Tensor],
        scales: list[tf.Tensor],
        outputs: tf.Tensor,
    ) -> tf.Tensor:
        """The same of codes, on the grid of the quantizer."""
        raise NotImplementedError(
            f"Expected a layer that implements _rounded(). Received: {type(self).__name__}."
        )

    def stripped(self) -> list[keras.Layer]:
        return [self.keras_class.from_config(self.get_config())]


class _Sum(_Arithmetic):
    """Mixin: a + sign · b of two quantized tensors."""

    sign = 1

    def _rounded(
        self,
        quantizer: TensorQuantizer,
        codes: list[tf.Tensor],
        scales: list[tf.Tensor],
        outputs: tf.Tensor,
    ) -> tf.Tensor:
        if quantizer.is_int16:
            return quantizer.round_by(lambda scale: sum_codes(codes, scales, scale), outputs)
        codes = [codes[0], codes[1] if self.sign > 0 else -codes[1]]
        return quantizer.round_by(lambda scale: runtime_sum(codes, scales, scale), outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedAdd(_Sum, layers.Add):
    """a + b of two quantized tensors."""

    keras_class = layers.Add

    def _real(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        first, second = inputs
        if first.shape.rank != second.shape.rank:
            return super()._real(inputs)
        # Of one sample `keras.ops.add` takes a tensor with one axis of several values for a bias,
        # and may add it along another axis of that size.
        return tf.add(first, second)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedSubtract(_Sum, layers.Subtract):
    """a − b of two quantized tensors."""

    keras_class = layers.Subtract
    sign = -1


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedMultiply(_Arithmetic, layers.Multiply):
    """a · b of two quantized tensors."""

    keras_class = layers.Multiply

    def _rounded(
        self,
        quantizer: TensorQuantizer,
        codes: list[tf.Tensor],
        scales: list[tf.Tensor],
        outputs: tf.Tensor,
    ) -> tf.Tensor:
        return quantizer.round_sum(codes[0] * codes[1], scales[0] * scales[1])


def has_array_operand(node: Node) -> bool:
    """Whether a constant operand of a `keras.ops` call is an array rather than a number."""
    constants = [a for a in node.args if not isinstance(a, Value)]
    return any(getattr(c, "size", 1) != 1 and not isinstance(c, (int, float)) for c in constants)


def chain(b: Builder, node: Node) -> Value | None:
    """f([a, b, c]) → f([f([a, b]), c]): LiteRT's operators take two tensors."""
    if len(node.inputs) < 3:
        return masked_sum(b, node) if type(node.operation) is layers.Add else None
    cls, total = type(node.operation), node.inputs[0]
    for i, value in enumerate(node.inputs[1:-1], 1):
        total = b.call(lambda n: cls(name=n), f"part{i}", total, value)
    return b.call(lambda n: cls(name=n), "", total, node.inputs[-1])


def _as_layer(cls: type[keras.Layer]) -> Callable[[Builder, Node], Value | None]:
    """f(tensor, tensor) as Keras' merge layer, where that broadcasts in the same way."""

    def rule(b: Builder, node: Node) -> Value | None:
        """Its layer, where both have one rank; one that is not trained for a constant array."""
        masked = None if cls is layers.Multiply else masked_sum(b, node)
        if masked is not None:
            return masked
        if len(node.inputs) == 1:
            number = _with_number(b, node, cls)
            return number or as_rescaling(b, node) or as_constant_layer(b, node)
        if len(node.inputs) != 2 or len({len(value.shape) for value in node.inputs}) != 1:
            return None
        return b.call(lambda name: cls(name=name), "", *node.inputs)

    return rule


def _is_plain_sum(node: Node) -> bool:
    """Whether a call becomes a layer that adds two tensors."""
    return len(node.inputs) == 2 and len({len(value.shape) for value in node.inputs}) == 1


def _with_number(b: Builder, node: Node, cls: type[keras.Layer]) -> Value | None:
    """x + number, x − number and x · number, which round as the runtime does."""
    numbers = [a for a in node.args if isinstance(a, (int, float))]
    if len(node.args) != 2 or len(numbers) != 1 or not node.inputs[0].is_float:
        return None
    number = float(numbers[0])
    if changes_nothing(node, cls.__name__, number, isinstance(node.args[0], Value)):
        return b.call(lambda n: layers.Identity(name=n), "", node.inputs[0], variant="same")
    if not number:
        return None
    if cls is layers.Multiply:
        return b.call(times(number), "", node.inputs[0], variant=str(number))
    if cls is layers.Subtract:
        if not isinstance(node.args[0], Value):
            return None
        number = -number
    return b.call(plus(number), "", node.inputs[0], variant=str(number))


def _call_reason(node: Node) -> str | None:
    if not has_array_operand(node):
        return None
    if node.inputs[0].shape == node.output.shape:
        return "tfcompress has no int8 form of it with this constant array"
    return "its constant array widens the tensor"


def _register(cls: type[keras.Layer], keras_class: type[keras.Layer], function: Callable) -> None:
    register(
        keras_class,
        spec=OperatorSpec(
            role=Role.ARITHMETIC,
            decompose=None if keras_class is layers.Subtract else chain,
            quantized=lambda layer: cls.from_config(layer.get_config()),
            int16=keras_class is layers.Add,
        ),
    )
    rule = _as_layer(keras_class)
    spec = OperatorSpec(
        role=Role.ARITHMETIC,
        decompose=rule,
        call_reason=_call_reason,
        int16=_is_plain_sum if keras_class is layers.Add else False,
    )
    register(function, spec=spec)


def _average(b: Builder, node: Node) -> Value:
    """A sum in steps, then a factor."""
    total = node.inputs[0]
    for i, value in enumerate(node.inputs[1:], 1):
        total = b.call(lambda n: layers.Add(name=n), f"sum{i}", total, value)
    count = len(node.inputs)
    return b.call(times(1 / count), "", total, variant=str(count))


_register(QuantizedAdd, layers.Add, keras.ops.add)
_register(QuantizedSubtract, layers.Subtract, keras.ops.subtract)
_register(QuantizedMultiply, layers.Multiply, keras.ops.multiply)
register(layers.Average, spec=OperatorSpec(decompose=_average))
