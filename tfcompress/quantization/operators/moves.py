"""Operations that only move codes: maximum pooling, padding, reshaping, slicing.

What is the identity in inference (dropout, noise, augmentation) is one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import (
    SAMPLES,
    along_axis,
    reshape_reason,
    samples_reason,
)

register(
    layers.MaxPooling1D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Reshape,
    layers.Flatten,
    layers.Permute,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    # Augmentation inside a model is the identity in inference.
    layers.RandomFlip,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomZoom,
    layers.RandomContrast,
    layers.RandomBrightness,
    ops.stop_gradient,
    spec=OperatorSpec(role=Role.MOVE, int16=True),
)
register(
    layers.GlobalMaxPooling3D,
    layers.RepeatVector,
    layers.ZeroPadding3D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling3D,
    ops.max_pool,
    spec=OperatorSpec(role=Role.MOVE),
)
register(ops.reshape, spec=OperatorSpec(role=Role.MOVE, call_reason=reshape_reason, int16=True))
register(
    ops.transpose,
    ops.moveaxis,
    ops.slice,
    ops.squeeze,
    ops.get_item,
    spec=OperatorSpec(role=Role.MOVE, call_reason=samples_reason),
)
register(
    *(ops.flip, ops.roll, ops.repeat, ops.split, ops.array_split, ops.unstack, ops.take),
    spec=OperatorSpec(role=Role.MOVE, call_reason=along_axis("axis")),
)
register(
    ops.expand_dims, spec=OperatorSpec(role=Role.MOVE, call_reason=along_axis("axis", adds=True))
)
register(ops.swapaxes, spec=OperatorSpec(role=Role.MOVE, call_reason=along_axis("axis1", "axis2")))
register(ops.rot90, spec=OperatorSpec(role=Role.MOVE, call_reason=along_axis("axes")))


def _tile_reason(node: Node) -> str | None:
    repeats, rank = np.atleast_1d(node.operation.repeats), len(node.inputs[0].shape)
    return SAMPLES if len(repeats) >= rank and repeats[-rank] != 1 else samples_reason(node)


def _center_crop(b: Builder, node: Node) -> Value | None:
    """Cropping2D, of images that are larger."""
    layer, x = node.operation, node.inputs[0]
    if len(x.shape) != 4 or None in x.shape[1:3] or not x.is_float:
        return None
    extra = [n - m for n, m in zip(x.shape[1:3], (layer.height, layer.width), strict=True)]
    if min(extra) < 0:
        return None
    cropping = [(n // 2, n - n // 2) for n in extra]
    return b.call(lambda n: layers.Cropping2D(cropping, name=n), "", x)


def _crop_reason(node: Node) -> str | None:
    return "its images have no known size, or are smaller than the crop"


register(
    layers.CenterCrop,
    spec=OperatorSpec(role=Role.MOVE, decompose=_center_crop, call_reason=_crop_reason),
)
register(ops.tile, spec=OperatorSpec(role=Role.MOVE, call_reason=_tile_reason))


def _lower_blocks(function: Callable) -> Callable[[LoweredCall, tf.Tensor], tf.Tensor | None]:
    def lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
        """One operator in place of a reshape of six axes."""
        return function(x, call.operation.block_size)

    return lower


def _blocks_reason(operation: Any) -> str | None:
    return (
        None if operation.data_format == "channels_last" else "LiteRT's kernels are channels-last"
    )


for _function, _form in (
    (ops.nn.depth_to_space, tf.nn.depth_to_space),
    (ops.nn.space_to_depth, tf.nn.space_to_depth),
):
    _spec = OperatorSpec(role=Role.MOVE, lower=_lower_blocks(_form), float_reason=_blocks_reason)
    register(_function, spec=_spec)


def _lower_max_pool(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """MaxPooling2D(1, strides) as an identity 1×1 depthwise convolution with strides.

    The kernel only has strides that are equal; XNNPACK has no pooling window of one cell.
    """
    layer = call.operation
    is_plain = tuple(layer.pool_size) == (1, 1) and len(set(layer.strides)) == 1
    if not (call.reads_codes and is_plain):
        return None
    kernel = tf.constant(np.ones((1, 1, x.shape[-1], 1), np.float32))
    y = tf.nn.depthwise_conv2d(x, kernel, [1, *layer.strides, 1], "VALID")
    # It computes, though nothing changes: without the fake-quant it would stay float.
    return call.round_as_input(y)


def _has_window(node: Node) -> bool:
    """Whether it is no identity convolution, which moves codes of 16 bits by a step."""
    return tuple(node.operation.pool_size) != (1, 1)


register(
    layers.MaxPooling2D,
    spec=OperatorSpec(role=Role.MOVE, lower=_lower_max_pool, int16=_has_window),
)
