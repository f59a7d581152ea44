"""Observers and quantizers as Keras serializes them: frozen dataclasses of their options."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Configurable:
    """Base of frozen dataclasses whose fields are their configuration."""

    def get_config(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{name: _with_tuples(value) for name, value in config.items()})


def _with_tuples(value: Any) -> Any:
    """A saved option with tuples for lists: JSON has no tuples, and options are hashed."""
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value
