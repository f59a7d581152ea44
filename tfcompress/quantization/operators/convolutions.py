"""Convolutions whose form in the file is another: dilated, in three dimensions, transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
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
        missing=lambda layer: None if layer.groups == 1 else "a grouped Conv3D",
    ),
)


def _lower_conv1d(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A dilated one, or of one filter (depthwise: channel) with a bias, as one of images.

    Behind the squeeze of Keras' form the converter does not fuse a bias of one value.
    """
    layer = call.operation
    kernel, bias = call.constants
    (stride,), (dilation,) = layer.strides, layer.dilation_rate
    is_single = bias is not None and bias.size == 1
    if not (is_single or dilation > 1) or layer.data_format != "channels_last":
        return None
    padding = layer.padding
    if padding == "causal":
        x = tf.pad(x, [[0, 0], [(kernel.shape[0] - 1) * dilation, 0], [0, 0]])
        padding = "valid"
    y = _convolved(layer, tf.expand_dims(x, 1), kernel[None], (1, stride), padding, (1, dilation))
    y = y if bias is None else tf.nn.bias_add(y, tf.constant(bias))
    return tf.squeeze(layer.activation(y), 1)


def _lower_conv2d(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A dilated one as a single operator.

    Keras' form moves positions into the batch and back, which the converter makes a dilation of.
    Where two such layers read one tensor they share the first move, and it does not.
    """
    layer = call.operation
    kernel, bias = call.constants
    if set(layer.dilation_rate) == {1} or layer.data_format != "channels_last":
        return None
    y = _convolved(layer, x, kernel, layer.strides, layer.padding, layer.dilation_rate)
    return layer.activation(y if bias is None else tf.nn.bias_add(y, tf.constant(bias)))


def _convolved(
    layer: Any, x: tf.Tensor, kernel: np.ndarray, strides: Any, padding: str, dilations: Any
) -> tf.Tensor:
    """A convolution of images, depthwise where the layer is."""
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        return tf.raw_ops.DepthwiseConv2dNative(
            input=x,
            filter=tf.constant(kernel),
            strides=(1, *strides, 1),
            padding=padding.upper(),
            dilations=(1, *dilations, 1),
        )
    return tf.nn.conv2d(x, tf.constant(kernel), strides, padding.upper(), dilations=dilations)


register(
    *(layers.Conv1D, layers.DepthwiseConv1D),
    spec=OperatorSpec(role=Role.KERNEL, fused_activations=_FUSED, lower=_lower_conv1d, int16=True),
)
register(
    *(layers.Conv2D, layers.DepthwiseConv2D),
    spec=OperatorSpec(role=Role.KERNEL, fused_activations=_FUSED, lower=_lower_conv2d, int16=True),
)


def _lower_transposed(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """Where the stride is larger than the kernel, with a kernel that ends in zeros, or dilated.

    XNNPACK takes no stride beyond the kernel, and LiteRT's own kernel rounds otherwise. Likewise a
    Conv1DTranspose of one filter with a bias: see `_lower_conv1d`.
    """
    layer = call.operation
    strides, sizes = tuple(layer.strides), tuple(layer.kernel_size)
    kernel, bias = call.constants
    if set(layer.dilation_rate) != {1}:
        return _dilated_transposed(layer, x, kernel, bias)
    is_beyond = any(s > n for s, n in zip(strides, sizes, strict=True))
    is_single = len(sizes) == 1 and layer.filters == 1 and bias is not None
    if not (is_beyond or is_single) or layer.data_format != "channels_last":
        return None
    wanted = tuple(layer.compute_output_shape(x.shape))[1:-1]
    is_sequence = len(sizes) == 1
    if is_sequence:
        x, kernel, strides, wanted = tf.expand_dims(x, 1), kernel[None], (1, *strides), (1, *wanted)
    ends = [(n - 1) * s for n, s in zip(x.shape[1:3], strides, strict=True)]
    # Of "same" padding, what stands over is cut off on both sides.
    over = [max(e + k - n, 0) for e, k, n in zip(ends, kernel.shape, wanted, strict=False)]
    first = [n // 2 if layer.padding == "same" else 0 for n in over]
    full = [
        max(e + k, f + n) for e, k, f, n in zip(ends, kernel.shape, first, wanted, strict=False)
    ]
    zeros = [(0, n - e - k) for n, e, k in zip(full, ends, kernel.shape, strict=False)]
    kernel = tf.constant(np.pad(kernel, [*zeros, (0, 0), (0, 0)]))
    y = tf.nn.conv2d_transpose(x, kernel, [1, *full, kernel.shape[2]], strides, "VALID")
    y = layer.activation(y if bias is None else tf.nn.bias_add(y, tf.constant(bias)))
    if tuple(full) != wanted:
        y = tf.slice(y, [0, *first, 0], [1, *wanted, y.shape[-1]])
    return tf.squeeze(y, 1) if is_sequence else y


def _dilated_transposed(
    layer: Any, x: tf.Tensor, kernel: np.ndarray, bias: np.ndarray | None
) -> tf.Tensor:
    """A dilated one as a convolution with the reversed kernel: LiteRT has none that is transposed.

    Keras has no strides beside dilations.
    """
    wanted = tuple(layer.compute_output_shape(x.shape))[1:-1]
    dilations = tuple(layer.dilation_rate)
    is_sequence = len(wanted) == 1
    if is_sequence:
        x, kernel, wanted, dilations = (
            tf.expand_dims(x, 1),
            kernel[None],
            (1, *wanted),
            (1, *dilations),
        )
    pads = [(0, 0)]
    for size, given, taps, step in zip(wanted, x.shape[1:3], kernel.shape, dilations, strict=False):
        reach = (taps - 1) * step
        # What the output of "same" padding leaves out at its beginning.
        first = reach // 2 if layer.padding == "same" else 0
        pads.append((reach - first, size + first - given))
    x = tf.pad(x, [*pads, (0, 0)])
    flipped = tf.constant(kernel[::-1, ::-1].swapaxes(2, 3))
    y = tf.nn.conv2d(x, flipped, 1, "VALID", dilations=dilations)
    y = layer.activation(y if bias is None else tf.nn.bias_add(y, tf.constant(bias)))
    return tf.squeeze(y, 1) if is_sequence else y


register(
    *(layers.Conv1DTranspose, layers.Conv2DTranspose),
    spec=OperatorSpec(
        role=Role.KERNEL,
        fused_activations=_FUSED,
        lower=_lower_transposed,
        missing=lambda layer: (
            None if set(layer.dilation_rate) == {1} else "a dilated transposed convolution"
        ),
    ),
)


def _lower_conv3d_transposed(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A transposed convolution of images: along the depth, an ordinary one of x between zeros."""
    layer = call.operation
    kernel, bias = call.constants
    depth, height, width, filters, channels = kernel.shape
    stride, *strides = layer.strides
    count, *size = x.shape[1:4]
    wanted, *image = layer.compute_output_shape(x.shape)[1:4]
    over = (count - 1) * stride + depth - wanted
    first = over // 2 if layer.padding == "same" and over > 0 else 0
    # Zeros between the slices, and beyond them as far as the kernel reaches.
    rows = tf.reshape(x, (count, 1, -1))
    rows = tf.pad(rows, [[0, 0], [0, stride - 1], [0, 0]])
    rows = tf.reshape(rows, (count * stride, *size, channels))
    after = max(first + wanted - count * stride, 0)
    rows = tf.pad(rows, [[depth - 1, after], [0, 0], [0, 0], [0, 0]])
    starts = [first + depth - 1 - i for i in range(depth)]
    y = tf.concat([rows[i : i + wanted] for i in starts], axis=-1)
    kernel = kernel.transpose(1, 2, 3, 0, 4).reshape(height, width, filters, depth * channels)
    shape = [wanted, *image, filters]
    y = tf.nn.conv2d_transpose(y, tf.constant(kernel), shape, strides, layer.padding.upper())
    if bias is not None:
        y = tf.nn.bias_add(y, tf.constant(bias))
    return tf.expand_dims(layer.activation(y), 0)


def _conv3d_transposed_reason(layer: Any) -> str | None:
    is_plain = layer.output_padding is None and set(layer.dilation_rate) == {1}
    sizes = zip(layer.strides[1:], layer.kernel_size[1:], strict=True)
    if is_plain and all(stride <= size for stride, size in sizes):
        return None
    return (
        "tfcompress has no int8 form of a Conv3DTranspose with an output padding, a dilation, or "
        "strides larger than the kernel yet"
    )


register(
    layers.Conv3DTranspose,
    spec=OperatorSpec(
        role=Role.KERNEL,
        fused_activations=_FUSED,
        lower=_lower_conv3d_transposed,
        float_reason=_conv3d_transposed_reason,
    ),
)
