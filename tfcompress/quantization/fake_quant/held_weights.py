"""Weights that are held at a code while others train."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

#: What stands for a weight that is not held at a code. No kernel in a file has this one.
FREE = -128


@dataclasses.dataclass(frozen=True)
class HeldWeights:
    """Variables that say which weights of a kernel are held at a code.

    Attributes:
        codes: The code of each weight, `FREE` where it trains; int8 of the kernel's shape.
        rounds_free: 0 while, in training, weights that are not held pass unrounded.
    """

    codes: keras.Variable
    rounds_free: keras.Variable


def add_held(layer: keras.layers.Layer, shape: tuple[int, ...]) -> HeldWeights:
    """Adds the variables to what rounds a kernel of this shape. No weight is held yet."""
    codes = layer.add_weight(
        name="held",
        shape=shape,
        dtype="int8",
        initializer=keras.initializers.Constant(FREE),
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
    )
    rounds_free = layer.add_weight(
        name="rounds_free",
        shape=(),
        initializer="ones",
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
    )
    return HeldWeights(codes, rounds_free)


def with_held(
    held: HeldWeights, value: tf.Tensor, rounded: tf.Tensor, scale: tf.Tensor, training: bool
) -> tf.Tensor:
    """`rounded` with held weights at their codes; their gradient is 0."""
    codes = tf.cast(held.codes.value, tf.float32)
    # A weight that is pruned later is free again.
    is_held = (codes != FREE) & (value != 0)
    if training:
        rounded = tf.where(held.rounds_free.value >= 0.5, rounded, value)
    return tf.where(is_held, codes * scale, rounded)
