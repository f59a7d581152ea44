"""Integers as inputs, such as uint8 pixels: converted to float, exactly, where the file starts."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.comparisons import MaskValues
from tfcompress.quantization.operators.registry import OperatorSpec, register


@keras.saving.register_keras_serializable(package="tfcompress")
class ToFloat(layers.Layer):
    """Integers as floating point numbers of the same values.

    It is no rounding and computes nothing, so the plan counts no layer in float for it.
    """

    channels_like = layers.Identity
    returns_input = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return ops.cast(inputs, self.compute_dtype)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def stripped(self) -> list[keras.Layer]:
        return [layers.Rescaling(1.0, name=self.name)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}


def _as_layer(b: Builder, node: Node) -> Value | None:
    """Integers to float, before what computes with them; a mask as codes of 0 and 1."""
    if len(node.inputs) == 1 and node.inputs[0].spec.dtype == node.output.spec.dtype:
        return node.inputs[0]
    if len(node.inputs) != 1 or node.inputs[0].is_float or not node.output.is_float:
        return None
    if node.inputs[0].spec.dtype == "bool":
        return b.call(lambda name: MaskValues(name=name), "", node.inputs[0])
    return b.call(lambda name: ToFloat(name=name), "", node.inputs[0])


def before_affine(b: Builder, node: Node) -> None:
    """Converts the integers that a layer reads, in place."""
    value = node.inputs[0]
    if value.is_float or value.spec.dtype == "bool":
        return
    b.node = node
    part = b.part(lambda name: ToFloat(name=name), "to_float")
    spec = keras.KerasTensor(value.shape, dtype=part.compute_dtype)
    node.replace_input(value, b.insert(part, (value,), {}, [spec])[0])


register(ops.cast, spec=OperatorSpec(decompose=_as_layer))
register(ToFloat, spec=OperatorSpec(float_reason="it converts integers"))
