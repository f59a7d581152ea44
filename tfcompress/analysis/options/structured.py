"""Widths and ranks of a float model: what decides its layers, before zeros and bits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import keras

from tfcompress.analysis.options.changes import low_rank
from tfcompress.analysis.options.widths import Widths
from tfcompress.factorization import factorize

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Structured:
    """A float model with the widths and ranks of an assignment.

    Attributes:
        model: The model; weights are those of the original, cut or decomposed.
        ranks: Layer → rank of its two factors.
        parts: Layer → the layers that took its place, for those that were decomposed.
    """

    model: keras.Model
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def names(self, layer: str) -> tuple[str, ...]:
        """The layers of this model that stand for a layer of the original."""
        return self.parts.get(layer, (layer,))

    def expand(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values of layers of the original → the same for the layers of this model."""
        return {name: value for layer, value in values.items() for name in self.names(layer)}


def structured(
    model: keras.Model,
    widths: Widths | None,
    channels: Mapping[str, float],
    ranks: Mapping[str, float],
) -> Structured:
    """The model with fewer channels, then with kernels of low rank.

    Args:
        model: A functional float model; it is left untouched.
        widths: Its groups of channels; needed for `channels`.
        channels: Group → the share of its channels that it keeps.
        ranks: Layer → the share of its multiply-accumulates that two factors take. A layer that
            the channels have made too small for that stays as it is.
    """
    if channels:
        assert widths is not None
        model = widths.build(channels)
    numbers = {
        name: low_rank(share, model.get_layer(name).kernel.shape) for name, share in ranks.items()
    }
    numbers = {name: rank for name, rank in numbers.items() if rank >= 1}
    if not numbers:
        return Structured(model)
    cut = factorize(model, ranks=numbers, methods=("svd",))
    parts = _parts(numbers, {la.name for la in model.layers}, [la.name for la in cut.layers])
    return Structured(cut, {name: numbers[name] for name in parts}, parts)


def _parts(
    decomposed: Iterable[str], before: set[str], after: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Layer → its first factor, which is new, and its second, which kept the name."""
    found: dict[str, tuple[str, ...]] = {}
    new = [name for name in after if name not in before]
    for layer in decomposed:
        first = [name for name in new if re.fullmatch(rf"{re.escape(layer)}_in(_\d+)?", name)]
        if first:
            found[layer] = (first[0], layer)
    return found
