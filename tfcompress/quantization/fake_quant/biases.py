"""The weight transform of biases: they are rounded to the grid of the int32 sum."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfcompress.model.transforms import FAKE_QUANT, WeightCall, WeightTransform
from tfcompress.quantization.fake_quant.affine import round_to_grid


@keras.saving.register_keras_serializable(package="tfcompress")
class RoundBias(WeightTransform):
    """Rounds a bias, in inference, to the grid of the int32 sum: input scale × kernel scale.

    That is what the runtime adds. In training the bias stays as it is: its grid is thousands of
    times finer than an output step, so it matters for parity and not for learning.

    Where a batch norm follows, that layer rounds the folded bias instead.
    """

    order = FAKE_QUANT

    def apply(self, value: tf.Tensor, call: WeightCall) -> tf.Tensor:
        kernel = call.kernel
        if kernel is None:
            return value
        if not kernel.is_folded:
            step = tf.reshape(kernel.bias_step, tf.shape(value))
            value = round_to_grid(value, step, kernel.largest_bias)
        if kernel.integer_sum is not None and kernel.integer_sum.adds_bias:
            return tf.zeros_like(value)
        if kernel.integer_sum is not None:
            value = value / tf.reshape(kernel.integer_sum.step, tf.shape(value))
            value = value if kernel.is_folded else tf.round(value)
        return value
