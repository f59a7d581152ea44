"""Decomposition of what nobody registered: a user's layers, `Lambda`s and activation functions.

The call is followed on symbolic tensors (`tfcompress.model.symbolic`), layers of the user's own
inside it likewise, and its weights become those of dense, convolution and scaling layers
(`own_weights`). What was found is run against the call on random numbers before it is used.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.batch_sizes import SampleConstant
from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_private import all_layers, padding_mask
from tfcompress.model.merging import Untraceable
from tfcompress.model.rewrite import copy_variables, fresh
from tfcompress.model.subclassed import inline
from tfcompress.model.symbolic import follow
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.own_weights import constants_per_channel, take_weights
from tfcompress.quantization.operators.registry import UNKNOWN, keras_class, operator_of
from tfcompress.quantization.operators.tracing import Taken, distinct_inputs, insert_parts
from tfcompress.quantization.operators.training_only import TrainingOnly

Rule = Callable[[Builder, Node], "list[Value] | None"]

# What a subclass may define that changes defaults alone.
_DEFAULTS = frozenset(("__init__", "get_config", "from_config"))


def automatic_rule(operation: Any) -> Rule | None:
    """The rule that follows the call of an operation; `None` where the registry knows it, or where
    it is Keras' own."""
    return _rule if is_followed(operation) else None


def is_followed(operation: Any) -> bool:
    """Whether an operation is a user's layer, `Lambda` or function that nobody registered, or a
    layer that a model of `keras.applications` defines for itself."""
    if not isinstance(operation, keras.Layer) or operator_of(operation) is not UNKNOWN:
        return False
    if type(operation) in (keras.layers.Lambda, keras.layers.Activation):
        function = getattr(operation, "activation", None)
        return not str(getattr(function, "__module__", "")).startswith("keras.")
    cls = keras_class(operation)
    is_librarys = _is_keras_own(cls) or cls.__module__.split(".")[0] == "tfcompress"
    return not (is_librarys or hasattr(operation, "get_vocabulary"))


def _is_keras_own(cls: type) -> bool:
    """Whether a class is one of Keras' layers. Those of `keras.applications` are composed of
    Keras' operations, as a user's are."""
    return cls.__module__.split(".")[0] == "keras" and ".applications." not in cls.__module__


def plain_base(cls: type) -> Any:
    """The Keras class that a user's subclass differs from in defaults alone; `None` for no such."""
    base = next(c for c in cls.__mro__ if _is_keras_own(c))
    if base is keras.Layer or issubclass(base, keras.Model):
        return None
    for c in cls.__mro__[: cls.__mro__.index(base)]:
        names = [n for n in vars(c) if n == "__call__" or not n.startswith("__")]
        if any(hasattr(base, name) for name in names if name not in _DEFAULTS):
            return None
        if not issubclass(c, base):
            return None
    return base


def _rule(b: Builder, node: Node) -> list[Value] | None:
    operation = node.operation
    if operation in b.result.refused:
        return None
    try:
        # All of its calls or none: its weights pass to the parts.
        for other in b.graph.calls(operation):
            if other is not node:
                _follow(other)
        graph, taken = _follow(node)
    except Untraceable as error:
        if _returns_its_input(node):
            layer = fresh(operation)
            layer.build(node.inputs[0].shape)
            copy_variables(operation, layer)
            return [b.call(lambda name: TrainingOnly(layer, name=name), "", node.inputs[0])]
        b.result.refused[operation] = f"{_kind(operation)} cannot be traced: {error}"
        return None
    return insert_parts(b, node, graph, taken)


def _returns_its_input(node: Node) -> bool:
    """Whether a layer without trained weights returns the one tensor that it gets in inference."""
    layer = node.operation
    is_plain = not isinstance(layer, (keras.layers.Lambda, keras.layers.Activation))
    if (
        not is_plain
        or layer.trainable_variables
        or len(node.inputs) != 1
        or node.kwargs.get("training")
    ):
        return False
    try:
        kwargs = {**_taken_arguments(layer.call, node.kwargs), "training": False}
        call = functools.partial(type(layer).call, layer)
        graph = follow(call, node.inputs, node.args, kwargs, [layer])
    except Untraceable:
        return False
    return graph.flat_outputs == graph.flat_inputs


def _kind(operation: Any) -> str:
    if isinstance(operation, keras.layers.Lambda):
        return "its function"
    if isinstance(operation, keras.layers.Activation):
        return getattr(operation.activation, "__name__", type(operation.activation).__name__)
    return f"the custom layer {keras_class(operation).__name__}"


# --- following ------------------------------------------------------------------------------

#: Layer of a class that changes defaults alone → the Keras layer of the same options and weights.
_Bases = dict[Any, keras.Layer]


