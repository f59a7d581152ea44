"""Decomposition by tracing: a function that composes Keras layers and operations becomes parts.

The function is called on symbolic tensors (`keras.KerasTensor`), and the calls that it made are
put into the graph in place of the original's. Each of them is then looked up in the registry like
any other call, so what is traced may hold other operations that are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import tree

from tfcompress.model.compressed import is_compressed
from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_private import all_layers
from tfcompress.model.rewrite import copy_variables, rebuild
from tfcompress.quantization.operators.builder import (
    Builder,
    can_take_over,
    carry_over,
    untaken_transforms,
    with_transforms,
)

#: Layer that a call is traced into → name of its variable → the variable that it takes over.
Taken = dict[Any, dict[str, keras.Variable]]


def traced(
    function: Callable, weights: Mapping[str, str] | None = None
) -> Callable[[Builder, Node], list[Value] | None]:
    """A decomposition rule that puts what `function` composes in place of a call.

    Args:
        function: Called with the arguments of the call as symbolic tensors; for a layer, with the
            layer first. It must return as many tensors of the same shapes as the call does.
        weights: `"part/variable"` → name of the layer's variable that it takes over, where part
            is the name that `function` gave to a layer that it made. Keras layers that belong to
            the layer and that `function` calls need no mention: they keep their weights.

    A shared layer is traced at each of its calls, for shapes may differ; its parts are shared.
    """

    def rule(b: Builder, node: Node) -> list[Value] | None:
        graph, subject = _trace(function, node)
        operations = list(graph.operations())
        taken = _weights_taken(node.operation, operations, weights or {})
        if _refusal(node.operation, taken) is None:
            _check_all_taken(node.operation, subject, operations, taken)
        return insert_parts(b, node, graph, taken)

    return rule


def insert_parts(b: Builder, node: Node, graph: Graph, taken: Taken) -> list[Value] | None:
    """Puts copies of the operations of `graph` in place of a call.

    Args:
        b: The builder.
        node: The call.
        graph: What the call does, with an input for each distinct value that the call reads.
        taken: Layer of the graph → name of its variable → variable of the call's layer that it
            takes over, with its transforms.

    Returns:
        The values that take the place of the call's outputs; `None` where it is left whole.
    """
    refusal = _refusal(node.operation, taken)
    if refusal is not None:
        b.result.refused[node.operation] = refusal
        return None
    parts = _parts(b, graph, list(graph.operations()), taken)
    known = dict(zip(graph.flat_inputs, distinct_inputs(node), strict=True))
    for inner in graph.nodes:
        args, kwargs = tree.map_structure(
            lambda leaf: known[leaf] if isinstance(leaf, Value) else leaf,
            (inner.args, inner.kwargs),
        )
        outputs = b.insert(parts[inner], args, kwargs, [v.spec for v in inner.outputs])
        known.update(zip(inner.outputs, outputs, strict=True))
    return [known[value] for value in graph.flat_outputs]


def call_of(cls: type[keras.Layer]) -> Callable:
    """The `call` of a layer class as a function to trace."""

    def function(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        return cls.call(layer, *args, **kwargs)

    return function


def distinct_inputs(node: Node) -> list[Value]:
    """The values that a call reads, each once."""
    return list(dict.fromkeys(node.inputs))


def _trace(function: Callable, node: Node) -> tuple[Graph, tuple]:
    """The graph of what `function` does in place of a call, and the layer that it was given."""
    values = distinct_inputs(node)
    feed = {v: keras.Input(batch_shape=v.shape, dtype=v.spec.dtype) for v in values}
    args, kwargs = tree.map_structure(
        lambda leaf: feed[leaf] if isinstance(leaf, Value) else leaf, (node.args, node.kwargs)
    )
    subject = _subject(node.operation, args, kwargs)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(getattr(node.operation, "dtype_policy", policy))
    try:
        flat = tree.flatten(function(*subject, *args, **kwargs))
        with deep_graph(flat):
            model = keras.Model(list(feed.values()), flat)
    except Exception as error:
        raise ValueError(
            f"Expected a decomposition of {node.name!r} ({_kind(node.operation)}) that composes "
            "Keras layers and keras.ops on symbolic tensors. Received: a function that raises "
            f"{type(error).__name__}: {error}. Use keras.ops in place of TensorFlow or NumPy, or "
            "register the operator with a float_reason."
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    _check_outputs(node, flat)
    graph = Graph.from_model(model)
    _check_constants(node, graph)
    return graph, subject


def _subject(operation: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """What a decomposition gets before the arguments: for a layer of a class of its own, a layer.

    A layer that holds others is copied, for calling those would leave traces in the original.
    """
    if isinstance(operation, (keras.layers.Activation, keras.layers.Lambda)):
        return ()
    if not isinstance(operation, keras.Layer):
        return (operation,)
    if not all_layers(operation)[1:] or is_compressed(operation):
        return (operation,)
    copy = type(operation).from_config(operation.get_config())
    copy(*args, **kwargs)
    copy_variables(operation, copy)
    return (copy,)


def _weights_taken(origin: Any, operations: list, weights: Mapping[str, str]) -> Taken:
    """Traced layer → name of its variable → the variable of the original that it takes over."""
    taken: Taken = {}
    if not weights:
        return taken
    by_name = {op.name: op for op in operations if isinstance(op, keras.Layer)}
    own = {v.name: v for v in origin.variables if "transformed" not in v.path.split("/")}
    for place, source in weights.items():
        part, _, name = place.rpartition("/")
        variables = {v.name: v for v in by_name[part].variables} if part in by_name else {}
        if name not in variables or source not in own:
            offered = [f"{p}/{v.name}" for p, la in by_name.items() for v in la.variables]
            raise ValueError(
                f"Expected weights of {_kind(origin)} that map a variable of a part, one of "
                f"{offered}, to a variable of the layer, one of {sorted(own)}. Received: "
                f"{place!r}: {source!r}."
            )
        if tuple(variables[name].shape) != tuple(own[source].shape):
            raise ValueError(
                f"Expected weights of {_kind(origin)} of equal shapes. Received: {place!r} of "
                f"shape {tuple(variables[name].shape)} for {source!r} of shape "
                f"{tuple(own[source].shape)}."
            )
        taken.setdefault(by_name[part], {})[name] = own[source]
    return taken


def _check_all_taken(origin: Any, subject: tuple, operations: list, taken: Taken) -> None:
    """Raises `ValueError` where a trained weight is dropped, or one is initialized anew."""
    # A copy holds its layers in the order of the original.
    held: dict[int, keras.Layer] = {}
    if subject and isinstance(origin, keras.Layer):
        held = dict(zip(map(id, all_layers(subject[0])), all_layers(origin), strict=False))
    used = {id(v) for each in taken.values() for v in each.values()}
    new = []
    for operation in operations:
        if id(operation) in held:
            used.update(id(v) for v in held[id(operation)].variables)
        elif isinstance(operation, keras.Layer):
            known = taken.get(operation, {})
            new += [
                f"{operation.name}/{v.name}"
                for v in operation.trainable_variables
                if v.name not in known
            ]
    if is_compressed(origin):
        # Masks and codebooks are passed on with the variable that they transform.
        used.update(id(v) for v in origin.transformed.variables)
    trained = getattr(origin, "trainable_variables", [])
    dropped = [v.name for v in trained if id(v) not in used]
    if new or dropped:
        raise ValueError(
            f"Expected a decomposition of {_kind(origin)} whose layers take over every trained "
            f"weight, by weights={{'part/variable': 'variable of the layer'}}. Received: nothing "
            f"for {new or 'no part'}, and nothing that takes {dropped or 'any variable'}. A layer "
            "with constants of its own is made with trainable=False."
        )


def _refusal(origin: Any, taken: Taken) -> str | None:
    """Why a compressed layer cannot be taken apart; `None` where it can."""
    if not is_compressed(origin):
        return None
    left = untaken_transforms(origin, [v for each in taken.values() for v in each.values()])
    left += [op.name for op, each in taken.items() if not can_take_over(op, each, origin)]
    if not left:
        return None
    return (
        f"its {', '.join(left)} is clustered or masked, which no part of its decomposition can "
        "take over"
    )


def _parts(b: Builder, graph: Graph, operations: list, taken: Taken) -> dict[Node, Any]:
    """Call of the traced graph → the part, with its name in the model, that it is a call of."""
    origin = b.node.operation
    last = graph.flat_outputs[0].node if len(graph.flat_outputs) == 1 else None
    paths = {node.operation: node.path for node in reversed(graph.nodes)}
    parts, new = {}, []
    for index, operation in enumerate(operations):
        part = b.shared(index, operation)
        if part is None:
            is_last = last is not None and operation is last.operation
            suffix = "" if is_last else "_".join((*paths[operation], _stem(operation)))
            config = {**operation.get_config(), "name": b.name(suffix)}
            part = type(operation).from_config(config)
            if operation in taken:
                part = with_transforms(part, taken[operation], origin)
            b.share(index, operation, part)
            new.append(operation)
        parts[operation] = part
    by_call = {node: parts[node.operation] for node in graph.nodes}
    if len(new) == len(operations):
        # Calls the parts once, which builds them, with the weights of what was traced.
        rebuild(graph, parts)
        for operation, variables in taken.items():
            carry_over(parts[operation], variables, origin)
        for part in parts.values():
            if isinstance(part, keras.Layer) and not origin.trainable:
                part.trainable = False
    elif any(getattr(operation, "variables", []) for operation in new):
        raise ValueError(
            f"Expected a decomposition of {_kind(origin)} whose layers with weights are the same "
            f"at every call. Received: {[op.name for op in new]}, which another call of the shared "
            f"layer {origin.name!r} does not have. Make their options depend on the layer alone."
        )
    return by_call


def _check_outputs(node: Node, results: list) -> None:
    given = [tuple(getattr(r, "shape", ())) for r in results]
    expected = [value.shape for value in node.outputs]
    if given != expected:
        raise ValueError(
            f"Expected a decomposition of {_kind(node.operation)} that returns what the call "
            f"does, of shapes {expected}. Received: {given}."
        )


def _check_constants(node: Node, graph: Graph) -> None:
    for inner in graph.nodes:
        for leaf in tree.flatten((inner.args, inner.kwargs)):
            if isinstance(leaf, (keras.Variable, keras.KerasTensor)):
                raise ValueError(
                    f"Expected a decomposition of {_kind(node.operation)} whose weights belong to "
                    f"Keras layers. Received: {inner.name!r}, which reads {leaf!r}. Make a layer "
                    "that holds it, and name it in weights=."
                )


def _stem(operation: Any) -> str:
    """The name that the user gave, or what Keras names such an operation without its count."""
    words = type(operation).__name__.lower()
    plain = re.sub(r"_\d+$", "", operation.name)
    return plain if plain.replace("_", "") == words else operation.name


def _kind(operation: Any) -> str:
    function = getattr(operation, "activation", None) or getattr(operation, "function", None)
    if isinstance(operation, (keras.layers.Activation, keras.layers.Lambda)):
        return getattr(function, "__name__", type(function).__name__)
    return getattr(operation, "keras_class", type(operation)).__name__
