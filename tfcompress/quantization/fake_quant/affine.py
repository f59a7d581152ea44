"""The maths of uniform quantization, as pure functions on TensorFlow tensors.

A code q stands for the real value scale · (q − zero_point). Codes are signed, as LiteRT's int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

#: Smallest scale. Anything that small is below float32 noise beside values of ordinary size.
MIN_SCALE = 1e-9

#: Scale of a tensor that holds nothing but zeros, where any scale is exact. LiteRT refuses ratios
#: of scales that are far from 1 (sums take 2⁻¹⁰ to 2⁸, kernels less than 2⁸), and this one lies in
#: the middle of the scales that ordinary networks have.
ZERO_TENSOR_SCALE = 2.0**-6

#: Largest int32 code of a bias that leaves as much again to the products.
LARGEST_BIAS = 2.0**30

#: Likewise of an int64 bias, which the 64-bit sums of 16-bit codes get: they are multiplied below
#: 2⁴⁷.
LARGEST_INT64_BIAS = 2.0**44


def code_range(num_bits: int, narrow_range: bool = False) -> tuple[int, int]:
    """Smallest and largest code: (−128, 127) for 8 bits, (−127, 127) in the narrow range."""
    low = -(2 ** (num_bits - 1))
    return (low + 1 if narrow_range else low), 2 ** (num_bits - 1) - 1


def affine_parameters(
    low: tf.Tensor,
    high: tf.Tensor,
    *,
    num_bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = False,
    power_of_two: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and zero point of a range, chosen so that real 0 has an exact code.

    scale = (high − low) / (qmax − qmin) and zero_point = round(qmin − low / scale) after widening
    the range to hold 0; symmetric: scale = max(|low|, |high|) / qmax and zero_point = 0
    (Jacob et al. 2018, eq. 1). Rounding the zero point moves the grid by up to half a step; the
    scale then grows until the codes on either side of 0 reach their end. So pixels in −1…1 get
    codes on both sides of 0 alike, instead of all ending half way between two codes, where float
    rounding decides. With fewer than 8 bits that would cost more resolution than the half step of
    clipping that it saves, so there the scale stays. A power-of-two scale is rounded up. A range
    that is 0, or narrower than `MIN_SCALE` can resolve, gets `ZERO_TENSOR_SCALE`.

    Args:
        low: Smallest value(s) to represent, any shape.
        high: Largest value(s), same shape.
        num_bits: 2 to 8, or 16.
        symmetric: Zero point 0.
        narrow_range: Without the lowest code.
        power_of_two: Round the scale up to a power of two.

    Returns:
        `(scale, zero_point)`, float32 of the shape of `low`; the zero point is a whole number.
    """
    qmin, qmax = code_range(num_bits, narrow_range)
    # One node each: this is in the graph once for every tensor.
    zero, lowest, highest = (tf.constant(n, tf.float32) for n in (0.0, qmin, qmax))
    low, high = tf.minimum(low, zero), tf.maximum(high, zero)
    if symmetric:
        scale = over(tf.maximum(-low, high), qmax)
    else:
        scale = over(high - low, qmax - qmin)
    is_zero = scale < MIN_SCALE
    scale = tf.where(is_zero, ZERO_TENSOR_SCALE, scale)
    if power_of_two:
        # The small constant keeps an exact power of two where rounding in log2 would double it.
        scale = tf.pow(2.0, tf.math.ceil(tf.math.log(scale) / np.float32(np.log(2.0)) - 1e-5))
    if symmetric:
        return scale, tf.zeros_like(scale)
    zero_point = tf.clip_by_value(tf.round(lowest - low / scale), lowest, highest)
    if num_bits == 8 and not power_of_two:
        below = tf.math.divide_no_nan(low, lowest - zero_point)
        above = tf.math.divide_no_nan(high, highest - zero_point)
        scale = tf.where(is_zero, scale, tf.maximum(below, above))
    return scale, zero_point