def _follow(node: Node) -> tuple[Graph, Taken]:
    """What a call does, and the variables that its parts take over.

    Raises:
        Untraceable: It cannot be followed.
    """
    operation = node.operation
    bases: _Bases = {}
    # A functional model gives its own `training` to every call, whatever the graph has recorded.
    kwargs = {name: value for name, value in node.kwargs.items() if name != "training"}
    graph = _followed(node, kwargs, bases)
    if any(padding_mask(v.spec) is not None for v in node.inputs):
        _check_no_mask_is_read(graph)
    _recognize_hard_silu(graph)
    constants_per_channel(graph, operation.dtype_policy)
    taken, reordered = take_weights(graph, operation.dtype_policy)
    shapes = [[v.shape for v in values] for values in (graph.flat_outputs, node.outputs)]
    if not _refines(*shapes):
        raise Untraceable("the shape of its output is not that of the operations in its call")
    _check_copies(graph, operation, [*taken, *bases.values()])
    _check_all_used(graph, operation, taken, bases, reordered)
    _check_equal(node, graph)
    for source, base in bases.items():
        if is_compressed(source):
            by_name = {v.name: v for v in source.variables if "transformed" not in v.path}
            taken[base] = {v.name: by_name[v.name] for v in base.variables}
    return graph, taken


def _refines(found: list[tuple], declared: list[tuple]) -> bool:
    """Whether shapes are the declared ones, or know a size that those do not."""
    return [len(shape) for shape in found] == [len(shape) for shape in declared] and all(
        n in (m, None)
        for one, other in zip(found, declared, strict=True)
        for m, n in zip(one, other, strict=True)
    )


def _followed(node: Node, given: dict[str, Any], bases: _Bases) -> Graph:
    """The graph of a call with these keyword arguments, the users' layers in it followed, too."""
    operation = node.operation
    function, owner = _function_of(operation, bases)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(operation.dtype_policy)
    try:
        kwargs = _taken_arguments(function, given)
        graph = follow(function, distinct_inputs(node), node.args, kwargs, [owner])
    finally:
        keras.config.set_dtype_policy(policy)
    for inner in list(graph.nodes):
        if is_followed(inner.operation):
            try:
                inside = _followed(inner, inner.kwargs, bases)
            except Untraceable as error:
                raise Untraceable(f"of its layer {inner.name!r}, {error}") from error
            inline(graph, inner, inside)
    return graph


