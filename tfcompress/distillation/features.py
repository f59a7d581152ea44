"""Tapping a model: one forward pass gives the outputs and the features of named layers.

A tapped layer is recorded while the model runs itself, so that it works for functional, nested,
sequential and subclassed models alike, and the model runs once. Recording happens in Python, that
is, while a train step is traced; the compiled step has no trace of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.model.calls import record_calls
from tfcompress.model.graph import Graph, producer
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.lookup import near_names


def find_operation(model: keras.Layer, name: str) -> tuple[Any, int | None]:
    """Finds a layer (or operation of a functional graph) by name.

    Args:
        model: A Keras model.
        name: `"layer"`, `"outer/inner"` for a layer of a nested model (a bare `"inner"` does
            where it is the only one of that name), and `"layer:1"` for the second call of a
            layer that is called several times.

    Returns:
        The operation, and the number of its call or `None`.

    Raises:
        ValueError: If there is none, with near names, or several.
    """
    base, _, call = name.partition(":")
    if call and not call.isdigit():
        raise ValueError(
            f'Expected a name such as "conv" or "conv:1" (its second call). Received: {name!r}'
        )
    operation = _find(model, base)
    if operation is None:
        raise ValueError(
            f"Expected the name of a layer of model '{model.name}'. Received: {name!r}. "
            f"{near_names(base, operation_names(model))}"
        )
    return operation, int(call) if call else None


def operation_names(model: keras.Layer) -> list[str]:
    """The names of all layers and operations of `model`, nested ones included."""
    names = [op.name for op in getattr(model, "operations", [])]
    return names + [layer.name for layer in iterate_layers(model) if layer is not model]


def name_of_tensor(model: keras.Layer, tensor: keras.KerasTensor) -> str:
    """The name by which `FeatureTap` finds a tensor of the model's graph again.

    Raises:
        ValueError: If the tensor is of another model, or one of several outputs of a layer, or if
            `model` is no Keras model, such as a callable or a `TeacherCache`.
    """
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "Expected the name of a layer or of an output, since only a Keras model has tensors to "
            f"find. Received: a KerasTensor, for a {type(model).__name__}. Give the layer's name; "
            "a cache holds the features it was computed with: `TeacherCache.compute(teacher, "
            "data, layers=[name])`."
        )
    graph = Graph.from_model(model)
    for node in [n for n in graph.nodes if n.outputs[0].spec is tensor and len(n.outputs) == 1]:
        calls = graph.calls(node.operation)
        call = f":{calls.index(node)}" if len(calls) > 1 else ""
        return "/".join((*node.path, node.name)) + call
    made_by = producer(tensor)  # A nested model as a whole: the graph looks inside it.
    if made_by is not None and any(made_by[0] is layer for layer in model.layers):
        return made_by[0].name
    raise ValueError(
        f"Expected a KerasTensor that is the output of one layer of model '{model.name}'. "
        f"Received: {tensor}. Give the layer's name."
    )


def pick_output(outputs: Any, key: str | int, owner: str) -> Any:
    """Picks one of several outputs by dict key or by index in flatten order.

    Raises:
        ValueError: If there is no such output, with what there is.
    """
    if isinstance(outputs, dict) and key in outputs:
        return outputs[key]
    flat = keras.tree.flatten(outputs)
    if isinstance(key, int) and not isinstance(key, bool) and -len(flat) <= key < len(flat):
        return flat[key]
    near = f" {near_names(str(key), map(str, outputs))}" if isinstance(outputs, dict) else ""
    raise ValueError(f"Expected one of {len(flat)} output(s) of {owner}. Received: {key!r}.{near}")


class FeatureTap:
    """Runs a Keras model and returns its outputs and the features of `keys`.

    Args:
        model: A Keras model or layer.
        keys: Names of layers (see `find_operation`), or keys and indices of outputs.

    Raises:
        ValueError: If a name is not found.
    """

    def __init__(self, model: keras.Layer, keys: Sequence[str | int] = ()):
        self.model = model
        self._operations: dict[str | int, tuple[Any, int | None]] = {}
        self._outputs: list[str | int] = []
        for key in dict.fromkeys(keys):
            if isinstance(key, int) or _is_output_key(model, key):
                self._outputs.append(key)
            else:
                self._operations[key] = find_operation(model, key)

    def operation(self, key: str | int) -> Any:
        """The layer that makes the feature `key`, or `None` for an output."""
        return self._operations.get(key, (None, None))[0]

    def __call__(self, inputs: Any, training: bool = False) -> tuple[Any, dict[str | int, Any]]:
        """Runs the model once.

        Returns:
            The model's outputs, and a dict of the features.
        """
        if not self.model.built:  # Building calls layers too, and is nothing to record.
            self.model(inputs, training=False)
        with record_calls(op for op, _ in self._operations.values()) as calls:
            outputs = self.model(inputs, training=training)
        features: dict[str | int, Any] = {
            key: self._one_call(key, calls[id(op)], index)
            for key, (op, index) in self._operations.items()
        }
        owner = f"model '{self.model.name}'"
        for key in self._outputs:
            features[key] = pick_output(outputs, key, owner)
        return outputs, features

    def _one_call(self, key: str | int, results: list[Any], index: int | None) -> Any:
        if index is None and len(results) == 1:
            return results[0]
        if index is not None and index < len(results):
            return results[index]
        remedy = f'Name one call, as in "{key}:0".' if results else "Name a layer that runs."
        raise ValueError(
            f"Expected layer {key!r} of model '{self.model.name}' to be called "
            f"{'once' if index is None else f'at least {index + 1} times'} in a forward pass. "
            f"Received: {len(results)} calls. {remedy}"
        )


def _is_output_key(model: keras.Layer, key: str) -> bool:
    """A layer's name goes first; a key of a dict of outputs is the second meaning."""
    if _find(model, key.partition(":")[0]) is not None:
        return False
    output = getattr(model, "output", None)
    return isinstance(output, dict) and key in output


def _find(model: keras.Layer, name: str) -> Any:
    outer, _, inner = name.partition("/")
    own = getattr(model, "operations", None) or getattr(model, "layers", None) or []
    for op in own:
        if op.name == name:
            return op
    for op in own:
        if inner and op.name == outer and isinstance(op, keras.Layer):
            return _find(op, inner)
    nested = [layer for layer in iterate_layers(model) if layer is not model]
    found = [layer for layer in nested if layer.name == name]
    if inner and not found:
        for layer in nested:
            if layer.name == outer:
                return _find(layer, inner)
    if len(found) > 1:
        raise ValueError(
            f"Expected one layer named {name!r} inside model '{model.name}'. Received: "
            f'{len(found)}. Name the model around it too, as in "backbone/{name}".'
        )
    return found[0] if found else None
