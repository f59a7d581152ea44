"""Rebuilds a model without some of its channels: smaller configurations, sliced variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.model.graph import Graph
from tfcompress.model.rewrite import copy_metadata, fresh, rename_duplicates
from tfcompress.model.user_class import class_of_copies, copy_attributes
from tfcompress.pruning.structure.dependencies import Dependencies
from tfcompress.pruning.structure.tracer import Kept


class Additions:
    """What is added to variables before they are cut, in their full shapes.

    Attributes:
        new_biases: Layer without a bias → the one that it gets.
    """

    def __init__(self):
        self._to_variables: dict[int, np.ndarray] = {}
        self.new_biases: dict[keras.Layer, np.ndarray] = {}

    def add(self, variable: keras.Variable, value: np.ndarray) -> None:
        self._to_variables[id(variable)] = self.to(variable) + value

    def add_bias(self, layer: keras.Layer, value: np.ndarray) -> None:
        """Adds to the layer's bias, which it gets where it has none."""
        if layer.use_bias:
            self.add(layer.bias, value)
        else:
            self.new_biases[layer] = self.new_biases.get(layer, 0.0) + value

    def to(self, variable: keras.Variable) -> np.ndarray | float:
        return self._to_variables.get(id(variable), 0.0)


def remove(
    dependencies: Dependencies, units: np.ndarray, additions: Additions | None = None
) -> keras.Model:
    """Returns the model without these units, its other weights as they were.

    Args:
        dependencies: Of the model, which is left untouched.
        units: Labels of what goes.
        additions: What is added to the variables that stay.
    """
    tracer, additions = dependencies.tracer, additions or Additions()
    kept = dependencies.removed(units)
    model = dependencies.model
    # Read once more, because the copies that get unique names replace what the nodes call.
    graph = Graph.from_model(model)
    rename_duplicates(graph)
    copies: dict[Any, Any] = {}
    for node, twin in zip(tracer.graph.nodes, graph.nodes, strict=True):
        operation = node.operation
        if operation not in copies:
            changes = tracer.resizes[operation](kept) if operation in tracer.resizes else {}
            if operation in additions.new_biases:
                changes["use_bias"] = True
            copies[operation] = _copy(operation, {**changes, "name": twin.operation.name})
        twin.operation = copies[operation]
        if node in tracer.edits:
            twin.args, twin.kwargs = tracer.edits[node](twin.args, twin.kwargs, kept)
    model_class, arguments = class_of_copies(model)
    smaller = graph.to_model(model_class, **arguments)
    copy_attributes(model, smaller)
    axes = variable_axes(dependencies)
    for operation, copy in copies.items():
        if isinstance(operation, keras.Layer):
            _carry_over(operation, copy, axes, kept, additions)
            copy.trainable = operation.trainable
    copy_metadata(model, smaller)
    return smaller


def variable_axes(dependencies: Dependencies) -> dict[int, dict[int, np.ndarray]]:
    """`id(variable)` → its axes with channels → their labels.

    The states of a compressed layer's transforms lie along the axes of the variable that they
    transform, as `WeightTransform.axes_of` says.
    """
    found: dict[int, dict[int, np.ndarray]] = {}
    for member in dependencies.tracer.members:
        if member.labels is not None:
            found.setdefault(id(member.variable), {})[member.axis] = member.labels
    for layer in {id(m.layer): m.layer for m in dependencies.tracer.members}.values():
        transformed = getattr(layer, "transformed", None)
        for name, chain in getattr(transformed, "chains", {}).items():
            variable = dependencies.tracer.variable(layer, name)
            if variable is None:
                continue
            axes = found.get(id(variable), {})
            for transform in chain:
                for state in transform.variables:
                    along = transform.axes_of(state, tuple(variable.shape))
                    found[id(state)] = {a: axes[b] for a, b in along.items() if b in axes}
    return found


def _copy(operation: Any, changes: dict[str, Any]) -> Any:
    if not changes.keys() - {"name"} and changes["name"] == operation.name:
        try:
            return fresh(operation)
        except ValueError:
            # Such as a Lambda of a Python function; without weights two models may share it.
            if getattr(operation, "variables", []):
                raise
            return operation
    config = operation.get_config()
    # The weights are assigned; arrays of initial values no longer fit.
    for key, value in config.items():
        if key.endswith("_initializer") and _starts_from_array(value):
            changes[key] = "zeros"
    return type(operation).from_config({**config, **changes})


def _starts_from_array(initializer: Any) -> bool:
    config = initializer.get("config") if isinstance(initializer, dict) else None
    return isinstance(config, dict) and isinstance(config.get("value"), (list, dict))


def _carry_over(
    source: keras.Layer,
    target: keras.Layer,
    axes: dict[int, dict[int, np.ndarray]],
    kept: Kept,
    additions: Additions,
) -> None:
    """Assigns each variable of `target` its counterpart in `source`: both have the same order."""
    olds = iter(source.variables)
    for variable in target.variables:
        if variable.name == "bias" and source in additions.new_biases:
            # It lies along the kernel's output channels.
            value = additions.new_biases[source]
            last = len(source.kernel.shape) - 1
            labels = axes.get(id(source.kernel), {}).get(last)
            variable.assign(value if labels is None else kept.cut(value, labels))
            continue
        old = next(olds)
        value = np.asarray(old)
        if keras.backend.is_float_dtype(old.dtype):
            value = value + additions.to(old)
        value = _cut(value, axes.get(id(old), {}), kept)
        if tuple(value.shape) != tuple(variable.shape):
            raise ValueError(
                f"The state {old.path!r} of shape {tuple(old.shape)} does not follow the channels "
                f"of its layer, whose smaller copy has {tuple(variable.shape)}. Shrink the model "
                "before the technique that made it is applied."
            )
        variable.assign(value)
    if isinstance(target, keras.layers.Normalization):
        # It computes with copies of its variables in another shape.
        target.finalize_state()


def _cut(value: np.ndarray, axes: Mapping[int, np.ndarray], kept: Kept) -> np.ndarray:
    for axis, labels in axes.items():
        value = kept.cut(value, labels, axis)
    return value
