"""Rules of the layers that make channels: dense, convolution, recurrent, embedding, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import activations, layers

from tfcompress.model.graph import Node, Value
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.tracer import Axes, Labels, Role, Tracer, describe

_BY_VALUE = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear "
    "log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus "
    "sparse_sigmoid squareplus tanh tanh_shrink threshold"
)
#: Keras' activation functions that act on each value by itself.
ELEMENTWISE = tuple(getattr(activations, n) for n in _BY_VALUE.split() if hasattr(activations, n))


def is_elementwise(function: Any) -> bool:
    """Whether a function acts on each value by itself: one of Keras', or one that declares so."""
    return function in ELEMENTWISE or getattr(function, "channels_like", None) is layers.Identity


def channel_axis(layer: layers.Layer, rank: int) -> int:
    """Index of the channel axis of a layer with a `data_format`."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def with_axis(axes: Axes, axis: int, labels: Labels, rank: int | None = None) -> Axes:
    """No labels but those of one axis."""
    rank = len(axes) if rank is None else rank
    return tuple(labels if i == axis % rank else None for i in range(rank))


def _made(t: Tracer, layer: layers.Layer, count: int, key: str = "") -> np.ndarray:
    """The units of a layer's output, pinned where its activation mixes channels."""
    made = t.made(layer, count, key)
    _pin_mixed(t, layer, made)
    return made


def _pin_mixed(t: Tracer, layer: layers.Layer, labels: Labels) -> None:
    """Pins what an activation of the layer mixes."""
    activation = getattr(layer, "activation", None)
    if activation is not None and not is_elementwise(activation):
        name = getattr(activation, "__name__", type(activation).__name__)
        t.pin(labels, f"goes through the activation {name!r} of {layer.name!r}")


def _is_altered(layer: layers.Layer) -> bool:
    """Whether Keras' own quantization or LoRA has put other variables in the kernel's place."""
    return bool(getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False))


@register_rule(layers.Dense)
def dense(t: Tracer, node: Node) -> Axes | None:
    layer, x = node.operation, t.of(node.inputs[0])
    if _is_altered(layer):
        t.pin(t.made(layer, layer.units), f"its layer {describe(layer)} is quantized or has LoRA")
        return None
    out = _made(t, layer, layer.units)
    t.member(layer, "kernel", 0, x[-1], Role.INPUT)
    t.member(layer, "kernel", 1, out, Role.OUTPUT)
    t.member(layer, "bias", 0, out, Role.OUTPUT)
    t.resize(layer, lambda kept: {"units": kept.count(out)})
    return (*x[:-1], out)


