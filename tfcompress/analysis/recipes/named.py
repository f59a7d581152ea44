"""Optimizers, callbacks and schedules of a recipe, which names them."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import keras

import tfcompress.callbacks as own_callbacks
from tfcompress.pruning.schedules import CosineSchedule, PolynomialDecay

#: Schedules of sparsity that go from `begin_step` to `end_step`.
SCHEDULES: dict[str, Callable[..., Any]] = {
    "polynomial": PolynomialDecay,
    "cosine": CosineSchedule,
}
#: How the learning rate falls: by half a cosine to 0, or not at all.
RATES = ("cosine", "constant")


def check_optimizer(value: Any) -> str:
    """What was expected of an optimizer: a name, or a name and settings; empty where it fits."""
    return _check(value, "optimizer", _optimizer_class, {"learning_rate"})


def check_callback(value: Any) -> str:
    """Likewise of a callback of Keras, of tfcompress or of a registered class."""
    wrong = _check(value, "callback", _callback_class, set())
    if wrong:
        return wrong
    name, settings = _entry(value)
    parameter = inspect.signature(_callback_class(name)).parameters.get("monitor")
    monitor = settings.get("monitor", parameter.default if parameter is not None else "")
    if isinstance(monitor, str) and monitor.startswith("val_"):
        return (
            f"{name} with a 'monitor' of the training, such as 'loss', for a recipe has no "
            f"validation data (not {monitor!r})"
        )
    return ""


def check_callbacks(value: Any) -> str:
    """Likewise of a list of callbacks."""
    if not isinstance(value, list | tuple):
        return "a list of callbacks"
    return next((wrong for item in value if (wrong := check_callback(item))), "")


def make_optimizer(value: Any, learning_rate: Any) -> keras.optimizers.Optimizer:
    """The optimizer that a recipe names.

    Args:
        value: `"SGD"`, or `{"SGD": {"momentum": 0.9}}`.
        learning_rate: A number, or a schedule.
    """
    name, settings = _entry(value)
    return _optimizer_class(name)(learning_rate=learning_rate, **_settings(settings))


def make_callback(value: Any) -> keras.callbacks.Callback:
    """The callback that a recipe names.

    Args:
        value: `"TerminateOnNaN"`, or `{"EarlyStopping": {"patience": 2}}`. A setting that is
            `{"class_name": ..., "config": ...}` is an object of a class of tfcompress, such as a
            schedule of pruning, or of one that the user registered.

    Raises:
        ValueError: Such an object of another class, or a setting that the callback refuses.
    """
    name, settings = _entry(value)
    return _callback_class(name)(**_settings(settings))


def _check(value: Any, kind: str, find: Callable[[str], Any], given: set[str]) -> str:
    if not isinstance(value, str) and not (isinstance(value, Mapping) and len(value) == 1):
        return f"the name of one {kind}, or its name and settings"
    name, settings = _entry(value)
    found = find(name) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name), _names(kind), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"a known {kind}{hint}"
    if not isinstance(settings, Mapping):
        return f"{name} and its settings"
    parameters = inspect.signature(found).parameters
    allowed = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and n not in given]
    # Keras' optimizers take any keyword, to refuse it.
    is_of_keras = found.__module__.partition(".")[0] == "keras"
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not is_of_keras
    unknown = [key for key in settings if key not in allowed]
    if unknown and (not takes_any or unknown[0] in given):
        return f"{name} with settings among {', '.join(allowed)} (not {unknown[0]!r})"
    for key, setting in settings.items():
        try:
            json.dumps(setting)
        except (TypeError, ValueError):
            kind = type(setting).__name__
            return f"{name} with a {key!r} that JSON has, or its class_name and config (not {kind})"
    return ""


def _entry(value: Any) -> tuple[Any, Any]:
    if isinstance(value, str):
        return value, {}
    ((name, settings),) = value.items()
    return name, settings


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with objects in place of their classes and configurations."""
    return {
        name: _object(value) if isinstance(value, Mapping) and "class_name" in value else value
        for name, value in settings.items()
    }


def _object(value: Mapping[str, Any]) -> Any:
    # Not by Keras' own deserialization, which imports any class that a file names.
    name = str(value["class_name"])
    registered = keras.saving.get_registered_object
    found = registered(f"tfcompress>{name}") or registered(name)
    if found is None:
        raise ValueError(
            "Expected the class of a setting to be one of tfcompress, or registered by "
            f"keras.saving.register_keras_serializable. Received: {name!r}."
        )
    return found.from_config(dict(value.get("config", {})))


def _optimizer_class(name: str) -> Any:
    return _class(name, [keras.optimizers], keras.optimizers.Optimizer)


def _callback_class(name: str) -> Any:
    return _class(name, [own_callbacks, keras.callbacks], keras.callbacks.Callback)


def _class(name: str, modules: list[Any], base: type) -> Any:
    for module in modules:
        found = getattr(module, name, None) or next(
            (getattr(module, n) for n in dir(module) if n.lower() == name.lower()), None
        )
        if isinstance(found, type) and issubclass(found, base):
            return found
    found = keras.saving.get_registered_object(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def _names(kind: str) -> list[str]:
    modules = [keras.optimizers] if kind == "optimizer" else [own_callbacks, keras.callbacks]
    return [n for m in modules for n in (*dir(m), *getattr(m, "__all__", ())) if n[:1].isupper()]
