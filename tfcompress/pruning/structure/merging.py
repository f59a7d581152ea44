"""Merging of near-duplicate channels: one is removed, and another is read in its place."""

from __future__ import annotations

import keras
import numpy as np

from tfcompress.pruning.structure.dependencies import Dependencies, Group
from tfcompress.pruning.structure.removal import Additions
from tfcompress.pruning.structure.tracer import Role, operation_class


class Merged:
    """Which channels are near-duplicates of which.

    Attributes:
        removed: Labels of the units that another one replaces.
    """

    def __init__(self, dependencies: Dependencies, replaced_by: dict[int, int]):
        self._dependencies = dependencies
        self._replaced_by = replaced_by
        self.removed = np.array(sorted(replaced_by), np.int64)

    def move(self, removed: np.ndarray, additions: Additions) -> None:
        """Adds the rows of removed channels, in the layers that read them, to those of others.

        Args:
            removed: All units that are removed. A unit that replaces another one, and is removed
                itself, replaces it no longer.
            additions: Where to add.
        """
        kept = self._dependencies.removed(removed)
        for group in self._dependencies.groups:
            left = kept.of(group.units)
            place_of = {int(unit): i for i, unit in enumerate(group.units)}
            pairs = [
                (i, place_of[self._replaced_by[unit]])
                for unit, i in place_of.items()
                if unit in self._replaced_by and not left[i]
            ]
            pairs = [(old, new) for old, new in pairs if left[new]]
            for place in group.places:
                if place.member.role is Role.INPUT and pairs:
                    value = np.moveaxis(np.asarray(place.member.variable), place.member.axis, 0)
                    added = np.zeros_like(value)
                    for old, new in pairs:
                        added[place.indices[new]] += value[place.indices[old]]
                    additions.add(place.member.variable, np.moveaxis(added, 0, place.member.axis))


def merge_duplicates(dependencies: Dependencies, tolerance: float) -> Merged:
    """Finds channels that another one of their group can replace.

    Two channels are near-duplicates where they pass the same tensors, and everything that makes
    them and that they pass on their way (kernels, biases, batch norms) is the same up to
    `tolerance`:
    `‖v_j − v_k‖₂ ≤ tolerance · max(‖v_j‖₂, ‖v_k‖₂)` for each kernel, and for each vector relative
    to its largest entry. At 0 the merged model computes the same.

    Args:
        dependencies: Of the model.
        tolerance: 0 or more.

    Raises:
        ValueError: A negative tolerance.
    """
    if tolerance < 0:
        raise ValueError(f"`merge` is a tolerance, 0 or more. Received: {tolerance}")
    replaced_by: dict[int, int] = {}
    for group in dependencies.groups:
        if group.inexact or not _is_read_by_kernels(dependencies, group):
            continue
        paths = _paths(dependencies, group)
        near = _near(group, tolerance) & (paths[:, None] == paths[None])
        for j in range(len(group)):
            # The first of several near-duplicates stays.
            first = int(np.argmax(near[j, : j + 1]))
            if first < j and int(group.units[first]) not in replaced_by:
                replaced_by[int(group.units[j])] = int(group.units[first])
    return Merged(dependencies, replaced_by)


def _near(group: Group, tolerance: float) -> np.ndarray:
    """`(channels, channels)`: whether two are near-duplicates."""
    near = np.ones((len(group), len(group)), bool)
    for place in group.places:
        if place.member.role is Role.INPUT:
            continue
        values = np.moveaxis(np.asarray(place.member.variable, np.float64), place.member.axis, 0)
        rows = values[place.indices].reshape(len(group), -1)
        # One row at a time: all differences at once would not fit into memory.
        distance = np.stack([np.linalg.norm(rows - row, axis=-1) for row in rows])
        size = np.linalg.norm(rows, axis=-1)
        scale = np.maximum(size[:, None], size[None])
        if len(place.member.variable.shape) == 1:
            scale = np.full_like(scale, np.abs(values).max(initial=0.0))
        near &= distance <= tolerance * scale
    return near


def _paths(dependencies: Dependencies, group: Group) -> np.ndarray:
    """For each channel a number, the same where the same tensors carry it."""
    tracer, carriers = dependencies.tracer, []
    for node in group.calls:
        for value in node.outputs:
            labels = [a for a in tracer.of(value) if a is not None]
            if labels:
                here = tracer.units.find(np.concatenate(labels))
                carriers.append(np.isin(group.units, here))
    return np.unique(np.stack(carriers, 1), axis=0, return_inverse=True)[1].reshape(-1)


def _is_read_by_kernels(dependencies: Dependencies, group: Group) -> bool:
    """Whether kernels are the only readers of the channels."""
    tracer = dependencies.tracer
    for _, labels in tracer.sums:
        if np.isin(group.units, tracer.units.find(labels)).any():
            return False
    # Constants of a channel in the graph are not compared.
    has_constants = any(
        node in tracer.edits or operation_class(node.operation) is keras.layers.Rescaling
        for node in group.calls
    )
    return not has_constants and any(p.member.role is Role.INPUT for p in group.places)
