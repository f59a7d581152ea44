"""Dense and separable layers: an int32 sum, a bias, a fused ReLU, then one rounding."""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register

register(
    layers.Dense,
    spec=OperatorSpec(role=Role.KERNEL, fused_activations=("linear", "relu", "relu6"), int16=True),
)


def _separable(b: Builder, node: Node) -> Value:
    """A depthwise convolution, then one of 1×1."""
    layer = node.operation
    one_d = isinstance(layer, layers.SeparableConv1D)
    depthwise_class = layers.DepthwiseConv1D if one_d else layers.DepthwiseConv2D
    pointwise_class = layers.Conv1D if one_d else layers.Conv2D
    config = layer.get_config()

    def depthwise(name: str) -> keras.Layer:
        keys = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")
        return depthwise_class(
            depth_multiplier=layer.depth_multiplier,
            use_bias=False,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            name=name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
            **{key: config[key] for key in keys},
        )

    def pointwise(name: str) -> keras.Layer:
        return pointwise_class(
            layer.filters,
            1,
            use_bias=layer.use_bias,
            data_format=layer.data_format,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer,
            name=name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )

    middle = b.call(
        depthwise, "depthwise", node.inputs[0], weights={"kernel": layer.depthwise_kernel}
    )
    weights = {"kernel": layer.pointwise_kernel}
    if layer.use_bias:
        weights["bias"] = layer.bias
    return b.call(pointwise, "", middle, weights=weights)


register(
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    spec=OperatorSpec(decompose=_separable, fused_activations=("linear",), int16=True),
)
