"""Rules of operations that keep every channel in its place: activations, sums, norms, pooling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.pruning.structure.rules.kernels import channel_axis, is_elementwise, with_axis
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.tracer import Axes, Labels, Role, Tracer, describe


@register_rule(
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout),
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.ActivityRegularization),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Minimum, layers.Average),
    # Of keras.ops.
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
    *("Absolute", "Exp", "Expm1", "Log", "Log1p", "Sqrt", "Rsqrt", "Square", "Negative", "Sign"),
    *("Sin", "Cos", "Clip", "Cast", "Identity", "StopGradient", "Where", "Copy", "Reciprocal"),
    *(
        "Relu",
        "ReLU",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Silu",
        "Sigmoid",
        "Tanh",
    ),
    *("HardSigmoid", "HardSilu", "HardTanh", "Softplus", "Softsign", "Mish", "LogSigmoid"),
    # Of keras.applications.
    *("CustomScaleLayer", "StochasticDepth"),
)
def elementwise(t: Tracer, node: Node) -> Axes | None:
    """Tensors that meet must lose the same channels; a constant array loses them too."""
    shape = node.output.shape
    rank = len(shape)
    if isinstance(node.operation, layers.Layer) and any(len(v.shape) != rank for v in node.inputs):
        # Keras' merging layers line up axes in a way of their own.
        return None
    out: list[Labels] = [None] * rank
    for axis in range(1, rank):
        meeting = []
        for value in node.inputs:
            at = axis - rank + len(value.shape)
            if at < 0:
                continue
            labels = t.of(value)[at]
            if value.shape[at] == 1 and shape[axis] != 1:
                t.pin(labels, f"is spread over other channels in {describe(node.operation)}")
            else:
                meeting.append(labels)
        for labels in meeting[1:]:
            meeting[0] = t.joined(meeting[0], labels, describe(node.operation))
        out[axis] = meeting[0] if meeting else None
    _slice_constants(t, node, tuple(out))
    return tuple(out)


def _slice_constants(t: Tracer, node: Node, out: Axes) -> None:
    """Constant arrays among the arguments are cut like the tensors that they meet."""

    def is_cut(array, axis):
        at = axis + len(np.shape(array))
        return at >= 0 and out[axis] is not None and np.shape(array)[at] > 1

    negative = range(-len(out), 0)
    arrays = [a for a in node.args if _is_array(a)]
    if not any(is_cut(a, axis) for a in arrays for axis in negative):
        return

    def edit(args, kwargs, kept):
        cut = []
        for original, arg in zip(node.args, args, strict=True):
            if _is_array(original):
                arg = np.asarray(arg)
                for axis in negative:
                    if is_cut(original, axis):
                        arg = kept.cut(arg, out[axis], axis)
            cut.append(arg)
        return tuple(cut), kwargs

    t.edits[node] = edit


def _is_array(argument: Any) -> bool:
    return not isinstance(argument, (Value, list, tuple)) and len(np.shape(argument)) > 0


@register_rule(layers.Activation)
def activation(t: Tracer, node: Node) -> Axes | None:
    function = node.operation.activation
    if is_elementwise(function):
        return elementwise(t, node)
    if function is layers.Activation("softmax").activation:
        return _mixes(t, node, (-1,))
    return None


@register_rule(layers.Softmax, "Softmax", "LogSoftmax")
def softmax(t: Tracer, node: Node) -> Axes:
    axis = node.operation.axis
    return _mixes(t, node, axis if isinstance(axis, (tuple, list)) else (axis,))


def _mixes(t: Tracer, node: Node, mixed: Iterable[int]) -> Axes:
    axes = t.of(node.inputs[0])
    for axis in mixed:
        t.pin(axes[axis], f"is mixed with other channels in {describe(node.operation)}")
    return axes


@register_rule(layers.PReLU)
def prelu(t: Tracer, node: Node) -> Axes:
    axes = t.of(node.inputs[0])
    shape = t.shape_of(node.operation, "alpha")
    for axis in range(-len(shape), 0):
        if shape[axis] == node.output.shape[axis]:
            t.member(node.operation, "alpha", axis, axes[axis], Role.CHANNEL)
    return axes


@register_rule(layers.Rescaling)
def rescaling(t: Tracer, node: Node) -> Axes:
    layer, axes = node.operation, t.of(node.inputs[0])
    config = layer.get_config()
    keys = [k for k in ("scale", "factor", "offset") if np.size(config.get(k, 0)) > 1]
    if keys and axes[-1] is not None:
        labels = axes[-1]
        t.resize(layer, lambda kept: {k: kept.cut(config[k], labels).tolist() for k in keys})
    return axes


@register_rule(layers.Normalization)
def normalization(t: Tracer, node: Node) -> Axes:
    axes = t.of(node.inputs[0])
    t.pin_all(axes, f"is normalized by the adapted {describe(node.operation)}")
    return axes


@register_rule("LayerScale")
def layer_scale(t: Tracer, node: Node) -> Axes:
    axes = t.of(node.inputs[0])
    out = axes[-1]
    t.member(node.operation, node.operation.weights[0], -1, out, Role.CHANNEL)
    if out is not None:
        t.resize(node.operation, lambda kept: {"projection_dim": kept.count(out)})
    return axes


@register_rule(layers.BatchNormalization)
def batch_norm(t: Tracer, node: Node) -> Axes:
    layer, axes = node.operation, t.of(node.inputs[0])
    moving = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    for name in ("gamma", "beta", *moving):
        t.member(layer, name, 0, axes[layer.axis], Role.CHANNEL)
    return axes


@register_rule(layers.LayerNormalization, layers.RMSNormalization)
def layer_norm(t: Tracer, node: Node) -> Axes:
    layer, axes = node.operation, t.of(node.inputs[0])
    normalized = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    for name in ("gamma", "beta", "scale"):
        if t.variable(layer, name) is not None:
            for i, axis in enumerate(normalized):
                t.member(layer, name, i, axes[axis], Role.CHANNEL)
    _statistics_change(t, node, [axes[axis] for axis in normalized])
    return axes


@register_rule(layers.GroupNormalization)
def group_norm(t: Tracer, node: Node) -> Axes:
    layer, axes = node.operation, t.of(node.inputs[0])
    labels = axes[layer.axis]
    size = node.inputs[0].shape[layer.axis]
    groups = size if layer.groups == -1 else layer.groups
    for name in ("gamma", "beta"):
        t.member(layer, name, 0, labels, Role.CHANNEL)
    if labels is None:
        return axes
    if groups == size:
        if layer.groups != -1:
            t.resize(layer, lambda kept: {"groups": kept.count(labels)})
        return axes
    rows = labels.reshape(groups, -1)
    for row in rows[1:]:
        t.units.join(rows[0], row)
    _statistics_change(t, node, [labels])
    return axes


def _statistics_change(t: Tracer, node: Node, axes: Iterable[Labels]) -> None:
    reason = f"{describe(node.operation)} then normalizes over the channels that are left"
    t.inexact += [(labels, reason) for labels in axes if labels is not None]


@register_rule(layers.UnitNormalization)
def unit_norm(t: Tracer, node: Node) -> Axes:
    (value,) = node.inputs
    axis = node.operation.axis
    for i in [axis] if isinstance(axis, int) else axis:
        t.summed(value, i)
    return t.of(value)


@register_rule(
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.Resizing),
    *("MaxPool", "AveragePool", "Resize"),
)
def spatial(t: Tracer, node: Node) -> Axes:
    """Works along positions, on each channel by itself."""
    axes = t.of(node.inputs[0])
    at = channel_axis(node.operation, len(axes))
    for axis, labels in enumerate(axes):
        if axis != at:
            t.pin(labels, f"is a position in {describe(node.operation)}")
    return with_axis(axes, at, axes[at])


@register_rule(
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
)
def global_pooling(t: Tracer, node: Node) -> Axes:
    axes = spatial(t, node)
    if node.operation.keepdims:
        return axes
    return (None, axes[channel_axis(node.operation, len(axes))])
