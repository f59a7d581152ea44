"""Pointwise convolutions as dense layers, whose kernels of few bits LiteRT runs packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.model.kernels import has_bias

_CLASSES = (layers.Conv1D, layers.Conv2D)
#: Kernels of more bits are stored in int8 either way.
_MOST_BITS = 4


def packs_as_dense(layer: Any, kernel: BakedKernel) -> bool:
    """Whether a FULLY_CONNECTED computes a convolution and stores its kernel in less than 8 bits.

    That is one of 1×1 without strides and groups, of 4 bits or fewer. Rows must be whole bytes:
    4-bit kernels need an even number of input channels.
    """
    return (
        isinstance(layer, _CLASSES)
        and kernel.num_bits <= _MOST_BITS
        and all(size == 1 for size in (*layer.kernel_size, *layer.strides, layer.groups))
        and layer.data_format == "channels_last"
        and kernel.codes.shape[-2] % 2 == 0
    )


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
