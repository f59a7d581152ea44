"""Operations that only move codes: maximum pooling, padding, reshaping, slicing.

What is the identity in inference (dropout, noise, augmentation) is one of them.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register

register(
    layers.MaxPooling1D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Reshape,
    layers.Flatten,
    layers.Permute,
    layers.RepeatVector,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
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
    ops.reshape,
    ops.transpose,
    ops.squeeze,
    ops.expand_dims,
    ops.get_item,
    ops.split,
    ops.max_pool,
    ops.max,
    ops.repeat,
    spec=OperatorSpec(role=Role.MOVE),
)


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


register(layers.MaxPooling2D, spec=OperatorSpec(role=Role.MOVE, lower=_lower_max_pool))
