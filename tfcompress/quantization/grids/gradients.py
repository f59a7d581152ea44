"""Operations whose gradient is not that of their value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def scale_gradient(x: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """`x`; its gradient is multiplied by `factor` (Esser et al. 2020, appendix A).

    Args:
        x: float32 of any shape.
        factor: Scalar.
    """

    @tf.custom_gradient
    def scaled(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(x), lambda upstream: upstream * factor

    return scaled(x)


def at_least(x: tf.Tensor, least: float) -> tf.Tensor:
    """max(x, least); the gradient is 1 below `least` too, so that a trained `x` comes back."""

    @tf.custom_gradient
    def bounded(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.maximum(x, least), lambda upstream: upstream

    return bounded(x)


def with_gradient_of(value: tf.Tensor, surrogate: tf.Tensor) -> tf.Tensor:
    """`value`, to the bit; the gradient is that of `surrogate`, of the same shape."""

    @tf.custom_gradient
    def replaced(value: tf.Tensor, surrogate: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(value), lambda upstream: (tf.zeros_like(upstream), upstream)

    return replaced(tf.stop_gradient(value), surrogate)


def nearest_through(x: tf.Tensor, levels: np.ndarray, boundaries: np.ndarray) -> tf.Tensor:
    """The level of the interval that `x` lies in; the gradient goes straight through.

    Args:
        x: float32 of any shape.
        levels: Ascending, of shape (n,).
        boundaries: Ascending, of shape (n − 1,): a value from boundary i on is above level i.
    """
    flat = tf.reshape(tf.stop_gradient(x), [-1])
    index = tf.searchsorted(tf.constant(boundaries, tf.float32), flat, side="right")
    found = tf.gather(tf.constant(levels, tf.float32), index)
    return with_gradient_of(tf.reshape(found, tf.shape(x)), x)
