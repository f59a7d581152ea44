"""Operators that round codes to other codes: functions that the file runs as a convolution.

A ReLU that nothing before it can take over, a clip, the negative part of a leaky ReLU are 1×1
depthwise convolutions with one constant in the file. Ranges found on one and the same value tie
their scales: with a step s before it and a largest value of n · s, a ReLU has the step n · s / 255,
and each n / 2-th code lies half way between two of its codes. So what rounds must multiply as the
runtime does.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.operators.channel_affine import FoldedAffine
from tfcompress.quantization.operators.registry import OperatorSpec, activation_of, register
from tfcompress.quantization.placement.upstream import upstream_quantizer


class Requantized(FoldedAffine):
    """Mixin: x · factor, clipped, where x are codes; elsewhere an ordinary function."""

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self._sources.set(call_index, upstream_quantizer(inputs))

    def rounds_itself(self, call_index: int) -> bool:
        return self._sources.get(call_index) is not None

    def factor(self) -> tf.Tensor:
        return tf.ones(())

    def offset(self) -> tf.Tensor:
        return tf.zeros(())


@keras.saving.register_keras_serializable(package="tfcompress")
class StandaloneReLU(Requantized, keras.layers.ReLU):
    """A ReLU of codes, rounded to codes of its own range."""

    keras_class = keras.layers.ReLU

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        return super().call(inputs if training else self.infer(inputs, call_index))

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def stripped(self) -> list[keras.layers.Layer]:
        return [keras.layers.ReLU.from_config(self.get_config())]


def standalone_relu(operation: Any) -> StandaloneReLU:
    """The layer that takes the place of a ReLU, of which nothing else takes the rounding."""
    ceiling = 6.0 if activation_of(operation) == "relu6" else None
    ceiling = getattr(operation, "max_value", None) or ceiling
    policy = getattr(operation, "dtype_policy", None)
    return StandaloneReLU(ceiling, name=operation.name, dtype=policy)


register(
    StandaloneReLU,
    spec=OperatorSpec(
        function=lambda layer: (
            keras.activations.relu6 if layer.max_value == 6 else keras.activations.relu
        )
    ),
)
