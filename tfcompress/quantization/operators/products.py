"""Matrix products of two tensors: BATCH_MATMUL, with a mask on its result where there is one.

In inference the layer computes with the runtime's integers: an int32 sum, then one rounding.
XNNPACK takes products whose second operand has zero point 0, so the plan gives it symmetric codes.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, tree

from tfcompress.model.equations import Contraction, read_einsum
from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constant_operands import as_constant_layer
from tfcompress.quantization.operators.forms import LoweredCall, transposed
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_quantizer

#: What a masked value is set to: below every range, so that it gets the lowest code.
MASKED = -1e9


@keras.saving.register_keras_serializable(package="tfcompress")
class Product(Linked, layers.Layer):
    """The matrix product of two tensors that an einsum equation says.

    Called on `[left, right]`, or on `[left, right, mask]`. Where the mask (boolean, broadcast
    against the result) is false the result is as low as its range goes. That range is `margin`
    wider than the other values need, so that a softmax gives what is masked nearly nothing:
    e^−8 of what the smallest other value gets, for a margin of 8 in the softmax's units.

    Args:
        equation: Such as `"abc,adc->abd"`.
        margin: How far below all other values a masked one is.
        causal: Mask what lies above the diagonal of the last two axes.
    """

    channels_like = layers.Dot

    def __init__(
        self, equation: str, *, margin: float = 8.0, causal: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.equation, self.margin, self.causal = equation, float(margin), bool(causal)
        # Call index → the quantizers of both operands, and → that of the result.
        self._operands, self._rounding = Links(), Links()

    def link(self, inputs: Any, call_index: int) -> None:
        both = tree.flatten(inputs)[:2]
        self._operands.set(call_index, tuple(upstream_quantizer(tensor) for tensor in both))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._rounding.set(call_index, quantizer)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def call(
        self, inputs: list[tf.Tensor], training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = tf.einsum(self.equation, *inputs[:2])
        quantizer = self._rounding.get(call_index)
        operands: tuple = self._operands.get(call_index) or (None,)
        is_exact = not training and quantizer is not None and None not in operands
        if is_exact and self.compute_dtype == "float32":
            outputs = self._exact(inputs, outputs, operands, quantizer)
        mask = self._mask(inputs, outputs.shape)
        if mask is None:
            return outputs
        mask = tf.broadcast_to(mask, tf.shape(outputs))
        return tf.where(mask, outputs, self._floor(outputs, mask, None if training else quantizer))

    def _exact(
        self,
        inputs: list[tf.Tensor],
        outputs: tf.Tensor,
        operands: tuple[TensorQuantizer, ...],
        quantizer: TensorQuantizer,
    ) -> tf.Tensor:
        """`outputs` as the runtime rounds them; itself where the codes are not known."""
        scales = [operand.active_scale() for operand in operands]
        known = tf.reduce_all([scale > 0 for scale in scales])
        scales = [tf.where(known, scale, 1.0) for scale in scales]
        codes = [tf.round(x / scale) for x, scale in zip(inputs[:2], scales, strict=True)]
        total = tf.einsum(self.equation, *codes)
        step = scales[0] * scales[1]
        # XNNPACK takes a second operand whose zero point is 0; LiteRT's own kernel any other.
        exact = tf.where(
            operands[1].zero_point == 0,
            quantizer.round_sum(total, step),
            quantizer.round_by(lambda scale: fixed_point(total, step, scale), outputs),
        )
        # Its gradient is that of the real product, for layers that are frozen in training.
        return outputs + tf.stop_gradient(tf.where(known, exact, outputs) - outputs)

    def _mask(self, inputs: list[tf.Tensor], shape: tf.TensorShape) -> tf.Tensor | None:
        mask = tf.cast(inputs[2], tf.bool) if len(inputs) > 2 else None
        if not self.causal:
            return mask
        causal = tf.constant(_lower_triangle(shape))
        return causal if mask is None else mask & causal

    def _floor(
        self, outputs: tf.Tensor, mask: tf.Tensor, quantizer: TensorQuantizer | None
    ) -> tf.Tensor:
        """What masked values are set to: in inference what saturates."""
        least = tf.reduce_min(tf.where(mask, outputs, tf.reduce_max(outputs))) - self.margin
        least = tf.cast(tf.stop_gradient(least), outputs.dtype)
        if quantizer is None:
            return least
        return tf.where(quantizer.active_scale() > 0, tf.cast(MASKED, outputs.dtype), least)

    def compute_output_spec(
        self, inputs: list[keras.KerasTensor], training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        both = inputs[:2]
        product = _read(self.equation, *both)
        sizes: dict[str, int | None] = {}
        for letters, tensor in zip((product.left, product.right), both, strict=True):
            sizes.update(zip(letters, tensor.shape, strict=True))
        return keras.KerasTensor([sizes[c] for c in product.output], dtype=self.compute_dtype)

    def stripped(self) -> list:
        def plain(inputs: list) -> Any:
            scores = ops.einsum(self.equation, *inputs[:2])
            mask = inputs[2] if len(inputs) > 2 else None
            if self.causal:
                causal = _lower_triangle(scores.shape)
                mask = causal if mask is None else ops.logical_and(mask, causal)
            return scores if mask is None else ops.where(mask, scores, MASKED)

        return [plain]

    def get_config(self) -> dict[str, Any]:
        own = {"equation": self.equation, "margin": self.margin, "causal": self.causal}
        return {**super().get_config(), **own}


def fixed_point(total: tf.Tensor, step: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The code of total · step at `scale`, as LiteRT's own kernels multiply an int32 sum.

    The ratio step / scale is a fraction in [½, 1) times 2ᵉ. The sum, times 2ᵉ where e > 0, is
    multiplied by the fraction in 31 bits and rounded; then 2⁻ᵉ of it is taken where e > 0, and
    rounded again. Halves go away from zero (gemmlowp's `MultiplyByQuantizedMultiplier`).

    Args:
        total: Whole numbers below 2²⁴, float32.
        step: Value of one unit of the sum: a product of two float32 scales, taken in float32.
        scale: That of the result.

    Returns:
        float32 whole numbers, neither offset by a zero point nor clipped.
    """
    ratio = tf.cast(step, tf.float64) / tf.cast(scale, tf.float64)
    # e from the bits of the float64 ratio, and 2³¹⁻ᵉ from its bits.
    exponent = tf.bitwise.right_shift(tf.bitcast(ratio, tf.int64), 52) - 1022
    exponent = tf.clip_by_value(exponent, -30, 7)
    power = tf.bitcast(tf.bitwise.left_shift(31 - exponent + 1023, 52), tf.float64)
    multiplier = tf.cast(tf.round(ratio * power), tf.int64)
    left = tf.bitwise.left_shift(tf.cast(total, tf.int64), tf.maximum(exponent, 0))
    product = left * multiplier
    nudged = product + tf.where(product >= 0, tf.cast(2**30, tf.int64), 1 - 2**30)
    high = tf.truncatediv(nudged, tf.cast(2**31, tf.int64))
    shift = tf.maximum(-exponent, 0)
    mask = tf.bitwise.left_shift(tf.ones_like(shift), shift) - 1
    threshold = tf.bitwise.right_shift(mask, 1) + tf.cast(high < 0, tf.int64)
    carry = tf.cast(tf.bitwise.bitwise_and(high, mask) > threshold, tf.int64)
    return tf.cast(tf.bitwise.right_shift(high, shift) + carry, tf.float32)


