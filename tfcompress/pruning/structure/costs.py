"""What a model costs as a function of how many channels each group keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.model.declared import returns_input
from tfcompress.model.kernels import iterate_layers, layer_kernels
from tfcompress.model.macs import count_macs
from tfcompress.model.paths import layer_paths
from tfcompress.model.transforms import TransformedWeights
from tfcompress.pruning.structure.dependencies import Dependencies, Group

#: Number of channels that each group keeps → a cost as a fraction of the full model's.
Cost = Callable[[np.ndarray], float]


class WeightCost:
    """A cost that is a sum over variables, each in proportion to its size.

    `cost(kept) = (Σ_v weight_v · Π_axes left(axis) / full(axis) + rest) / total`

    Args:
        groups: The groups.
        weights: `(variable, what it costs in full)`.
        rest: What does not change.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        weights: Sequence[tuple[keras.Variable, float]],
        rest: float = 0.0,
    ):
        self._weights = np.array([weight for _, weight in weights], np.float64)
        self._rest = rest
        number = {id(variable): i for i, (variable, _) in enumerate(weights)}
        # One row per axis with channels: how much shorter a channel of each group makes it.
        shorter: dict[tuple[int, int], np.ndarray] = {}
        for g, group in enumerate(groups):
            for place in group.places:
                variable, axis = place.member.variable, place.member.axis
                if id(variable) in number:
                    row = shorter.setdefault((number[id(variable)], axis), np.zeros(len(groups)))
                    row[g] = place.indices.shape[1] / variable.shape[axis]
        self._of_axis = np.array([n for n, _ in shorter], np.int64)
        self._shorter = np.array(list(shorter.values())).reshape(len(shorter), len(groups))
        self._full = np.array([len(group) for group in groups])
        self.total = float(self._weights.sum() + rest)

    def __call__(self, kept: np.ndarray) -> float:
        left = 1.0 - self._shorter @ (self._full - kept)
        factors = np.ones(len(self._weights))
        np.multiply.at(factors, self._of_axis, left)
        return float((self._weights @ factors + self._rest) / self.total)


def macs_cost(dependencies: Dependencies, inputs: Any = None) -> WeightCost:
    """Multiply-accumulates of one example: each kernel's are in proportion to its size.

    Exact but where `positions_carry_channels`.

    Raises:
        ValueError: A size of the inputs is not known, and `inputs` is not given.
    """
    model = dependencies.model
    counts = count_macs(model, by_layer=True, inputs=inputs)
    paths = layer_paths(model)
    weights, total = [], sum(counts.values())
    for layer in iterate_layers(model):
        kernels = layer_kernels(layer)
        count, size = counts.get(paths[id(layer)], 0), sum(_size(k.variable) for k in kernels)
        weights += [(k.variable, count * _size(k.variable) / size) for k in kernels]
    return WeightCost(dependencies.groups, weights, total - sum(w for _, w in weights))


def positions_carry_channels(dependencies: Dependencies) -> bool:
    """Whether a layer may run fewer times without some channels, as a dense layer on transposed
    features does: its multiply-accumulates then follow more than the size of its kernel."""
    carrying = (
        sum(labels is not None for labels in dependencies.tracer.of(value))
        for node in dependencies.graph.nodes
        if isinstance(node.operation, keras.Layer) and layer_kernels(node.operation)
        for value in node.outputs
    )
    return any(axes > 1 for axes in carrying)


def parameter_cost(dependencies: Dependencies) -> WeightCost:
    """Number of weights, trainable or not, without the states of transforms and quantizers."""
    model = dependencies.model
    states: set[int] = set()
    for layer in iterate_layers(model):
        if isinstance(layer, TransformedWeights) or returns_input(layer):
            states.update(id(v) for v in layer.weights)
    weights = [(v, float(_size(v))) for v in model.weights if id(v) not in states]
    return WeightCost(dependencies.groups, weights)


def _size(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape))
