"""Unique names for the layers of a model, also for nested ones that are called the same."""

from __future__ import annotations

import collections

import keras

from tfcompress.model.kernels import _sublayers


def layer_paths(model: keras.Layer) -> dict[int, str]:
    """Returns `id(layer)` → its name, or `"outer/inner"` where several layers have that name.

    Args:
        model: The model; its own name is not part of a path.
    """
    paths: dict[int, tuple[str, ...]] = {id(model): (model.name,)}
    stack = [(layer, ()) for layer in reversed(_sublayers(model))]
    while stack:
        layer, outer = stack.pop()
        if id(layer) in paths:
            continue
        paths[id(layer)] = (*outer, layer.name)
        stack.extend((inner, paths[id(layer)]) for inner in reversed(_sublayers(layer)))
    names = collections.Counter(path[-1] for path in paths.values())
    return {
        key: path[-1] if names[path[-1]] == 1 else "/".join(path) for key, path in paths.items()
    }
