"""Weight transforms of quantization: kernels on their grid, biases on the grid of the int32 sum."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.kernels import kernel_specs
from tfcompress.model.linking import Links
from tfcompress.model.transforms import FAKE_QUANT, IntegerSum, RoundedKernel, WeightTransform
from tfcompress.quantization.fake_quant.affine import (
    code_range,
    fake_quantize,
    range_parameters,
    round_to_grid,
)
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.placement.upstream import upstream_quantizer
from tfcompress.quantization.schemes import WeightScheme, scheme_config, scheme_from_config


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantizeWeights(WeightTransform):
    """Rounds a kernel to its codes, per output channel or as a whole.

    With the `MinMax` observer the scale follows the kernel in every step and nothing is clipped;
    any other estimates it when the model is quantized (`fit_range`) and keeps it. A kernel with
    one scale is rounded as the runtime will see it: with the batch norm after it folded in.
    """

    order = FAKE_QUANT

    def __init__(self, scheme: WeightScheme | dict[str, Any] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.scheme = scheme_from_config(WeightScheme, scheme or WeightScheme())
        # Call index → the batch norm that the runtime folds into the kernel in that call, and
        # → the quantizer of what the layer reads.
        self._folded = Links()
        self._inputs = Links()
        # Call index → the quantizer that rounds the layer's sum, past a fused ReLU.
        self._sum_quantizers = Links()

    @property
    def follows(self) -> bool:
        """Whether the scale is computed anew from the kernel in every step."""
        return type(self.scheme.observer) is MinMax

    def attach(self, layer, variable):
        spec = next(s for s in kernel_specs(layer) if s.name == variable.name)
        rank = len(variable.shape)
        self._output_axes = tuple(axis % rank for axis in spec.output_axes)
        # Values that channels share (a codebook) stay shared under one scale alone. Batch norm then
        # scales the file's array of scales and leaves the codes as they are.
        chain = layer.transformed.chains[variable.name]
        self._one_scale = any(transform.one_scale for transform in chain)
        super().attach(layer, variable)

    def build(self, shape):
        per_channel = self.scheme.per_channel and not self._one_scale
        self._reduced = tuple(
            axis for axis in range(len(shape)) if not (per_channel and axis in self._output_axes)
        )
        self.scale_shape = tuple(1 if a in self._reduced else n for a, n in enumerate(shape))
        self.channel_shape = tuple(n if a in self._output_axes else 1 for a, n in enumerate(shape))
        if not self.follows:
            for name in ("scale", "zero_point"):
                weight = self.add_weight(
                    name=name,
                    shape=self.scale_shape,
                    initializer="zeros",
                    trainable=False,
                    autocast=False,
                )
                setattr(self, name, weight)

    def link(self, layer, inputs, call_index):
        self._inputs.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer, call_index):
        self._sum_quantizers.set(call_index, quantizer)

    def input_quantizer(self, call_index: int = 0):
        """The quantizer of what the layer reads in that call; `None` where it reads float."""
        return self._inputs.get(call_index)

    def folded_batch_norm(self, call_index: int = 0) -> tuple[Any, int] | None:
        """`(batch norm, its call)` that the runtime folds into the kernel in that call."""
        return self._folded.get(call_index)

    def set_folded(self, call_index: int, batch_norm: Any, batch_norm_call: int) -> None:
        """Called by the batch norm that the runtime folds into the kernel in that call."""
        self._folded.set(call_index, (batch_norm, batch_norm_call))

    def fit_range(self, kernel: np.ndarray) -> None:
        """Estimates the fixed scale of `kernel` (already folded where a batch norm follows)."""
        if self.follows:
            return
        moved = np.moveaxis(kernel, self._reduced, range(-len(self._reduced), 0))
        flat = moved.reshape(-1, math.prod(kernel.shape[a] for a in self._reduced))
        qmin, qmax = code_range(self.scheme.num_bits, self.scheme.narrow_range)
        observer, symmetric = self.scheme.observer, self.scheme.symmetric
        bounds = [observer.estimate(row, qmax - qmin, symmetric) for row in flat]
        low, high = (np.float32(b).reshape(self.scale_shape) for b in zip(*bounds, strict=True))
        scale, zero_point = range_parameters(self.scheme, tf.constant(low), tf.constant(high))
        self.scale.assign(scale)
        self.zero_point.assign(zero_point)

    def _rounded(self, value: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The kernel on its grid, and its scale."""
        if self.follows:
            return _round_by_itself(value, self._reduced, self.scheme, training)
        scale, known = self.scale.value, self.scale.value > 0
        safe = tf.where(known, scale, 1.0)
        rounded = _round(value, safe, self.zero_point.value, self.scheme, training)
        return tf.where(known, rounded, value), scale

    def fold_factor(self, call_index: int) -> tf.Tensor | None:
        """γ/σ of the batch norm that one-scale kernels are rounded with, per output channel."""
        folded = self.folded_batch_norm(call_index)
        if folded is None or self.scheme.per_channel or self._one_scale:
            return None
        factor = tf.reshape(tf.stop_gradient(folded[0].factor()), self.channel_shape)
        # A channel that batch norm switches off has nothing to round.
        return tf.where(factor == 0, 1.0, factor)

    def apply(self, value, call):
        factor = self.fold_factor(call.call_index)
        folded = value if factor is None else value * factor
        rounded, scale = self._rounded(folded, bool(call.training))
        if factor is not None:
            rounded, scale = rounded / factor, scale / tf.abs(factor)
        if call.training:
            return rounded
        quantizer = self.input_quantizer(call.call_index)
        input_scale = tf.constant(0.0) if quantizer is None else quantizer.active_scale()
        integer_sum = None
        if call.in_codes and quantizer is not None:
            # Sums of whole numbers are exact in float32 up to 2²⁴, as they are in int32, whatever
            # order they are added in. Rounded values would differ in the last bits.
            integer_sum = self._integer_sum(scale, input_scale, call.call_index)
            rounded = tf.round(rounded / scale)
        channel_scale = self._per_channel(scale)
        return RoundedKernel(
            rounded,
            channel_scale,
            input_scale,
            input_scale * channel_scale,
            self.folded_batch_norm(call.call_index) is not None,
            integer_sum,
        )

    def _per_channel(self, scale: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.broadcast_to(scale, self.channel_shape), [-1])

    def _integer_sum(self, scale, input_scale, call_index: int) -> IntegerSum:
        """What turns the layer's input to codes, and its sums of codes back to values."""
        known = input_scale > 0
        step = tf.where(known, input_scale, 1.0)

        def to_codes(inputs):
            codes = inputs / step
            return tf.where(known, tf.round(codes), codes)

        sum_step = step * self._per_channel(scale)
        quantizer = self._sum_quantizers.get(call_index)
        to_values = tf.multiply if quantizer is None else quantizer.round_sum
        return IntegerSum(to_codes, lambda sums: to_values(sums, sum_step), sum_step)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scheme": scheme_config(self.scheme)}


