"""Convolutions as dense layers over patches, whose kernels of few bits XNNPACK runs packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.model.kernels import has_bias
from tfcompress.quantization.placement.stored import MOST_JOINED


def as_dense(layer: Any, x: tf.Tensor, kernel: np.ndarray, bias: np.ndarray | None) -> tf.Tensor:
    """A convolution as a product with a matrix, bias and activation of the layer behind.

    Slices and concatenations copy the codes of each output's patch next to each other. All of it
    runs in XNNPACK, and gives the codes of the convolution.

    Args:
        layer: The convolution: of one or two axes, channels last, without groups.
        x: Its input.
        kernel: (…, channels, filters).
        bias: (filters,), or `None`.
    """
    y = ops.matmul(_patches(layer, x), tf.constant(kernel.reshape(-1, kernel.shape[-1])))
    if bias is None:
        return layer.activation(y)
    if has_bias(layer):
        return layer.activation(y + tf.constant(bias))
    # The bias of a batch norm that is folded in, which stands behind the layer.
    return layer.activation(y) + tf.constant(bias)


def _patches(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """What each output reads, in the order of a kernel of shape (…, channels, filters).

    The axes are gathered one after the other, the last one first: a patch of 3×3 takes 3 + 3
    slices, not 9.
    """
    sizes = zip(layer.kernel_size, layer.strides, layer.dilation_rate, x.shape[1:-1], strict=True)
    axes = [_Axis(*size, layer.padding) for size in sizes]
    pads = [[0, 0], *([axis.before, axis.after] for axis in axes), [0, 0]]
    if np.any(pads):
        x = tf.pad(x, pads)
    for number in reversed(range(len(axes))):
        x = _gathered(x, number + 1, axes[number])
    return x


class _Axis:
    """How one axis of an input is read: its padding, and blocks of as many rows as the stride.

    Attributes:
        size, stride, dilation: Of the convolution.
        outputs: Rows of the output.
        blocks: Blocks of `stride` rows that are read.
        before, after: Rows of padding.
    """

    def __init__(self, size: int, stride: int, dilation: int, rows: int, padding: str):
        self.size, self.stride, self.dilation = size, stride, dilation
        reach = (size - 1) * dilation + 1
        self.before, total = 0, 0
        if padding == "same":
            self.outputs = -(-rows // stride)
            total = max((self.outputs - 1) * stride + reach - rows, 0)
            self.before = total // 2
        elif padding == "causal":
            self.outputs = -(-rows // stride)
            self.before = reach - 1
        else:
            self.outputs = (rows - reach) // stride + 1
        self.blocks = self.outputs + (reach - 1) // stride
        self.after = max(self.blocks * stride - rows - self.before, 0)


def _gathered(x: tf.Tensor, number: int, axis: _Axis) -> tf.Tensor:
    """The rows that each output reads along an axis, next to each other in the channels."""
    shape = x.shape.as_list()
    inner, channels = shape[number + 1 : -1], shape[-1]
    rows = axis.blocks * axis.stride
    if rows < shape[number]:
        x = x[(*[slice(None)] * number, slice(rows))]
    row_size = int(np.prod(inner, dtype=int)) * channels
    if axis.stride > 1:
        # A block of rows becomes one row, in which they are side by side.
        x = tf.reshape(x, [-1, *shape[1:number], axis.blocks, axis.stride * row_size])
    parts = []
    for tap in range(axis.size):
        block, row = divmod(tap * axis.dilation, axis.stride)
        # XNNPACK runs STRIDED_SLICE of any batch, and no SLICE of one that may be resized.
        found = [*[slice(None)] * number, slice(block, block + axis.outputs)]
        if axis.stride > 1:
            part = x[(*found, slice(row * row_size, (row + 1) * row_size))]
            part = tf.reshape(part, [-1, *shape[1:number], axis.outputs, *inner, channels])
        else:
            part = x[tuple(found)] if axis.outputs < axis.blocks else x
        parts.append(part)
    while len(parts) > 1:
        parts = [
            tf.concat(parts[i : i + MOST_JOINED], -1) for i in range(0, len(parts), MOST_JOINED)
        ]
    return parts[0]
