"""The TensorFlow form of operations that run badly on LiteRT as Keras writes them.

Each keeps the function and the points of rounding, leaves no float tensor and is taken whole by
XNNPACK. All tensors are channels-last float32 with batch 1.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def channel_affine(x: tf.Tensor, factor: np.ndarray, offset: np.ndarray | None, relu=None):
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


def identity_relu(x: tf.Tensor, relu: str):
    """A ReLU that no other operator precedes: fused into an identity 1×1 depthwise convolution."""
    return channel_affine(x, np.float32(1.0), None, relu)


def average_pool(x: tf.Tensor, pool: tuple[int, int], strides: tuple[int, int], padding: str):
    """Average pooling as a constant depthwise convolution; padding counts as zeros."""
    channels = x.shape[-1]
    kernel = np.full((*pool, channels, 1), 1.0 / (pool[0] * pool[1]), np.float32)
    return tf.nn.depthwise_conv2d(x, tf.constant(kernel), [1, *strides, 1], padding.upper())


def multiply_constant(x: tf.Tensor, values: np.ndarray):
    """x · values, where the values are on an int8 grid of one scale that reaches to 127."""
    # The fake-quant tells the converter that scale.
    bound = float(np.abs(values).max())
    return x * tf.quantization.fake_quant_with_min_max_args(
        tf.constant(values), -bound, bound, num_bits=8, narrow_range=True
    )


def subsample(x: tf.Tensor, strides: tuple[int, int]):
    """MaxPooling2D(1, strides) as an identity 1×1 depthwise convolution with strides.

    The kernel only has strides that are equal; XNNPACK has no pooling window of one cell.
    """
    kernel = tf.constant(np.ones((1, 1, x.shape[-1], 1), np.float32))
    return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], "VALID")


def repeat_pixels(x: tf.Tensor, size: int):
    """Nearest upsampling by one factor: copies on the channels, then DEPTH_TO_SPACE."""
    return tf.nn.depth_to_space(tf.concat([x] * size**2, axis=-1), size)


def _image_shape(shape: tf.TensorShape) -> list[int]:
    """(1, …, channels) as (1, height, width, channels)."""
    inner = [int(n) for n in shape[1:-1]]
    return [int(shape[0]), 1, int(np.prod(inner, dtype=int)), int(shape[-1])]
