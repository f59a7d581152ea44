"""A scale and an offset per channel that a user's layer trains: `x * self.scale + self.offset`."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.operators.channel_affine import FOLDED_SPEC, FoldedAffine
from tfcompress.quantization.operators.registry import register


@keras.saving.register_keras_serializable(package="tfcompress")
class TrainedAffine(FoldedAffine, keras.layers.Layer):
    """y = x · scale + offset along the last axis, each trained where it is there.

    It takes the place of products and sums with weights that a layer of the user's own computes.

    Args:
        scale_shape: Shape of the weight `scale`, of one value or one per channel; `None` for a
            scale of 1.
        offset_shape: Likewise of the weight `offset`; `None` for an offset of 0.
        scale_regularizer: Of the weight.
        offset_regularizer: Of the weight.
        scale_constraint: Of the weight.
        offset_constraint: Of the weight.
    """

    def __init__(
        self,
        scale_shape: Any = None,
        offset_shape: Any = None,
        scale_regularizer: Any = None,
        offset_regularizer: Any = None,
        scale_constraint: Any = None,
        offset_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scale_shape = None if scale_shape is None else tuple(scale_shape)
        self.offset_shape = None if offset_shape is None else tuple(offset_shape)
        self.scale_regularizer = keras.regularizers.get(scale_regularizer)
        self.offset_regularizer = keras.regularizers.get(offset_regularizer)
        self.scale_constraint = keras.constraints.get(scale_constraint)
        self.offset_constraint = keras.constraints.get(offset_constraint)
        self.scale: keras.Variable | None = None
        self.offset_weight: keras.Variable | None = None
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        # Read in float32 under any policy: what is folded into a kernel is not rounded first.
        if self.scale_shape is not None:
            self.scale = self.add_weight(
                name="scale",
                shape=self.scale_shape,
                initializer="ones",
                regularizer=self.scale_regularizer,
                constraint=self.scale_constraint,
                autocast=False,
            )
        if self.offset_shape is not None:
            self.offset_weight = self.add_weight(
                name="offset",
                shape=self.offset_shape,
                initializer="zeros",
                regularizer=self.offset_regularizer,
                constraint=self.offset_constraint,
                autocast=False,
            )

    def factor(self) -> tf.Tensor:
        return tf.ones((1,)) if self.scale is None else tf.reshape(self.scale.value, (-1,))

    def offset(self) -> tf.Tensor:
        weight = self.offset_weight
        return tf.zeros((1,)) if weight is None else tf.reshape(weight.value, (-1,))

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        if not training:
            return self.infer(inputs, call_index)
        outputs = tf.cast(inputs, tf.float32) * self.factor() + self.offset()
        return tf.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[keras.Layer]:
        scale, offset = (np.asarray(c).tolist() for c in (self.factor(), self.offset()))
        scale, offset = (c[0] if len(c) == 1 else c for c in (scale, offset))
        return [keras.layers.Rescaling(scale, offset, name=self.name, dtype=self.dtype_policy)]

    def get_config(self) -> dict[str, Any]:
        regularizer, constraint = keras.regularizers.serialize, keras.constraints.serialize
        return {
            **super().get_config(),
            "scale_shape": self.scale_shape,
            "offset_shape": self.offset_shape,
            "scale_regularizer": regularizer(self.scale_regularizer),
            "offset_regularizer": regularizer(self.offset_regularizer),
            "scale_constraint": constraint(self.scale_constraint),
            "offset_constraint": constraint(self.offset_constraint),
        }


register(
    TrainedAffine,
    spec=dataclasses.replace(
        FOLDED_SPEC,
        folds_into_kernel=True,
        quantized=lambda layer: TrainedAffine.from_config(layer.get_config()),
    ),
)
