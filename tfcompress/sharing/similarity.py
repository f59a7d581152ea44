"""Distances between layers of equal kind and shape, and groups of similar ones."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from tfcompress.model.compressed import compressed_class
from tfcompress.model.graph import Graph
from tfcompress.model.kernels import layer_kernels

# What may differ between two layers that are shared, beside their initializers.
_IGNORED = ("name", "trainable", "seed")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One layer of one model; `position` is its place among the layers of its kind there.

    `compared` holds its kernels, and all of its weights as one vector: kernels count each by
    itself, so that a large bias hides none, and a bias as part of the whole.
    """

    model: int
    layer: keras.Layer
    path: str
    key: str
    position: int
    compared: tuple[np.ndarray, ...]


def find_candidates(
    graphs: Sequence[Graph], paths: Sequence[Mapping[keras.Layer, str]]
) -> Iterator[Candidate]:
    """Every layer with kernels that may be shared, in the order of the models.

    Args:
        graphs: The models.
        paths: Of each model: layer → its path.
    """
    for index, graph in enumerate(graphs):
        positions: collections.Counter[str] = collections.Counter()
        for operation in graph.operations():
            if not isinstance(operation, keras.Layer) or not layer_kernels(operation):
                continue
            if compressed_class(operation) is None:
                continue
            config = {
                k: v
                for k, v in operation.get_config().items()
                if k not in _IGNORED and not k.endswith("_initializer")
            }
            shapes = [tuple(v.shape) for v in operation.weights]
            key = f"{type(operation).__name__} {shapes} {sorted(config.items(), key=str)}"
            kernels = [k.variable.numpy() for k in layer_kernels(operation)]
            whole = np.concatenate([v.numpy().ravel() for v in operation.weights])
            path = paths[index][operation]
            yield Candidate(index, operation, path, key, positions[key], (*kernels, whole))
            positions[key] += 1


def distance_of(a: Candidate, b: Candidate) -> float:
    """The largest ‖A − B‖ / √(‖A‖·‖B‖) over what is compared of two layers."""
    distances = []
    for first, second in zip(a.compared, b.compared, strict=True):
        size = np.sqrt(np.linalg.norm(first) * np.linalg.norm(second))
        apart = np.linalg.norm(first - second)
        distances.append(0.0 if apart == 0 else float(apart / size) if size > 0 else np.inf)
    return max(distances)


def group_similar(found: list[Candidate], tolerance: float, within: bool) -> list[list[Candidate]]:
    """Merges the nearest pairs first, as long as all pairs of a group are within tolerance."""
    pairs = []
    for a, b in itertools.combinations(found, 2):
        if a.key == b.key and (within or a.model != b.model):
            distance = distance_of(a, b)
            if distance <= tolerance:
                # Unrelated kernels all have about the same distance; then their position decides.
                near = min(round(distance, 1), 1.0)
                pairs.append((near, abs(a.position - b.position), distance, a, b))
    group_of = {id(candidate): [candidate] for candidate in found}
    for *_, a, b in sorted(pairs, key=lambda pair: pair[:3]):
        first, second = group_of[id(a)], group_of[id(b)]
        if first is second:
            continue
        one_each = within or not {m.model for m in first} & {m.model for m in second}
        if one_each and all(distance_of(x, y) <= tolerance for x in first for y in second):
            merged = first + second
            group_of.update({id(member): merged for member in merged})
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    order = {id(candidate): i for i, candidate in enumerate(found)}
    ordered = [sorted(group, key=lambda m: order[id(m)]) for group in groups.values()]
    return sorted(ordered, key=lambda group: order[id(group[0])])
