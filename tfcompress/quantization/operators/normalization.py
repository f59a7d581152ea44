"""Norms over axes of one sample: layer, RMS, group and instance norm, and vectors of length 1.

y = (x − mean) / √(mean of squares + ε) · γ + β, with a rounding behind each step: the mean, the
difference, the sum of squares, its inverse root by a table, the product, and γ and β together.

Group norms add up over positions, where no matrix product fits, and square with MUL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.norm_steps import (
    Centered,
    InverseRoot,
    MeanOverAxes,
    MeanOverGroups,
    NormAffine,
    Normalized,
    SumOfSquares,
)
from tfcompress.quantization.operators.registry import OperatorSpec, register


def inner_axes(axis: Any, rank: int) -> list[int]:
    """Axes of a tensor of that rank, counted from the front, in order."""
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    return sorted(a % rank for a in axes)


def number_of(x: Value, axes: Sequence[int]) -> int:
    """How many values the axes, whose sizes are known, hold together."""
    return math.prod(x.shape[axis] or 1 for axis in axes)


def _scaled_by_norm(
    b: Builder, x: Value, axes: list[int], original: dict | None, **root: Any
) -> Value:
    """x · InverseRoot(Σ x² · factor): `factor` counts as for the mean where it is left out."""
    if axes == list(range(axes[0], len(x.shape))) and None not in x.shape[1:]:
        total = b.call(lambda n: SumOfSquares(axes[0], name=n), "squares", x)
    else:
        square = b.call(lambda n: Normalized(name=n), "square", x, x)
        total = b.call(lambda n: MeanOverAxes(axes, name=n), "squares", square)
        size = number_of(x, axes)
        root["factor"] = root.get("factor", 1.0) * size
    inverse = b.call(lambda n: InverseRoot(name=n, **root), "root", total)
    suffix = "" if original is not None else "normalized"
    return b.call(lambda n: Normalized(original, name=n), suffix, x, inverse)


def _with_affine(
    b: Builder, x: Value, axes: list[int], gamma: Any, beta: Any, original: dict | None
) -> Value:
    layer = b.node.operation
    variables = {v.name: v for v in (gamma, beta) if v is not None}
    names = [None if v is None else v.name for v in (gamma, beta)]

    def make(name: str) -> NormAffine:
        return NormAffine(
            axes,
            *names,
            original=original,
            name=name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )

    return b.call(make, "", x, weights=variables)


def serialized(operation: Any) -> dict[str, Any]:
    """The configuration of a layer or operation, from which Keras makes it again."""
    return keras.saving.serialize_keras_object(operation)


def has_known_axes(node: Node, axes: list[int]) -> bool:
    """Whether the sizes of a call's normalized axes are known."""
    shape = node.inputs[0].shape
    return node.inputs[0].is_float and 0 not in axes and all(shape[a] for a in axes)


def _layer_norm(b: Builder, node: Node) -> Value | None:
    """mean, x − mean, Σ of squares, 1 / √ by a table, a product, γ and β."""
    layer, x = node.operation, node.inputs[0]
    axes = inner_axes(layer.axis, len(x.shape))
    if layer.rms_scaling or not has_known_axes(node, axes):
        return None
    size = number_of(x, axes)
    mean = b.call(lambda n: MeanOverAxes(axes, name=n), "mean", x)
    centered = b.call(lambda n: Centered(name=n), "centered", x, mean)
    has_affine = layer.gamma is not None or layer.beta is not None
    original = serialized(layer)
    y = _scaled_by_norm(
        b,
        centered,
        axes,
        None if has_affine else original,
        factor=1.0 / size,
        epsilon=layer.epsilon,
    )
    return _with_affine(b, y, axes, layer.gamma, layer.beta, original) if has_affine else y


def _rms_norm(b: Builder, node: Node) -> Value | None:
    """Σ of squares, 1 / √ by a table, a product, the scale."""
    layer, x = node.operation, node.inputs[0]
    axes = inner_axes(layer.axis, len(x.shape))
    if not has_known_axes(node, axes):
        return None
    size = number_of(x, axes)
    y = _scaled_by_norm(b, x, axes, None, factor=1.0 / size, epsilon=layer.epsilon)
    return _with_affine(b, y, axes, layer.scale, None, serialized(layer))


def _unit_norm(b: Builder, node: Node) -> Value | None:
    """Σ of squares, 1 / √ by a table, a product."""
    layer, x = node.operation, node.inputs[0]
    axes = inner_axes(layer.axis, len(x.shape))
    if getattr(layer, "order", 2) != 2 or not has_known_axes(node, axes):
        return None
    epsilon = getattr(layer, "epsilon", 1e-12) or keras.backend.epsilon()
    return _scaled_by_norm(b, x, axes, serialized(layer), largest=1.0 / epsilon)


def _group_norm(b: Builder, node: Node) -> Value | None:
    """Means over positions, then over groups; squares likewise; the rest as a layer norm."""
    layer, x = node.operation, node.inputs[0]
    rank, channels = len(x.shape), x.shape[-1]
    positions = list(range(1, rank - 1))
    if layer.axis not in (-1, rank - 1) or not has_known_axes(node, list(range(1, rank))):
        return None

    def mean(value: Value, name: str) -> Value:
        if layer.groups == 1:
            axes = list(range(1, rank))
            return b.call(lambda n: MeanOverAxes(axes, name=n), name, value)
        if positions:
            value = b.call(lambda n: MeanOverAxes(positions, name=n), f"{name}_of_channels", value)
        if layer.groups == channels:
            return value
        return b.call(lambda n: MeanOverGroups(layer.groups, name=n), name, value)

    centered = b.call(lambda n: Centered(name=n), "centered", x, mean(x, "mean"))
    square = b.call(lambda n: Normalized(name=n), "square", centered, centered)
    variance = mean(square, "variance")
    inverse = b.call(lambda n: InverseRoot(epsilon=layer.epsilon, name=n), "root", variance)
    has_affine = layer.gamma is not None or layer.beta is not None
    original = serialized(layer)
    last = None if has_affine else original
    suffix = "normalized" if has_affine else ""
    y = b.call(lambda n: Normalized(last, name=n), suffix, centered, inverse)
    if not has_affine:
        return y
    return _with_affine(b, y, [rank - 1], layer.gamma, layer.beta, original)


for _class, _rule in {
    layers.LayerNormalization: _layer_norm,
    layers.RMSNormalization: _rms_norm,
    layers.GroupNormalization: _group_norm,
    layers.UnitNormalization: _unit_norm,
    ops.normalize: _unit_norm,
}.items():
    register(_class, spec=OperatorSpec(decompose=_rule))
