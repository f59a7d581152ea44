"""QUANTIZE from codes to codes of another scale, as XNNPACK computes it.

A join rounds those of its inputs that have a range of their own, such as a softmax, to its scale.
"""

from __future__ import annotations

import tensorflow as tf

from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer

# XNNPACK multiplies by the ratio of the scales in units of 1/256, and takes these ratios.
_UNIT = 256.0
_LEAST_RATIO, _LARGEST_RATIO = 2.0**-8, 2.0**7


def requantized(x: tf.Tensor, given: TensorQuantizer, result: TensorQuantizer) -> tf.Tensor:
    """Codes of one quantizer on the grid of another, as the runtime rounds them, not yet clipped.

    The gradient is that of the identity, for layers that are frozen in training.

    Args:
        x: A tensor that `given` has rounded, float32.
        given: Its quantizer.
        result: The quantizer whose codes it gets.
    """
    scale = given.active_scale()
    known = scale > 0
    safe = tf.where(known, scale, 1.0)
    exact = result.round_by(lambda new: requantized_steps(x, safe, new), x)
    return x + tf.stop_gradient(tf.where(known, exact, x) - x)


def requantized_steps(x: tf.Tensor, given_scale: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Steps of the new scale for values on the grid of the given one.

    `⌊(d · m + 128) / 256⌋` with `d` steps of the given scale and the multiplier
    `m = round(256 · given scale / scale)`. So a ratio has 8 bits after the point, and a code may be
    a step off the nearest one. Other ratios than XNNPACK takes are rounded to the nearest step.

    Args:
        x: Whole multiples of `given_scale`, float32 of any shape.
        given_scale: Their scale, above 0.
        scale: The new scale, above 0.

    Returns:
        Distances from the zero point, whole numbers that are not yet clipped, like `x`.
    """
    ratio = given_scale / scale
    multiplier = tf.round(_UNIT * ratio)
    total = tf.round(x / given_scale) * multiplier
    steps = tf.floor((total + _UNIT / 2) / _UNIT)
    is_taken = (ratio >= _LEAST_RATIO) & (ratio <= _LARGEST_RATIO)
    return tf.where(is_taken, steps, tf.round(x / scale))
