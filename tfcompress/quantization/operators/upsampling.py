"""Upsampling of images: copies of codes, or bilinear interpolation as the runtime rounds it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_quantizer

#: Bits of a weight of XNNPACK's bilinear interpolation.
_WEIGHT_BITS = 11


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedUpSampling2D(Linked, layers.UpSampling2D):
    """UpSampling2D that interpolates codes in inference as the runtime does, to the bit.

    Where the codes of its input are not known (a tensor in float, no range yet, 16-bit computation)
    it computes as Keras' own.
    """

    keras_class = layers.UpSampling2D

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Call index → the quantizer of its input.
        self._quantizers = Links()

    def link(self, inputs: Any, call_index: int) -> None:
        self._quantizers.set(call_index, upstream_quantizer(inputs))

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = super().call(inputs)
        quantizer = self._quantizers.get(call_index)
        is_plain = self.interpolation == "nearest" or self.compute_dtype != "float32"
        if training or quantizer is None or is_plain or None in inputs.shape[1:3]:
            return outputs
        return interpolated_exactly(inputs, outputs, quantizer)

    def stripped(self) -> list[keras.Layer]:
        return [layers.UpSampling2D.from_config(self.get_config())]


def interpolated_exactly(
    inputs: tf.Tensor, outputs: tf.Tensor, quantizer: TensorQuantizer
) -> tf.Tensor:
    """Bilinear interpolation as the runtime computes it on codes.

    Args:
        inputs: (batch, height, width, channels), values of codes.
        outputs: What Keras computes; they pass where no range is known yet.
        quantizer: That of the inputs.
    """
    scale = quantizer.active_scale()
    safe = tf.where(scale > 0, scale, 1.0)
    codes = tf.cast(tf.round(inputs / safe), tf.int32)
    height, width = outputs.shape[1:3]
    exact = tf.cast(interpolated(codes, (height, width)), tf.float32) * safe
    # Its gradient is that of the real values, for layers that are frozen in training.
    return outputs + tf.stop_gradient(tf.where(scale > 0, exact, outputs) - outputs)


def interpolated(codes: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bilinear interpolation of codes with the integers of XNNPACK, half-pixel centers.

    A weight is a whole number of 2⁻¹¹; the sum of products is rounded once, halves up:
    (Σ weight · code + 2²¹) >> 22.

    Args:
        codes: (batch, height, width, channels), int32 of at most 255; height and width known.
        size: Height and width of the result.

    Returns:
        int32 codes, (batch, *size, channels).
    """
    top, bottom, rows = _neighbors(codes.shape[1], size[0])
    left, right, columns = _neighbors(codes.shape[2], size[1])

    def along_columns(x: tf.Tensor) -> tf.Tensor:
        start, end = tf.gather(x, left, axis=2), tf.gather(x, right, axis=2)
        return start * 2**_WEIGHT_BITS + (end - start) * columns[:, None]

    above = along_columns(tf.gather(codes, top, axis=1))
    below = along_columns(tf.gather(codes, bottom, axis=1))
    total = above * 2**_WEIGHT_BITS + (below - above) * rows[:, None, None]
    half = 2 ** (2 * _WEIGHT_BITS - 1)
    return tf.bitwise.right_shift(total + half, 2 * _WEIGHT_BITS)


def _neighbors(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(first, second, weight of the second)` for every output position along an axis."""
    step = np.float32(count) / np.float32(size)
    centers = np.arange(size, dtype=np.float32) + np.float32(0.5)
    positions = np.clip(centers * step - np.float32(0.5), 0, count - 1)
    first = positions.astype(np.int32)
    weights = np.rint((positions - first) * 2**_WEIGHT_BITS).astype(np.int32)
    return first, np.minimum(first + 1, count - 1), weights


def _lower_nearest(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """Nearest upsampling by one factor: copies on the channels, then DEPTH_TO_SPACE."""
    layer = call.operation
    is_square = layer.interpolation == "nearest" and len(set(layer.size)) == 1
    if not (call.reads_codes and is_square):
        return None
    size = layer.size[0]
    return tf.nn.depth_to_space(tf.concat([x] * size**2, axis=-1), size)


def _role(layer: layers.UpSampling2D) -> Role | None:
    return {"nearest": Role.MOVE, "bilinear": Role.RESAMPLE}.get(layer.interpolation)


def _float_reason(layer: layers.UpSampling2D) -> str | None:
    if layer.interpolation in ("nearest", "bilinear"):
        return None
    return f"LiteRT has no {layer.interpolation} interpolation"


def _quantized(layer: layers.UpSampling2D) -> QuantizedUpSampling2D:
    return QuantizedUpSampling2D.from_config(layer.get_config())


register(
    layers.UpSampling2D,
    spec=OperatorSpec(
        role=_role, quantized=_quantized, lower=_lower_nearest, float_reason=_float_reason
    ),
)
