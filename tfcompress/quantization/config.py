"""Which layer gets which scheme: looked up by name (exact, then regex), then type, then default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tfcompress.model.lookup import check_keys, find_key
from tfcompress.quantization.schemes import Scheme, resolve


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """What to quantize to. A scheme is a `Scheme`, the name of one, or `None` (left in float).

    Attributes:
        default: Scheme of every layer that nothing else matches.
        by_type: Layer class, or the name of one, → scheme. Base classes count: `"Dense"` stands
            for a subclass of `Dense` too, unless the subclass has a key of its own.
        by_name: Layer name → scheme. A key is a name (`"conv1"`, or `"backbone/conv1"` for a layer
            of a nested model), else a regular expression that must match a whole name. It goes
            before `by_type`.

    Raises:
        TypeError: A scheme or a mapping of another type.
        ValueError: An unknown scheme name. Keys that match no layer raise in `plan` and `quantize`.

    Example:
        >>> config = tfc.QuantizationConfig(
        ...     default="int8",
        ...     by_type={"Dense": tfc.Scheme(weights=tfc.WeightScheme(num_bits=4))},
        ...     by_name={"logits": None, "block_.*": "w4a8"},
        ... )
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="block_1")])
        >>> tfc.plan(model, tfc.QuantizationConfig(by_name={"block_.*": "w4a8"})).entries[0].weights
        'int4 per channel'
    """

    default: Scheme | str | None = "int8"
    by_type: Mapping[Any, Scheme | str | None] = dataclasses.field(default_factory=dict)
    by_name: Mapping[str, Scheme | str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
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
        """Whether a key of `by_name` or `by_type` decides about it, not the default."""
        return self._look_up(operation, path)[1]

    def _look_up(self, operation: Any, path: str) -> tuple[Any, bool]:
        key = find_key(self.by_name, operation, path, kinds=("name",))
        if key is not None:
            return self.by_name[key], True
        key = find_key(self.by_type, operation, kinds=("type",))
        return (self.default, False) if key is None else (self.by_type[key], True)

    def check(self, operations: Iterable[tuple[Any, str]]) -> None:
        """Raises `ValueError` for a key that matches nothing in a model, with near names.

        Args:
            operations: `(operation, path)` of everything that the model calls.
        """
        operations = list(operations)
        check_keys(self.by_name, operations, "by_name", kinds=("name",))
        check_keys(self.by_type, operations, "by_type", kinds=("type",))


def as_config(config: QuantizationConfig | Scheme | str) -> QuantizationConfig:
    """A scheme alone is the default of everything."""
    return config if isinstance(config, QuantizationConfig) else QuantizationConfig(config)