def _lower_triangle(shape: Any) -> np.ndarray:
    """Which of the last two axes' pairs are on the diagonal or below."""
    rows, columns = shape[-2:]
    return np.arange(rows)[:, None] >= np.arange(columns)


def _read(equation: str, left: Any, right: Any) -> Contraction:
    product = read_einsum(equation, len(left.shape), len(right.shape))
    if product is None:
        raise ValueError(f"Expected an equation of a matrix product. Received: {equation!r}.")
    return product


# --- the file -----------------------------------------------------------------------------------


def batch_matmul(left: tf.Tensor, right: tf.Tensor, product: Contraction) -> tf.Tensor:
    """The product as one BATCH_MATMUL, between transposes and reshapes that only move codes.

    The second operand is transposed to (…, columns, summed), which the kernel would do by itself.
    """
    sizes = dict(zip(product.left, left.shape, strict=True))
    sizes.update(zip(product.right, right.shape, strict=True))
    is_plain = all(len(group) == 1 for group in (product.rows, product.columns, product.summed))

    def operand(x: tf.Tensor, letters: str, own: str) -> tf.Tensor:
        x = transposed(x, letters, product.batch + own + product.summed)
        if is_plain and product.batch:
            return x
        groups = (product.batch, own, product.summed)
        return tf.reshape(x, [int(np.prod([sizes[c] for c in group])) for group in groups])

    a = operand(left, product.left, product.rows)
    b = operand(right, product.right, product.columns)
    y = tf.reshape(tf.matmul(a, b, transpose_b=True), [sizes[c] for c in product.result])
    return transposed(y, product.result, product.output)


