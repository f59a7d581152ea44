"""Rules of reshapes: flatten, reshape, and the operation of `keras.ops`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.model.graph import Node
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.tracer import Axes, Kept, Labels, Tracer, describe


@register_rule(layers.Flatten)
def flatten(t: Tracer, node: Node) -> Axes | None:
    if getattr(node.operation, "data_format", None) == "channels_first":
        return None
    return _reshaped(t, node)


@register_rule(layers.Reshape)
def reshape(t: Tracer, node: Node) -> Axes | None:
    axes = _reshaped(t, node)
    if axes is not None:
        given = node.operation.target_shape
        t.resize(node.operation, lambda kept: {"target_shape": _resized(given, axes[1:], kept)})
    return axes


@register_rule("Reshape")
def reshape_op(t: Tracer, node: Node) -> Axes | None:
    axes = _reshaped(t, node)
    if axes is not None:
        given = node.operation.newshape
        t.resize(node.operation, lambda kept: {"newshape": _resized(given, axes, kept)})
    return axes


def _resized(given: Any, axes: Axes, kept: Kept) -> tuple:
    return tuple(
        size if labels is None or size in (-1, None) else kept.count(labels)
        for size, labels in zip(given, axes, strict=True)
    )


def _reshaped(t: Tracer, node: Node) -> Axes | None:
    before, after = node.inputs[0].shape, node.output.shape
    axes = t.of(node.inputs[0])
    old, new = ([size for size in shape[1:] if size is not None] for shape in (before, after))
    known = before[0] == after[0] and len(old) == len(before) - 1 and len(new) == len(after) - 1
    if not known or math.prod(old) != math.prod(new):
        # Sizes are not known, or examples are split or merged too: what is unchanged at the
        # end can still be followed.
        same = 0
        while same < min(len(before), len(after)) - 1 and before[-1 - same] == after[-1 - same]:
            same += 1
        if before[0] != after[0] or None in before[len(before) - same :]:
            return None
        rest = axes[: len(axes) - same]
        t.pin_all(rest, f"is reshaped with unknown sizes in {describe(node.operation)}")
        return (None,) * (len(after) - same) + axes[len(axes) - same :]
    out: list[Labels] = [None]
    for ins, outs in blocks(old, new):
        merged = _merge(t, old[slice(*ins)], axes[1:][slice(*ins)], node)
        out += _split(t, merged, new[slice(*outs)])
    return tuple(out)


def blocks(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs the axes of a reshape: the smallest runs of axes with equal products of sizes."""
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        start = i, j
        a = b = 1
        if i < len(before):
            a, i = before[i], i + 1
        if j < len(after):
            b, j = after[j], j + 1
        while a != b:
            if a < b:
                a, i = a * before[i], i + 1
            else:
                b, j = b * after[j], j + 1
        found.append(((start[0], i), (start[1], j)))
    return found


def _merge(t: Tracer, sizes: Sequence[int], axes: Axes, node: Node) -> Labels:
    """The labels of several axes made one."""
    labelled = [(i, labels) for i, labels in enumerate(axes) if labels is not None]
    if not labelled:
        return None
    if len(labelled) > 1:
        for _, labels in labelled:
            t.pin(labels, f"is merged with other channels in {describe(node.operation)}")
        return None
    ((at, labels),) = labelled
    shape = [1] * len(sizes)
    shape[at] = sizes[at]
    return np.broadcast_to(labels.reshape(shape), sizes).reshape(-1)


def _split(t: Tracer, labels: Labels, sizes: Sequence[int]) -> list[Labels]:
    """The labels of one axis made several: one of them carries the channels.

    What is removed must leave a full array, so places that differ only on the other axes are
    joined. An axis for which they are the same already is preferred, else the last one.
    """
    out: list[Labels] = [None] * len(sizes)
    if labels is None or not sizes:
        t.pin(labels, "loses its axis in a reshape")
        return out
    roots = t.units.find(labels).reshape(sizes)
    candidates = [i for i, size in enumerate(sizes) if size > 1][::-1] or [len(sizes) - 1]

    def rows(array, axis):
        return np.moveaxis(array, axis, 0).reshape(sizes[axis], -1)

    free = [i for i in candidates if (rows(roots, i) == rows(roots, i)[:, :1]).all()]
    at = (free or candidates)[0]
    columns = rows(labels.reshape(sizes), at)
    for column in columns.T[1:]:
        t.units.join(columns[:, 0], column)
    out[at] = columns[:, 0]
    return out
