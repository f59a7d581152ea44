"""The description of a call that a lowering form receives, and forms that several families share.

A form is the TensorFlow ops of an operation that runs badly on LiteRT as Keras writes it. Each
keeps the function and the points of rounding, leaves no float tensor and is taken whole by
XNNPACK. All tensors are channels-last float32 with batch 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class LoweredCall:
    """One call that is being lowered.

    Attributes:
        operation: The layer or `keras.ops` operation.
        call_index: Which call of a shared layer.
        reads_codes: Whether its first input holds the codes of a quantizer.
        output_ranges: Ranges of the quantizers that read its output; `None` where something else
            reads it.
        constants: What the entry's `constants` gave.
        round_as_input: Rounds a tensor to the codes of the first input.
    """

    operation: Any
    call_index: int
    reads_codes: bool
    output_ranges: tuple[tuple[float, float], ...] | None
    constants: tuple[np.ndarray, ...]
    round_as_input: Callable[[tf.Tensor], tf.Tensor]


def channel_affine(
    x: tf.Tensor,
    factor: np.ndarray | np.floating,
    offset: np.ndarray | None,
    relu: str | None = None,
) -> tf.Tensor:
    """x · factor + offset per channel as a 1×1 depthwise convolution with bias.

    Args:
        x: Of rank 2 to 4, (1, …, channels).
        factor: One number or (channels,).
        offset: Likewise, or `None` for no bias.
        relu: `None`, `"relu"` or `"relu6"`, fused into the convolution.
    """
    channels = x.shape[-1]
    shape = x.shape
    y = tf.reshape(x, _image_shape(shape)) if shape.rank != 4 else x
    kernel = np.broadcast_to(np.float32(factor), (channels,)).reshape(1, 1, channels, 1)
    y = tf.nn.depthwise_conv2d(y, tf.constant(kernel), [1, 1, 1, 1], "VALID")
    if offset is not None:
        y = tf.nn.bias_add(y, tf.constant(np.broadcast_to(np.float32(offset), (channels,))))
    if relu is not None:
        y = {"relu": tf.nn.relu, "relu6": tf.nn.relu6}[relu](y)
    return tf.reshape(y, shape) if shape.rank != 4 else y


def multiply_constant(x: tf.Tensor, values: np.ndarray) -> tf.Tensor:
    """x · values, where the values are on an int8 grid of one scale that reaches to 127."""
    return x * tf.constant(values)


def _image_shape(shape: tf.TensorShape) -> list[int]:
    """(1, …, channels) as (1, height, width, channels)."""
    inner = [int(n) for n in shape[1:-1]]
    return [int(shape[0]), 1, int(np.prod(inner, dtype=int)), int(shape[-1])]


def transposed(x: tf.Tensor, letters: str, wanted: str) -> tf.Tensor:
    """`x`, whose axes have `letters`, with its axes in the order `wanted`."""
    if letters == wanted:
        return x
    return tf.transpose(x, [letters.index(c) for c in wanted])
