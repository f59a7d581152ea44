"""Copies of models of a user's own class: `class MyModel(keras.Model)`, `MyModel(inputs, outputs)`.

Such a class changes how a functional model is trained (`train_step`, `compute_loss`, ...). A copy
with other layers is therefore made by the same class.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import keras

from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.keras_private import all_layers

# What a class may override that a functional copy of it would lose.
_METHODS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "compile",
    "fit",
    "evaluate",
    "predict",
)
_PLAIN = (bool, int, float, str, bytes, type(None))


def user_class(model: keras.Model) -> type | None:
    """The user's class that a model is of; `None` for classes of Keras and tfcompress."""
    for cls in type(model).__mro__:
        if cls is keras.Model or cls.__module__.split(".")[0] == "keras":
            return None
        if cls.__module__.split(".")[0] != "tfcompress" and issubclass(cls, keras.Model):
            return cls
    return None


def overridden_methods(cls: type) -> list[str]:
    """The methods of training and inference that a model class defines in place of Keras'."""
    found = []
    for name in _METHODS:
        owner = next((c for c in cls.__mro__ if name in vars(c)), object)
        if owner.__module__.split(".")[0] not in ("keras", "tfcompress"):
            found.append(name)
    return found


def class_of_copies(model: keras.Model) -> tuple[type, dict[str, Any]]:
    """The class that an edited copy of a functional model is made by, and its other arguments.

    The user's class is kept where it can be called as `cls(inputs, outputs, name=..., ...)`, with
    arguments that are attributes of the model by their names or that have defaults.

    Warns:
        UserWarning: The class cannot be kept, and its own methods of training are lost.
    """
    if hasattr(type(model), "subclassed"):
        return type(model), {}
    own = user_class(model)
    if own is None:
        is_plain = isinstance(model, keras.Sequential) or type(model).__module__.startswith("keras")
        return (keras.Model if is_plain else type(model)), {}
    arguments = _arguments(own, model)
    if arguments is not None and not isinstance(model, keras.Sequential):
        return type(model), arguments
    warn_of_lost_methods(own, f"{own.__name__} cannot be called as {own.__name__}(inputs, outputs)")
    return keras.Model, {}


def plain_class(model: keras.Model) -> tuple[type, dict[str, Any]]:
    """As `class_of_copies`, for a copy without what tfcompress has added to the class."""
    model_class, arguments = class_of_copies(model)
    if hasattr(model_class, "subclassed"):
        return functional_class(model_class.subclassed), arguments
    own = user_class(model)
    return (keras.Model if own is None or model_class is keras.Model else own), arguments


def warn_of_lost_methods(cls: type, why: str) -> None:
    """Warns, by name, where a copy is no instance of the user's class."""
    methods = overridden_methods(cls)
    if methods:
        warnings.warn(
            f"The copy is a plain keras.Model: {why}. The {', '.join(methods)} of {cls.__name__} "
            "do not run in its training. Give the class a constructor of (inputs, outputs, "
            "name=None, ...) whose other arguments are attributes of the same names, or train the "
            "copy in a loop of your own.",
            stacklevel=4,
        )


def copy_attributes(model: keras.Model, copy: keras.Model) -> None:
    """Gives `copy` the public attributes that were set on a model of a user's class.

    An attribute that is a layer of the model becomes the copy's layer of that name. What the
    constructor has set anew on the copy, such as metrics, stays, but for plain values.
    """
    if hasattr(type(copy), "subclassed"):
        give_attributes(model, copy)
        return
    if user_class(model) is None or user_class(copy) is None:
        return
    with deep_graph(model.outputs):
        known = set(vars(keras.Model(model.inputs, model.outputs)))
    inner = {id(layer) for layer in all_layers(model)}
    there = {layer.name: layer for layer in all_layers(copy)}
    for name, value in list(vars(model).items()):
        if name.startswith("_") or name in known | _COMPILED or isinstance(value, keras.Variable):
            continue
        if name in vars(copy) and not isinstance(value, _PLAIN):
            continue
        if isinstance(value, keras.Layer) and id(value) in inner and value is not model:
            value = there.get(value.name)
            if value is None:
                continue
        setattr(copy, name, value)


# What `compile` sets, and steps that were wrapped for one model; a copy is uncompiled.
_COMPILED = frozenset(
    ["optimizer", "loss_weights", "stop_training", "history", "train_step", "test_step"]
)


def _arguments(cls: type, model: keras.Model) -> dict[str, Any] | None:
    """Arguments of the constructor beside inputs, outputs and name; `None`: it takes others."""
    # Of the constructor: the signature of a Keras class is that of its `__new__`.
    constructor = inspect.signature(cls.__init__)  # type: ignore[misc]
    parameters = list(constructor.parameters.values())[1:]
    names = {p.name for p in parameters}
    takes_any = {p.kind for p in parameters}
    positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if inspect.Parameter.VAR_POSITIONAL not in takes_any:
        if [p.name for p in positional[:2]] != ["inputs", "outputs"]:
            return None
        positional = positional[2:]
    if "name" not in names and inspect.Parameter.VAR_KEYWORD not in takes_any:
        return None
    arguments = {}
    for p in positional + [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]:
        if p.name in ("inputs", "outputs", "name", "trainable"):
            continue
        if hasattr(model, p.name):
            arguments[p.name] = getattr(model, p.name)
        elif p.default is inspect.Parameter.empty:
            return None
    return arguments


