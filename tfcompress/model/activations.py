"""`replace_activations`: the same model with other activation functions, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from tfcompress.model.graph import Graph
from tfcompress.model.rewrite import rebuild_like, rename_duplicates
from tfcompress.model.subclassed import functional_for

# Arguments of Keras layers that are activation functions.
_ARGUMENTS = ("activation", "recurrent_activation", "pointwise_activation")
# Layers that are a function of their own.
_LAYERS = {
    layers.ELU: "elu",
    layers.LeakyReLU: "leaky_relu",
    layers.PReLU: "prelu",
    layers.Softmax: "softmax",
}


def replace_activations(
    model: keras.Model, replacements: Mapping[str | Callable, str | Callable]
) -> keras.Model:
    """Returns a copy of `model` with other activation functions, and with its weights.

    The function of the model changes, so train it again. It is for functions that LiteRT runs
    slowly in int8, which `lint` names: `{"gelu": "relu"}`.

    Args:
        model: A Sequential, Functional or subclassed model (see `as_functional`), before
            `quantize`. Nested models are inlined; a shared layer stays shared.
        replacements: Activation → what takes its place, each by Keras' name (`"gelu"`,
            `"hard_silu"`, `"leaky_relu"`, ..., `"prelu"` for the layer) or as a function. Layers
            with an `activation=`, activation layers, `keras.ops` calls and layers inside wrappers
            are all replaced. The variables of a PReLU go.

    Returns:
        An uncompiled model of the same inputs, outputs and layer names.

    Raises:
        ValueError: An activation that Keras does not know, or that the model does not have.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "gelu", name="d")])
        >>> tfc.replace_activations(model, {"gelu": "relu"}).get_layer("d").activation.__name__
        'relu'
    """
    wanted = {_key(old): _function(new) for old, new in replacements.items()}
    graph = Graph.from_model(functional_for(model))
    rename_duplicates(graph)
    changed, found = {}, set()
    for operation in graph.operations():
        names: set[str] = set()
        new = _replaced(operation, wanted, names)
        found |= names
        if new is not None:
            changed[operation] = new
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ValueError(
            f"Expected activations of {model.name!r}, which are {sorted(found)}. Received: "
            f"{missing}."
        )
    return rebuild_like(model, graph, changed)


def _replaced(operation: Any, wanted: Mapping[str, Callable], names: set[str]) -> Any | None:
    """The operation with its activations replaced; `None` for one that has none of them.

    Args:
        operation: A layer or `keras.ops` operation.
        wanted: Key of an activation → the function that takes its place.
        names: Gets the keys of the activations that the operation has.
    """
    own = _own_function(operation)
    if own is not None:
        names.add(own)
        if own not in wanted:
            return None
        policy = getattr(operation, "dtype_policy", None)
        return layers.Activation(wanted[own], name=operation.name, dtype=policy)
    if not isinstance(operation, keras.Layer):
        return None
    config = operation.get_config()
    if not _replace_in(config, wanted, names):
        return None
    return type(operation).from_config(config)


def _own_function(operation: Any) -> str | None:
    """Key of the activation that an operation is; `None` for one that does something else."""
    if isinstance(operation, keras.Layer):
        if type(operation) is layers.ReLU:
            is_plain = not (operation.negative_slope or operation.threshold)
            if not is_plain or operation.max_value not in (None, 6):
                return None
            return "relu" if operation.max_value is None else "relu6"
        return _LAYERS.get(type(operation))
    words = type(operation).__name__
    name = "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(words))
    function = getattr(keras.activations, name, None)
    is_activation = function is not None and getattr(keras.ops, name, None) is not None
    return name if is_activation else None


def _replace_in(config: Any, wanted: Mapping[str, Callable], names: set[str]) -> bool:
    """Replaces the activations of a layer's configuration, in place; whether there was one."""
    is_changed = False
    if isinstance(config, dict):
        for key, value in config.items():
            name = _serialized_key(value) if key in _ARGUMENTS else None
            if name is None:
                is_changed |= _replace_in(value, wanted, names)
                continue
            names.add(name)
            if name in wanted:
                config[key] = keras.activations.serialize(wanted[name])
                is_changed = True
    elif isinstance(config, (list, tuple)):
        for value in config:
            is_changed |= _replace_in(value, wanted, names)
    return is_changed


def _serialized_key(value: Any) -> str | None:
    if isinstance(value, str):
        return _key(value)
    if isinstance(value, dict) and isinstance(value.get("config"), str):
        return value.get("registered_name") or value["config"]
    return None


def _key(activation: str | Callable) -> str:
    """What an activation is found by: Keras' name of it, or the registered name of a function."""
    if activation == "prelu":
        return "prelu"
    function = _function(activation)
    name = getattr(function, "__name__", "")
    if getattr(keras.activations, name, None) is function:
        return name
    return keras.saving.get_registered_name(function)


def _function(activation: str | Callable) -> Callable:
    try:
        return keras.activations.get(activation)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Expected an activation by Keras' name or as a function. Received: {activation!r}."
        ) from error
