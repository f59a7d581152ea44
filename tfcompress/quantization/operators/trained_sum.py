"""A tensor of weights that a user's layer adds: `x + self.positions`, one value per position."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.affine import affine_parameters, code_range, fake_quantize
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.runtime_arithmetic import sum_with_constant
from tfcompress.quantization.placement.upstream import upstream_quantizer


@keras.saving.register_keras_serializable(package="tfcompress")
class AddWeight(Linked, keras.layers.Layer):
    """y = x + w with a trained tensor w, which the runtime holds in int8 codes of one scale.

    In inference it adds the codes as XNNPACK does.

    Args:
        addend_shape: Shape of w, which broadcasts to that of x.
        addend_regularizer: Of the weight.
        addend_constraint: Of the weight.
    """

    def __init__(
        self,
        addend_shape: Any,
        addend_regularizer: Any = None,
        addend_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.addend_shape = tuple(addend_shape)
        self.addend_regularizer = keras.regularizers.get(addend_regularizer)
        self.addend_constraint = keras.constraints.get(addend_constraint)
        # Call index → the quantizer of the input, and that of the output past a fused ReLU.
        self._operands, self.sum_quantizers = Links(), Links()
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        # Read in float32 under any policy, as the runtime will have it.
        self.addend = self.add_weight(
            name="addend",
            shape=self.addend_shape,
            initializer="zeros",
            regularizer=self.addend_regularizer,
            constraint=self.addend_constraint,
            autocast=False,
        )

    def link(self, inputs: Any, call_index: int) -> None:
        self._operands.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self.sum_quantizers.set(call_index, quantizer)

    def rounded(self) -> tf.Tensor:
        """w on its int8 grid."""
        weight = tf.convert_to_tensor(self.addend.value)
        largest = tf.reduce_max(tf.abs(tf.stop_gradient(weight)))
        scale, _ = affine_parameters(-largest, largest, symmetric=True)
        return fake_quantize(weight, scale, narrow_range=True)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        quantizer, operand = self.sum_quantizers.get(call_index), self._operands.get(call_index)
        x = tf.cast(inputs, tf.float32)
        if quantizer is None or operand is None:
            # A float model, or a float part of one.
            return tf.cast(x + self.addend.value, self.compute_dtype)
        weight = self.rounded()
        outputs = x + weight
        if training or self.compute_dtype != "float32":
            return tf.cast(outputs, self.compute_dtype)
        scale = operand.active_scale()
        known = scale > 0
        scale = tf.where(known, scale, 1.0)
        codes = tf.round(x / scale)
        total = quantizer.round_by(
            lambda step: sum_with_constant(codes, scale, weight, step), outputs
        )
        # Zeros, which the converter would leave out, become an identity kernel (`_lower`).
        largest = code_range(8)[1]
        same = quantizer.round_sum(codes * largest, scale * np.float32(1 / largest))
        exact = tf.where(tf.reduce_all(weight == 0), same, total)
        return outputs + tf.stop_gradient(tf.where(known, exact, outputs) - outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[keras.Layer]:
        weight = self.rounded() if self.sum_quantizers.get(0) else self.addend
        offset = np.asarray(weight).tolist()
        return [keras.layers.Rescaling(1.0, offset, name=self.name, dtype=self.dtype_policy)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "addend_shape": self.addend_shape,
            "addend_regularizer": keras.regularizers.serialize(self.addend_regularizer),
            "addend_constraint": keras.constraints.serialize(self.addend_constraint),
        }


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A sum with int8 constants; an identity kernel for zeros."""
    if not call.reads_codes:
        return None
    if not np.any(call.constants[0]):
        return forms.channel_affine(x, np.float32(1.0), None)
    return x + tf.constant(call.constants[0])


def fits(addend: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether a weight of a shape broadcasts to a tensor of another, with no axis for the batch."""
    if len(addend) > len(shape) or (len(addend) == len(shape) and addend[0] != 1):
        return False
    behind = shape[len(shape) - len(addend) :]
    return math.prod(addend) > 1 and all(
        m in (1, n) for m, n in zip(addend[-len(behind) :], behind, strict=True)
    )


register(
    AddWeight,
    spec=OperatorSpec(
        role=Role.ARITHMETIC,
        quantized=lambda layer: AddWeight.from_config(layer.get_config()),
        constants=lambda layer, call_index: (np.asarray(layer.rounded()),),
        lower=_lower,
    ),
)
