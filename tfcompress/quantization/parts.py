"""Small layers that a decomposed operation is made of, each of them one op in LiteRT."""

from __future__ import annotations

from typing import Any

import keras

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

    def call(self, inputs):
        return inputs + self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyConstant(_WithConstant):
    """x · value."""

    def call(self, inputs):
        return inputs * self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativePart(keras.layers.Layer):
    """max(−x, 0), the part of a value below zero."""

    quantization_role = Role.ELEMENTWISE

    def call(self, inputs):
        return keras.ops.relu(-inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativeSlope(keras.layers.Layer):
    """−α · x for the negative part of a PReLU; α is trained, per channel or as PReLU shares it."""

    quantization_role = Role.AFFINE

    def __init__(self, prelu: dict[str, Any], **kwargs):
        super().__init__(**kwargs)
        self.prelu = dict(prelu)
