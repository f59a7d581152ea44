"""Resizing of images to a size: nearest values, or bilinear as the runtime rounds it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.upsampling import interpolated_exactly
from tfcompress.quantization.placement.upstream import upstream_quantizer


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedResizing(Linked, layers.Resizing):
    """Resizing that interpolates codes in inference as the runtime does, to the bit.

    Where the codes of its input are not known it computes as Keras' own.
    """

    keras_class = layers.Resizing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Call index → the quantizer of its input.
        self._quantizers = Links()

    def link(self, inputs: Any, call_index: int) -> None:
        self._quantizers.set(call_index, upstream_quantizer(inputs))

    def call(self, data: tf.Tensor, training: bool | None = None, call_index: int = 0) -> tf.Tensor:
        outputs = super().call(data, training=training)
        quantizer = self._quantizers.get(call_index)
        is_plain = self.interpolation == "nearest" or self.compute_dtype != "float32"
        if training or quantizer is None or is_plain or None in data.shape[1:3]:
            return outputs
        return interpolated_exactly(data, outputs, quantizer)

    def stripped(self) -> list[keras.Layer]:
        return [layers.Resizing.from_config(self.get_config())]


def _resize(b: Builder, node: Node) -> Value | None:
    """A layer, which is called without the `training=True` that Keras' own has by default."""
    operation, x = node.operation, node.inputs[0]
    if len(x.shape) != 4:
        return None
    size = getattr(operation, "size", None) or (operation.height, operation.width)
    dtype = getattr(operation, "dtype_policy", None)
    method = operation.interpolation
    return b.call(lambda n: QuantizedResizing(*size, method, dtype=dtype, name=n), "", x)


def _role(operation: Any) -> Role | None:
    return {"nearest": Role.MOVE, "bilinear": Role.RESAMPLE}.get(operation.interpolation)


def float_reason(operation: Any) -> str | None:
    """Why a resize has no int8 form; `None` where it has one."""
    if operation.interpolation not in ("nearest", "bilinear"):
        return f"LiteRT has no {operation.interpolation} interpolation"
    if operation.antialias:
        return "LiteRT has no resize with antialiasing"
    if operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio:
        return "tfcompress has no int8 form of a resize that keeps the aspect ratio yet"
    return (
        None if operation.data_format == "channels_last" else "LiteRT's kernels are channels-last"
    )


def _quantized(layer: QuantizedResizing) -> QuantizedResizing:
    return QuantizedResizing.from_config(layer.get_config())


register(QuantizedResizing, spec=OperatorSpec(role=_role, quantized=_quantized))
register(
    layers.Resizing,
    ops.image.resize,
    spec=OperatorSpec(decompose=_resize, float_reason=float_reason),
)