def _lower(call: LoweredCall, inputs: list[tf.Tensor]) -> tf.Tensor:
    left, right = inputs[:2]
    layer = call.operation
    y = batch_matmul(left, right, _read(layer.equation, left, right))
    mask = layer._mask(inputs, y.shape)
    return y if mask is None else tf.where(mask, y, tf.constant(MASKED))


register(Product, spec=OperatorSpec(role=Role.PRODUCT, takes_integers=True, lower=_lower))

# --- Keras' operations --------------------------------------------------------------------------


def _tensors(node: Node) -> list[Value] | None:
    """The operands of `f(tensor, tensor)`; `None` for a constant among them."""
    given = (*node.args, *node.kwargs.values())
    both = [leaf for leaf in given if isinstance(leaf, Value)]
    return both if len(both) == len(given) == 2 else None


def _product(b: Builder, node: Node, equation: str | None) -> Value | None:
    both = _tensors(node)
    if both is None or equation is None:
        return None
    product = read_einsum(equation, *(len(value.shape) for value in both))
    if product is None:
        return None
    equation = f"{product.left},{product.right}->{product.output}"
    if (
        product.rows
        and product.columns
        and (product.output.index(product.columns[0]) < product.output.index(product.rows[0]))
    ):
        # The converter would swap the operands to save a transpose.
        both = both[::-1]
        equation = f"{product.right},{product.left}->{product.output}"
    return b.call(lambda n: Product(equation, name=n), "", *both, variant=equation)


def _matmul_equation(node: Node) -> str | None:
    """That of (…, m, k) · (…, k, n) where the axes before are the same in both."""
    both = _tensors(node)
    if both is None:
        return None
    left, right = (value.shape for value in both)
    if len(left) != len(right) or len(left) < 3 or left[:-2] != right[:-2]:
        return None
    axes = "abcdefgh"[: len(left) - 2]
    return f"{axes}mk,{axes}kn->{axes}mn"


def _matmul(b: Builder, node: Node) -> Value | None:
    """One product of tensors of equal batches; a dense layer for a constant matrix."""
    return _product(b, node, _matmul_equation(node)) or as_constant_layer(b, node)


def _einsum(b: Builder, node: Node) -> Value | None:
    """One product between transposes, where the equation is that of a batched matrix product."""
    return _product(b, node, node.operation.subscripts) or as_constant_layer(b, node)


def _dot(b: Builder, node: Node) -> Value | None:
    """Dot(axes): all other axes of both, behind the batch."""
    layer = node.operation
    left, right = node.inputs
    axes = (layer.axes, layer.axes) if isinstance(layer.axes, int) else layer.axes
    i, j = (axis % len(value.shape) for axis, value in zip(axes, node.inputs, strict=True))
    if i == 0 or j == 0:
        return None
    if layer.normalize:
        left = b.call(lambda n: layers.UnitNormalization(axis=i, name=n), "unit_left", left)
        right = b.call(lambda n: layers.UnitNormalization(axis=j, name=n), "unit_right", right)
    first = "b" + "cdefg"[: len(left.shape) - 1]
    second = "b" + "hijkl"[: len(right.shape) - 1]
    second = second[:j] + first[i] + second[j + 1 :]
    rows, columns = first[1:].replace(first[i], ""), second[1:].replace(first[i], "")
    equation = f"{first},{second}->b{rows}{columns}"
    suffix = "" if rows or columns else "product"
    result = b.call(lambda n: Product(equation, name=n), suffix, left, right, variant=equation)
    if rows or columns:
        return result
    return b.call(lambda n: layers.Reshape((1,), name=n), "", result)


def _operand_reason(node: Node) -> str | None:
    if _tensors(node) is None:
        return "its constant array is no kernel of a dense layer"
    return "it is not one product of equal batches"


# What no rule has decomposed stays in float, for the reason that `_operand_reason` gives.
for _function, _rule in {ops.matmul: _matmul, ops.einsum: _einsum}.items():
    register(
        _function,
        spec=OperatorSpec(role=Role.PRODUCT, decompose=_rule, call_reason=_operand_reason),
    )
register(layers.Dot, spec=OperatorSpec(decompose=_dot))
