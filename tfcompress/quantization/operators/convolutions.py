"""Convolutions that run as those of images: in three dimensions, and transposed in one."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import layers

from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register

_FUSED = ("linear", "relu", "relu6")


def _lower_conv3d(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A convolution of images: slices along the depth of the kernel are channels."""
    layer = call.operation
    kernel, bias = call.constants
    depth, height, width, channels, filters = kernel.shape
    stride, *strides = layer.strides
    dilation, *dilations = layer.dilation_rate
    extent, count = (depth - 1) * dilation + 1, x.shape[1]
    padding = layer.padding.upper()
    size = -(-count // stride) if padding == "SAME" else (count - extent) // stride + 1
    missing = max((size - 1) * stride + extent - count, 0)
    slices = tf.reshape(x, x.shape[1:])
    if padding == "SAME" and missing:
        slices = tf.pad(slices, [[missing // 2, missing - missing // 2], [0, 0], [0, 0], [0, 0]])
    last = (size - 1) * stride + 1
    starts = [i * dilation for i in range(depth)]
    y = tf.concat([slices[i : i + last : stride] for i in starts], axis=-1)
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, depth * channels, filters)
    y = tf.nn.conv2d(y, tf.constant(kernel), strides, padding, dilations=dilations)
    if bias is not None:
        y = tf.nn.bias_add(y, tf.constant(bias))
    return tf.expand_dims(layer.activation(y), 0)


def _conv3d_reason(layer: Any) -> str | None:
    return None if layer.groups == 1 else "tfcompress has no int8 form of a grouped Conv3D yet"


register(
    layers.Conv3D,
    spec=OperatorSpec(
        role=Role.KERNEL,
        fused_activations=_FUSED,
        lower=_lower_conv3d,
        float_reason=_conv3d_reason,
    ),
)
register(layers.Conv1DTranspose, spec=OperatorSpec(role=Role.KERNEL, fused_activations=_FUSED))
