"""EinsumDense: its kernel as a matrix, run by FULLY_CONNECTED."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.equations import Contraction
from tfcompress.model.kernels import einsum_of
from tfcompress.quantization.operators.forms import LoweredCall, transposed
from tfcompress.quantization.operators.registry import (
    OperatorSpec,
    Role,
    activation_name,
    register,
)


def kernel_matrix(kernel: np.ndarray, product: Contraction) -> np.ndarray:
    """An EinsumDense kernel as (inputs, outputs), its inputs in the order of the layer's input."""
    axes = [product.right.index(c) for c in product.summed + product.columns]
    sizes = dict(zip(product.right, kernel.shape, strict=True))
    inputs = math.prod(sizes[c] for c in product.summed)
    return kernel.transpose(axes).reshape(inputs, -1)


def _float_reason(layer: layers.EinsumDense) -> str | None:
    product = einsum_of(layer)
    if product is None or product.batch or not product.summed:
        return f"{layer.equation!r} does not multiply every position by one matrix"
    if [c for c in product.output if c in product.columns] != list(product.columns):
        return f"{layer.equation!r} gives the axes of its kernel in another order"
    if layer.bias_axes is not None and len(layer.bias_axes) != len(product.columns):
        return f"its bias (axes {layer.bias_axes!r}) is shared by several output channels"
    return None


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A matrix product of two axes, between transposes and reshapes that only move codes."""
    product = einsum_of(call.operation)
    if product is None or len(call.constants) != 2 or not isinstance(call.constants[0], np.ndarray):
        return None
    kernel, bias = call.constants
    sizes = dict(zip(product.left, x.shape, strict=True))
    sizes.update(zip(product.right, kernel.shape, strict=True))
    matrix = kernel_matrix(kernel, product)
    y = transposed(x, product.left, product.rows + product.summed)
    y = tf.matmul(tf.reshape(y, (-1, matrix.shape[0])), tf.constant(matrix))
    if bias is not None:
        y = tf.nn.bias_add(y, tf.constant(np.ravel(bias)))
    name = activation_name(call.operation.activation)
    if name in ("relu", "relu6"):
        y = tf.nn.relu(y) if name == "relu" else tf.nn.relu6(y)
    result = product.rows + product.columns
    return transposed(tf.reshape(y, [sizes[c] for c in result]), result, product.output)


register(
    layers.EinsumDense,
    spec=OperatorSpec(
        role=Role.KERNEL,
        fused_activations=("linear", "relu", "relu6"),
        float_reason=_float_reason,
        lower=_lower,
    ),
)
