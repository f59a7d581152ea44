"""Small layers that a decomposed operation is made of, each of them one op in LiteRT."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.affine import affine_parameters, fake_quantize
from tfcompress.quantization.operators import Role


class _WithConstant(keras.layers.Layer):
    quantization_role = Role.ARITHMETIC

    def __init__(self, value: float, **kwargs):
        super().__init__(**kwargs)
        self.value = float(value)
        self.supports_masking = True

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="tfcompress")
class AddConstant(_WithConstant):
    """x + value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(1.0, self.value, name=self.name)]

    def call(self, inputs):
        return inputs + self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyConstant(_WithConstant):
    """x · value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(self.value, name=self.name)]

    def call(self, inputs):
        return inputs * self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativePart(keras.layers.Layer):
    """max(−x, 0), the part of a value below zero."""

    quantization_role = Role.ELEMENTWISE

    def stripped(self) -> list[keras.Layer]:
        return [
            keras.layers.Rescaling(-1.0, name=f"{self.name}_sign"),
            keras.layers.ReLU(name=self.name),
        ]

    def call(self, inputs):
        return keras.ops.relu(-inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativeSlope(keras.layers.PReLU):
    """−α · n, where n is the negative part of a PReLU's input and α its trained slope.

    One slope per channel is exact in int8 (it is the scale of a 1×1 depthwise kernel); a slope
    per position is rounded with one scale.
    """

    quantization_role = Role.AFFINE

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

    def call(self, inputs):
        return -self.slope() * inputs
