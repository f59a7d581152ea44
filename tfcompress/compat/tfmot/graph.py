"""The graph of a description as a model of Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.compat.tfmot.fake_quant import activation_range
from tfcompress.compat.tfmot.layers import LayerMaker

_CONSTANT = "_CONSTANT_VALUE"


def build(description: Mapping[str, Any], maker: LayerMaker) -> keras.Model:
    """Makes the model; `maker` notes what tfmot quantized. Its weights are set.

    Args:
        description: A model, as `describe.Describer` gives it.
        maker: Of its arrays.

    Raises:
        ValueError: A layer or an option that Keras 3 does not have.
    """
    model = _model(description, maker)
    maker.finish()
    return model


def _model(description: Mapping[str, Any], maker: LayerMaker) -> keras.Model:
    make = _sequential if description["class_name"] == "Sequential" else _functional
    return make(description, maker)


def _made(
    entry: Mapping[str, Any], description: Mapping[str, Any], maker: LayerMaker
) -> list[Callable]:
    record = description["layers"].get(_name(entry), {"kind": "plain", "weights": []})
    if record["kind"] == "model":
        return [_model(record["model"], maker)]
    return maker.make(entry, record)


def _name(entry: Mapping[str, Any]) -> str:
    return entry.get("name") or entry["config"]["name"]


def _input(config: Mapping[str, Any]) -> keras.KerasTensor:
    if config.get("sparse") or config.get("ragged"):
        raise ValueError(
            f"Expected dense inputs. Received: {config['name']!r}, which is sparse or ragged."
        )
    shape = config.get("batch_input_shape", config.get("batch_shape"))
    return keras.Input(batch_shape=shape, dtype=config.get("dtype"), name=config["name"])


def _sequential(description: Mapping[str, Any], maker: LayerMaker) -> keras.Model:
    config = description["config"]
    entries = list(config["layers"])
    if entries[0]["class_name"] == "InputLayer":
        inputs = _input(entries.pop(0)["config"])
    else:
        first = entries[0]["config"]
        shape = first.get("batch_input_shape") or description["input_shape"]
        inputs = keras.Input(batch_shape=shape, name=f"{first['name']}_input")
    layers: list[Callable] = []
    for entry in entries:
        _note_input(entry, description, maker, _called(layers, "") if layers else inputs.name)
        layers += _made(entry, description, maker)
    if all(isinstance(layer, keras.Layer) for layer in layers):
        return keras.Sequential([inputs, *layers], name=config["name"])
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=config["name"])


def _functional(description: Mapping[str, Any], maker: LayerMaker) -> keras.Model:
    config = description["config"]
    # `(layer, number of its call)` → what it gives.
    results: dict[tuple[str, int], Any] = {}
    names: dict[tuple[str, int], str] = {}
    made: dict[str, list[Callable]] = {}
    first_call: dict[str, int] = {}
    pending: list[tuple[Mapping[str, Any], int]] = []
    for entry in config["layers"]:
        name = _name(entry)
        if entry["class_name"] == "InputLayer":
            results[name, 0] = _input(entry["config"])
            names[name, 0] = name
            continue
        made[name] = _made(entry, description, maker)
        pending += [(entry, i) for i in range(len(entry["inbound_nodes"]))]
        first_call[name] = _first_call(description["layers"].get(name, {}))
    while pending:
        left = []
        for entry, i in pending:
            name, node = _name(entry), entry["inbound_nodes"][i]
            sources = _sources(node)
            if any(source not in results for source in sources):
                left.append((entry, i))
                continue
            if i == 0 and len(sources) == 1:
                _note_input(entry, description, maker, names[sources[0]])
            call = (name, first_call[name] + i)
            results[call] = _call(made[name], node, results)
            names[call] = _called(made[name], name) if made[name] else names[sources[0]]
        if len(left) == len(pending):
            raise ValueError(
                "Expected a graph whose calls can be put in an order. Received: "
                f"{config['name']!r}, in which {_name(left[0][0])!r} waits for what is never made."
            )
        pending = left

    def find(reference: Sequence) -> Any:
        return _pick(results, reference)

    inputs = _single(_structure(config["input_layers"], find))
    outputs = _single(_structure(config["output_layers"], find))
    return keras.Model(inputs, outputs, name=config["name"])


def _single(tensors: Any) -> Any:
    """A lone tensor without the list that tf_keras writes around it."""
    return tensors[0] if isinstance(tensors, list) and len(tensors) == 1 else tensors


def _first_call(record: Mapping[str, Any]) -> int:
    """The number of the first call of a layer in a graph; 0 of a model is its own."""
    if record.get("kind") != "model":
        return 0
    layers = record["model"]["config"]["layers"]
    return int(bool(layers) and layers[0]["class_name"] == "InputLayer")


def _called(made: Sequence[Any], name: str) -> str:
    return getattr(made[-1], "name", name)


def _note_input(
    entry: Mapping[str, Any], description: Mapping[str, Any], maker: LayerMaker, name: str
) -> None:
    """Notes the range of a `QuantizeLayer` for the tensor that it reads."""
    record = description["layers"].get(_name(entry), {})
    if record.get("kind") == "quantized_input":
        found = activation_range(record["range"], maker.arrays, _name(entry))
        maker.quantized.add_range(name, found)


def _call(made: list[Callable], node: Any, results: Mapping[tuple[str, int], Any]) -> Any:
    """Calls a layer by a node of a configuration: its first argument, then its keywords."""
    leaves: list[Any] = []

    def first(leaf: Any) -> Any:
        leaves.append(leaf)
        return leaf[2] if leaf[0] == _CONSTANT else _pick(results, leaf)

    arguments = _structure(node, first)
    keywords = dict(leaves[0][3]) if leaves and len(leaves[0]) > 3 else {}
    keywords = {k: _keyword(v, results) for k, v in keywords.items() if v is not None}
    if isinstance(arguments, list) and len(arguments) == 1 and _is_list(node):
        arguments = arguments[0]
    for function in made:
        arguments, keywords = function(arguments, **keywords), {}
    return arguments


def _keyword(value: Any, results: Mapping[tuple[str, int], Any]) -> Any:
    if _is_reference(value, results):
        return _pick(results, value)
    if isinstance(value, list):
        return [_keyword(entry, results) for entry in value]
    if isinstance(value, dict) and "slice_spec" not in value:
        return {k: _keyword(v, results) for k, v in value.items()}
    return value


def _pick(results: Mapping[tuple[str, int], Any], reference: Sequence) -> Any:
    name, call, index = reference[:3]
    return tree.flatten(results[name, call])[index]


def _is_leaf(value: Any) -> bool:
    """Whether it is `[layer, call, tensor]`, or that with keywords."""
    return (
        isinstance(value, list | tuple)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _is_reference(value: Any, results: Mapping[tuple[str, int], Any]) -> bool:
    return _is_leaf(value) and isinstance(value[2], int) and (value[0], value[1]) in results


def _is_list(node: Any) -> bool:
    return isinstance(node, list | tuple) and not _is_leaf(node)


def _structure(value: Any, function: Callable) -> Any:
    if _is_leaf(value):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _structure(entry, function) for key, entry in value.items()}
    return [_structure(entry, function) for entry in value]


def _sources(node: Any) -> list[tuple[str, int]]:
    """The calls that a node reads."""
    found: list[tuple[str, int]] = []

    def visit(value: Any) -> None:
        if _is_leaf(value):
            if value[0] != _CONSTANT:
                found.append((value[0], value[1]))
            for keyword in (value[3] if len(value) > 3 else {}).values():
                visit_keyword(keyword)
        elif isinstance(value, Mapping):
            for entry in value.values():
                visit(entry)
        else:
            for entry in value:
                visit(entry)

    def visit_keyword(value: Any) -> None:
        if _is_leaf(value) and len(value) == 3 and isinstance(value[2], int):
            found.append((value[0], value[1]))
        elif isinstance(value, Mapping):
            for entry in value.values():
                visit_keyword(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                visit_keyword(entry)

    visit(node)
    return list(dict.fromkeys(found))
