"""Averages and sums over codes, rounded as the runtime rounds them, to the bit.

A mean whose range is that of its input has many values exactly between two codes: of two by two
values every fourth. So in inference these layers round the integers that the runtime rounds, not
the real values.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.int16_arithmetic import (
    convolution_codes,
    exact_ratio,
    linear_of_codes,
    mean_codes,
)
from tfcompress.quantization.operators.on_codes import Call, OnCodes


class SumOfCodes(OnCodes):
    """Mixin: the layer gives w · Σ x of some of the values x that it reads.

    The file holds it as a depthwise convolution with the constant weight w, whose code is 127.
    """

    def weight(self) -> float:
        """The constant w, positive."""
        raise NotImplementedError(
            f"Expected a layer that implements weight(). Received: {type(self).__name__}."
        )

    def rounded(self, call: Call) -> tf.Tensor:
        weight, code = np.float32(self.weight()), code_range(8)[1]
        if call.rounding.is_int16:
            return self._rounded_int16(call, weight, code)
        sums = tf.round(call.outputs / (call.scale * weight)) * code
        return call.rounding.round_sum(sums, call.scale * (weight * np.float32(1 / code)))

    def _rounded_int16(self, call: Call, weight: np.float32, code: int) -> tf.Tensor:
        """Of 16-bit codes, whose sums are exact only in parts."""
        codes = tf.round(call.inputs / call.scale)
        total = code * linear_of_codes(codes, lambda x: self.real_values(x) / weight)
        kernel_scale = tf.constant(weight * np.float32(1 / code))
        return call.rounding.round_by(
            lambda scale: convolution_codes(total, exact_ratio(call.scale, kernel_scale, scale)),
            call.outputs,
        )


class MeanOfCodes(OnCodes):
    """Mixin: the layer gives the mean, or the sum, over some axes.

    XNNPACK adds the codes qᵢ of the n values as they are, and then computes in float32: with
    f = scale / output scale · (1 / n), where a sum has no 1 / n, the code is
    round(f · Σ qᵢ + (output zero point − f · n · zero point)), halves to even.
    """

    #: Whether it is a sum.
    adds = False

    def reduced_axes(self) -> list[int]:
        """The axes."""
        raise NotImplementedError(
            f"Expected a layer that implements reduced_axes(). Received: {type(self).__name__}."
        )

    def keeps_axes(self) -> bool:
        """Whether the output has the axes, with size 1."""
        return bool(self.keepdims)  # type: ignore[attr-defined]

    def rounded(self, call: Call) -> tf.Tensor:
        inputs, scale, axes = call.inputs, call.scale, self.reduced_axes()
        zero, output_zero = call.source.zero_point, call.rounding.zero_point
        # Whole numbers: exact in float32 up to 2²⁴, which 65,000 values do not reach.
        codes = tf.round(inputs / scale) + zero
        total = tf.reduce_sum(codes, axes, keepdims=self.keeps_axes())
        number = tf.reduce_prod([tf.shape(inputs)[axis] for axis in axes])
        if call.rounding.is_int16:
            exact = tf.reduce_sum(tf.cast(codes, tf.float64), axes, keepdims=self.keeps_axes())
            return call.rounding.round_by(
                lambda output: mean_codes(exact, number, exact_ratio(scale, tf.ones(()), output)),
                call.outputs,
            )
        count = tf.cast(number, tf.float32)
        share = tf.ones(()) if self.adds else 1.0 / count

        def codes_at(output_scale: tf.Tensor) -> tf.Tensor:
            factor = (scale / output_scale) * share
            offset = output_zero - factor * (count * zero)
            return tf.round(total * factor + offset) - output_zero

        return call.rounding.round_by(codes_at, call.outputs)
