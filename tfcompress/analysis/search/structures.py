"""Sets of widths and ranks for falling numbers of products or of weights.

`Structures` chooses by what each option loses before training, `BySize` by one ranking of all
channels. Training makes up for much of the first, so that the second is better where much goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import keras

from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.widths import Widths
from tfcompress.analysis.search.knapsack import choose
from tfcompress.analysis.search.losses import Losses
from tfcompress.model.macs import count_macs

#: What widths and ranks save: multiply-accumulates, or weights.
Measure = Literal["macs", "parameters"]

# Most attempts at a budget of the knapsack that gives what is left of the whole model.
_ATTEMPTS = 12


class Structures:
    """Chooses widths and ranks by an exact knapsack.

    What a layer costs depends on the channels that it reads and makes, so that savings do not add
    up; the knapsack's budget is lowered until the true number is within it.

    Args:
        model: The float model.
        widths: Its groups of channels, where channels may be taken.
        losses: Divergence of choices.
        measures: What is limited: one of them, or both alike.
    """

    def __init__(
        self,
        model: keras.Model,
        widths: Widths | None,
        losses: Losses,
        measures: Sequence[Measure],
    ):
        items = [("channels", name, shares) for name, shares in losses.channels.items()]
        items += [("ranks", name, shares) for name, shares in losses.rank.items()]
        self._names = [(kind, name) for kind, name, _ in items]
        self._choices = [[1.0, *sorted(shares, reverse=True)] for _, _, shares in items]
        of = {"channels": losses.of_channels, "ranks": losses.of_rank}
        self._loss = [
            [of[kind](name, share) for share in row]
            for (kind, name), row in zip(self._names, self._choices, strict=True)
        ]
        self._left = [_Left(model, widths, measure) for measure in measures]
        self._saved = [
            [
                [left(_structure([(*name, s)])) - 1.0 if s < 1 else 0.0 for s in row]
                for name, row in zip(self._names, self._choices, strict=True)
            ]
            for left in self._left
        ]

    def at(self, share: float) -> Assignment | None:
        """The widths and ranks of least loss that leave at most a share of what is limited.

        Returns:
            `None` where the options do not reach it.
        """
        if not self._names:
            return None
        budgets = [share - 1.0] * len(self._left)
        for _ in range(_ATTEMPTS):
            chosen = choose(self._loss, self._saved, budgets)
            if chosen is None:
                return None
            structure = _structure(
                (*name, row[index])
                for name, row, index in zip(self._names, self._choices, chosen, strict=True)
            )
            over = [left(structure) - share for left in self._left]
            if max(over) <= 0:
                return structure
            budgets = [b - max(o, 0.0) for b, o in zip(budgets, over, strict=True)]
        return None


class BySize:
    """Widths by one ranking of all channels by their size.

    Args:
        widths: The groups of channels.
        measure: What is limited.
    """

    def __init__(self, widths: Widths, measure: Measure):
        self._widths, self._measure = widths, measure

    def at(self, share: float) -> Assignment | None:
        """The widths that leave at most a share of what is limited; `None` where none do."""
        shares = self._widths.by_size(share, macs=self._measure == "macs")
        return None if shares is None else Assignment(shares)


def _structure(choices: Iterable[tuple[str, str, float]]) -> Assignment:
    """The assignment of `(kind, group or layer, share)`; a share of 1 leaves it whole."""
    picked: dict[str, dict[str, float]] = {"channels": {}, "ranks": {}}
    for kind, name, share in choices:
        if share < 1:
            picked[kind][name] = share
    return Assignment(picked["channels"], picked["ranks"])


class _Left:
    """Multiply-accumulates or weights of a structure over those of the whole model."""

    def __init__(self, model: keras.Model, widths: Widths | None, measure: Measure):
        self._model, self._widths, self._measure = model, widths, measure
        self._whole: float | None = None

    def __call__(self, structure: Assignment) -> float:
        if not structure.ranks and self._widths is not None:
            of = self._widths.macs if self._measure == "macs" else self._widths.parameters
            return of(structure.channels)
        if self._whole is None:
            self._whole = self._count(self._model)
        return self._count(structure.structured(self._model, self._widths).model) / self._whole

    def _count(self, model: keras.Model) -> float:
        return count_macs(model) if self._measure == "macs" else model.count_params()
