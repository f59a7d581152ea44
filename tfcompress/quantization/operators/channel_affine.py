"""Per-channel multiply-and-add layers as the runtime folds them.

Behind a convolution or dense layer, LiteRT folds a batch norm into kernel and bias; alone (and
for Rescaling and Normalization) it runs as a 1×1 depthwise convolution. Either way the offset is
an int32 bias, so in inference these layers round it to that grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.kernels import has_bias
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.affine import (
    coarser_scale,
    code_range,
    round_to_grid,
)
from tfcompress.quantization.fake_quant.int16_arithmetic import (
    convolution_codes,
    dense_codes,
    exact_ratio,
)
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_kernel, upstream_quantizer


class FoldedAffine(Linked):
    """Mixin: y = x · factor + offset per channel, the offset rounded as an int32 bias."""

    # Of the Keras layer, with which the mixin is combined.
    compute_dtype: str
    autocast: bool

    # Call index → (compressed layer, its call index), or the quantizer of the input, or None.
    _sources: Links
    # Call index → the quantizer that rounds the layer's output, past a fused ReLU.
    sum_quantizers: Links

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sources = Links()
        self.sum_quantizers = Links()

    def factor(self) -> tf.Tensor:
        """The multiplier per channel (or a scalar), float32."""
        raise NotImplementedError(
            f"Expected a layer that implements factor(). Received: {type(self).__name__}."
        )

    def offset(self) -> tf.Tensor:
        """The addend per channel (or a scalar), float32."""
        raise NotImplementedError(
            f"Expected a layer that implements offset(). Received: {type(self).__name__}."
        )

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        kernel = upstream_kernel(inputs)
        if kernel is not None:
            layer, kernel_call = kernel
            for transform in layer.transformed.of_type(FakeQuantizeWeights).values():
                transform.set_folded(kernel_call, self, call_index)
                given = transform.input_quantizer(kernel_call)
                if given is not None and given.is_int16:
                    # The sums come as float64 (see `FakeQuantizeWeights`).
                    self.autocast = False
        self._sources.set(call_index, kernel or upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self.sum_quantizers.set(call_index, quantizer)

    def is_folded(self, call_index: int = 0) -> bool:
        """Whether the runtime folds this call into the kernel before it."""
        return isinstance(self._sources.get(call_index), tuple)

    def fold(self, call_index: int = 0) -> Fold:
        """What the runtime computes with in that call."""
        factor, offset = self.factor(), self.offset()
        source = self._sources.get(call_index)
        if source is None:
            return Fold(factor, offset)
        if not isinstance(source, tuple):
            # A 1×1 depthwise kernel with one weight per channel: its code is the largest one.
            input_step = source.active_scale()
            unit = input_step * np.float32(1 / code_range(8)[1])
            factor = _without_traces(factor, offset, unit * tf.abs(factor), source.largest_bias)
            kernel_scale = tf.abs(factor) * np.float32(1 / code_range(8)[1])
            step = input_step * kernel_scale
            offset = round_to_grid(offset, step, source.largest_bias)
            return Fold(
                factor,
                offset,
                input_step,
                step,
                code_range(8)[1],
                sum_scales=(input_step, kernel_scale),
            )
        layer, kernel_call = source
        values, rounded = layer.transformed(call_index=kernel_call, training=False)
        # Not `layer.bias`, which this layer's policy would give in 16 bits.
        bias = values["bias"] if has_bias(layer) else 0.0
        if rounded is None:
            return Fold(factor, offset)
        # The products are taken in the runtime's order; without the operation between them
        # TensorFlow's graph optimizer would take them in another.
        total = offset + bias * factor
        largest = rounded.largest_bias
        factor = _without_traces(factor, total, rounded.bias_step * tf.abs(factor), largest)
        # A channel that batch norm switches off has its bias alone, on the grid of its kernel or
        # on one that holds it.
        scale = tf.abs(rounded.scale * tf.where(factor == 0, tf.ones_like(factor), factor))
        enough = coarser_scale(tf.abs(total), rounded.input_scale, scale, largest)
        scale = tf.where(factor == 0, enough, scale)
        step = rounded.input_scale * scale
        offset = round_to_grid(total, step, largest)
        scales = (rounded.input_scale, scale)
        unit = (rounded.input_scale, rounded.scale)
        return Fold(
            factor,
            offset - bias * factor,
            rounded.bias_step,
            step,
            bias=bias,
            kernel_scale=scale,
            sum_scales=scales,
            input_scales=unit,
        )

    def infer(self, inputs: tf.Tensor, call_index: int) -> tf.Tensor:
        """The layer's output in inference."""
        fold = self.fold(call_index)
        x = tf.cast(inputs, tf.float32)
        outputs = x * fold.factor + fold.addend
        quantizer = self.sum_quantizers.get(call_index)
        if quantizer is not None and fold.step is not None and self.compute_dtype == "float32":
            if quantizer.is_int16:
                exact = self._int16_codes(fold, inputs, quantizer, call_index, outputs)
            else:
                exact = quantizer.round_sum(fold.sums(x), fold.step)
            # No step: no range is known yet.
            exact = tf.where(fold.step > 0, exact, outputs)
            # Its gradient is that of the real value: a frozen layer passes gradients on.
            outputs += tf.stop_gradient(exact - outputs)
        return tf.cast(outputs, self.compute_dtype)

    def _int16_codes(
        self,
        fold: Fold,
        inputs: tf.Tensor,
        quantizer: TensorQuantizer,
        call_index: int,
        otherwise: tf.Tensor,
    ) -> tf.Tensor:
        """The output in codes of 16 bits, as values."""
        source = self._sources.get(call_index)
        is_dense = isinstance(source, tuple) and isinstance(source[0], keras.layers.Dense)
        codes = dense_codes if is_dense else convolution_codes
        assert fold.sum_scales is not None
        first, second = fold.sum_scales
        # Where a scale is 0 there are no codes, and nothing of this is used.
        first, second = (tf.where(s > 0, s, tf.ones_like(s)) for s in (first, second))
        total = fold.exact_sums(inputs)
        return quantizer.round_by(
            lambda scale: codes(total, exact_ratio(first, second, scale)), otherwise
        )


