"""Settings by layer: looked up by name (exact, then regular expression), then by type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras


def look_up(settings: Mapping[Any, Any], layer: keras.Layer, path: str, default: Any = None) -> Any:
    """What `settings` says of one layer.

    Args:
        settings: Layer name, path or regular expression that matches a whole one, or a layer class
            → setting.
        layer: The layer.
        path: Its name below its nested models, such as `"backbone/conv1"`.
        default: What is returned where no key matches.
    """
    names = (path, layer.name)
    for name in names:
        if name in settings:
            return settings[name]
    for key, setting in settings.items():
        if isinstance(key, str) and any(matches(key, name) for name in names):
            return setting
    for cls in type(layer).__mro__:
        if cls in settings:
            return settings[cls]
    return default


def check_keys(
    settings: Mapping[Any, Any], layers: Iterable[tuple[keras.Layer, str]], argument: str
) -> None:
    """Raises `ValueError`, with near names, for a key that matches none of `(layer, path)`."""
    layers = list(layers)
    for key in settings:
        if isinstance(key, type):
            found = any(isinstance(layer, key) for layer, _ in layers)
        elif isinstance(key, str):
            found = any(matches(key, n) for layer, path in layers for n in (path, layer.name))
        else:
            raise TypeError(
                f"Expected the keys of `{argument}` to be layer names, regular expressions or "
                f"layer classes. Received: {key!r} of type {type(key).__name__}."
            )
        if not found:
            names = (name for layer, path in layers for name in (layer.name, path))
            raise ValueError(
                f"Expected every key of `{argument}` to match a layer with a kernel. "
                f"Received: {key!r}. {near_names(str(key), names)}"
            )


def matches(pattern: str, name: str) -> bool:
    """Whether a layer name or regular expression is, as a whole, `name`.

    Raises:
        ValueError: Neither a name nor a regular expression.
    """
    if pattern == name:
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(
            f"Expected a layer name or a regular expression. Received: {pattern!r} ({error})."
        ) from error


def near_names(key: str, names: Iterable[str]) -> str:
    """A sentence for whoever wrote a name that is not there: the nearest ones, else some."""
    names = sorted(set(names))
    near = difflib.get_close_matches(key, names, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"There are: {names[:20]}."
