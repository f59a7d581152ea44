"""The maths of gradient quantization, as pure functions on TensorFlow tensors."""

from __future__ import annotations

import tensorflow as tf


def uniform(
    gradient: tf.Tensor, size: tf.Tensor, levels: int, noise: tf.Tensor | None
) -> tf.Tensor:
    """The gradient on the grid of 2 · `levels` + 1 multiples of `size` / `levels`, 0 among them.

    With noise u from [0, 1) it is ⌊x + u⌋, whose mean is x wherever |gradient| ≤ `size`: stochastic
    rounding. With `size` the Euclidean norm this is QSGD (Alistarh et al. 2017, eq. 4).

    Args:
        gradient: float32 of any shape.
        size: The value of the largest level, ≥ 0; broadcasts against the gradient.
        levels: Levels above 0, at least 1.
        noise: Of the gradient's shape, in [0, 1); `None` rounds to nearest.
    """
    step = size / levels
    codes = tf.clip_by_value(tf.math.divide_no_nan(gradient, step), -levels, levels)
    if noise is None:
        return tf.round(codes) * step
    # The sum of two floats may round up to one whole number too many.
    return tf.minimum(tf.floor(codes + noise), tf.math.ceil(codes)) * step


def dorefa(
    gradient: tf.Tensor, size: tf.Tensor, num_bits: int, noise: tf.Tensor | None
) -> tf.Tensor:
    """2m · (round(n · (g / 2m + ½) + u) / n − ½) with n = 2ᵏ − 1 and noise u from −½ … ½.

    Zhou et al. 2016, "DoReFa-Net", eq. 12; k bits, m = `size`. The grid has no 0.

    Args:
        gradient: float32 of any shape.
        size: The largest |gradient|, ≥ 0; broadcasts against the gradient.
        num_bits: k, at least 1.
        noise: Of the gradient's shape, in [0, 1); `None` rounds to nearest.
    """
    steps = 2.0**num_bits - 1
    unit = tf.math.divide_no_nan(gradient, 2 * size) + 0.5
    codes = unit * steps if noise is None else unit * steps + noise - 0.5
    return 2 * size * (tf.clip_by_value(tf.round(codes), 0.0, steps) / steps - 0.5)
