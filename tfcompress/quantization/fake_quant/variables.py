"""Variables that a quantizer keeps for each kernel or tensor, declared and made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class VariableSpec:
    """A float32 variable that a quantizer keeps for each kernel or tensor.

    Attributes:
        shape: Its shape; a scalar by default.
        initial: The value that it starts from.
        trainable: Whether the optimizer trains it.
        regularizer: A penalty on it in training, such as `keras.regularizers.L2(1e-4)`.
    """

    shape: tuple[int, ...] = ()
    initial: float = 0.0
    trainable: bool = False
    regularizer: Callable[[Any], Any] | None = None


def add_variables(
    layer: keras.layers.Layer, specs: Mapping[str, VariableSpec]
) -> dict[str, keras.Variable]:
    """Adds variables to a layer and returns them by name. They are never cast."""
    return {
        name: layer.add_weight(
            name=name,
            shape=spec.shape,
            initializer=keras.initializers.Constant(spec.initial),
            trainable=spec.trainable,
            regularizer=spec.regularizer,
            autocast=False,
            aggregation="mean",
        )
        for name, spec in specs.items()
    }
