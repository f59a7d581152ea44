"""Subclassed models as functional ones: `call` is followed on symbolic inputs.

`as_functional` copies a model that defines `call` into the graph of the layers that it runs, with
their weights, so that techniques can read and edit it. Blocks inside it (layers and models of the
user's own that hold Keras layers) are followed, too.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.batches import input_batches
from tfcompress.model.graph import Graph, Node, Value, is_functional
from tfcompress.model.keras_private import all_layers, kept_calls, padding_mask
from tfcompress.model.kernels import KERNELS
from tfcompress.model.merging import Untraceable, Weight
from tfcompress.model.rewrite import rebuild, rename_duplicates
from tfcompress.model.symbolic import follow
from tfcompress.model.training_modes import acting_in_training
from tfcompress.model.user_class import functional_class, give_attributes, overridden_methods

# Layer classes that stay calls of their own, because a technique was told how to treat them.
_WHOLE: set[type] = set()


def keep_whole(cls: type) -> None:
    """Leaves layers of a class as they are where a model that holds them is made functional."""
    _WHOLE.add(cls)


def as_functional(model: keras.Model, inputs: Any = None) -> keras.Model:
    """A functional copy of a subclassed model: the layers that its `call` runs, with their weights.

    `quantize`, `plan`, `cluster`, `shrink`, `factorize` and `export_tflite` do this by themselves
    where the shape of the input is known: of a model that has been built or called, or from data.
    The copy's methods of training (`train_step`, `compute_loss`, ...) are those of the given
    class. Layers of the user's own are followed, too, and their Keras layers named after them:
    `"block_conv"`.

    Args:
        model: A subclassed model. Any other is returned as it is.
        inputs: What `call` takes: an example batch, or shapes with the batch axis such as
            `(None, 32, 32, 3)`, or `keras.Input`s for other types than float32; in a list or dict
            where it takes several. By default what the model was built with.

    Returns:
        An uncompiled functional model, which gives the outputs of `model`.

    Warns:
        UserWarning: The `call` has no argument `training`, so that the `fit` of Keras runs dropout
            and batch norm in inference mode; that of the copy runs them in training mode.

    Raises:
        ValueError: The shape of the input is not known, or the `call` cannot be followed: its
            control flow depends on values or on `training`, it updates states, draws random
            numbers or uses weights outside of layers.

    Example:
        >>> class Net(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden, self.logits = keras.layers.Dense(8), keras.layers.Dense(2)
        ...     def call(self, x):
        ...         return self.logits(keras.ops.relu(self.hidden(x)))
        >>> tfc.as_functional(Net(), (None, 4)).output_shape
        (None, 2)
    """
    if not is_subclassed(model):
        return model
    specs = _specs(model, inputs)
    symbols = tree.map_structure(lambda s: keras.Input(batch_shape=s.shape, dtype=s.dtype), specs)
    if not model.built or not all(la.built for la in all_layers(model)):
        with kept_calls([model]):
            model(symbols)
    try:
        graph = _graph(model, symbols)
        for node in list(graph.nodes):
            _follow_block(graph, node)
        weights = [x for n in graph.nodes for x in tree.flatten((n.args, n.kwargs))]
        found = next((x for x in weights if isinstance(x, Weight)), None)
        if found is not None:
            raise Untraceable(
                f"its call reads the weight {found.variable.name!r} outside of a layer"
            )
        _check_own_modes(graph)
    except Untraceable as error:
        raise ValueError(
            f"Expected a model whose call can be followed. Received: {model.name!r} of type "
            f"{type(model).__name__}: {error}. Move that into a keras.layers.Layer of its own, "
            "which may then stay in float, or express the model with the functional API."
        ) from error
    _warn_of_inference_mode(model)
    rename_duplicates(graph)
    keeps_class = bool(overridden_methods(type(model)))
    given_class: Any = type(model)
    model_class = functional_class(given_class) if keeps_class else keras.Model
    copy = rebuild(graph, model_class=model_class)
    copy.trainable = model.trainable or copy.trainable
    if keeps_class:
        give_attributes(model, copy)
    _check_equal(model, copy, symbols)
    return copy


def is_subclassed(model: Any) -> bool:
    """Whether a model computes by a `call` of its user's own."""
    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return False
    owner = next(cls for cls in type(model).__mro__ if "call" in vars(cls))
    return not is_functional(model) and not owner.__module__.startswith(("keras.", "tfcompress."))


def functional_for(model: Any, data: Any = None) -> Any:
    """`as_functional` for a technique that was given `data` for the model, or none."""
    if not is_subclassed(model):
        return model
    is_built = _build_shapes(model) is not None
    is_iterator = data is not None and not _is_array(data) and iter(data) is data
    if data is None or (is_built and is_iterator):
        return as_functional(model)
    if is_iterator:
        raise ValueError(
            f"Expected a subclassed model that was built, or data that can be read twice. "
            f"Received: {model.name!r} and an iterator. Call the model on a batch first, or pass "
            "tfcompress.as_functional(model, batch)."
        )
    if not is_built:
        return as_functional(model, next(iter(input_batches(data, None))))
    specs = _specs(model, None)
    is_one_of_many = isinstance(data, list) and len(data) != len(tree.flatten(specs))
    batch = data[0] if is_one_of_many and data else next(iter(input_batches(data, None)))
    return as_functional(model, _typed(specs, batch))


def _typed(specs: Any, batch: Any) -> Any:
    """The inputs that a model was built with, of the types of a batch: Keras keeps none."""
    given = [_specs(None, array).dtype for array in tree.flatten(batch)]
    inputs = tree.flatten(specs)
    if len(given) != len(inputs):
        return specs
    typed = [keras.Input(batch_shape=s.shape, dtype=d) for s, d in zip(inputs, given, strict=True)]
    return tree.pack_sequence_as(specs, typed)


def _is_array(data: Any) -> bool:
    return isinstance(data, np.ndarray) or tf.is_tensor(data) or isinstance(data, (list, dict))


def _graph(model: keras.Model, symbols: Any) -> Graph:
    values = tree.map_structure(Value, symbols)
    function = functools.partial(type(model).call, model)
    graph = follow(function, tree.flatten(values), (values,), {}, [model])
    named = dict(zip(tree.flatten(values), graph.flat_inputs, strict=True))
    graph.inputs = tree.map_structure(lambda v: named[v], values)
    with kept_calls([model]), keras.StatelessScope(collect_losses=True):
        structure = model(symbols)
    graph.outputs = tree.pack_sequence_as(structure, graph.flat_outputs)
    for value, name in zip(graph.flat_inputs, _input_names(model, symbols), strict=True):
        value.spec.name = name
    graph.name = model.name
    graph.output_names = [v.name for v in graph.flat_outputs]
    return graph


def _input_names(model: keras.Model, symbols: Any) -> list[str]:
    """Names of the inputs: the keys of a dict, else after the argument of `call`."""
    if isinstance(symbols, dict) and len(tree.flatten(symbols)) == len(symbols):
        return sorted(symbols)
    name = list(inspect.signature(type(model).call).parameters)[1]
    count = len(tree.flatten(symbols))
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


def _follow_block(graph: Graph, node: Node) -> None:
    """Replaces the call of a block of layers by the calls that it makes."""
    layer = node.operation
    cls = type(layer)
    if not isinstance(layer, keras.Layer) or cls in _WHOLE or cls in KERNELS:
        return
    if _is_known(cls) or not _holds_layers(layer):
        return
    values = list(dict.fromkeys(node.inputs))
    if any(padding_mask(v.spec) is not None for v in values):
        return
    try:
        function = functools.partial(cls.call, layer)
        inside = follow(function, values, node.args, node.kwargs, [layer])
    except Untraceable:
        # It stays a call of its own, as in a functional model.
        return
    leaves = [x for n in inside.nodes for x in tree.flatten((n.args, n.kwargs))]
    if any(isinstance(leaf, Weight) for leaf in leaves):
        return
    inside_nodes = inline(graph, node, inside)
    for inner in inside_nodes:
        _follow_block(graph, inner)


def inline(graph: Graph, node: Node, inside: Graph) -> list[Node]:
    """Puts what a call does, a graph with an input for each distinct value, in its place."""
    values = list(dict.fromkeys(node.inputs))
    known = dict(zip(inside.flat_inputs, values, strict=True))
    nodes = []
    for inner in inside.nodes:
        args, kwargs = tree.map_structure(
            lambda leaf: known[leaf] if isinstance(leaf, Value) else leaf,
            (inner.args, inner.kwargs),
        )
        specs = [v.spec for v in inner.outputs]
        new = graph.insert_before(node, inner.operation, args, kwargs, specs)
        new.path = (*node.path, node.name, *inner.path)
        known.update(zip(inner.outputs, new.outputs, strict=True))
        nodes.append(new)
    graph.replace(node, [known[value] for value in inside.flat_outputs])
    return nodes


def _warn_of_inference_mode(model: keras.Model) -> None:
    """Where the `fit` of Keras does not tell a model that it trains, but that of a copy does."""
    cls = type(model)
    is_told = "training" in inspect.signature(cls.call).parameters
    if is_told or "train_step" in overridden_methods(cls):
        return
    names = [layer.name for layer in acting_in_training(model)]
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        warnings.warn(
            f"The call of {model.name!r} has no argument `training`: Keras trains such a model "
            f"in inference mode, without its dropout and batch norm ({shown}). The copy trains "
            "with them. Add training=None to the call, or freeze a batch norm (trainable = False)",
            stacklevel=3,
        )


def _check_own_modes(graph: Graph) -> None:
    """Refuses layers of the user's own that run in one mode alone, as what they do is not known."""
    for node in graph.nodes:
        mode = node.kwargs.get("training")
        if mode is not None and not _is_known(type(node.operation)):
            raise Untraceable(
                f"its call runs {node.name!r} with training={mode}, which would not hold in the "
                "copy: leave the argument out"
            )


def _is_known(cls: type) -> bool:
    return cls.__module__.split(".")[0] in ("keras", "tfcompress")


def _holds_layers(layer: keras.Layer) -> bool:
    return len(all_layers(layer)) > 1


def _build_shapes(model: keras.Model) -> Any:
    """The shapes that a model was built with; `None` where they are not known."""
    config = model.get_build_config() if model.built else None
    if not config:
        return None
    shapes = config.get("input_shape")
    if shapes is None and len(config.get("shapes_dict") or {}) == 1:
        shapes = next(iter(config["shapes_dict"].values()))
    return shapes


def _specs(model: keras.Model, inputs: Any) -> Any:
    """The structure of inputs as `TensorSpec`s of any batch size."""
    given = _build_shapes(model) if inputs is None else inputs
    if given is None:
        raise ValueError(
            f"Expected a model whose input is known. Received: the subclassed model "
            f"{model.name!r}, which was not built. Call it on a batch first, or pass "
            "tfcompress.as_functional(model, (None, ...)) with the shape of its input."
        )
    if _is_shape(given):
        return tf.TensorSpec((None, *given[1:]), "float32")
    if isinstance(given, dict):
        return {key: _specs(model, each) for key, each in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(_specs(model, each) for each in given)
    dtype = keras.backend.standardize_dtype(given.dtype)
    # Arrays of NumPy are often of 64 bits, in which no model computes.
    dtype = {"float64": "float32", "int64": "int32"}.get(dtype, dtype)
    return tf.TensorSpec((None, *given.shape[1:]), dtype)


def _is_shape(value: Any) -> bool:
    is_sequence = isinstance(value, (tuple, list, tf.TensorShape))
    return is_sequence and bool(value) and all(n is None or isinstance(n, int) for n in value)


def _check_equal(model: keras.Model, copy: keras.Model, symbols: Any) -> None:
    rng = np.random.default_rng(0)

    def draw(symbol: keras.KerasTensor) -> tf.Tensor:
        shape = (2, *(32 if n is None else n for n in symbol.shape[1:]))
        if keras.backend.is_float_dtype(symbol.dtype):
            return tf.cast(rng.normal(size=shape), symbol.dtype)
        return tf.cast(rng.integers(0, 2, shape), symbol.dtype)

    batch = tree.map_structure(draw, symbols)
    with keras.StatelessScope(collect_losses=True):
        expected, found = (tree.flatten(m(batch, training=False)) for m in (model, copy))
    is_float32 = all(la.compute_dtype == "float32" for la in all_layers(model))
    tolerance = 1e-4 if is_float32 else 5e-2
    for one, other in zip(expected, found, strict=True):
        a, b = (np.asarray(tf.cast(y, tf.float32)) for y in (one, other))
        size = max(float(np.max(np.abs(a), initial=0.0)), 1e-6)
        if a.shape != b.shape or not np.allclose(a, b, tolerance, tolerance * size, True):
            raise ValueError(
                f"Expected a model whose call runs the layers that it was followed by. Received: "
                f"{model.name!r} of type {type(model).__name__}, which gives other values. "
                "Express it with the functional API."
            )
