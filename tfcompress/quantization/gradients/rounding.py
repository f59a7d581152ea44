"""The maths of gradient quantization, as pure functions on TensorFlow tensors."""

from __future__ import annotations

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of a gradient: what its codes are, and what a code stands for.

    Attributes:
        method: `"uniform"` or `"qsgd"` (2·L + 1 levels, L = 2ᵇ⁻¹ − 1), or `"dorefa"` (2ᵇ levels).
        num_bits: b, at least 2 (1 for `"dorefa"`).
    """

    method: str
    num_bits: int

    def size(self, gradient: tf.Tensor, axes: list[int] | None = None) -> tf.Tensor:
        """The value of the largest level: ‖g‖₂ for `"qsgd"`, else max|g|; keeps the axes.

        Args:
            gradient: float32 of any shape.
            axes: Axes that share a size; `None` for all.
        """
        if self.method == "qsgd":
            return tf.sqrt(tf.reduce_sum(tf.square(gradient), axes, keepdims=True))
        return tf.reduce_max(tf.abs(gradient), axes, keepdims=True)

    def encode(self, gradient: tf.Tensor, size: tf.Tensor, noise: tf.Tensor | None) -> tf.Tensor:
        """Codes: whole numbers from 0 to 2ᵇ − 1, as float32; NaN where the gradient is not finite.

        Args:
            gradient: float32 of any shape.
            size: Of `size`.
            noise: Of the gradient's shape, in [0, 1); `None` rounds to nearest.
        """
        if self.method == "dorefa":
            return _dorefa_codes(gradient, size, self.num_bits, noise)
        return _uniform_codes(gradient, size, self._levels, noise) + self._levels

    def decode(self, codes: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """The values of codes, float32; NaN wherever `size` is not finite."""
        if self.method == "dorefa":
            return _dorefa_values(codes, size, self.num_bits)
        return (codes - self._levels) * (size / self._levels)

    @property
    def _levels(self) -> int:
        return 2 ** (self.num_bits - 1) - 1


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
    return _uniform_codes(gradient, size, levels, noise) * (size / levels)


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
    return _dorefa_values(_dorefa_codes(gradient, size, num_bits, noise), size, num_bits)


def _uniform_codes(
    gradient: tf.Tensor, size: tf.Tensor, levels: int, noise: tf.Tensor | None
) -> tf.Tensor:
    codes = tf.clip_by_value(tf.math.divide_no_nan(gradient, size / levels), -levels, levels)
    if noise is None:
        return tf.round(codes)
    # The sum of two floats may round up to one whole number too many.
    return tf.minimum(tf.floor(codes + noise), tf.math.ceil(codes))


def _dorefa_codes(
    gradient: tf.Tensor, size: tf.Tensor, num_bits: int, noise: tf.Tensor | None
) -> tf.Tensor:
    steps = 2.0**num_bits - 1
    unit = tf.math.divide_no_nan(gradient, 2 * size) + 0.5
    codes = unit * steps if noise is None else unit * steps + noise - 0.5
    return tf.clip_by_value(tf.round(codes), 0.0, steps)


def _dorefa_values(codes: tf.Tensor, size: tf.Tensor, num_bits: int) -> tf.Tensor:
    return 2 * size * (codes / (2.0**num_bits - 1) - 0.5)
