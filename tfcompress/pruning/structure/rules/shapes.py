"""Rules of operations that move channels: permute, concatenate, split, slice, reductions."""

from __future__ import annotations

import itertools

import numpy as np
from keras import layers

from tfcompress.model.declared import channels_like
from tfcompress.model.graph import Node, Value
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.tracer import Axes, Labels, Tracer, describe


@register_rule(layers.Permute)
def permute(t: Tracer, node: Node) -> Axes:
    axes = t.of(node.inputs[0])
    return (None, *(axes[d] for d in node.operation.dims))


@register_rule("Transpose")
def transpose(t: Tracer, node: Node) -> Axes | None:
    axes = t.of(node.inputs[0])
    order = node.operation.axes or range(len(axes))[::-1]
    return tuple(axes[i] for i in order)


@register_rule("Swapaxes", "Moveaxis")
def swap(t: Tracer, node: Node) -> Axes:
    operation, axes = node.operation, t.of(node.inputs[0])
    positions = np.arange(len(axes)).reshape(1, -1)
    # Followed on an array whose shape tells its axes apart.
    probe = np.empty(tuple(positions[0] + 1))
    if hasattr(operation, "axis1"):
        probe = np.swapaxes(probe, operation.axis1, operation.axis2)
    else:
        probe = np.moveaxis(probe, operation.source, operation.destination)
    return tuple(axes[size - 1] for size in probe.shape)


@register_rule("ExpandDims")
def expand_dims(t: Tracer, node: Node) -> Axes | None:
    axis = node.operation.axis
    if not isinstance(axis, int):
        return None
    axes = list(t.of(node.inputs[0]))
    axes.insert(axis if axis >= 0 else len(axes) + 1 + axis, None)
    return tuple(axes)


@register_rule("Squeeze")
def squeeze(t: Tracer, node: Node) -> Axes:
    axis, shape = node.operation.axis, node.inputs[0].shape
    if axis is None:
        gone = {i for i, size in enumerate(shape) if size == 1}
    else:
        gone = {a % len(shape) for a in ([axis] if isinstance(axis, int) else axis)}
    return _without(t, node, gone)


def _without(t: Tracer, node: Node, gone: set[int]) -> Axes:
    axes = t.of(node.inputs[0])
    for i in gone:
        t.pin(axes[i], f"loses its axis in {describe(node.operation)}")
    return tuple(labels for i, labels in enumerate(axes) if i not in gone)


@register_rule(layers.RepeatVector)
def repeat_vector(t: Tracer, node: Node) -> Axes:
    return (None, None, t.of(node.inputs[0])[-1])


@register_rule(layers.Concatenate, "Concatenate")
def concatenate(t: Tracer, node: Node) -> Axes:
    rank = len(node.output.shape)
    at = node.operation.axis % rank
    axes = [t.of(v) for v in node.inputs]
    out = list(axes[0])
    for i in range(1, rank):
        if i != at:
            for other in axes[1:]:
                out[i] = t.joined(out[i], other[i], describe(node.operation))
    # Channels that stay whatever happens are units too where they lie beside others.
    parts = [a[at] for a in axes]
    if all(p is None for p in parts):
        out[at] = None
    else:
        for i, value in enumerate(node.inputs):
            if parts[i] is None:
                parts[i] = _fixed(t, value, at)
        out[at] = np.concatenate(parts)
    return tuple(out)


def _fixed(t: Tracer, value: Value, axis: int) -> np.ndarray:
    size = value.shape[axis]
    assert size is not None  # Channels that carry labels are counted.
    labels = t.units.new(size)
    t.pin(labels, f"comes from {value.name!r}, whose channels cannot be removed")
    return labels


@register_rule("Stack")
def stack(t: Tracer, node: Node) -> Axes:
    axes = list(t.of(node.inputs[0]))
    for value in node.inputs[1:]:
        for i, labels in enumerate(t.of(value)):
            axes[i] = t.joined(axes[i], labels, describe(node.operation))
    axis = node.operation.axis
    axes.insert(axis if axis >= 0 else len(axes) + 1 + axis, None)
    return tuple(axes)


