"""Statistics of channels on data, where the next layers read them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.batches import line_up
from tfcompress.model.graph import Node, Value
from tfcompress.pruning.structure.dependencies import Dependencies, Group
from tfcompress.pruning.structure.tracer import Labels, Role, Tracer


class ChannelActivations:
    """Collects activations of a model in inference, at the inputs of the layers that read them.

    That is after batch norm and activation function, where a zero means that a channel is silent.

    Args:
        dependencies: Of the model.
    """

    def __init__(self, dependencies: Dependencies):
        self.dependencies = dependencies
        self._tensor = {id(g): self._read_tensor(g) for g in dependencies.groups}
        self._wanted = {v for v in self._tensor.values() if v is not None}
        self._sums: dict[Value, list[list[np.ndarray]]] = {v: [] for v in self._wanted}
        self._run = tf.function(self._compute, autograph=False, reduce_retracing=True)
        self._examples: list[int] = []

    def observe(self, x: Any) -> None:
        """Runs a batch of inputs through the model, whatever form of them `model.fit` takes."""
        inputs = _standardized(x, self.dependencies.graph.inputs)
        self._examples.append(len(inputs[0]))
        for value, results in zip(self._sums, self._run(inputs), strict=True):
            self._sums[value].append([np.asarray(r) for r in results])

    def sees(self, group: Group) -> bool:
        return self._tensor[id(group)] is not None

    def mean_magnitude(self, group: Group) -> np.ndarray:
        """Mean |a| of each channel."""
        return self._mean(group, 0)

    def nonzero(self, group: Group) -> np.ndarray:
        """Share of activations that are not zero, of each channel."""
        return self._mean(group, 1)

    def position_means(self, group: Group) -> np.ndarray:
        """`(examples, channels)`: mean over positions."""
        parts = [results[2] for results in self._sums[self._seen(group)]]
        return self._channels(group, np.concatenate(parts))

    def _mean(self, group: Group, which: int) -> np.ndarray:
        parts = [results[which] for results in self._sums[self._seen(group)]]
        return self._channels(group, np.average(parts, axis=0, weights=self._examples))

    def _channels(self, group: Group, values: np.ndarray) -> np.ndarray:
        """Picks the channels of a group from the statistics of the tensor, averaged where several
        indices belong to one channel."""
        tracer, value = self.dependencies.tracer, self._seen(group)
        labels = _labels(tracer, value)
        assert labels is not None  # What carries a group has one axis with labels.
        labels = tracer.units.find(labels)
        places = [np.flatnonzero(labels == unit) for unit in group.units]
        return np.stack([values[..., p].mean(-1) for p in places], -1)

    def _seen(self, group: Group) -> Value:
        """The tensor of a group that is seen."""
        value = self._tensor[id(group)]
        if value is None:
            raise ValueError(f"No tensor of {group.name} is read by a layer.")
        return value

    def _read_tensor(self, group: Group) -> Value | None:
        """The input of the first layer that reads the group, else the last tensor with it."""
        tracer = self.dependencies.tracer
        for place in group.places:
            if place.member.role is Role.INPUT:
                for node in tracer.graph.calls(place.member.layer):
                    for value in node.inputs:
                        if self._carries(value, group):
                            return value
        carrying = [v for node in group.calls for v in node.outputs if self._carries(v, group)]
        return carrying[-1] if carrying else None

    def _carries(self, value: Value, group: Group) -> bool:
        tracer = self.dependencies.tracer
        labels = _labels(tracer, value)
        if labels is None:
            return False
        return bool(np.isin(group.units, tracer.units.find(labels)).all())

    def _compute(self, inputs: list[tf.Tensor]) -> list[tuple]:
        graph, tracer = self.dependencies.graph, self.dependencies.tracer
        seen = {}

        def call(node: Node, args: tuple, kwargs: dict[str, Any]) -> list[tf.Tensor]:
            results = keras.tree.flatten(node.operation(*args, **kwargs))
            for value, result in zip(node.outputs, results, strict=True):
                if value in self._wanted:
                    axis, rank = _axis(tracer, value), len(value.shape)
                    result_32 = tf.cast(result, tf.float32)
                    others = [a for a in range(rank) if a != axis]
                    positions = [a for a in others if a != 0]
                    nonzero = tf.cast(result_32 != 0, tf.float32)
                    seen[value] = (
                        tf.reduce_mean(tf.abs(result_32), others),
                        tf.reduce_mean(nonzero, others),
                        tf.reduce_mean(result_32, positions),
                    )
            return results

        graph.run(dict(zip(graph.flat_inputs, inputs, strict=True)), call)
        return [seen[value] for value in self._sums]


def _standardized(x: Any, inputs: Any) -> list[tf.Tensor]:
    """A batch as the inputs of a graph, with their types and ranks."""
    tensors = []
    for part, value in zip(line_up(x, inputs), keras.tree.flatten(inputs), strict=True):
        tensor = tf.convert_to_tensor(part)
        if tensor.dtype != tf.string:
            tensor = tf.cast(tensor, value.spec.dtype)
        if tensor.shape.rank == len(value.shape) - 1 and value.shape[-1] == 1:
            tensor = tensor[..., None]
        tensors.append(tensor)
    return tensors


def _labels(tracer: Tracer, value: Value) -> Labels:
    """The labels of the one axis that has some; `None` where there are none or several."""
    axis = _axis(tracer, value)
    return None if axis is None else tracer.of(value)[axis]


def _axis(tracer: Tracer, value: Value) -> int | None:
    axes = [i for i, labels in enumerate(tracer.of(value)) if labels is not None]
    return axes[0] if len(axes) == 1 else None