# What a class with a `call` of its own defines for that, and its functional copy must not use.
_OF_CALL = (
    *("__init__", "call", "build", "build_from_config", "get_build_config"),
    *("compute_mask", "compute_output_shape", "compute_output_spec", "from_config", "get_config"),
)


@functools.cache
def functional_class(cls: type) -> type:
    """The class of functional copies of a subclassed model: its methods, but the copy's graph.

    Args:
        cls: A class of models that defines `call`.
    """
    symbol = keras.Input((1,))
    functional: Any = type(keras.Model(symbol, symbol))

    def __init__(self: Any, inputs: Any, outputs: Any, name: str | None = None, **kw: Any) -> None:
        functional.__init__(self, inputs, outputs, name=name, **kw)

    def get_config(self: Any) -> dict[str, Any]:
        return {**functional.get_config(self), **saved_attributes(self)}

    def from_config(cls: Any, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        plain, attributes = split_attributes(config)
        make = functional.from_config.__func__
        model = make(cls, plain, custom_objects=custom_objects)
        restore_attributes(model, attributes)
        return model

    members: dict[str, Any] = {n: getattr(functional, n) for n in _OF_CALL}
    members.update(get_config=get_config, from_config=classmethod(from_config))
    members.update(__init__=__init__, __module__=__name__, __doc__=cls.__doc__, subclassed=cls)
    made = type(f"Functional{cls.__name__}", (cls, functional), members)
    return keras.saving.register_keras_serializable("tfcompress.subclassed")(made)


def defines_call(cls: type) -> bool:
    """Whether models of a class compute by a `call` of the user's own."""
    owner = next(c for c in cls.__mro__ if "call" in vars(c))
    return owner.__module__.split(".")[0] not in ("keras", "tfcompress")


def give_attributes(model: keras.Model, copy: keras.Model) -> None:
    """Gives a functional copy the attributes that a subclassed model's constructor has set.

    Metrics are made anew; a layer becomes the copy's layer of that name.
    """
    there = {layer.name: layer for layer in all_layers(copy)[1:]}
    layers = {}
    for name, value in _own_attributes(model, copy).items():
        if isinstance(value, keras.Layer):
            value = there.get(value.name)
            if value is None:
                continue
            layers[name] = value.name
        setattr(copy, name, value)
    given = getattr(model, "_attributes", None)
    config = _constructor_config(model) if given is None else given()["config"]
    # Behind a function: Keras would track its dicts.
    copy._attributes = lambda: {"config": config, "layers": layers}


def saved_attributes(copy: keras.Model) -> dict[str, Any]:
    """What the config of a functional copy holds, beside its graph, to have its attributes again.

    Empty for other models, and where the subclassed model has no config.
    """
    given = getattr(copy, "_attributes", None)
    return {} if given is None or given()["config"] is None else {_ATTRIBUTES: given()}


def split_attributes(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A config without what `saved_attributes` put in, and that."""
    return {k: v for k, v in config.items() if k != _ATTRIBUTES}, config.get(_ATTRIBUTES)


def restore_attributes(copy: keras.Model, attributes: dict[str, Any] | None) -> None:
    """Gives a functional copy that was loaded what the constructor of its user's class sets."""
    if attributes is None:
        return
    config, layers = attributes["config"], attributes["layers"]
    copy._attributes = lambda: attributes
    model = _constructed(type(copy).subclassed, keras.saving.deserialize_keras_object(config))
    if model is None:
        return
    there = {layer.name: layer for layer in all_layers(copy)[1:]}
    for name, value in _own_attributes(model, copy).items():
        if not isinstance(value, keras.Layer):
            setattr(copy, name, value)
    for name, layer in layers.items():
        if layer in there:
            setattr(copy, name, there[layer])


def _constructed(cls: Any, config: dict[str, Any]) -> keras.Model | None:
    """A subclassed model by its config; `None`, with a warning, where that does not make one."""
    parameters = inspect.signature(cls.__init__).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    # Keras adds them for a class without a `get_config`, whatever its constructor takes.
    added = () if takes_any else ("name", "trainable", "dtype")
    config = {k: v for k, v in config.items() if k in parameters or k not in added}
    try:
        return cls.from_config(config)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(
            f"The copy of {cls.__name__} has none of the attributes that the constructor of its "
            f"class sets, for the class cannot be made by its config ({reason}). Define its "
            "get_config before a copy of it is saved, or set them before a training that reads "
            "them.",
            stacklevel=2,
        )
        return None


_ATTRIBUTES = "subclassed_attributes"


def _constructor_config(model: keras.Model) -> Any:
    """The config of a subclassed model; `None` where its class has none."""
    try:
        return keras.saving.serialize_keras_object(model.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return None


def _own_attributes(model: keras.Model, copy: keras.Model) -> dict[str, Any]:
    """Attributes that a subclassed model has and a copy lacks; metrics are made anew."""
    known = set(vars(copy)) | set(vars(_Empty())) | _COMPILED | {"_attributes"}
    found = {}
    for name, value in vars(model).items():
        if name in known or isinstance(value, keras.Variable):
            continue
        if isinstance(value, keras.Metric):
            value = type(value).from_config(value.get_config())
        elif not isinstance(value, keras.Layer) and _holds_layers(value):
            continue
        found[name] = value
    return found


class _Empty(keras.Model):
    """A model of which every attribute is Keras' own."""


def _holds_layers(value: Any) -> bool:
    try:
        leaves = keras.tree.flatten(value)
    except Exception:
        return False
    return any(isinstance(leaf, (keras.Layer, keras.Variable)) for leaf in leaves)