@register_rule("Split")
def split(t: Tracer, node: Node) -> list[Axes]:
    operation, axes = node.operation, t.of(node.inputs[0])
    at = operation.axis % len(axes)
    sizes = [value.shape[at] for value in node.outputs]
    if axes[at] is None:
        return [axes] * len(sizes)
    parts = np.split(axes[at], np.cumsum(sizes)[:-1])
    # A configuration holds places, not labels, so they are counted up.
    t.resize(
        operation,
        lambda kept: {
            "indices_or_sections": list(itertools.accumulate(map(kept.count, parts[:-1])))
        },
    )
    return [(*axes[:at], part, *axes[at + 1 :]) for part in parts]


@register_rule("GetItem")
def get_item(t: Tracer, node: Node) -> Axes | None:
    """`x[:, ..., a:b]`; the places of a slice of channels move with what is removed before it."""
    key = node.args[1]
    key = key if isinstance(key, tuple) else (key,)
    if not all(k is Ellipsis or k is None or isinstance(k, (int, slice)) for k in key):
        return None
    axes = t.of(node.inputs[0])
    used = sum(k is not Ellipsis and k is not None for k in key)
    at = key.index(Ellipsis) if Ellipsis in key else len(key)
    key = (*key[:at], *(slice(None),) * (len(axes) - used), *key[at + 1 :])
    out: list[Labels] = []
    slices, i = {}, 0
    for place, k in enumerate(key):
        if k is None:
            out.append(None)
            continue
        labels, i = axes[i], i + 1
        if isinstance(k, int):
            t.pin(labels, f"is picked out by {describe(node.operation)}")
            continue
        if labels is not None and k != slice(None):
            if k.step not in (None, 1):
                t.pin(labels, f"is sliced with a step in {describe(node.operation)}")
            else:
                start, stop, _ = k.indices(len(labels))
                slices[place] = (labels[:start], labels[:stop])
            labels = labels[k]
        out.append(labels)

    def edit(args, kwargs, kept):
        new = list(key)
        for place, (start, stop) in slices.items():
            new[place] = slice(kept.count(start), kept.count(stop))
        return (args[0], tuple(new)), kwargs

    if slices:
        t.edits[node] = edit
    return tuple(out)


@register_rule("Pad")
def pad(t: Tracer, node: Node) -> Axes:
    axes = t.of(node.inputs[0])
    out = []
    for before, after, labels in zip(node.inputs[0].shape, node.output.shape, axes, strict=True):
        if before != after:
            t.pin(labels, f"is padded with channels in {describe(node.operation)}")
            labels = None
        out.append(labels)
    return tuple(out)


@register_rule("Mean", "Max", "Min", "Sum", "Var", "Std", "Prod", "Any", "All", "Amax", "Amin")
def reduction(t: Tracer, node: Node) -> Axes:
    operation, axes = node.operation, t.of(node.inputs[0])
    axis = operation.axis
    if axis is None:
        gone = set(range(len(axes)))
    else:
        gone = {a % len(axes) for a in ([axis] if isinstance(axis, int) else axis)}
    for i in gone:
        # A channel of zeros leaves a sum as it is, and no other reduction.
        if channels_like(operation).__name__ == "Sum":
            t.summed(node.inputs[0], i)
        else:
            t.pin(axes[i], f"is mixed with other channels in {describe(operation)}")
    if operation.keepdims:
        return tuple(None if i in gone else labels for i, labels in enumerate(axes))
    return tuple(labels for i, labels in enumerate(axes) if i not in gone)


@register_rule("Matmul")
def matmul(t: Tracer, node: Node) -> Axes | None:
    if len(node.inputs) != 2 or any(len(v.shape) != len(node.output.shape) for v in node.inputs):
        return None
    left, right = (t.of(v) for v in node.inputs)
    place = describe(node.operation)
    t.joined(left[-1], right[-2], place)
    t.summed(node.inputs[0], -1)
    batch = tuple(t.joined(a, b, place) for a, b in zip(left[:-2], right[:-2], strict=True))
    return (*batch, left[-2], right[-1])
