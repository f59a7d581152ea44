"""Cross-layer equalization: channels of like range, by moving scale from a layer to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.model.compressed import compressed_class, is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.model.kernels import layer_kernels
from tfcompress.model.rewrite import rebuild
from tfcompress.model.transforms import KEEP_MASK
from tfcompress.quantization.operators.registry import (
    Role,
    activation_name,
    activation_of,
    keras_class,
    role,
)

# Functions f with f(s · x) = s · f(x) for s > 0, which let a factor through.
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")
# Calls that treat every channel alike and let a factor through.
_CHANNEL_WISE = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
)


def equalize(model: keras.Model, *, passes: int = 3) -> keras.Model:
    """Returns a copy of `model` that computes the same with more even channel ranges.

    For two layers with only homogeneous calls between them, channel i of the first is divided by
    sᵢ = √(r¹ᵢ · r²ᵢ) / r²ᵢ and the inputs i of the second are multiplied by it, where r are the
    largest absolute weights of the channel, batch norm folded in (Nagel et al. 2019, "Data-Free
    Quantization", eq. 11). A ReLU6 does not let a factor through, so such pairs stay as they are.

    Args:
        model: A float functional model; it is left untouched.
        passes: How often the chain of pairs is gone through.

    Raises:
        ValueError: A subclassed or unbuilt model.
    """
    copy = rebuild(Graph.from_model(model), model_class=keras.Model)
    pairs = list(_pairs(Graph.from_model(copy)))
    for _ in range(passes):
        for first, batch_norm, second in pairs:
            _equalize_pair(first, batch_norm, second)
    return copy


def _pairs(graph: Graph) -> Iterator[tuple[keras.Layer, keras.Layer | None, keras.Layer]]:
    """Yields `(layer, its batch norm or None, next layer)` that nothing else reads between."""
    for node in graph.nodes:
        if not _is_kernel(graph, node):
            continue
        layer, batch_norm = node.operation, None
        if activation_name(layer.activation) not in _HOMOGENEOUS:
            continue
        follower = graph.sole_consumer(node.output)
        if follower is not None and _is_batch_norm(graph, follower):
            if activation_name(layer.activation) != "linear":
                continue
            batch_norm = follower.operation
            follower = graph.sole_consumer(follower.output)
        while follower is not None and _lets_through(follower):
            follower = graph.sole_consumer(follower.output)
        if follower is None or not _is_kernel(graph, follower):
            continue
        # Behind a flatten, say, the channels are others.
        if _channels(layer) == _input_channels(follower.operation):
            yield layer, batch_norm, follower.operation


def _is_kernel(graph: Graph, node: Node) -> bool:
    operation = node.operation
    if not isinstance(operation, keras.Layer) or role(operation) is not Role.KERNEL:
        return False
    grouped = getattr(operation, "groups", 1) != 1
    multiplied = getattr(operation, "depth_multiplier", 1) != 1
    known = compressed_class(operation) is not None and not _has_codebook(operation)
    return known and not grouped and not multiplied and len(graph.calls(operation)) == 1


def _has_codebook(operation: Any) -> bool:
    """Whether what the layer computes with is not its kernel alone, which could be scaled."""
    chains = operation.transforms.values() if is_compressed(operation) else ()
    return any(transform.order > KEEP_MASK for chain in chains for transform in chain)


def _is_batch_norm(graph: Graph, node: Node) -> bool:
    operation = node.operation
    is_norm = keras_class(operation) is layers.BatchNormalization and role(operation) is Role.AFFINE
    return is_norm and operation.scale and operation.center and len(graph.calls(operation)) == 1


def _lets_through(node: Node) -> bool:
    operation = node.operation
    if isinstance(operation, _CHANNEL_WISE):
        return True
    is_plain = not isinstance(operation, layers.ReLU) or operation.max_value is None
    return is_plain and activation_of(operation) in _HOMOGENEOUS


def _kernel(layer: keras.Layer) -> tuple[keras.Variable, tuple[int, ...], tuple[int, ...]]:
    """`(variable, axes of the output channels, axes of the input channels)`."""
    kernel = layer_kernels(layer)[0]
    rank = len(kernel.variable.shape)
    outputs = tuple(a % rank for a in kernel.spec.output_axes)
    inputs = tuple(a % rank for a in kernel.spec.input_axes) or outputs
    return kernel.variable, outputs, inputs


def _channels(layer: keras.Layer) -> int:
    variable, axes, _ = _kernel(layer)
    return int(np.prod([variable.shape[a] for a in axes]))


def _input_channels(layer: keras.Layer) -> int:
    variable, _, axes = _kernel(layer)
    return int(np.prod([variable.shape[a] for a in axes]))


def _ranges(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    others = tuple(a for a in range(kernel.ndim) if a not in axes)
    return np.abs(kernel).max(others).ravel()


def _scaled(kernel: np.ndarray, axes: tuple[int, ...], factor: np.ndarray) -> np.ndarray:
    shape = [n if a in axes else 1 for a, n in enumerate(kernel.shape)]
    return kernel * factor.reshape(shape)


def _equalize_pair(first: keras.Layer, batch_norm: keras.Layer | None, second: keras.Layer) -> None:
    kernel, outputs, _ = _kernel(first)
    next_kernel, _, inputs = _kernel(second)
    ranges = _ranges(kernel.numpy(), outputs)
    if batch_norm is not None:
        gamma, variance = batch_norm.gamma.numpy(), batch_norm.moving_variance.numpy()
        ranges = ranges * np.abs(gamma) / np.sqrt(variance + batch_norm.epsilon)
    next_ranges = _ranges(next_kernel.numpy(), inputs)
    # A channel that is off on either side has nothing to even out.
    alive = (ranges > 1e-8) & (next_ranges > 1e-8)
    safe = np.where(alive, next_ranges, 1.0)
    factor = np.where(alive, np.sqrt(np.where(alive, ranges, 1.0) * safe) / safe, 1.0)
    if batch_norm is not None:
        batch_norm.gamma.assign(gamma / factor)
        batch_norm.beta.assign(batch_norm.beta.numpy() / factor)
    else:
        kernel.assign(_scaled(kernel.numpy(), outputs, 1.0 / factor))
        if first.use_bias:
            first.bias.assign(first.bias.numpy() / factor)
    next_kernel.assign(_scaled(next_kernel.numpy(), inputs, factor))
