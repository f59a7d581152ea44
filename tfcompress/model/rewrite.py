"""Rebuilding a model with layers replaced, inserted or removed, and carrying its weights over."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.graph import Graph
from tfcompress.model.keras_private import all_layers
from tfcompress.model.user_class import class_of_copies, copy_attributes


class HasMetadata:
    """Mixin for model classes that know something beside their graph and weights."""

    def copy_metadata_from(self, model: HasMetadata) -> None:
        """Takes over what `model`, of which this model is an edited copy, knows."""
        raise NotImplementedError(
            "Expected a model class that implements copy_metadata_from(model). Received: "
            f"{type(self).__name__}, which does not."
        )


def copy_metadata(source: keras.Model, target: keras.Model) -> None:
    """Copies what `source` knows beside its graph, where `target` is a model that can hold it."""
    if isinstance(source, HasMetadata) and isinstance(target, HasMetadata):
        target.copy_metadata_from(source)


def fresh(operation: Any) -> Any:
    """Returns an unbuilt copy of a layer or operation: same configuration, no weights, no calls.

    A lookup (`StringLookup`, `TextVectorization`) is returned as it is: a vocabulary that it has
    learned is not in its configuration, and nothing in it is ever trained.

    Raises:
        ValueError: A custom layer that cannot be made again from its configuration, or an operation
            such as `ops.fori_loop` that holds functions.
    """
    if hasattr(operation, "get_vocabulary"):
        return operation
    try:
        if isinstance(operation, keras.layers.Lambda):
            # The function is the given layer's own: not what a file might bring.
            known = {getattr(operation.function, "__name__", ""): operation.function}
            config = operation.get_config()
            copy = type(operation).from_config(config, custom_objects=known, safe_mode=False)
            copy.function = operation.function
            return copy
        return type(operation).from_config(operation.get_config())
    except Exception as error:
        if not isinstance(operation, keras.Layer):
            raise ValueError(
                f"Expected operations that can be copied by from_config(get_config()), as Keras "
                f"does to save a model. Received: {operation.name!r}, a "
                f"{type(operation).__name__} that holds functions. Move its call into a "
                "keras.layers.Layer of its own, which may then stay in float."
            ) from error
        raise ValueError(
            f"Expected layers that can be copied by from_config(get_config()). Received: "
            f"{operation.name!r} of type {type(operation).__name__}, which raises "
            f"{type(error).__name__}: {error}. Give the class a get_config() that returns every "
            "argument of its constructor."
        ) from error


def rebuild(
    graph: Graph,
    replacements: dict[Any, Any] | None = None,
    *,
    model_class: type = keras.Model,
    **kwargs: Any,
) -> keras.Model:
    """Makes a model from `graph` out of copies, with the weights of the originals.

    Args:
        graph: The graph; its nodes are left pointing at the operations of the new model.
        replacements: Original operation → what takes its place (unbuilt). A layer that is not
            mentioned is copied; an operation that was inserted unbuilt is used as it is.
        model_class: Class of the new model.

    Returns:
        The new model. The originals are untouched.
    """
    replacements = dict(replacements or {})
    sources = {}
    for operation in list(graph.operations()):
        target = replacements.get(operation)
        if target is None:
            has_history = not isinstance(operation, keras.Layer) or operation.built
            target = fresh(operation) if has_history else operation
        if target is not operation:
            sources[operation] = target
    for node in graph.nodes:
        node.operation = sources.get(node.operation, node.operation)
    with _without_initial_values(sources):
        model = graph.to_model(model_class, **kwargs)
    for source, target in sources.items():
        if isinstance(source, keras.Layer) and isinstance(target, keras.Layer):
            # A layer of constants got them when it was made.
            if target.variables:
                copy_variables(source, target)
            target.trainable = source.trainable
    return model


@contextlib.contextmanager
def _without_initial_values(sources: Mapping[Any, Any]) -> Iterator[None]:
    """Lets layers be built with zeros in place of random numbers, which are overwritten anyway.

    Random numbers take three times the memory of a kernel, and orthogonal ones minutes.

    Args:
        sources: Original operation → the copy that gets its values.
    """
    known = keras.initializers
    zeros, held = known.Zeros(), []
    for source, target in sources.items():
        for name, value in vars(target).items() if isinstance(target, keras.Layer) else ():
            is_fixed = isinstance(value, known.Zeros | known.Ones | known.Constant)
            if isinstance(value, known.Initializer) and not is_fixed and hasattr(source, name):
                held.append((target, name, value))
    for target, name, _ in held:
        setattr(target, name, zeros)
    try:
        yield
    finally:
        for target, name, value in held:
            setattr(target, name, value)


def rename_duplicates(graph: Graph) -> dict[Any, str]:
    """Gives operations of different nested models that are called the same a name of their own.

    Keras wants unique names within one model only, and inlining makes one model of several. The
    outermost keeps its name; `"conv"` of the nested model `"left"` becomes `"left_conv"`. The
    graph then points at renamed copies, so that the originals are untouched.

    Returns:
        Operation, as the graph now has it → its original name, where that has changed.
    """
    by_name: dict[str, list] = {value.spec.name: [None] for value in graph.flat_inputs}
    calls = graph.calls_by_operation()
    for operation in sorted(calls, key=lambda op: len(calls[op][0].path)):
        by_name.setdefault(operation.name, []).append(operation)
    taken, copies = set(by_name), {}
    for name, operations in by_name.items():
        for operation in operations[1:]:
            path = calls[operation][0].path
            stem = unique = "_".join((*path, name))
            count = 0
            while unique in taken:
                count += 1
                unique = f"{stem}_{count}"
            taken.add(unique)
            config = {**operation.get_config(), "name": unique}
            copies[operation] = type(operation).from_config(config)
    if copies:
        originals = {copy: operation.name for operation, copy in copies.items()}
        rebuild(graph, copies)
        return originals
    return {}


def as_float32(model: keras.Model) -> keras.Model:
    """`model` itself where it computes in float32 on one device, else a copy of it that does.

    The copy has the model's metadata beside its graph, such as its plan.
    """
    if not computes_in_16_bits(model) and not _is_distributed(model):
        return model
    graph = Graph.from_model(model)
    rename_duplicates(graph)
    replacements = {}
    for operation in graph.operations():
        if isinstance(operation, keras.Layer) and operation.compute_dtype != "float32":
            config = {**operation.get_config(), "dtype": "float32"}
            replacements[operation] = type(operation).from_config(config)
    return rebuild_like(model, graph, replacements)


def computes_in_16_bits(model: keras.Model) -> bool:
    """Whether a layer computes in another type than float32, as under `mixed_bfloat16`."""
    layers = [layer for layer in all_layers(model) if not isinstance(layer, keras.Model)]
    return any(layer.compute_dtype not in ("float32", None) for layer in layers)


def _is_distributed(model: keras.Model) -> bool:
    """Whether variables have a copy on every device, as those made in a strategy's scope have."""
    values = (getattr(variable, "value", None) for variable in model.variables)
    return any(isinstance(value, tf.distribute.DistributedValues) for value in values)


