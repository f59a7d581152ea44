"""What a model was compiled with, by output; and copies that are compiled as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from tfcompress.model.graph import output_structure
from tfcompress.model.keras_private import compile_arguments
from tfcompress.model.subclassed import functional_for


def functional_as_compiled(model: Any, data: Any = None) -> Any:
    """`functional_for`, with the losses and metrics of the given model to be read."""
    return compiled_as(model, functional_for(model, data))


def compiled_as(model: keras.Model, copy: keras.Model) -> keras.Model:
    """Compiles a copy of a model with the model's losses and metrics, and returns it."""
    given = compile_arguments(model)
    if given and copy is not model:
        # Not by a `compile` of the user's own, which may take other arguments.
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        keras.Model.compile(copy, **{name: given[name] for name in names})
    return copy


def output_keys(model: keras.Model) -> list[str]:
    """The name of each flat output of a functional model: its key in a dict, or Keras' name."""
    structure = output_structure(model)
    if isinstance(structure, dict) and len(structure) == len(tree.flatten(structure)):
        # The order in which `tree.flatten` has the values.
        return list(tree.flatten({key: key for key in structure}))
    names = getattr(model, "output_names", None)
    return list(names or [tensor.name for tensor in tree.flatten(structure)])


def by_output(model: keras.Model, given: Any) -> list[Any]:
    """A part of what a functional model was compiled with, for each of its flat outputs.

    Args:
        model: The model.
        given: A loss, or metrics, as `compile` takes them: a list with an entry for each output,
            a dict by output, or one for all of them.
    """
    keys = output_keys(model)
    if isinstance(given, Mapping):
        return [given.get(key) for key in keys]
    if len(keys) == 1 or not isinstance(given, (list, tuple)) or len(given) != len(keys):
        one = isinstance(given, (list, tuple)) and len(given) == 1
        return [given[0] if one else given for _ in keys]
    # Keras has a list in the order of its own names, also where the outputs are a dict.
    names = list(getattr(model, "output_names", None) or keys)
    order = names if set(names) == set(keys) else keys
    return [given[order.index(key)] for key in keys]


def loss_names(model: keras.Model) -> list[str | None]:
    """What the loss of each flat output is called, in lower case; `None` for none."""
    losses = by_output(model, compile_arguments(model).get("loss"))
    return [None if loss is None else _name(loss) for loss in losses]


def _name(loss: Any) -> str:
    if isinstance(loss, str):
        return loss.lower()
    found = [getattr(loss, "name", ""), getattr(loss, "__name__", ""), type(loss).__name__]
    return " ".join(str(part) for part in found).lower()
