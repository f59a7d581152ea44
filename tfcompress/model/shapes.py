"""Models of unknown input sizes, such as `keras.Input((None, 16))`, at sizes that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.model.graph import Graph
from tfcompress.model.rewrite import rebuild_like


def with_input_shapes(model: keras.Model, shapes: Any) -> keras.Model:
    """A copy of a functional model, with its weights, whose inputs have known shapes.

    Args:
        model: The model.
        shapes: The shape of its input without the batch axis, or a dict of input name → shape.
            Inputs that are not named keep their shape.

    Raises:
        ValueError: A name that is no input, a shape that does not fit the input's, or one at which
            a layer of the model cannot run.
    """
    graph = Graph.from_model(model)
    inputs = {value.spec.name: value for value in graph.flat_inputs}
    if not isinstance(shapes, Mapping):
        if len(inputs) != 1:
            raise ValueError(
                f"Expected a dict of shapes by the names of the inputs {list(inputs)}. Received: "
                f"{shapes!r}."
            )
        shapes = dict.fromkeys(inputs, shapes)
    for name, shape in shapes.items():
        if name not in inputs or not _fits(shape, inputs[name].shape[1:]):
            known = {n: v.shape[1:] for n, v in inputs.items()}
            raise ValueError(
                f"Expected shapes without the batch axis that fit the inputs {known}. Received: "
                f"{name!r}: {shape!r}."
            )
        spec = inputs[name].spec
        inputs[name].spec = keras.KerasTensor((None, *shape), dtype=spec.dtype, name=spec.name)
    try:
        return rebuild_like(model, graph)
    except Exception as error:
        raise ValueError(
            f"Expected shapes at which {model.name!r} can run. Received: {dict(shapes)}, at which "
            f"it raises {type(error).__name__}: {error}"
        ) from error


def _fits(shape: Any, known: Sequence[int | None]) -> bool:
    if not isinstance(shape, (tuple, list)) or len(shape) != len(known):
        return False
    sizes = zip(shape, known, strict=True)
    return all(isinstance(n, int) and n > 0 and k in (None, n) for n, k in sizes)