def _without_traces(
    factor: tf.Tensor, offset: tf.Tensor, step: tf.Tensor, largest: float
) -> tf.Tensor:
    """`factor`, but 0 for channels whose offset is so many steps of their sum that it overflows.

    A γ that a penalty drives towards 0 leaves the offset alone: what is left of the rest is far
    smaller than a step of the output.
    """
    # No step: no range is known yet.
    overflows = (step > 0) & (tf.abs(offset) > largest * step)
    return tf.where(overflows, tf.zeros_like(factor), factor)


@dataclasses.dataclass(frozen=True)
class Fold:
    """y = x · factor + addend, as an int32 sum that the runtime adds up.

    Attributes:
        factor: Per channel or a scalar.
        addend: Likewise, such that the int32 bias is a whole number.
        input_step: Value of one unit of `x`; `None` where `x` has no known codes.
        step: Value of one unit of the sum.
        code: The kernel's code that multiplies a unit of `x`, but for the sign of `factor`.
        bias: What the layer before has already added to `x`.
        kernel_scale: Scale of the folded kernel; `None` where none is before it.
        sum_scales: The scales whose product is `step`.
        input_scales: Those whose product is `input_step`, where a kernel is before it.
    """

    factor: tf.Tensor
    addend: tf.Tensor
    input_step: tf.Tensor | None = None
    step: tf.Tensor | None = None
    code: int = 1
    bias: tf.Tensor | float = 0.0
    kernel_scale: tf.Tensor | None = None
    sum_scales: tuple[tf.Tensor, tf.Tensor] | None = None
    input_scales: tuple[tf.Tensor, tf.Tensor] | None = None

    def exact_sums(self, x: tf.Tensor) -> tf.Tensor:
        """The 64-bit sums of 16-bit codes, in float64; `x` is float64 behind a kernel."""
        assert self.sum_scales is not None
        step, factor = _product(self.sum_scales), tf.cast(tf.sign(self.factor), tf.float64)
        given = (self.input_step, 1.0) if self.input_scales is None else self.input_scales
        values = tf.cast(x, tf.float64) - tf.cast(self.bias, tf.float64)
        units = tf.round(tf.math.divide_no_nan(values, _product(given)))
        offset = tf.cast(self.addend + self.bias * self.factor, tf.float64)
        return units * (self.code * factor) + tf.round(tf.math.divide_no_nan(offset, step))

    def sums(self, x: tf.Tensor) -> tf.Tensor:
        """The int32 sums, in float32 (exact to 2²⁴); meaningless where a step is 0."""
        units = tf.round(tf.math.divide_no_nan(x - self.bias, self.input_step))
        offset = tf.math.divide_no_nan(self.addend + self.bias * self.factor, self.step)
        return units * (self.code * tf.sign(self.factor)) + tf.round(offset)


