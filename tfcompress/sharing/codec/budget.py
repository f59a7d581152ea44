"""A limit to the weights that a foreign configuration may make."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf


class Budget:
    """Counts the weights of TensorFlow variables before memory is taken for them.

    Args:
        max_weights: How many there may be; `None`: any number.
    """

    def __init__(self, max_weights: int | None):
        self.max_weights = max_weights
        self.used = 0

    def create(self, next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        """For `tf.variable_creator_scope`."""
        if self.max_weights is not None:
            self.used += _size(kwargs["initial_value"])
            self.check()
        return next_creator(**kwargs)

    def check(self) -> None:
        """Raises `ValueError` where there were more weights than there may be."""
        if self.max_weights is not None and self.used > self.max_weights:
            raise ValueError(
                f"Expected a model of at most {self.max_weights:,} weights. Received: one of "
                f"{self.used:,} at least, which few files of its size hold. If you know where it "
                "is from, call unpack with a higher max_weights."
            )


def _size(initial_value: Any) -> int:
    # In a graph that is never run a value has a shape and takes no memory.
    with tf.Graph().as_default():
        value = initial_value() if callable(initial_value) else initial_value
        return math.prod(value.shape)
