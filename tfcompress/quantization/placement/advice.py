"""Operators that phones run slowly in int8, and what to use instead."""

from __future__ import annotations

from typing import Any

from tfcompress.quantization.operators.registry import activation_of, keras_class, operator_of

#: LiteRT operator that XNNPACK does not take in int8 → what to use instead.
INSTEAD = {
    "AVERAGE_POOL_2D": "GlobalAveragePooling2D, or strides in the convolution before it",
    "BATCH_MATMUL": "products with weights (Dense, convolutions), or fewer and larger products",
    "CAST": "inputs of the type that the first layer computes in",
    "DEQUANTIZE": "layers that have an int8 form, so that nothing in between is float",
    "EXP": "relu or sigmoid",
    "GATHER": "an operation that XNNPACK has (relu, elu, sigmoid, tanh, silu) in place of a table",
    "GELU": "relu or silu: tfc.replace_activations(model, {'gelu': 'silu'}), and train again",
    "HARD_SWISH": "relu or silu: tfc.replace_activations(model, {'hard_silu': 'silu'})",
    "LOG_SOFTMAX": "logits as outputs, and the function in the app",
    "PRELU": "relu: tfc.replace_activations(model, {'prelu': 'relu'})",
    "QUANTIZE": "one range for both tensors, or layers that have an int8 form on both sides",
    "RELU": "a convolution, dense layer or sum right before it, which it then fuses into",
    "RESIZE_NEAREST_NEIGHBOR": "UpSampling2D(interpolation='bilinear') or Conv2DTranspose",
    "SOFTMAX": "logits as outputs, and the softmax in the app",
}
#: For every other one.
OTHERWISE = "an operation that XNNPACK has in int8"

_BY_ACTIVATION = {"gelu": "GELU", "softmax": "SOFTMAX", "log_softmax": "LOG_SOFTMAX"}
_BY_CLASS = {"Matmul": "BATCH_MATMUL", "Dot": "BATCH_MATMUL", "Einsum": "BATCH_MATMUL"}


def slow_operator(operation: Any) -> str | None:
    """The LiteRT operator, outside XNNPACK, that an int8 operation becomes; `None` for no such."""
    outside = operator_of(operation).outside
    if outside is not None:
        return outside(operation)
    name = activation_of(operation)
    if name in _BY_ACTIVATION:
        return _BY_ACTIVATION[name]
    return _BY_CLASS.get(keras_class(operation).__name__)


def instead_of(operator: str) -> str:
    """What to use in place of a LiteRT operator."""
    return INSTEAD.get(operator, OTHERWISE)
