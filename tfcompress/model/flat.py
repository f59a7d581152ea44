"""A model without nested models: a copy whose layers have names of their own."""

from __future__ import annotations

import keras

from tfcompress.model.graph import Graph
from tfcompress.model.paths import graph_paths
from tfcompress.model.rewrite import rebuild, rename_duplicates


def flat_copy(model: keras.Model) -> keras.Model:
    """The model itself, or where it calls other models a copy with their layers inlined.

    Layers keep their names, but for those that two nested models share.

    Args:
        model: A functional model.
    """
    graph = Graph.from_model(model)
    if not any(node.path for node in graph.nodes):
        return model
    rename_duplicates(graph)
    return rebuild(graph, {})


def flat_names(model: keras.Model) -> dict[str, str]:
    """Path of each layer in nested models, `"backbone/conv1"` → its name in the flat copy.

    Args:
        model: A functional model.
    """
    graph = Graph.from_model(model)
    renamed = rename_duplicates(graph)
    return {path: op.name for op, path in graph_paths(graph, renamed).items() if "/" in path}
