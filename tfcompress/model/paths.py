"""Unique names of the layers of a model, also of nested models: their paths."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.model.graph import Graph
from tfcompress.model.kernels import _sublayers


def graph_paths(graph: Graph, renamed: Mapping[Any, str] | None = None) -> dict[Any, str]:
    """Returns operation → `"outer/inner"`, with the names of the nested models around it.

    Args:
        graph: The graph of a model.
        renamed: What `rename_duplicates` returned: paths are made of the original names.
    """
    renamed = renamed or {}
    return {
        operation: "/".join(
            (*graph.calls(operation)[0].path, renamed.get(operation, operation.name))
        )
        for operation in graph.operations()
    }


def full_paths(model: keras.Layer) -> dict[int, str]:
    """Returns `id(layer)` → its name, with the names of all layers around it: `"outer/inner"`.

    Args:
        model: The model; its own name is not part of a path.
    """
    return {key: "/".join(path) for key, path in _paths(model).items()}


def layer_paths(model: keras.Layer) -> dict[int, str]:
    """Returns `id(layer)` → its name, or `"outer/inner"` where several layers have that name.

    Args:
        model: The model; its own name is not part of a path.
    """
    paths = _paths(model)
    names = collections.Counter(path[-1] for path in paths.values())
    return {
        key: path[-1] if names[path[-1]] == 1 else "/".join(path) for key, path in paths.items()
    }


def _paths(model: keras.Layer) -> dict[int, tuple[str, ...]]:
    """`id(layer)` → the names on the way to it; a shared layer has its first one."""
    paths: dict[int, tuple[str, ...]] = {id(model): (model.name,)}
    stack: list[tuple[keras.Layer, tuple[str, ...]]]
    stack = [(layer, ()) for layer in reversed(_sublayers(model))]
    while stack:
        layer, outer = stack.pop()
        if id(layer) in paths:
            continue
        paths[id(layer)] = (*outer, layer.name)
        stack.extend((inner, paths[id(layer)]) for inner in reversed(_sublayers(layer)))
    return paths