def _taken_arguments(function: Callable, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without those that Keras passes to every layer, where the function does not take them."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return kwargs
    return {k: v for k, v in kwargs.items() if k in names or k not in ("mask", "training")}


def _function_of(operation: Any, bases: _Bases) -> tuple[Callable, keras.Layer]:
    """What the call of an operation runs, and the layer whose weights that may read."""
    if isinstance(operation, keras.layers.Lambda):
        return functools.partial(operation.function, **(operation.arguments or {})), operation
    if isinstance(operation, keras.layers.Activation):
        return operation.activation, operation
    cls: Any = keras_class(operation)
    base = plain_base(cls)
    if base is None:
        return functools.partial(cls.call, operation), operation
    if operation not in bases:
        layer = base.from_config(base.get_config(operation))
        if operation.built:
            layer.build_from_config(operation.get_build_config())
            copy_variables(operation, layer)
        layer.trainable = operation.trainable
        bases[operation] = layer
    return bases[operation], bases[operation]


def _recognize_hard_silu(graph: Graph) -> None:
    """x · relu6(x + 3) / 6 → hard_silu, in place.

    In that order of operations the converter makes HARD_SWISH of it, which rounds differently.
    """
    for node in list(graph.nodes):
        factor = _constant_factor(node)
        if factor is None or abs(factor * 6 - 1) > 1e-6:
            continue
        product: Any = node.inputs[0].node
        if not _is_called(product, "Multiply") or len(product.inputs) != 2:
            continue
        for x, gate in (product.inputs, product.inputs[::-1]):
            relu6: Any = gate.node
            shifted: Any = relu6.inputs[0].node if _is_called(relu6, "Relu6") else None
            if _is_called(shifted, "Add") and shifted.inputs == [x] and 3 in shifted.args:
                layer = keras.layers.Activation("hard_silu")
                new = graph.insert_before(node, layer, (x,), {}, [node.output.spec])
                new.path = node.path
                graph.replace(node, new.outputs)
                for unread in (product, relu6, shifted):
                    if not graph.consumers(unread.output) and not graph.is_output(unread.output):
                        graph.nodes.remove(unread)
                        unread.disconnect()
                break


def _is_called(node: Any, kind: str) -> bool:
    return node is not None and type(node.operation).__name__ == kind


def _constant_factor(node: Node) -> float | None:
    """The number that a call multiplies its input by; `None` for any other call."""
    numbers = [a for a in node.args if isinstance(a, (int, float))]
    if len(numbers) != 1 or len(node.args) != 2:
        return None
    if _is_called(node, "Multiply"):
        return float(numbers[0])
    is_quotient = _is_called(node, "Divide") or _is_called(node, "TrueDivide")
    return 1 / numbers[0] if is_quotient and node.args[1] is numbers[0] and numbers[0] else None


# --- checks ---------------------------------------------------------------------------------


def _check_no_mask_is_read(graph: Graph) -> None:
    """No layer inside reads the mask that the input of the call has: the graph knows of none."""
    for node in graph.nodes:
        layer = node.operation
        if not isinstance(layer, keras.Layer):
            continue
        names = inspect.signature(layer.call).parameters
        read = [n for n in names if n == "mask" or n.endswith("_mask")]
        read = [n for n in read if n not in ("use_causal_mask", "attention_mask")]
        if any(node.kwargs.get(name) is None for name in read):
            raise Untraceable(f"its input has a mask, which its layer {layer.name!r} reads")


def _check_copies(graph: Graph, operation: Any, made: list[keras.Layer]) -> None:
    """Its layers can be copied, and those with weights are its own."""
    held = {id(layer) for layer in (*all_layers(operation), *made)}
    for part in graph.operations():
        if isinstance(part, SampleConstant):
            continue
        if getattr(part, "variables", ()) and id(part) not in held:
            raise Untraceable(f"its call runs {part.name!r}, a layer that it does not hold")
        try:
            fresh(part)
        except Exception as error:
            raise Untraceable(f"{part.name!r} in its call cannot be copied ({error})") from error


def _check_all_used(
    graph: Graph, operation: Any, taken: Taken, bases: _Bases, reordered: list[keras.Variable]
) -> None:
    """Every trained weight passes to a part."""
    used = {id(v) for part in graph.operations() for v in getattr(part, "variables", ())}
    used |= {id(v) for each in taken.values() for v in each.values()}
    used |= {id(v) for source in bases for v in source.variables}
    used |= {id(v) for v in reordered}
    lost = [v.name for v in operation.trainable_variables if id(v) not in used]
    if is_compressed(operation):
        chains = operation.transformed.chains
        for name in (v.name for v in reordered if chains.get(v.name)):
            raise Untraceable(f"its weight {name!r}, read in another shape, is masked or clustered")
        # Masks and codebooks are passed on with the variable that they transform.
        lost = [name for name in lost if name not in operation.transformed.chains]
    if lost:
        raise Untraceable(f"its call does not use its weight {lost[0]!r}")


def _check_equal(node: Node, graph: Graph) -> None:
    """Runs call and graph on random numbers.

    Raises:
        Untraceable: They differ, or the call cannot run on them.
    """
    rng = np.random.default_rng(0)
    values = distinct_inputs(node)
    feed = {value: _random(value, rng) for value in values}
    args, kwargs = tree.map_structure(
        lambda leaf: feed[leaf] if isinstance(leaf, Value) else leaf, (node.args, node.kwargs)
    )
    operation = node.operation
    call = operation.__call__
    if is_compressed(operation):
        call = functools.partial(keras_class(operation).call, operation)  # type: ignore[attr-defined]
    try:
        with keras.StatelessScope(collect_losses=True):
            expected = tree.flatten(call(*args, **kwargs))
            inputs = dict(zip(graph.flat_inputs, feed.values(), strict=True))
            found = tree.flatten(graph.run(inputs, lambda n, a, k: n.operation(*a, **k)))
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise Untraceable(f"its call cannot be checked on random numbers ({text[:160]})") from error
    tolerance = 1e-4 if operation.compute_dtype == "float32" else 5e-2
    for one, other in zip(expected, found, strict=True):
        a, b = (np.asarray(tf.cast(y, tf.float32)) for y in (one, other))
        size = max(float(np.max(np.abs(a), initial=0.0)), 1e-6)
        if a.shape != b.shape or not np.allclose(a, b, tolerance, tolerance * size, True):
            raise Untraceable("its call computes something else than the operations it runs")


def _random(value: Value, rng: np.random.Generator) -> tf.Tensor:
    """Two samples, the second one larger; unknown sizes are 4."""
    shape = (2, *(4 if n is None else n for n in value.shape[1:]))
    if value.is_float:
        sizes = np.array([1.0, 8.0]).reshape(2, *(1 for _ in shape[1:]))
        return tf.cast(rng.normal(size=shape) * sizes, value.spec.dtype)
    return tf.cast(rng.integers(0, 2, shape), value.spec.dtype)