def _round(value, scale, zero_point, scheme: WeightScheme, training: bool) -> tf.Tensor:
    return fake_quantize(
        value,
        scale,
        zero_point,
        num_bits=scheme.num_bits,
        narrow_range=scheme.narrow_range,
        rounding=scheme.rounding,
        training=training,
    )


def _round_by_itself(value, axes, scheme: WeightScheme, training: bool):
    """A kernel rounded by scales of its own, one for all positions along `axes`; and the scales.

    Not traced apart: through a function's call XLA takes the kernel for a constant and would
    compile every step anew.
    """
    constant = tf.stop_gradient(value)
    if scheme.symmetric:
        high = tf.reduce_max(tf.abs(constant), axes, keepdims=True)
        # Any scale holds a channel of zeros; one of ordinary size keeps its bias in int32.
        widest = tf.reduce_max(high)
        high = tf.where(high > 0, high, tf.where(widest > 0, widest, 1.0))
        low = -high
    else:
        low = tf.reduce_min(constant, axes, keepdims=True)
        high = tf.reduce_max(constant, axes, keepdims=True)
    scale, zero_point = range_parameters(scheme, low, high)
    return _round(value, scale, zero_point, scheme, training), scale


@keras.saving.register_keras_serializable(package="tfcompress")
class RoundBias(WeightTransform):
    """Rounds a bias, in inference, to the grid of the int32 sum: input scale × kernel scale.

    That is what the runtime adds. In training the bias stays as it is: its grid is thousands of
    times finer than an output step, so it matters for parity and not for learning.

    Where a batch norm follows, that layer rounds the folded bias instead.
    """

    order = FAKE_QUANT

    def apply(self, value, call):
        kernel = call.kernel
        if kernel is None:
            return value
        if not kernel.is_folded:
            value = round_to_grid(value, tf.reshape(kernel.bias_step, tf.shape(value)))
        if kernel.integer_sum is not None:
            value = value / tf.reshape(kernel.integer_sum.step, tf.shape(value))
            value = value if kernel.is_folded else tf.round(value)
        return value