def range_parameters(scheme: Any, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`affine_parameters` of a `WeightScheme` or an `ActivationScheme`."""
    return affine_parameters(
        low,
        high,
        num_bits=scheme.num_bits,
        symmetric=scheme.symmetric,
        narrow_range=scheme.narrow_range,
        power_of_two=scheme.power_of_two,
    )


def over(x: tf.Tensor, number: float) -> tf.Tensor:
    """x / number, by the reciprocal.

    TensorFlow's graph optimizer makes it so of any division by a constant, and the last bit must be
    the same in a graph, eagerly and in the file.
    """
    return x * np.float32(1 / number)


def round_through(
    x: tf.Tensor, rounding: str = "nearest", training: bool | None = None
) -> tf.Tensor:
    """Rounds to whole numbers; the gradient goes straight through (Bengio et al. 2013).

    `"stochastic"` rounds up with the probability of the fraction in training, else to nearest.
    """
    if rounding == "truncate":
        # A whole number that the division before left a little too small is that number.
        rounded = tf.floor(x + 1e-4)
    elif rounding == "stochastic" and training:
        # The sum of two floats may round up to one whole number too many.
        rounded = tf.minimum(tf.floor(x + tf.random.uniform(tf.shape(x))), tf.math.ceil(x))
    else:
        rounded = tf.round(x)
    return x + tf.stop_gradient(rounded - x)


def fake_quantize(
    x: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor | float = 0.0,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
    rounding: str = "nearest",
    training: bool | None = None,
) -> tf.Tensor:
    """Rounds `x` to its codes and back: scale · (clip(round(x / scale) + zero_point) − zero_point).

    Gradient: 1 inside the representable range, 0 where `x` is clipped.

    Args:
        x: float32 of any shape.
        scale: float32, broadcasts against `x`.
        zero_point: Whole number(s), broadcasts against `x`.
        num_bits: 2 to 8, or 16.
        narrow_range: Without the lowest code.
        rounding: `"nearest"`, `"truncate"` or `"stochastic"`.
        training: Whether stochastic rounding is on.
    """
    codes = code_range(num_bits, narrow_range)
    return scale_and_round(
        x, scale, zero_point, codes, lambda y: round_through(y, rounding, training)
    )


def scale_and_round(
    x: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor | float,
    codes: tuple[int, int],
    rounded: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """`fake_quantize` with smallest and largest code and a rounding of one's own.

    It is differentiable in `x` and in `scale`: with a straight-through rounding the gradient to the
    scale is that of learned step sizes (Esser et al. 2020, eq. 3).
    """
    qmin, qmax = codes
    # Clipping comes first: clip's gradient is what stops it, and rounding is monotone.
    clipped = tf.clip_by_value(x / scale, qmin - zero_point, qmax - zero_point)
    return rounded(clipped) * scale


def bounds(
    scale: tf.Tensor, zero_point: tf.Tensor, *, num_bits: int = 8, narrow_range: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """The real values of the smallest and the largest code."""
    qmin, qmax = code_range(num_bits, narrow_range)
    return (qmin - zero_point) * scale, (qmax - zero_point) * scale


def fake_quantize_tensor(
    x: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    *,
    num_bits: int = 8,
    narrow_range: bool = False,
) -> tf.Tensor:
    """`fake_quantize` with one scalar scale, as TensorFlow's fused op: one pass over `x`.

    The op is handed the `bounds` of its codes, which it therefore does not nudge any further.
    """
    return tf.quantization.fake_quant_with_min_max_vars(
        x, low, high, num_bits=num_bits, narrow_range=narrow_range
    )


def coarser_scale(
    bias: tf.Tensor, input_scale: tf.Tensor, scale: tf.Tensor, largest: float = LARGEST_BIAS
) -> tf.Tensor:
    """`scale` of a kernel's channel, or one by which its bias fits the sum.

    Args:
        bias: Its magnitude.
        input_scale: Scale of what the kernel multiplies; where it is 0 (no range is known yet)
            `scale` stays.
        scale: Of the kernel, positive, broadcasts against `bias`.
        largest: Largest code of a bias.
    """
    overflows = (input_scale > 0) & (bias > largest * input_scale * scale)
    # Half of what fits, so that the last bit of the division does not matter.
    enough = tf.math.divide_no_nan(bias, input_scale) * np.float32(2 / largest)
    return tf.where(overflows, enough, scale)


def round_to_grid(x: tf.Tensor, step: tf.Tensor, largest: float = LARGEST_BIAS) -> tf.Tensor:
    """Rounds `x` to the nearest multiple of `step` within int32, as LiteRT stores a bias.

    Where `step` is 0 (no range is known yet) `x` passes unchanged. A larger `largest` is that of
    int64.
    """
    safe = tf.where(step > 0, step, 1.0)
    end = max(2.0**31, largest)
    codes = tf.clip_by_value(tf.round(x / safe), -end, end - 128)
    return tf.where(step > 0, codes * safe, x)
