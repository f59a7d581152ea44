"""The integers by which LiteRT's own kernels compute on 16-bit activations.

These kernels run outside XNNPACK. A convolution multiplies its 64-bit sum by a number of 15 bits,
so a large code may be a step off the nearest one. Inference computes with the same integers, so
that the file gives the same codes.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# The bits of a float64 below its exponent, and what its exponent field adds.
_FRACTION_BITS, _EXPONENT_OFFSET = 52, 1022
# Bits of a multiplier, and of that of a convolution.
_MULTIPLIER_BITS, _SHORT_BITS = 31, 15
# Left shift of the operands of a sum.
_OPERAND_SHIFT = 15


def exact_ratio(input_scale: tf.Tensor, kernel_scale: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """input scale · kernel scale / output scale of float32 scales, float64 like the runtime's."""
    first, second, third = (tf.cast(s, tf.float64) for s in (input_scale, kernel_scale, scale))
    return first * second / third


def linear_of_codes(codes: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A linear function of 16-bit codes, exact although it is computed in float32.

    The codes are taken apart into 256 · high + low with halves of −128 … 127, each of which the
    function adds up exactly below 2²⁴, as it does codes of 8 bits.

    Args:
        codes: Whole numbers −32768 … 32767, float32, (batch, …).
        function: Linear, sample by sample, with whole numbers as coefficients.

    Returns:
        float64 whole numbers.
    """
    return join_halves(function(split_halves(codes)))


def split_halves(codes: tf.Tensor) -> tf.Tensor:
    """The halves of 16-bit codes along the batch, the high ones first."""
    high = tf.floor((codes + 128.0) * 2.0**-8)
    return tf.concat([high, codes - 256.0 * high], 0)


def join_halves(sums: tf.Tensor) -> tf.Tensor:
    """Sums of both halves as sums of codes, float64 whole numbers."""
    high, low = tf.split(tf.cast(tf.round(sums), tf.float64), 2, 0)
    return 256.0 * high + low


def convolution_codes(total: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """The codes of a sum of CONV_2D and DEPTHWISE_CONV_2D.

    (total · m + 2ˢ⁻¹) >> s with a multiplier m of 15 bits: halves go up.

    Args:
        total: Whole numbers, float64.
        ratio: Value of one unit of the sum in output steps, float64, broadcasts against it.

    Returns:
        Whole numbers that are not clipped, float32.
    """
    multiplier, exponent = _fixed_point(ratio)
    short = tf.minimum(_shifted_right(multiplier + 2**15, 16), 2**_SHORT_BITS - 1)
    # Both multipliers have their point at their highest bit.
    exponent += _MULTIPLIER_BITS - _SHORT_BITS
    return tf.cast(_scaled_once(tf.cast(total, tf.int64), short, exponent), tf.float32)


def dense_codes(total: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """The codes of a sum of FULLY_CONNECTED: the nearest ones, halves away from zero.

    Args and result as for `convolution_codes`.
    """
    exact = total * ratio
    return tf.cast(tf.sign(exact) * tf.floor(tf.abs(exact) + 0.5), tf.float32)


def mean_codes(total: tf.Tensor, count: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """The codes of MEAN.

    Args:
        total: Sums of codes, float64.
        count: How many codes each of them has, an integer scalar.
        ratio: Input scale / output scale, float64 scalar.

    Returns:
        Whole numbers that are not clipped, float32.
    """
    multiplier, exponent = _fixed_point(ratio)
    count = tf.cast(count, tf.int64)
    # The largest power of two that is no larger than the count.
    _, bits = _fixed_point(tf.cast(count, tf.float64))
    shift = tf.minimum(tf.minimum(bits - 1, 32), 31 + exponent)
    multiplier = tf.bitwise.left_shift(multiplier, shift) // count
    return tf.cast(_scaled(tf.cast(total, tf.int64), multiplier, exponent - shift), tf.float32)


def sum_codes(
    codes: list[tf.Tensor], scales: list[tf.Tensor], output_scale: tf.Tensor
) -> tf.Tensor:
    """The codes of ADD of two tensors: the operands are rounded once each, their sum twice.

    Args:
        codes: Both operands, whole numbers.
        scales: Their scales, positive float32 scalars.
        output_scale: That of the sum.

    Returns:
        Whole numbers that are not clipped, float32.
    """
    exact = [tf.cast(scale, tf.float64) for scale in scales]
    unit = 2.0 * tf.maximum(*exact)
    terms = [
        _scaled_once(tf.cast(code, tf.int64) * 2**_OPERAND_SHIFT, *_fixed_point(scale / unit))
        for code, scale in zip(codes, exact, strict=True)
    ]
    multiplier, exponent = _fixed_point(unit / tf.cast(output_scale, tf.float64))
    return tf.cast(_scaled(terms[0] + terms[1], multiplier, exponent - _OPERAND_SHIFT), tf.float32)


def _fixed_point(ratio: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A positive float64 as multiplier · 2^(exponent − 31), the multiplier of 31 bits; int64 both.

    Taken from the bits of the float64: a logarithm may be off by one at a power of two.
    """
    bits = tf.bitcast(ratio, tf.int64)
    exponent = _shifted_right(bits, _FRACTION_BITS) - _EXPONENT_OFFSET
    fraction = tf.bitwise.bitwise_and(bits, tf.constant(2**_FRACTION_BITS - 1, tf.int64))
    dropped = _FRACTION_BITS + 1 - _MULTIPLIER_BITS
    multiplier = _shifted_right(fraction + 2**_FRACTION_BITS + 2 ** (dropped - 1), dropped)
    overflows = multiplier == 2**_MULTIPLIER_BITS
    return (
        tf.where(overflows, multiplier // 2, multiplier),
        tf.where(overflows, exponent + 1, exponent),
    )


def _scaled_once(x: tf.Tensor, multiplier: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """x · multiplier · 2^(exponent − 31), rounded once, halves up."""
    shift = tf.clip_by_value(_MULTIPLIER_BITS - exponent, 1, 62)
    half = tf.bitwise.left_shift(tf.ones_like(shift), shift - 1)
    return tf.bitwise.right_shift(x * multiplier + half, shift)


def _scaled(x: tf.Tensor, multiplier: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """x · multiplier · 2^(exponent − 31) for x of 32 bits, rounded twice.

    First by 2³¹, where halves go up, then by the rest, where they go away from zero.
    """
    left = tf.clip_by_value(exponent, 0, 31)
    right = tf.clip_by_value(-exponent, 0, 31)
    product = tf.bitwise.left_shift(x, left) * multiplier
    high = _shifted_right(product + 2 ** (_MULTIPLIER_BITS - 1), _MULTIPLIER_BITS)
    half = _shifted_right(tf.bitwise.left_shift(tf.ones_like(right), right), 1)
    return tf.sign(high) * tf.bitwise.right_shift(tf.abs(high) + half, right)


def _shifted_right(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.int64))
