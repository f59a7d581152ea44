"""Which layer gets which scheme: looked up by name (exact, then regex), then type, then default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tfcompress.model.lookup import matches, near_names
from tfcompress.quantization.operators.roles import keras_class
from tfcompress.quantization.schemes import Scheme, resolve


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """What to quantize to. A scheme is a `Scheme`, the name of one, or `None` (left in float).

    Attributes:
        default: Scheme of every layer that nothing else matches.
        by_type: Layer class, or its name, → scheme.
        by_name: Layer name → scheme. A key is a name (`"conv1"`, or `"backbone/conv1"` for a layer
            of a nested model), else a regular expression that must match a whole name.

    Raises:
        ValueError: An unknown scheme name. Keys that match no layer raise in `plan` and `quantize`.
    """

    default: Scheme | str | None = "int8"
    by_type: Mapping[Any, Scheme | str | None] = dataclasses.field(default_factory=dict)
    by_name: Mapping[str, Scheme | str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        resolve(self.default)
        for field in ("by_type", "by_name"):
            mapping = getattr(self, field)
            if not isinstance(mapping, Mapping):
                raise TypeError(f"Expected `{field}` to be a dict. Received: {mapping!r}.")
            for scheme in mapping.values():
                resolve(scheme)

    def scheme_for(self, operation: Any, path: str) -> Scheme | None:
        """The scheme of one layer or operation.

        Args:
            operation: The layer or operation of the given model.
            path: Its name below its nested models, such as `"backbone/conv1"`.
        """
        return resolve(self._look_up(operation, path)[0])

    def names_it(self, operation: Any, path: str) -> bool:
        """Whether something more special than the default matches."""
        return self._look_up(operation, path)[1]

    def _look_up(self, operation, path) -> tuple[Any, bool]:
        for name in (path, operation.name):
            if name in self.by_name:
                return self.by_name[name], True
        for pattern, scheme in self.by_name.items():
            if any(matches(pattern, name) for name in (path, operation.name)):
                return scheme, True
        cls = keras_class(operation)
        for key, scheme in self.by_type.items():
            if key is cls or key == cls.__name__:
                return scheme, True
        return self.default, False

    def check(self, operations: Iterable[tuple[Any, str]]) -> None:
        """Raises `ValueError` for a key that matches nothing in a model, with near names.

        Args:
            operations: `(operation, path)` of everything that the model calls.
        """
        operations = list(operations)
        names = sorted({n for operation, path in operations for n in (operation.name, path)})
        for pattern in self.by_name:
            if not any(matches(pattern, name) for name in names):
                raise ValueError(_no_match("by_name", pattern, names))
        types = sorted({keras_class(operation).__name__ for operation, _ in operations})
        for key in self.by_type:
            name = key if isinstance(key, str) else getattr(key, "__name__", repr(key))
            if name not in types:
                raise ValueError(_no_match("by_type", name, types))


def as_config(config: QuantizationConfig | Scheme | str) -> QuantizationConfig:
    """A scheme alone is the default of everything."""
    return config if isinstance(config, QuantizationConfig) else QuantizationConfig(config)


def _no_match(field: str, key: str, names: list[str]) -> str:
    return (
        f"Expected every key of `{field}` to match a layer. Received: {key!r}. "
        f"{near_names(key, names)}"
    )
