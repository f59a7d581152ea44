"""Settings by layer: one meaning of names, regular expressions and types, whatever the setting.

Every argument that chooses layers, such as `QuantizationConfig(by_name=)`, `Pruning(layers=)`,
`shrink(bounds=)` or `cluster(num_clusters=)`, is looked up here, in this order:

1. the exact path of the layer inside nested models (`"backbone/conv1"`), or its name;
2. a regular expression that matches one of these as a whole; the first key that does. A compiled
   pattern (`re.compile`) is searched for in them instead;
3. the type of the layer, as a class or as the name of a class: its own class, else the nearest
   base class, so that `"Dense"` stands for a user's subclass of `Dense` too;
4. the default.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

#: What a key may stand for.
Kind = Literal["name", "type"]
KINDS: tuple[Kind, ...] = ("name", "type")


def look_up(settings: Mapping[Any, Any], layer: Any, *paths: str, default: Any = None) -> Any:
    """The setting of one layer; see the module's docstring for the order.

    Args:
        settings: Name, regular expression or type → setting.
        layer: A layer, or an operation of a functional graph.
        *paths: Its names beside `layer.name`, such as `"backbone/conv1"`.
        default: What is returned where no key matches.
    """
    key = find_key(settings, layer, *paths)
    return default if key is None else settings[key]


def find_key(
    keys: Iterable[Any], layer: Any, *paths: str, kinds: Iterable[Kind] = KINDS
) -> Any | None:
    """The key that decides about a layer; `None` where no key matches.

    Args:
        keys: Names, regular expressions and types. A string that is no regular expression matches
            as a name only; `check_keys` refuses it.
        layer: A layer, or an operation of a functional graph.
        *paths: Its names beside `layer.name`.
        kinds: What the keys may stand for.
    """
    keys, names = list(keys), _names(layer, paths)
    if "name" in kinds:
        for name in names:
            if name in keys:
                return name
        for key in keys:
            if any(_matches(key, name) for name in names):
                return key
    if "type" in kinds:
        for cls in keras_class(layer).__mro__:
            for key in keys:
                if key is cls or key == cls.__name__:
                    return key
    return None


def check_keys(
    keys: Iterable[Any],
    layers: Iterable[tuple[Any, ...]],
    argument: str,
    kinds: Iterable[Kind] = KINDS,
) -> None:
    """Refuses keys that can have no effect.

    Args:
        keys: Names, regular expressions and types.
        layers: `(layer, *paths)` of every layer that the argument may apply to.
        argument: Name of the argument, for the message.
        kinds: What the keys may stand for.

    Raises:
        TypeError: A key that is neither a string, a compiled pattern nor a class.
        ValueError: A key that is no regular expression, or matches no layer; with near names.
    """
    layers = list(layers)
    for key in keys:
        if not _is_key(key, kinds):
            raise TypeError(
                f"Expected every key of `{argument}` to be {_allowed(kinds)}. Received: {key!r} of "
                f"type {type(key).__name__}."
            )
        if any(find_key([key], layer, *paths, kinds=kinds) is not None for layer, *paths in layers):
            continue
        error = _regex_error(key) if "name" in kinds else None
        if error is not None:
            raise ValueError(
                f"Expected every key of `{argument}` to be {_allowed(kinds)}. Received: {key!r}, "
                f"which is no regular expression ({error})."
            )
        text = getattr(key, "__name__", None) or getattr(key, "pattern", None) or str(key)
        raise ValueError(
            f"Expected every key of `{argument}` to match a layer that it can apply to. "
            f"Received: {key!r}. {near_names(text, _candidates(key, layers, kinds))}"
        )


def keras_class(layer: Any) -> type:
    """The class whose `call` a layer runs: that of Keras for a generated, compressed subclass."""
    return getattr(layer, "keras_class", None) or type(layer)


def near_names(key: str, names: Iterable[str]) -> str:
    """A sentence that names what is similar to a key that was not found, or what there is."""
    names = sorted(set(names))
    near = difflib.get_close_matches(key, names, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"There are: {names[:20]}."


def _names(layer: Any, paths: Iterable[str]) -> list[str]:
    """All names of a layer, the most exact first.

    The last part of a path is the name that the user gave; `layer.name` differs from it where
    layers of nested models were renamed to tell them apart.
    """
    paths = list(paths)
    return [*paths, *(path.rpartition("/")[2] for path in paths), layer.name]


def _matches(key: Any, name: str) -> bool:
    """Whether a regular expression matches a name."""
    if isinstance(key, re.Pattern):
        return key.search(name) is not None
    pattern = _compiled(key) if isinstance(key, str) else None
    return pattern is not None and pattern.fullmatch(name) is not None


@functools.lru_cache(maxsize=1024)
def _compiled(key: str) -> re.Pattern | None:
    return None if _regex_error(key) else re.compile(key)


def _regex_error(key: Any) -> re.error | None:
    if isinstance(key, str):
        try:
            re.compile(key)
        except re.error as error:
            return error
    return None


def _is_key(key: Any, kinds: Iterable[Kind]) -> bool:
    if isinstance(key, re.Pattern):
        return "name" in kinds
    return isinstance(key, str) or (isinstance(key, type) and "type" in kinds)


def _allowed(kinds: Iterable[Kind]) -> str:
    if "type" not in kinds:
        return "a layer name or a regular expression"
    if "name" not in kinds:
        return "a layer class or the name of one"
    return "a layer name or a regular expression, a layer class or the name of one"


def _candidates(key: Any, layers: list[tuple[Any, ...]], kinds: Iterable[Kind]) -> list[str]:
    """What could have been meant: names of layers, or of classes where only these can be."""
    if isinstance(key, type) or "name" not in kinds:
        return [keras_class(layer).__name__ for layer, *_ in layers]
    return [name for layer, *paths in layers for name in _names(layer, paths)]
