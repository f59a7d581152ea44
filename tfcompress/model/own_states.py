"""`tf.Variable`s that layers hold beside their Keras variables.

Keras neither copies them nor writes them into a `.keras` file, and a call that follows symbolic
tensors changes them for good.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.transforms import WeightTransform

# What holds variables of Keras alone, and transforms, whose others no call reads.
_KERAS = (keras.Variable, keras.optimizers.Optimizer, keras.metrics.Metric, WeightTransform)
_HOLDERS = (keras.layers.Layer, tf.Module, tf.__internal__.tracking.AutoTrackable)


def own_states(layers: Iterable[Any]) -> dict[str, tf.Variable]:
    """Path of an attribute → the `tf.Variable` in it, of layers and all that they hold.

    A `tf.random.Generator` is left out: a copy may draw other numbers.

    Args:
        layers: Layers, or operations of a functional graph.
    """
    found: dict[str, tf.Variable] = {}
    seen: set[int] = set()
    several = list(layers)
    stack: list[tuple[str, Any]] = [
        (layer.name if len(several) > 1 else "", layer) for layer in several
    ]
    while stack:
        name, held = stack.pop()
        if id(held) in seen or isinstance(held, (*_KERAS, tf.random.Generator)):
            continue
        seen.add(id(held))
        if isinstance(held, tf.Variable):
            found[name] = held
        elif isinstance(held, dict):
            stack += [(f"{name}[{key!r}]", value) for key, value in held.items()]
        elif isinstance(held, list | tuple | set | frozenset):
            stack += [(f"{name}[{i}]", value) for i, value in enumerate(held)]
        elif isinstance(held, _HOLDERS):
            # Behind `_self_` TensorFlow keeps what it tracks, also variables of Keras. The names
            # that a user gave are looked at first: the stack ends with them.
            parts = [(n, value) for n, value in vars(held).items() if not n.startswith("_self_")]
            parts.sort(key=lambda part: not part[0].startswith("_"))
            stack += [(f"{name}.{n}".lstrip("."), value) for n, value in parts]
    return found


@contextlib.contextmanager
def kept_states(states: dict[str, tf.Variable]) -> Iterator[list[str]]:
    """Puts states back on leaving; the list then has the names of those that had changed."""
    before = {name: np.array(state) for name, state in states.items()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, value in before.items():
            if not np.array_equal(value, np.array(states[name])):
                changed.append(name)
                states[name].assign(value)
