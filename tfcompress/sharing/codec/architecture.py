"""The architecture in a packed file: Keras' own JSON, deflated, and checked before it is used.

Nothing in a file is executed. Before Keras sees the configuration every object in it must resolve
to a public Keras layer, operation, initializer, regularizer, constraint or dtype policy, or to a
class that the reader's own program has registered; anything that runs code of the file (lambdas),
calls a function by name or opens other files (vocabularies) is refused. So is a model of far more
weights than the file can hold, before memory is taken for them.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.graph import producer
from tfcompress.sharing.codec.budget import Budget
from tfcompress.sharing.codec.tensors import inflate

# A configuration that Keras writes deflates to a fiftieth at most, and has some two values to a
# deflated byte. What is far beyond is made to take memory and time.
_FREE_TEXT, _TEXT_PER_BYTE = 2**18, 128
_FREE_VALUES, _VALUES_PER_BYTE = 20_000, 8
# Layers are called one by one, each in milliseconds.
_FREE_CALLS, _BYTES_PER_CALL = 2_000, 8

_BASES = (
    keras.Operation,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.dtype_policies.DTypePolicy,
)
# These run code of the file.
_CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
# These read other files.
_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")
_PLAIN_NODES = (
    *("__keras_tensor__", "__tuple__", "__numpy__", "__tensor__", "__slice__"),
    *("__ellipsis__", "__bytes__"),
)

# What nearly every configuration repeats: deflate refers to it instead of spelling it out. It is
# part of the format: a change needs a new version of it.
_DICTIONARY = (
    b'"groups":1,"axis":-1,"momentum":0.99,"epsilon":0.001,"center":true,"scale":true,'
    b'"beta_initializer":{"module":"keras.initializers","class_name":"Zeros","config":{},'
    b'"registered_name":null},"gamma_initializer":{"module":"keras.initializers","class_name":'
    b'"Ones","config":{},"registered_name":null},"moving_mean_initializer":'
    b'"moving_variance_initializer":"beta_regularizer":null,"gamma_regularizer":null,'
    b'"beta_constraint":null,"gamma_constraint":null,"synchronized":false,"BatchNormalization"'
    b'"ReLU","negative_slope":0.0,"threshold":0.0,"max_value":null,"Flatten","Dropout","rate":0.5,'
    b'"seed":null,"noise_shape":null,"GlobalAveragePooling2D","keepdims":false,"Add",'
    b'"MaxPooling2D","pool_size":[2,2],"AveragePooling2D","padding":"same","DepthwiseConv2D",'
    b'"depth_multiplier":1,"depthwise_initializer":"Rescaling","scale":0.00392156862745098,'
    b'"offset":0.0,"linear","softmax","HeNormal","data_format":"channels_last"'
    b'{"module":"keras.layers","class_name":"InputLayer","config":{"batch_shape":[null,'
    b'"dtype":"float32","sparse":false,"ragged":false,"name":"image","optional":false},'
    b'"registered_name":null,"name":"image","inbound_nodes":[]},'
    b'{"module":"keras.layers","class_name":"Conv2D","config":{"name":"conv2d","trainable":true,'
    b'"dtype":{"module":"keras","class_name":"DTypePolicy","config":{"name":"float32"},'
    b'"registered_name":null},"filters":32,"kernel_size":[3,3],"strides":[1,1],"padding":"valid",'
    b'"data_format":"channels_last","dilation_rate":[1,1],"groups":1,"activation":"relu",'
    b'"use_bias":true,"kernel_initializer":{"module":"keras.initializers","class_name":'
    b'"GlorotUniform","config":{"seed":null,"input_axes":null,"output_axes":null},'
    b'"registered_name":null},"bias_initializer":{"module":"keras.initializers","class_name":'
    b'"Zeros","config":{},"registered_name":null},"kernel_regularizer":null,"bias_regularizer":'
    b'null,"activity_regularizer":null,"kernel_constraint":null,"bias_constraint":null},'
    b'"registered_name":null,"name":"dense","inbound_nodes":[{"args":[{"class_name":'
    b'"__keras_tensor__","config":{"shape":[null,28,28,1],"dtype":"float32","keras_history":['
    b'"input_layer",0,0]}}],"kwargs":{}}]},{"module":"keras.layers","class_name":"Dense","config":'
    b'{"name":"dense","trainable":true,"dtype":{"module":"keras","class_name":"DTypePolicy",'
    b'"config":{"name":"float32"},"registered_name":null},"units":10,"activation":"linear",'
    b'"use_bias":true,"quantization_config":null,"lora_rank":null,'
    b'{"module":"keras.src.models.functional","class_name":"Functional","config":{"name":"model",'
    b'"trainable":true,"layers":[],"input_layers":[["image",0,0]],"output_layers":[["logits",0,0]]'
    b'},"registered_name":"Functional"}'
)


def encode_architecture(model: keras.Model) -> bytes:
    """The configuration of a plain model, deflated.

    Raises:
        ValueError: It holds something that `decode_architecture` would refuse.
    """
    config = _without_build(keras.saving.serialize_keras_object(model))
    # Keras names an output after the layer that gives it; this model may call it otherwise.
    if list(model.output_names) != [_origin(tensor) for tensor in model.outputs]:
        config["output_names"] = list(model.output_names)
    check_config(config)
    text = json.dumps(config, separators=(",", ":"))
    deflater = zlib.compressobj(9, zdict=_DICTIONARY)
    return deflater.compress(text.encode()) + deflater.flush()


def _origin(tensor: keras.KerasTensor) -> str:
    call = producer(tensor)
    return tensor.name if call is None else call[0].name


def decode_architecture(data: bytes) -> dict[str, Any]:
    """The configuration; raises `ValueError` where it is damaged or may not be used.

    It takes memory and time in proportion to `data`.
    """
    text = inflate(data, _FREE_TEXT + _TEXT_PER_BYTE * len(data), _DICTIONARY)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a model's configuration. Received: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"Expected a model's configuration. Received: {type(config).__name__}.")
    check_config(config, _FREE_VALUES + _VALUES_PER_BYTE * len(data))
    check_calls(config, _FREE_CALLS + len(data) // _BYTES_PER_CALL)
    return config


def build_model(config: dict[str, Any], max_weights: int | None = None) -> keras.Model:
    """Makes the model of a checked configuration, with fresh weights.

    Args:
        config: The configuration.
        max_weights: How many weights it may have; `None`: any number.

    Raises:
        ValueError: Keras refuses it, it is something else than a model, or of too many weights:
            none of those beyond the limit is made.
    """
    budget = Budget(max_weights)
    try:
        with tf.variable_creator_scope(budget.create):
            model = _deserialized(config)
        is_model = isinstance(model, keras.Model) and bool(model.inputs)
        own = list(getattr(model, "output_names", []))  # A Sequential has none.
        names = config.get("output_names", own)
    except Exception as error:
        budget.check()
        raise ValueError(
            f"Expected a configuration that Keras {keras.__version__} can build. Received: "
            f"{type(error).__name__}: {error}."
        ) from error
    # Keras goes on without a part that could not be built.
    budget.check()
    if not is_model:
        raise ValueError(
            f"Expected a model's configuration. Received: {type(model).__name__}, without inputs."
        )
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_names or len(names) != len(own):
        raise ValueError(
            f"Expected a name for each of {len(own)} outputs. Received: {names!r}. "
            "The file is damaged."
        )
    if names != own:
        model.output_names = names
    return model


def _deserialized(config: dict[str, Any]) -> Any:
    if config.get("class_name") != "Sequential" or config.get("module") != "keras":
        return keras.saving.deserialize_keras_object(config, safe_mode=True)
    # Keras would build the model anew for every layer.
    inner = config["config"]
    layers = [
        keras.saving.deserialize_keras_object(layer, safe_mode=True) for layer in inner["layers"]
    ]
    return keras.Sequential(layers, name=inner["name"], trainable=inner.get("trainable", True))


def check_config(config: Any, max_values: int | None = None) -> None:
    """Raises `ValueError` for any object in a configuration that is not known to be harmless.

    Args:
        config: The configuration.
        max_values: How many values it may have; `None`: any number.
    """
    stack, values = [config], 0
    while stack:
        node = stack.pop()
        values += 1
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if "class_name" in node:
                _check_object(node)
            if node.get("compile_config"):
                raise ValueError("Expected an uncompiled model. Received: a compile_config.")
            stack.extend(node.values())
        if max_values is not None and values + len(stack) > max_values:
            raise ValueError(
                f"Expected a configuration of at most {max_values:,} values, as its bytes allow. "
                "Received: one of more. The file is damaged or made to take long."
            )


def check_calls(config: Any, max_calls: int) -> None:
    """Raises `ValueError` where Keras would try to call layers more than `max_calls` times.

    A functional model tries all layers in turn until each has its inputs, so an order from the
    last to the first takes a number of tries that grows with its square. So does a `Sequential`
    inside a model, which is built anew for every layer.
    """
    calls, stack = 0, [config]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            layers = node.get("layers")
            if isinstance(layers, list):
                is_outer = node is config.get("config")
                calls += _tries(layers, max_calls, is_outer)
                if calls > max_calls:
                    raise ValueError(
                        f"Expected a model of at most {max_calls:,} calls of layers, as its bytes "
                        "allow. Received: one of more. The file is damaged or made to take long."
                    )
            stack.extend(node.values())


def _tries(layers: list[Any], limit: int, is_outer: bool) -> int:
    """How many calls of layers Keras tries for a list of layers; more than `limit` at most once."""
    nodes = {}
    for layer in layers:
        calls = layer.get("inbound_nodes") if isinstance(layer, dict) else None
        if not isinstance(calls, list):
            # A Sequential; the outermost one is built once.
            return len(layers) if is_outer else len(layers) ** 2 // 2 + len(layers)
        nodes[str(layer.get("name"))] = [_inputs(call) for call in calls]
    done = dict.fromkeys(nodes, 0)
    tries, progress = 0, True
    while progress and tries <= limit:
        progress = False
        for name, calls in nodes.items():
            while done[name] < len(calls):
                tries += 1
                # An input layer has its node from the start.
                if not all(
                    done.get(source, 0) > index or nodes.get(source) == []
                    for source, index in calls[done[name]]
                ):
                    break
                done[name] += 1
                progress = True
    return tries


def _inputs(call: Any) -> list[tuple[str, int]]:
    """`(layer, index of its call)` of every tensor that a call of a layer takes."""
    found, stack = [], [call]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            history = node.get("keras_history")
            if isinstance(history, list) and len(history) == 3 and isinstance(history[1], int):
                found.append((str(history[0]), history[1]))
            stack.extend(node.values())
    return found


def _check_object(node: dict[str, Any]) -> None:
    name, module = node["class_name"], node.get("module")
    if name in _PLAIN_NODES and "config" in node:
        return
    if name == "__tuple__":
        return
    registered = node.get("registered_name")
    cls = None
    if isinstance(name, str) and name not in (*_CODE, *_LOOKUPS):
        if isinstance(registered, str) and ">" in registered:
            cls = keras.saving.get_registered_object(registered)
        elif module in ("keras", "keras.layers", "keras.initializers", "keras.regularizers"):
            cls = getattr(keras if module == "keras" else getattr(keras, module[6:]), name, None)
        elif module in ("keras.constraints", "keras.dtype_policies"):
            cls = getattr(getattr(keras, module[6:]), name, None)
        elif isinstance(module, str) and module.startswith("keras.src."):
            cls = _loaded(module, name)
    if not (isinstance(cls, type) and issubclass(cls, _BASES)):
        raise ValueError(f"{_expected(name)} Received: {name!r} of module {module!r}.")


def _expected(name: Any) -> str:
    """The first half of the error: what a packed file may hold in place of such an object."""
    if name in _CODE:
        return "Expected a model that is no code: write the code as a registered layer."
    if name in _LOOKUPS:
        return (
            "Expected a model without lookups, whose vocabularies may be other files: pack the "
            "model behind the lookup, and keep the vocabulary beside it."
        )
    if name == "function":
        return (
            "Expected activations of Keras by their names, or layers: a file may not name "
            "functions, registered ones included. Put the function into a registered layer."
        )
    return (
        "Expected a model of Keras' own layers, or of classes registered with "
        "keras.saving.register_keras_serializable: a packed file may not name others."
    )


def _loaded(module: str, name: str) -> Any:
    """A class of a Keras module that is imported already: importing would run code."""
    import sys

    return getattr(sys.modules.get(module), name, None)


def _without_build(node: Any) -> Any:
    """A functional model builds its layers by calling them: their input shapes are redundant."""
    if isinstance(node, list):
        return [_without_build(item) for item in node]
    if isinstance(node, dict):
        dropped = ("build_config", "compile_config")
        return {key: _without_build(value) for key, value in node.items() if key not in dropped}
    return node
