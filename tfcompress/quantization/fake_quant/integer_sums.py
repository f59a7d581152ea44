"""How a layer sums up codes in inference, as the runtime does, in place of rounded values."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfcompress.model.transforms import IntegerSum
from tfcompress.quantization.fake_quant.affine import round_to_grid
from tfcompress.quantization.fake_quant.int16_arithmetic import (
    exact_ratio,
    join_halves,
    split_halves,
)
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer


def integer_sum(
    kernel_scale: tf.Tensor, input_scale: tf.Tensor, rounds: TensorQuantizer | None
) -> IntegerSum:
    """Sums of int8 codes.

    Args:
        kernel_scale: The kernel's scale, of a shape that broadcasts against the layer's output.
        input_scale: The scale of the layer's input; 0 before its range is known.
        rounds: The quantizer of the sum, if one rounds it.
    """
    known = input_scale > 0
    step = tf.where(known, input_scale, 1.0)
    sum_step = step * kernel_scale

    def to_codes(inputs: tf.Tensor) -> tf.Tensor:
        scaled = inputs / step
        return tf.where(known, tf.round(scaled), scaled)

    to_values = tf.multiply if rounds is None else rounds.round_sum
    return IntegerSum(to_codes, lambda sums: to_values(sums, sum_step), sum_step)


def int16_sum(
    kernel_scale: tf.Tensor,
    input_scale: tf.Tensor,
    rounds: TensorQuantizer | None,
    bias: tf.Tensor,
    largest_bias: float,
    *,
    codes: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None,
) -> IntegerSum:
    """Sums of codes of 16 bits. Float32 holds neither these nor their biases.

    Args:
        kernel_scale: The kernel's scale, of a shape that broadcasts against the layer's output.
        input_scale: The scale of the layer's input; 0 before its range is known.
        rounds: The quantizer of the sum, if one rounds it.
        bias: The layer's bias, float32, of a shape that broadcasts likewise.
        largest_bias: The largest code of a bias in the file.
        codes: The operator's rounding of a sum, by a ratio of scales, to a code. `None` where a
            batch norm folds into the layer and rounds: the sums then go on as float64 values.
    """
    known = input_scale > 0
    step = tf.where(known, input_scale, 1.0)
    sum_step = step * kernel_scale
    exact_step = tf.cast(step, tf.float64) * tf.cast(kernel_scale, tf.float64)

    def to_codes(inputs: tf.Tensor) -> tf.Tensor:
        scaled = inputs / step
        # Before a range is known these are values, and one half of them says it all.
        halves = split_halves(tf.round(scaled))
        return tf.where(known, halves, tf.concat([tf.zeros_like(scaled), scaled], 0))

    def from_sums(sums: tf.Tensor) -> tf.Tensor:
        values = tf.split(sums, 2, 0)[1] * sum_step + bias
        total = join_halves(sums)
        if codes is None:
            exact = total * exact_step + tf.cast(bias, tf.float64)
            return tf.where(known, exact, tf.cast(values, tf.float64))
        rounded = tf.cast(round_to_grid(bias, sum_step, largest_bias), tf.float64)
        total += tf.round(rounded / exact_step)
        otherwise = tf.where(known, tf.cast(total * exact_step, tf.float32), values)
        if rounds is None:
            return otherwise
        return rounds.round_by(
            lambda output: codes(total, exact_ratio(step, kernel_scale, output)), otherwise
        )

    return IntegerSum(to_codes, from_sums, sum_step, adds_bias=True)
