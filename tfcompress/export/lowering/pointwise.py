"""Pointwise convolutions as dense layers, whose kernels of few bits LiteRT runs packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.model.kernels import has_bias


def as_dense(layer: Any, x: tf.Tensor, kernel: np.ndarray, bias: np.ndarray | None) -> tf.Tensor:
    """A pointwise convolution as a product with a matrix, bias and activation of the layer behind.

    Args:
        layer: The convolution.
        x: Its input, channels last.
        kernel: (1, …, channels, filters).
        bias: (filters,), or `None`.
    """
    y = ops.matmul(x, tf.constant(kernel.reshape(kernel.shape[-2:])))
    if bias is None:
        return layer.activation(y)
    if has_bias(layer):
        return layer.activation(y + tf.constant(bias))
    # The bias of a batch norm that is folded in, which stands behind the layer.
    return layer.activation(y) + tf.constant(bias)