def rebuild_like(
    model: keras.Model, graph: Graph, replacements: dict[Any, Any] | None = None
) -> keras.Model:
    """`rebuild` for a copy of the class of `model` that knows what it knows beside its graph."""
    model_class, arguments = class_of_copies(model)
    copy = rebuild(graph, replacements, model_class=model_class, **arguments)
    copy_attributes(model, copy)
    copy_metadata(model, copy)
    return copy


def copy_variables(source: keras.Layer, target: keras.Layer, missing: str = "raise") -> None:
    """Assigns every variable of `source` to its counterpart in `target`.

    Keras counts up the names of inner parts and of variables without a name. Variables whose
    relative paths agree but for such numbers, and of the same shape, go together in the order in
    which the layers made them; where one layer has more of them, those of the same path first.
    Variables that only the target has, states of transforms and quantizers, keep their values.

    Args:
        source: Built layer.
        target: Built layer.
        missing: `"raise"` or `"skip"` where the target lacks a variable of the source.

    Raises:
        ValueError: A variable of the source has no counterpart of its shape.
    """
    wanted, offered = _by_stem(source), _by_stem(target)
    left: list[keras.Variable] = []
    filled: set[int] = set()
    for key, variables in wanted.items():
        others = offered.get(key, [])
        if len(others) != len(variables):
            variables, others = _same_paths_first(source, variables, target, others)
        for variable, other in zip(variables, others, strict=False):
            other.assign(variable)
            filled.add(id(other))
        left += variables[len(others) :]
    # A model inside a layer names its variables by itself or by where it was built.
    free = [variable for variable in target.variables if id(variable) not in filled]
    for variable in left:
        other = next((v for v in free if _short_stem(v) == _short_stem(variable)), None)
        if other is not None:
            free = [v for v in free if v is not other]
            other.assign(variable)
        elif missing == "raise":
            raise ValueError(
                f"Expected a variable {_relative_path(source, variable)!r} of shape "
                f"{tuple(variable.shape)} in the layer that replaces {source.name!r}. Received: "
                f"{[v.path for v in target.variables]}."
            )
    if isinstance(target, keras.layers.Normalization):
        # It computes with copies of its variables in another shape.
        target.finalize_state()


def _by_stem(layer: keras.Layer) -> dict[tuple, list[keras.Variable]]:
    """Its variables by relative path, without what is counted up, and shape."""
    found: dict[tuple, list[keras.Variable]] = {}
    for variable in layer.variables:
        stem = re.sub(r"_\d+(?=/|$)", "", _relative_path(layer, variable))
        found.setdefault((stem, tuple(variable.shape)), []).append(variable)
    return found


def _short_stem(variable: keras.Variable) -> tuple:
    """The end of its path, its layer's name and its own, without what is counted up, and shape."""
    end = "/".join(variable.path.split("/")[-2:])
    return re.sub(r"_\d+(?=/|$)", "", end), tuple(variable.shape)


def _same_paths_first(
    source: keras.Layer, variables: list, target: keras.Layer, others: list
) -> tuple[list, list]:
    paths = {_relative_path(target, v): v for v in others}
    same = [v for v in variables if _relative_path(source, v) in paths]
    matched = [paths[_relative_path(source, v)] for v in same]
    rest = [v for v in variables if not any(v is s for s in same)]
    return same + rest, matched + [v for v in others if not any(v is m for m in matched)]


def _relative_path(layer: keras.Layer, variable: keras.Variable) -> str:
    """The variable's path below its layer: `"kernel"`, `"lstm_cell/kernel"`."""
    parts = variable.path.split("/")
    if layer.name in parts:
        return "/".join(parts[parts.index(layer.name) + 1 :])
    return variable.path
