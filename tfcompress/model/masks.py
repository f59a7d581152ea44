"""Keras masks as values of a graph.

Keras hands masks from layer to layer as an attribute of tensors, and a functional model does not
record them where a layer takes several tensors. What is taken apart, lowered or replaced needs
them as arguments.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import tree

from tfcompress.model.graph import Graph, Node, Value, producer
from tfcompress.model.keras_private import outputs_of_call


def explicit_masks(graph: Graph) -> None:
    """Passes every mask that a layer would find at its inputs as an argument, in place.

    Args:
        graph: As it was read from a model: its values still have Keras' symbolic tensors.
    """
    values = [*graph.flat_inputs, *(v for node in graph.nodes for v in node.outputs)]
    known = {id(value.spec): value for value in values}
    for node in list(graph.nodes):
        if not isinstance(node.operation, keras.Layer):
            continue
        for name, tensors in _mask_arguments(node).items():
            masks = tree.map_structure(lambda leaf: _mask(graph, leaf, known), tensors)
            if any(mask is not None for mask in tree.flatten(masks)):
                node.kwargs = {**node.kwargs, name: masks}
    _sort(graph)


def _mask_arguments(node: Node) -> dict[str, Any]:
    """Name of a mask argument that Keras fills in → the tensors whose masks it takes."""
    signature = inspect.signature(node.operation.call)
    try:
        given = signature.bind(*node.args, **node.kwargs).arguments
    except TypeError:
        return {}
    tensors = {
        name: value
        for name, value in given.items()
        if any(isinstance(leaf, Value) for leaf in tree.flatten(value))
    }
    if len(tensors) == 1:
        wanted = {"mask": next(iter(tensors.values()))}
    else:
        wanted = {f"{name}_mask": value for name, value in tensors.items()}
    return {
        name: value
        for name, value in wanted.items()
        if name in signature.parameters and given.get(name) is None
    }


def _mask(graph: Graph, leaf: Any, known: dict[int, Value]) -> Value | None:
    mask = getattr(leaf.spec, "_keras_mask", None) if isinstance(leaf, Value) else None
    return None if mask is None else _value(graph, mask, known)


def _value(graph: Graph, tensor: keras.KerasTensor, known: dict[int, Value]) -> Value | None:
    """The value of a symbolic tensor; calls that give it are inserted where they are missing."""
    if id(tensor) in known:
        return known[id(tensor)]
    call = producer(tensor)
    if call is None:
        return None
    operation, args, kwargs = call
    failed = []

    def read(leaf: Any) -> Any:
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        value = _value(graph, leaf, known)
        failed.append(value is None)
        return value

    args, kwargs = tree.map_structure(read, (args, kwargs))
    if any(failed):
        return None
    outputs = outputs_of_call(tensor)
    node = graph.insert_before(graph.nodes[0], operation, tuple(args), dict(kwargs), outputs)
    known.update({id(spec): value for spec, value in zip(outputs, node.outputs, strict=True)})
    return known[id(tensor)]


def _sort(graph: Graph) -> None:
    """Puts calls behind those whose results they read; otherwise their order stays."""
    done: dict[Node, None] = {}
    for node in graph.nodes:
        pending = [node]
        while pending:
            before = [v.node for v in pending[-1].inputs if v.node not in done]
            missing = [n for n in before if n is not None]
            if missing:
                pending.extend(missing)
            else:
                done[pending.pop()] = None
    graph.nodes = list(done)
