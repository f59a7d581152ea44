"""Quantization of the gradient that flows back through a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.configurable import Configurable
from tfcompress.quantization.gradients.rounding import dorefa


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class GradientScheme(Configurable):
    """How the gradient of a layer's output is quantized in the backward pass.

    DoReFa-Net's form (Zhou et al. 2016, eq. 12), with a scale of its own for every sample. It
    makes training no faster here: it is for studies of training in low precision.

    Attributes:
        num_bits: 1 to 16.
        rounding: `"stochastic"`, as in the paper, or `"nearest"`, which its authors found to fail
            with few bits.
    """

    num_bits: int = 8
    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        if not isinstance(self.num_bits, int) or not 1 <= self.num_bits <= 16:
            raise ValueError(f"Expected `num_bits` from 1 to 16. Received: {self.num_bits!r}.")
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(
                f"Expected `rounding` to be 'stochastic' or 'nearest'. Received: {self.rounding!r}."
            )


def gradient_scheme(given: GradientScheme | dict[str, Any] | None) -> GradientScheme | None:
    """The scheme of a configuration; a scheme and `None` pass through."""
    return keras.saving.deserialize_keras_object(given) if isinstance(given, dict) else given


def with_quantized_gradient(x: tf.Tensor, scheme: GradientScheme) -> tf.Tensor:
    """`x`, with its gradient quantized: float32 of shape (samples, …)."""

    @tf.custom_gradient
    def passed(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            size = tf.reduce_max(tf.abs(upstream), range(1, x.shape.rank), keepdims=True)
            is_random = scheme.rounding == "stochastic"
            noise = tf.random.uniform(tf.shape(upstream)) if is_random else None
            rounded = dorefa(upstream, size, scheme.num_bits, noise)
            # A sample without a gradient keeps none: the grid has no 0.
            return tf.where(size > 0, rounded, upstream)

        return tf.identity(x), gradient

    return passed(x)