def _product(scales: tuple[Any, Any]) -> tf.Tensor:
    """The product of two float32 scales as the runtime takes it, in float64."""
    first, second = (tf.cast(scale, tf.float64) for scale in scales)
    return first * second


@keras.saving.register_keras_serializable(package="tfcompress")
class ChannelAffine(FoldedAffine, keras.layers.Layer):
    """y = x · factor + offset with constants per channel: a Rescaling or an adapted Normalization.

    Args:
        factor: One number, or one per channel.
        offset: Likewise.
    """

    channels_like = keras.layers.Rescaling

    def __init__(self, factor: Any, offset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.constants = [np.ravel(c).astype(np.float32).tolist() for c in (factor, offset)]
        self.supports_masking = True

    def stripped(self) -> list[keras.Layer]:
        scale, offset = (c[0] if len(c) == 1 else c for c in self.constants)
        return [keras.layers.Rescaling(scale, offset, name=self.name, dtype=self.dtype_policy)]

    def factor(self) -> tf.Tensor:
        return tf.constant(self.constants[0])

    def offset(self) -> tf.Tensor:
        return tf.constant(self.constants[1])

    def call(self, inputs: tf.Tensor, call_index: int = 0) -> tf.Tensor:
        return self.infer(inputs, call_index)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        factor, offset = self.constants
        return {**super().get_config(), "factor": factor, "offset": offset}


def channel_affine_layer(layer: keras.Layer) -> keras.Layer:
    """The layer that takes the place of a Rescaling or an adapted Normalization."""
    if isinstance(layer, keras.layers.Rescaling):
        factor, offset = layer.scale, layer.offset
    else:
        # Keras keeps the deviation at or above its epsilon.
        deviation = np.maximum(np.sqrt(layer.variance), keras.backend.epsilon())
        factor, offset = 1.0 / deviation, -np.asarray(layer.mean) / deviation
    return ChannelAffine(factor, offset, name=layer.name, dtype=layer.dtype_policy)


def _normalization_reason(layer: keras.layers.Normalization) -> str | None:
    if layer.invert:
        return "an inverted Normalization is not a multiplier and an offset of its input"
    return axis_reason(layer, layer.axis)


def axis_reason(layer: keras.Layer, axis: Any) -> str | None:
    """Why statistics along `axis` are not per channel; `None` where they are."""
    if isinstance(axis, (list, tuple)):
        if not axis:
            # A Normalization with axis=None has one mean and one variance for everything.
            return None
        axis = axis[0] if len(axis) == 1 else None
    shape = (layer.get_build_config() or {}).get("input_shape")
    is_last = axis == -1 or (shape is not None and axis == len(shape) - 1)
    return None if is_last else "its statistics are not along the last axis"


def _constants(layer: keras.Layer, call_index: int) -> tuple[np.ndarray, np.ndarray]:
    fold = layer.fold(call_index)
    return np.asarray(fold.factor), np.asarray(fold.addend)


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """Folded into the kernel before it, or a depthwise convolution of its own."""
    if call.operation.is_folded(call.call_index):
        return x
    factor, offset = call.constants
    return forms.channel_affine(x, factor, offset)


register(
    keras.layers.Rescaling,
    spec=OperatorSpec(role=Role.AFFINE, quantized=channel_affine_layer, int16=True),
)
register(
    keras.layers.Normalization,
    spec=OperatorSpec(
        role=Role.AFFINE,
        quantized=channel_affine_layer,
        float_reason=_normalization_reason,
        int16=True,
    ),
)
#: The entry of every layer that folds: into the kernel before it, or into one of its own.
FOLDED_SPEC = OperatorSpec(role=Role.AFFINE, constants=_constants, lower=_lower, int16=True)
register(ChannelAffine, spec=FOLDED_SPEC)
