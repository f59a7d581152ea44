"""Multiply-accumulates of one example, counted from the shapes that really flow through a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, overload

import keras
import tensorflow as tf
from keras import layers

from tfcompress.model.calls import watch_calls
from tfcompress.model.graph import input_structure, is_functional
from tfcompress.model.kernels import iterate_layers, layer_kernels
from tfcompress.model.paths import layer_paths

Shapes = list[tuple[int, ...]]

#: Counts of one call: `(layer, shapes of the inputs, shape of the output)` → products, batch 1.
MacCounter = Callable[[keras.Layer, Shapes, tuple[int, ...]], int]


@overload
def count_macs(model: keras.Model, by_layer: Literal[False] = ..., *, inputs: Any = ...) -> int: ...


@overload
def count_macs(
    model: keras.Model, by_layer: Literal[True], *, inputs: Any = ...
) -> dict[str, int]: ...


def count_macs(
    model: keras.Model, by_layer: bool = False, *, inputs: Any = None
) -> int | dict[str, int]:
    """Counts the multiply-accumulates of the model for one example.

    Counted are the products with kernels (dense, convolution, recurrent, ...) and those between
    queries, keys and values in attention. Biases, batch norms, activations, pooling and embedding
    lookups count as none, and so do products of `keras.ops` and layers whose class is not known
    (`uncounted_layers` names those). A layer that is called twice counts twice. The model is
    traced, not run.

    Args:
        model: A built model.
        by_layer: Whether to return the count per layer, by the layer's path in the model.
        inputs: An example batch (or its structure of shapes as `tf.TensorSpec`), of any batch
            size, for a subclassed model whose inputs are not known.

    Returns:
        The total, or a dictionary from layer path to its count, in the order of the calls.

    Raises:
        ValueError: If the inputs are unknown, or a dimension other than the batch is.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> tfc.count_macs(model)    # 6 × 6 positions, 3 × 3 × 3 × 4 weights
        3888
    """
    counts: dict[int, int] = {}
    paths = layer_paths(model)
    counters = {id(layer): _counter(layer) for layer in iterate_layers(model)}
    watched = [layer for layer in iterate_layers(model) if counters[id(layer)] is not None]

    def add(layer: keras.Layer, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        # In the order of the signature, however they were passed.
        bound = inspect.signature(type(layer).call).bind(layer, *args, **kwargs)
        given = list(bound.arguments.values())[1:]
        shapes = [_shape(layer, t) for t in keras.tree.flatten(given) if _is_tensor(t)]
        shape = _shape(layer, keras.tree.flatten(outputs)[0])
        counter = counters[id(layer)]
        assert counter is not None  # `watched` has no other layers
        counts[id(layer)] = counts.get(id(layer), 0) + counter(layer, shapes, shape)

    specs = _input_specs(model, inputs)
    trace = tf.function(lambda x: model(x, training=False), autograph=False)
    with watch_calls(watched, add):
        trace.get_concrete_function(specs)
    if by_layer:
        return {paths[key]: value for key, value in counts.items()}
    return sum(counts.values())


def uncounted_layers(model: keras.Model) -> list[str]:
    """Paths of the layers that hold kernels of their own and that `count_macs` takes for free."""
    paths = layer_paths(model)
    counted = [layer for layer in iterate_layers(model) if _counter(layer) is not None]
    known = {id(v) for layer in counted for v in layer.weights}
    found = []
    for layer in iterate_layers(model):
        inner = {id(v) for sub in iterate_layers(layer) if sub is not layer for v in sub.weights}
        own = [v for v in layer.weights if id(v) not in known | inner and len(v.shape) > 1]
        if own:
            found.append(paths[id(layer)])
    return found


def _counter(layer: keras.Layer) -> Callable[..., int] | None:
    for cls in type(layer).__mro__:
        if cls in COUNTERS:
            return COUNTERS[cls]
    return None


def _kernel_size(layer: keras.Layer, name: str = "kernel") -> int:
    owner = getattr(layer, "cell", layer)
    return math.prod(next(v.shape for v in owner.weights if v.name == name))


def _positions(layer: keras.Layer, shape: tuple[int, ...]) -> int:
    """Number of positions in an output or input of a convolution."""
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return math.prod(shape[2:])
    return math.prod(shape[1:-1])


def count_positions(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    """The products of a layer that multiplies every kernel once at every output position."""
    return math.prod(output[1:-1]) * sum(math.prod(k.variable.shape) for k in layer_kernels(layer))


def _dense(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    # Every output position multiplies the whole kernel.
    return math.prod(output[1:-1]) * _kernel_size(layer)


def _convolution(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    return _positions(layer, output) * _kernel_size(layer)


def _transposed(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    # Every input position is spread over the whole kernel.
    return _positions(layer, inputs[0]) * _kernel_size(layer)


def _separable(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    sizes = _kernel_size(layer, "depthwise_kernel"), _kernel_size(layer, "pointwise_kernel")
    return _positions(layer, output) * sum(sizes)


def _recurrent(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    cells = getattr(layer.cell, "cells", [layer.cell])
    kernels = [v for c in cells for v in c.weights if v.name in ("kernel", "recurrent_kernel")]
    return inputs[0][1] * sum(math.prod(v.shape) for v in kernels)


def _convolutional_recurrent(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    # Of every step the output, with or without the axis of steps.
    shape = output if not layer.return_sequences else (output[0], *output[2:])
    positions = _positions(layer, shape)
    kernels = _kernel_size(layer) + _kernel_size(layer, "recurrent_kernel")
    return inputs[0][1] * positions * kernels


def _einsum(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    left, result = layer.equation.replace(" ", "").split("->")
    operands = left.split(",")
    sizes: dict[str, int] = {}
    for letters, shape in ((operands[0], inputs[0]), (result, output)):
        named = letters.replace("...", "")
        before = letters.index("...") if "..." in letters else len(named)
        hidden = len(shape) - len(named)
        sizes.update(zip(letters[:before], shape[:before], strict=True))
        if hidden:
            sizes["..."] = math.prod(shape[before : before + hidden])
            sizes.update(zip(letters[before + 3 :], shape[before + hidden :], strict=True))
    kernel = next(v.shape for v in layer.weights if v.name == "kernel")
    sizes.update(zip(operands[1], kernel, strict=True))
    # The batch has size 1, so it does not change the product.
    return math.prod(sizes.values())


def _attention(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    # The projections are layers of their own, and counted there.
    query, value = inputs[0], inputs[1]
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    key_dim = getattr(layer, "key_dim", None) or layer.head_dim
    value_dim = getattr(layer, "value_dim", None) or key_dim
    products = math.prod(query[1:-1]) * math.prod(value[1:-1])
    return products * heads * (key_dim + value_dim)


def _dot_attention(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    # Scores of queries and keys, then the values by them; additive scores take as many products.
    query, value = inputs[0], inputs[1]
    # What comes third may be a mask.
    key = inputs[2] if len(inputs) > 2 and len(inputs[2]) == len(value) else value
    return query[1] * value[1] * (key[-1] + value[-1])


def _dot(layer: keras.Layer, inputs: Shapes, output: tuple[int, ...]) -> int:
    axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return math.prod(output[1:]) * inputs[0][axes]


#: Layer class → how its products are counted; 0 for one that has none.
COUNTERS: dict[type, MacCounter] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.DepthwiseConv1D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
    layers.LSTM: _recurrent,
    layers.GRU: _recurrent,
    layers.SimpleRNN: _recurrent,
    layers.RNN: _recurrent,
    layers.ConvLSTM1D: _convolutional_recurrent,
    layers.ConvLSTM2D: _convolutional_recurrent,
    layers.ConvLSTM3D: _convolutional_recurrent,
    layers.Attention: _dot_attention,
    layers.AdditiveAttention: _dot_attention,
    layers.Dot: _dot,
    layers.MultiHeadAttention: _attention,
    layers.GroupQueryAttention: _attention,
    **dict.fromkeys(
        (
            *(layers.Embedding, layers.PReLU, layers.Normalization, layers.BatchNormalization),
            *(layers.LayerNormalization, layers.RMSNormalization, layers.GroupNormalization),
            layers.SpectralNormalization,
        ),
        lambda layer, inputs, output: 0,
    ),
}


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _shape(layer: keras.Layer, tensor: Any) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if any(size is None for size in shape):
        raise ValueError(
            f"The MACs of {layer.name!r} depend on a dimension that is not known: {shape}. Pass "
            "`inputs=` with the full shapes."
        )
    return shape


def _input_specs(model: keras.Model, inputs: Any) -> Any:
    if inputs is None:
        inputs = input_structure(model) if is_functional(model) and model.built else None
    if inputs is None and getattr(model, "inputs", None):
        inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    if inputs is None:
        raise ValueError(
            "The inputs of a subclassed model are not known. Expected `inputs=` with an example "
            f"batch. Received: inputs=None for {type(model).__name__}"
        )
    return keras.tree.map_structure(
        lambda t: tf.TensorSpec((1, *t.shape[1:]), keras.backend.standardize_dtype(t.dtype)),
        inputs,
    )
