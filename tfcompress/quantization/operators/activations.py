"""Activation functions that are no tables: ReLU, sigmoid, tanh, softmax, silu, leaky ReLU.

With some of their options these are tables, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations, layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.clipping import clipped
from tfcompress.quantization.operators.constants import plus, times
from tfcompress.quantization.operators.elementwise import TABLE, as_table
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import (
    OperatorSpec,
    Role,
    activation_of,
    register,
    register_operation,
)
from tfcompress.quantization.operators.requantized import Requantized, standalone_relu
from tfcompress.quantization.operators.samples import along_axis

# --- layers that apply a function ---------------------------------------------------------------


def _relu_function(layer: Any) -> Callable | None:
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return None
    if layer.negative_slope:
        return activations.leaky_relu
    if layer.max_value not in (None, 6):
        return None
    return activations.relu6 if layer.max_value == 6 else activations.relu


def _relu_otherwise(b: Builder, node: Node) -> Value | None:
    """A ReLU with a ceiling other than 6 is a clip; with a threshold or a slope, a table."""
    layer = node.operation
    if layer.threshold or layer.negative_slope or layer.max_value <= 0:
        return as_table(b, node)
    return clipped(b, node.inputs[0], 0.0, float(layer.max_value))


def _softmax_function(layer: layers.Softmax) -> Callable | None:
    several = isinstance(layer.axis, (list, tuple)) and len(layer.axis) > 1
    return None if several else activations.softmax


def _axis_reason(node: Node) -> str | None:
    return along_axis("axis")(node) if hasattr(node.operation, "axis") else None


def _softmax_over_axes(b: Builder, node: Node) -> Value | None:
    """Over several axes: they become one, the last."""
    x, rank = node.inputs[0], len(node.inputs[0].shape)
    axes = [axis % rank for axis in node.operation.axis]
    if len(node.inputs) > 1 or 0 in axes or None in x.shape[1:]:
        return None
    order = [*(i for i in range(1, rank) if i not in axes), *axes]
    sizes = [int(x.shape[i]) for i in order]
    kept = sizes[: len(sizes) - len(axes)]
    variant = "x".join(map(str, sizes))

    def part(make: Callable[[str], Any], suffix: str, value: Value) -> Value:
        return b.call(make, suffix, value, variant=variant)

    x = part(lambda n: layers.Permute(order, name=n), "axes_last", x)
    x = part(lambda n: layers.Reshape((*kept, math.prod(sizes[len(kept) :])), name=n), "rows", x)
    x = part(lambda n: layers.Softmax(name=n), "softmax", x)
    x = part(lambda n: layers.Reshape(sizes, name=n), "axes", x)
    back = [order.index(i) + 1 for i in range(1, rank)]
    return part(lambda n: layers.Permute(back, name=n), "", x)


def _lambda_function(layer: layers.Lambda) -> Callable | None:
    return None if layer.arguments else layer.function


register(layers.Activation, spec=OperatorSpec(function=lambda layer: layer.activation))
_RELU = OperatorSpec(
    function=_relu_function, otherwise=dataclasses.replace(TABLE, decompose=_relu_otherwise)
)
register(layers.ReLU, spec=_RELU)
# `keras.activations.relu` of a symbolic tensor.
register_operation("ReLU", _RELU)
register(layers.Lambda, spec=OperatorSpec(function=_lambda_function))
register(layers.LeakyReLU, spec=OperatorSpec(function=lambda layer: activations.leaky_relu))
_SEVERAL_AXES = OperatorSpec(decompose=_softmax_over_axes)
register(layers.Softmax, spec=OperatorSpec(function=_softmax_function, otherwise=_SEVERAL_AXES))

# --- one op in LiteRT ---------------------------------------------------------------------------


def _lower_relu(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """An identity 1×1 depthwise convolution with a fused ReLU, where no operator is before it."""
    name = activation_of(call.operation)
    if call.reads_codes:
        return forms.channel_affine(x, np.float32(1.0), None, name)
    # Fused into the operation before it.
    return tf.nn.relu(x) if name == "relu" else None


register(activations.linear, spec=OperatorSpec(role=Role.MOVE, activation="linear", int16=True))
for _name in ("relu", "relu6"):
    register(
        getattr(activations, _name),
        getattr(ops, _name),
        spec=OperatorSpec(
            role=Role.RELU,
            activation=_name,
            lower=_lower_relu,
            quantized=standalone_relu,
            int16=True,
        ),
    )
for _name, _range in {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "log_softmax": (-255 / 16, 0.0),
    "tanh": (-1.0, 127 / 128),
}.items():
    register(
        getattr(activations, _name),
        getattr(ops, _name),
        spec=OperatorSpec(
            role=Role.FIXED,
            activation=_name,
            fixed_range=_range,
            call_reason=_axis_reason if "softmax" in _name else None,
        ),
    )

# --- several ops --------------------------------------------------------------------------------


def _silu(b: Builder, node: Node) -> Value:
    """x · sigmoid(x)."""
    x = node.inputs[0]
    gate = b.call(lambda n: layers.Activation("sigmoid", name=n), "sigmoid", x)
    return b.call(lambda n: layers.Multiply(name=n), "", x, gate)


def _shifted_relu6(b: Builder, x: Value) -> Value:
    shifted = b.call(plus(3.0), "shift", x)
    return b.call(lambda n: layers.ReLU(6.0, name=n), "relu6", shifted)


def _hard_sigmoid(b: Builder, node: Node) -> Value:
    """relu6(x + 3) · (1 / 6)."""
    return b.call(times(1 / 6), "", _shifted_relu6(b, node.inputs[0]))


def _hard_silu(b: Builder, node: Node) -> Value:
    """(x / 6) · relu6(x + 3): the converter would fuse x · relu6(x + 3) / 6 into HARD_SWISH."""
    gate = _shifted_relu6(b, node.inputs[0])
    sixth = b.call(times(1 / 6), "sixth", node.inputs[0])
    return b.call(lambda n: layers.Multiply(name=n), "", sixth, gate)


for _name, _rule in {
    "silu": _silu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
}.items():
    register(
        getattr(activations, _name),
        getattr(ops, _name),
        spec=OperatorSpec(activation=_name, decompose=_rule),
    )

# --- leaky ReLU ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativePart(Requantized, keras.layers.Layer):
    """factor · max(−x, 0), the part of a value below zero; factor is positive."""

    channels_like = keras.layers.Identity

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multiplier = float(factor)
        self.supports_masking = True

    def factor(self) -> tf.Tensor:
        return tf.constant(-self.multiplier, tf.float32)

    def stripped(self) -> list[keras.Layer]:
        return [
            keras.layers.Rescaling(-self.multiplier, name=f"{self.name}_sign"),
            keras.layers.ReLU(name=self.name),
        ]

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        if training:
            return keras.ops.relu(inputs * -self.multiplier)
        return keras.ops.relu(self.infer(inputs, call_index))

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.multiplier}


def lower_negative_part(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A 1×1 depthwise convolution with a fused ReLU."""
    factor = np.float32(-call.operation.multiplier)
    return forms.channel_affine(x, factor, None, "relu") if call.reads_codes else None


def _leaky_relu(b: Builder, node: Node) -> Value | None:
    """x + (1 − slope) · max(−x, 0): XNNPACK's LEAKY_RELU multiplies with few bits."""
    # The slope of the bare function is Keras' default.
    x, slope = node.inputs[0], float(getattr(node.operation, "negative_slope", 0.2))
    if not 0 < slope < 1:
        return as_table(b, node)
    negative = b.call(lambda n: NegativePart(1 - slope, name=n), "negative", x)
    return b.call(lambda n: layers.Add(name=n), "", x, negative)


register(NegativePart, spec=OperatorSpec(role=Role.ELEMENTWISE, lower=lower_negative_part))
register(
    activations.leaky_relu,
    ops.leaky_relu,
    spec=OperatorSpec(role=Role.ELEMENTWISE, activation="leaky_relu", decompose=_leaky_relu),
)
