"""The integers by which XNNPACK adds two tensors, and the codes of a constant operand."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

#: The finest operand of a sum, in output steps: XNNPACK adds ratios of scales from 2⁻¹⁰ on.
OPERAND_STEP = 2.0**-9

# Bits of the larger multiplier of a sum.
_MULTIPLIER_BITS = 20
# Steps between the code of a number and that of zero, and of the largest of several numbers. A sum
# of 3 and a ReLU6 whose range is 6 meets a half at 0, which 255 steps hit exactly.
_NUMBER_STEPS, _ARRAY_STEPS = np.float32(255), np.float32(127)
# By how much the scale of a factor is enlarged.
_ENLARGED = np.float32(1 + 2.0**-21)


def addend_scale(values: np.ndarray | float) -> np.float32:
    """The scale of a constant that is added or subtracted, at least; 0 for zeros."""
    largest = np.float32(np.abs(values).max())
    return largest / (_NUMBER_STEPS if is_number(values) else _ARRAY_STEPS)


def factor_scale(values: np.ndarray | float) -> np.float32:
    """The scale of a constant that is multiplied with; 1 for zeros.

    It is larger than the one at which the largest value has the last code, by some 2⁻²¹. So a
    product that would lie exactly between two codes lies beyond, on every platform: x86 rounds
    halves to even, ARM rounds them up.
    """
    scale = addend_scale(values) * _ENLARGED
    return scale if scale > 0 else np.float32(1)


def is_number(values: np.ndarray | float) -> bool:
    """Whether all values are the same: as a number, they are 255 steps from their zero point."""
    return bool(np.all(np.asarray(values) == np.ravel(values)[0]))


def sum_with_constant(
    codes: tf.Tensor, scale: tf.Tensor, values: tf.Tensor | float, step: tf.Tensor
) -> tf.Tensor:
    """The code of codes · scale + values at `step`, with the constant's codes in the file.

    The constant's scale follows from its largest value, and is at least 2⁻⁹ output steps: XNNPACK
    does not add finer operands, and LiteRT's own operator rounds differently.

    Args:
        codes: Whole numbers, float32.
        scale: Their scale, positive.
        values: One number, or a tensor that broadcasts to that of the codes.
        step: Scale of the result.
    """
    values = tf.convert_to_tensor(values, tf.float32)
    flat = tf.reshape(values, [-1])
    steps = tf.where(tf.reduce_all(flat == flat[0]), _NUMBER_STEPS, _ARRAY_STEPS)
    own = tf.maximum(tf.reduce_max(tf.abs(flat)) / steps, step * np.float32(OPERAND_STEP))
    return runtime_sum([codes, tf.round(values / own)], [scale, own], step)


def runtime_sum(codes: list[tf.Tensor], scales: list[tf.Tensor], scale: tf.Tensor) -> tf.Tensor:
    """The code of Σ codesᵢ · scalesᵢ at `scale`, with the integers of XNNPACK's int8 addition.

    Each ratio rᵢ = scalesᵢ / scale becomes a whole number mᵢ = round(rᵢ · 2ˢ), where s leaves the
    larger one 21 bits; the result is (Σ mᵢ · codesᵢ + 2ˢ⁻¹) >> s: halves go up.

    Args:
        codes: Two tensors of whole numbers of at most 255, less their zero points, float32.
        scales: Their scales, positive scalars, float32.
        scale: That of the result. XNNPACK adds ratios from 2⁻¹⁰ to 2⁸.

    Returns:
        float32 whole numbers, neither offset by a zero point nor clipped.
    """
    ratios = tf.stack(scales) / scale
    exponent = tf.bitwise.right_shift(tf.bitcast(tf.reduce_max(ratios), tf.int32), 23) - 127
    shift = tf.clip_by_value(_MULTIPLIER_BITS - exponent, 1, 30)
    # 2ˢ from its bits: a power computed in float may miss it.
    power = tf.bitcast(tf.bitwise.left_shift(shift + 127, 23), tf.float32)
    multipliers = tf.cast(tf.round(ratios * power), tf.int32)
    left, right = (tf.cast(code, tf.int32) for code in codes)
    total = left * multipliers[0] + right * multipliers[1] + tf.bitwise.left_shift(1, shift - 1)
    return tf.cast(tf.bitwise.right_shift(total, shift), tf.float32)