@register_rule(layers.EinsumDense)
def einsum_dense(t: Tracer, node: Node) -> Axes | None:
    layer, x = node.operation, t.of(node.inputs[0])
    left, result = layer.equation.replace(" ", "").split("->")
    source, kernel = left.split(",")
    if _is_altered(layer) or (("..." in source) and not source.startswith("...")):
        return None
    rank = len(node.output.shape)
    source = source.replace("...", "")
    before = len(x) - len(source)
    letters: dict[str, Labels] = dict(zip(source, x[before:], strict=True))
    sizes = dict(zip(kernel, t.shape_of(layer, "kernel"), strict=True))
    result = result.replace("...", "")
    for letter in result:
        if letter not in letters:
            letters[letter] = _made(t, layer, sizes[letter], letter)
    made = {letter for letter in result if letter not in source}
    for axis, letter in enumerate(kernel):
        role = Role.OUTPUT if letter in made else Role.CHANNEL
        role = Role.INPUT if letter not in result else role
        t.member(layer, "kernel", axis, letters[letter], role)
    out = (*x[:before], *(letters[letter] for letter in result))
    bias = t.variable(layer, "bias")
    if bias is not None:
        for axis in range(-len(bias.shape), 0):
            if bias.shape[axis] > 1 or node.output.shape[axis] == 1:
                role = Role.OUTPUT if result[axis] in made else Role.CHANNEL
                t.member(layer, "bias", axis, out[axis], role)
    given = layer.get_config()["output_shape"]
    if isinstance(given, int):
        given = (given,)

    def changes(kept):
        sizes = [
            size if size is None or labels is None else kept.count(labels)
            for size, labels in zip(given, out[rank - len(given) :], strict=True)
        ]
        return {"output_shape": tuple(sizes)}

    t.resize(layer, changes)
    return out


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(t: Tracer, node: Node) -> Axes | None:
    layer, x = node.operation, t.of(node.inputs[0])
    if _is_altered(layer):
        return None
    axis = channel_axis(layer, len(x))
    source, groups, filters = x[axis], layer.groups, layer.filters
    per_group = t.shape_of(layer, "kernel")[-2]
    if groups == 1:
        out = _made(t, layer, filters)
        t.member(layer, "kernel", -2, source, Role.INPUT)
        role, changes = Role.OUTPUT, lambda kept: {"filters": kept.count(out)}
    elif per_group == 1 and source is not None:
        # A depthwise convolution by another name: a group goes with its one input channel.
        out, role = np.repeat(source, filters // groups), Role.CHANNEL
        _pin_mixed(t, layer, out)

        def changes(kept):
            return {"filters": kept.count(out), "groups": kept.count(source)}
    else:
        # Every group keeps the same number of channels: the n-th of each go together.
        out = np.tile(_made(t, layer, filters // groups), groups)
        kernel_input = None
        if source is not None:
            rows = source.reshape(groups, per_group)
            for row in rows[1:]:
                t.units.join(rows[0], row)
            kernel_input = rows[0]
        t.member(layer, "kernel", -2, kernel_input, Role.INPUT)
        role, changes = Role.OUTPUT, lambda kept: {"filters": kept.count(out)}
    t.member(layer, "kernel", -1, out, role)
    t.member(layer, "bias", 0, out, role)
    t.resize(layer, changes)
    return with_axis(x, axis, out)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed(t: Tracer, node: Node) -> Axes:
    layer, x = node.operation, t.of(node.inputs[0])
    axis = channel_axis(layer, len(x))
    out = _made(t, layer, layer.filters)
    t.member(layer, "kernel", -1, x[axis], Role.INPUT)
    t.member(layer, "kernel", -2, out, Role.OUTPUT)
    t.member(layer, "bias", 0, out, Role.OUTPUT)
    t.resize(layer, lambda kept: {"filters": kept.count(out)})
    return with_axis(x, axis, out)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(t: Tracer, node: Node) -> Axes:
    layer, x = node.operation, t.of(node.inputs[0])
    axis = channel_axis(layer, len(x))
    t.member(layer, "kernel", -2, x[axis], Role.CHANNEL)
    labels = x[axis]
    out = None if labels is None else np.repeat(labels, layer.depth_multiplier)
    _pin_mixed(t, layer, out)
    t.member(layer, "bias", 0, out, Role.CHANNEL)
    return with_axis(x, axis, out)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable(t: Tracer, node: Node) -> Axes:
    layer, x = node.operation, t.of(node.inputs[0])
    axis = channel_axis(layer, len(x))
    labels = x[axis]
    middle = None if labels is None else np.repeat(labels, layer.depth_multiplier)
    out = _made(t, layer, layer.filters)
    t.member(layer, "depthwise_kernel", -2, x[axis], Role.INPUT)
    t.member(layer, "pointwise_kernel", -2, middle, Role.INPUT)
    t.member(layer, "pointwise_kernel", -1, out, Role.OUTPUT)
    t.member(layer, "bias", 0, out, Role.OUTPUT)
    t.resize(layer, lambda kept: {"filters": kept.count(out)})
    return with_axis(x, axis, out)


@register_rule(layers.Embedding)
def embedding(t: Tracer, node: Node) -> Axes | None:
    layer, x = node.operation, t.of(node.inputs[0])
    if _is_altered(layer):
        return None
    out = t.made(layer, layer.output_dim)
    t.member(layer, "embeddings", 1, out, Role.OUTPUT)
    t.resize(layer, lambda kept: {"output_dim": kept.count(out)})
    return (*x, out)


@register_rule(layers.LSTM, layers.GRU, layers.SimpleRNN)
def recurrent(t: Tracer, node: Node) -> Axes | None:
    layer, x = node.operation, t.of(node.inputs[0])
    # A mask (of an embedding that has one) is read by position.
    others = [v for v in node.inputs[1:] if v is not node.kwargs.get("mask")]
    if others or layer.return_state or layer.stateful:
        return None
    units = layer.units
    out = _made(t, layer, units)
    gates = t.shape_of(layer, "kernel")[-1] // units
    columns = np.tile(out, gates)
    t.member(layer, "kernel", 0, x[-1], Role.INPUT)
    t.member(layer, "kernel", 1, columns, Role.OUTPUT, gates)
    t.member(layer, "recurrent_kernel", 0, out, Role.INPUT)
    t.member(layer, "recurrent_kernel", 1, columns, Role.OUTPUT, gates)
    t.member(layer, "bias", -1, columns, Role.OUTPUT, gates)
    t.resize(layer, lambda kept: {"units": kept.count(out)})
    return with_axis((None,) * len(node.output.shape), -1, out)


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(t: Tracer, node: Node) -> Axes | None:
    """Heads stay; the widths of what it reads and of what it gives follow."""
    layer = node.operation
    names = ("query", "value", "key")
    tensors = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    tensors = {name: tensors[name] for name in names if isinstance(tensors.get(name), Value)}
    config = layer.get_config()
    is_plain = (
        {"query", "value"} <= set(tensors)
        and all(value in tensors.values() for value in node.inputs)
        and len(node.outputs) == 1
        and config.get("output_shape") is None
        and not config.get("use_gate")
    )
    if not is_plain:
        return None
    tensors.setdefault("key", tensors["value"])
    t.whole[layer] = "heads, and the widths of queries, keys and values, stay"
    for name in names:
        t.member(layer, f"{name}/kernel", 0, t.of(tensors[name])[-1], Role.INPUT)
    query = t.of(tensors["query"])
    out = t.made(layer, t.shape_of(layer, "attention_output/kernel")[-1])
    t.member(layer, "attention_output/kernel", -1, out, Role.OUTPUT)
    t.member(layer, "attention_output/bias", -1, out, Role.OUTPUT)
    t.resize(layer, lambda kept: {"output_shape": (kept.count(out),)})
    return (*query[:-1], out)
