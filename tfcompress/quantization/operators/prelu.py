"""PReLU: a trained slope below zero."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.fake_quant.affine import affine_parameters, fake_quantize
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.activations import NegativePart
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.requantized import Requantized


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativeSlope(Requantized, keras.layers.PReLU):
    """−α · n, where n is the negative part of a PReLU's input and α its trained slope.

    One slope per channel is exact in int8 (it is the scale of a 1×1 depthwise kernel); a slope
    per position is rounded with one scale.
    """

    channels_like = keras.layers.PReLU

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # Read in float32 under any policy, as the runtime will have it.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def stripped(self) -> list[keras.Layer]:
        # PReLU(−n) = α · (−n), for −n is never positive.
        return [
            keras.layers.Rescaling(-1.0, name=f"{self.name}_sign"),
            keras.layers.PReLU.from_config(self.get_config()),
        ]

    @property
    def per_channel(self) -> bool:
        return all(size == 1 for size in self.alpha.shape[:-1])

    def slope(self) -> tf.Tensor:
        """α as the runtime multiplies by it, of the shape of the variable."""
        alpha = tf.convert_to_tensor(self.alpha)
        if self.per_channel:
            return alpha
        largest = tf.reduce_max(tf.abs(tf.stop_gradient(alpha)))
        scale, _ = affine_parameters(-largest, largest, symmetric=True)
        return fake_quantize(alpha, tf.cast(scale, alpha.dtype), narrow_range=True)

    def factor(self) -> tf.Tensor:
        return tf.reshape(-tf.cast(self.slope(), tf.float32), (-1,))

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        if self.per_channel and not training:
            return self.infer(inputs, call_index)
        return tf.cast(-self.slope() * tf.cast(inputs, tf.float32), self.compute_dtype)


def _decompose(b: Builder, node: Node) -> Value:
    """relu(x) + slope · min(x, 0)."""
    layer, x = node.operation, node.inputs[0]
    positive = b.call(lambda n: layers.ReLU(name=n), "positive", x)
    negative = b.call(lambda n: NegativePart(name=n), "negative", x)
    config = layer.get_config()
    slope = b.call(
        lambda n: NegativeSlope.from_config(config), "", negative, weights={"alpha": layer.alpha}
    )
    return b.call(lambda n: layers.Add(name=n), "sum", positive, slope)


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A 1×1 depthwise convolution, or a product with constants."""
    if not call.reads_codes:
        return None
    (slope,) = call.constants
    if call.operation.per_channel:
        return forms.channel_affine(x, -slope.ravel(), None)
    if not slope.any():
        # Keras' default before training. A product with zeros the converter would fold.
        return forms.channel_affine(x, np.zeros(slope.shape[-1], np.float32), None)
    return forms.multiply_constant(x, -slope[None])


register(layers.PReLU, spec=OperatorSpec(decompose=_decompose))
register(
    NegativeSlope,
    spec=OperatorSpec(
        role=Role.AFFINE,
        constants=lambda layer, call_index: (np.asarray(layer.slope()),),
        lower=_lower,
    ),
)
