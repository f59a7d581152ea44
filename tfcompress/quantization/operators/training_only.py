"""Layers of a user's own that do something in training alone: noise, dropped paths."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.rewrite import fresh
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


@keras.saving.register_keras_serializable(package="tfcompress")
class TrainingOnly(keras.layers.Layer):
    """A layer that returns its input in inference, such as stochastic depth: it moves codes.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.layer(inputs, training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[keras.Layer]:
        return [fresh(self.layer)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainingOnly:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


register(TrainingOnly, spec=OperatorSpec(role=Role.MOVE))
