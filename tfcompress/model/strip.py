"""`strip`: a plain Keras model with what was learned baked into its weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.model.rewrite import copy_variables, fresh, rename_duplicates
from tfcompress.model.user_class import copy_attributes, plain_class


def strip(model: keras.Model) -> keras.Model:
    """Returns a plain Keras model: no tfcompress layers, the effective weights as its weights.

    Masks, codebooks and weight rounding are baked in; fake-quant of activations is dropped, so
    the result is the float model that computes with the compressed weights. It loads without
    tfcompress.

    Args:
        model: A functional model, compressed in any way or not at all.

    Raises:
        ValueError: A subclassed model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> quantized = tfc.quantize(model, calibration_data=np.eye(4, dtype="float32"))
        >>> [type(layer).__name__ for layer in tfc.strip(quantized).layers]
        ['InputLayer', 'Dense']
    """
    graph = Graph.from_model(model)
    rename_duplicates(graph)
    plain: dict[Any, list] = {}
    for operation in list(graph.operations()):
        chain = getattr(operation, "stripped", None)
        if chain is not None:
            plain[operation] = chain()
        elif is_compressed(operation):
            plain[operation] = [_plain_layer(operation)]
        else:
            plain[operation] = [fresh(operation)]
    weights = {op: _effective(op) for op in plain if isinstance(op, keras.Layer)}
    for node in graph.nodes:
        node.kwargs.pop("call_index", None)

    def call(node: Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        chain = plain[node.operation]
        # Nothing is left of a part: it passes on the (first) tensor that it reads.
        result = tree.flatten(args)[0] if not chain else chain[0](*args, **kwargs)
        for layer in chain[1:]:
            result = layer(result)
        return result

    model_class, arguments = plain_class(model)
    stripped = graph.to_model(model_class, call, **arguments)
    copy_attributes(model, stripped)
    for operation, values in weights.items():
        for layer in plain[operation]:
            if getattr(layer, "variables", ()):
                _assign(operation, layer, values)
    return stripped


def _plain_layer(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    config.pop("transforms")
    return layer.keras_class.from_config(config)


def _effective(layer: keras.Layer) -> dict[str, Any]:
    return layer.effective_weights() if is_compressed(layer) else {}


def _assign(source: keras.Layer, target: keras.Layer, effective: dict[str, Any]) -> None:
    copy_variables(source, target, missing="skip")
    for variable in target.variables:
        if variable.name in effective:
            variable.assign(effective[variable.name])
    target.trainable = source.trainable
