"""Layers of tf_keras, by class and configuration, as layers of Keras 3."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

#: Options that Keras 3 has no name for → the values that mean nothing to it; `None` for any value.
_DROPPED: Mapping[str, tuple | None] = {
    "groups": (1,),
    "time_major": (False,),
    "implementation": None,
    "dynamic": (False, None),
    "ragged": (False, None),
    "sparse": (False, None),
    "input_length": None,
    "batch_input_shape": None,
    "noise_shape": (None,),
    "renorm": (False, None),
    "virtual_batch_size": (None,),
    "fused": None,
    "query_shape": None,
    "key_shape": None,
    "value_shape": None,
    "jit_compile": None,
    "invert": (False,),
    "softmax_robust_masking": (False,),
    # Of the convolution that a depthwise or separable one inherits from.
    "kernel_initializer": None,
    "kernel_regularizer": (None,),
    "kernel_constraint": (None,),
    "filters": None,
}
#: Class → options of another name in Keras 3.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "LeakyReLU": {"alpha": "negative_slope"},
}
#: Classes of another name in Keras 3.
_CLASSES: Mapping[str, str] = {"SyncBatchNormalization": "BatchNormalization"}
#: Options that hold axes.
_AXES = ("axis", "axes")
#: Functions of tf_keras that are others in Keras 3 of the same name.
_OTHER_FUNCTIONS = ("hard_sigmoid",)
_SYNONYMS: Mapping[str, str] = {"swish": "silu"}
_FUNCTIONS = ("activation", "recurrent_activation")
#: Options of `keras.Layer`, which constructors take as keywords.
_COMMON = ("name", "trainable", "dtype", "activity_regularizer")


def layer_class(class_name: str, name: str) -> type[keras.Layer]:
    """The class of Keras 3 that takes the place of one of tf_keras.

    Raises:
        ValueError: There is none.
    """
    found = getattr(layers, _CLASSES.get(class_name, class_name), None)
    if not isinstance(found, type) or class_name in ("Lambda", "RNN", "StackedRNNCells"):
        raise ValueError(
            f"Expected layers that Keras 3 has too. Received: {name!r} of type {class_name}. "
            "Replace it in the tf_keras model, or write this model in Keras 3 and take over the "
            "weights."
        )
    return found


def layer_from(class_name: str, config: Mapping[str, Any]) -> keras.Layer:
    """A layer of Keras 3 of the class and configuration of one of tf_keras.

    Raises:
        ValueError: A class or an option that Keras 3 does not have.
    """
    name = config["name"]
    cls = layer_class(class_name, name)
    translated = {}
    accepted = _parameters(cls)
    for option, value in config.items():
        option = _RENAMED.get(class_name, {}).get(option, option)
        if option not in accepted:
            allowed = _DROPPED.get(option, ())
            if allowed is not None and value not in allowed:
                raise ValueError(
                    f"Expected options that Keras 3 has too. Received: {name!r} of type "
                    f"{class_name} with {option}={value!r}."
                )
            continue
        translated[option] = _value(class_name, name, option, value)
    # Keras 3 takes no slash in a name, such as those of MobileNetV3.
    translated["name"] = name.replace("/", "_")
    if class_name == "SyncBatchNormalization":
        translated["synchronized"] = True
    try:
        return cls.from_config(translated)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a layer that Keras 3 makes of its configuration. Received: {name!r} of type "
            f"{class_name}: {' '.join(str(error).split())}"
        ) from error


def _parameters(cls: type[keras.Layer]) -> set[str]:
    """The options that the constructor of a class takes."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {*_COMMON, *(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)} - {"self"}


def _value(class_name: str, name: str, option: str, value: Any) -> Any:
    if option in _AXES and isinstance(value, list | tuple) and class_name != "Dot":
        return value[0] if len(value) == 1 else list(value)
    if option == "dtype" and isinstance(value, Mapping):
        return value["config"].get("name", value["config"].get("dtype", "float32"))
    if option in _FUNCTIONS:
        return _function(name, option, value)
    if isinstance(value, Mapping) and option in ("layer", "backward_layer"):
        return _serialized(layer_from(value["class_name"], value["config"]))
    if isinstance(value, Mapping) and set(value) >= {"class_name", "config"}:
        # Keras 3 knows initializers, regularizers and constraints by the same names.
        return {"class_name": value["class_name"], "config": value["config"]}
    return value


def _serialized(layer: keras.Layer) -> dict[str, Any]:
    return keras.saving.serialize_keras_object(layer)


def _function(name: str, option: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        # What tfmot puts around an activation.
        value = value.get("config", {}).get("activation", value.get("class_name"))
    if value is None or value == "NoOpActivation":
        return "linear"
    if not isinstance(value, str) or value in _OTHER_FUNCTIONS:
        raise ValueError(
            f"Expected activations that are the same in Keras 3. Received: {name!r} with {option}="
            f"{value!r}. Put the function into a layer of its own, written with tf_keras' layers "
            "(hard_sigmoid: Rescaling(0.2, 0.5), then ReLU(1))."
        )
    value = _SYNONYMS.get(value, value)
    if getattr(keras.activations, value, None) is None:
        raise ValueError(
            f"Expected activations that Keras 3 has too. Received: {name!r} with {option}={value!r}"
        )
    return value
