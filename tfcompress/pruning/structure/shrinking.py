"""The steps of `shrink`: scores, targets, removal, report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.model.macs import count_macs, uncounted_layers
from tfcompress.pruning.structure.constants import Constants
from tfcompress.pruning.structure.costs import (
    Cost,
    macs_cost,
    parameter_cost,
    positions_carry_channels,
)
from tfcompress.pruning.structure.dependencies import Dependencies
from tfcompress.pruning.structure.merging import merge_duplicates
from tfcompress.pruning.structure.planner import LayerBounds, Planner
from tfcompress.pruning.structure.removal import Additions, remove
from tfcompress.pruning.structure.report import ShrinkReport
from tfcompress.pruning.structure.scores import Scoring


def check_round_to(round_to: int | None) -> None:
    """Raises `ValueError` for what widths cannot be multiples of."""
    if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
        raise ValueError(f"`round_to` must be a whole number, 1 or more. Received: {round_to!r}")


class Shrinking:
    """One call of `shrink`: which channels go, the smaller model, the report.

    Args:
        model: A built Sequential or Functional model.
        bounds: See `shrink`.
        min_kept: Fraction of its channels that every group keeps at least.
        merge: See `shrink`.
        inputs: An example batch, for counting MACs, or `None`.
    """

    def __init__(
        self,
        model: keras.Model,
        bounds: LayerBounds | None,
        min_kept: float,
        merge: float | None,
        inputs: Any,
    ):
        self.dependencies = Dependencies(model)
        self.constants = Constants(self.dependencies)
        self.inputs = inputs
        self.notes: list[str] = []
        for reason, labels in self.constants.refused().items():
            count = len(np.unique(self.dependencies.tracer.units.find(labels)))
            self.notes.append(f"{count} channels stay: each {reason}")
            self.dependencies.pin(labels, reason)
        if self.constants.unknown:
            unknown = ", ".join(self.constants.unknown)
            self.notes.append(f"what is constant behind {unknown} is not known, and stays")
        self.dependencies.regroup()
        self.planner = Planner(self.dependencies, bounds, min_kept)
        self.merged = None if merge is None else merge_duplicates(self.dependencies, merge)
        self.gone = self.constants.dead()
        if self.merged is not None:
            self.gone = np.union1d(self.gone, self.merged.removed)
            self.notes.append(f"{len(self.merged.removed)} near-duplicate channels merged")

    def dead(self, round_to: int) -> np.ndarray:
        """The channels that do nothing any more, and those that were merged into others."""
        alive = [np.where(np.isin(g.units, self.gone), 0.0, 1.0) for g in self.planner.groups]
        units = self.planner.below(alive, 0.5, round_to)
        if not len(units):
            raise ValueError(
                "Nothing to remove: every channel still does something. Expected target_macs, "
                "target_parameters, target_cost or threshold, or a model whose channels were "
                "masked during fit (callbacks.ChannelPruning). Received: none of them."
                + "".join(f" Note: {note}." for note in self.notes)
            )
        return units

    def below(self, scoring: Scoring, threshold: float, round_to: int) -> np.ndarray:
        """The channels with a score below the threshold."""
        scores = self.planner.scores(scoring, self.gone, self.notes)
        units = self.planner.below(scores, threshold, round_to)
        if not len(units):
            raise ValueError(
                f"Nothing to remove: no channel has a score below threshold={threshold}. Scores "
                f"are divided by the {scoring.widths.normalization!r} of their group; "
                "WidthOptions(normalization=None) leaves them raw."
            )
        return units

    def reach(
        self,
        scoring: Scoring,
        name: str,
        target: float,
        cost: Callable[[keras.Model], float] | None,
        round_to: int,
    ) -> tuple[np.ndarray, int]:
        """The channels of least score, so many that a cost meets its target.

        Args:
            scoring: Scores the channels.
            name: `"target_macs"`, `"target_parameters"` or `"target_cost"`.
            target: The fraction of the cost to keep.
            cost: The user's cost of a model, for `"target_cost"`.
            round_to: Widths are multiples of it.

        Returns:
            `(labels of the channels, the multiple that was used)`.
        """
        scores = self.planner.scores(scoring, self.gone, self.notes)
        if name == "target_macs" and positions_carry_channels(self.dependencies):
            cost = self._macs
        if cost is not None:
            function = self._measured(scores, cost)
        elif name == "target_macs":
            function = macs_cost(self.dependencies, self.inputs)
        else:
            function = parameter_cost(self.dependencies)
        self._check_reachable(function, target, scoring.widths.tolerance)
        found = self.planner.reach(
            scores,
            function,
            target,
            ranking=scoring.widths.ranking,
            round_to=round_to,
            tolerance=scoring.widths.tolerance,
            refine=cost is None,
        )
        self.notes += found.notes
        return found.units, found.round_to

    def _check_reachable(self, cost: Cost, target: float, tolerance: float) -> None:
        kept_whole = f"kept whole: {self.dependencies.kept}"
        if not self.planner.groups:
            raise ValueError(f"No channel of the model can be removed; {kept_whole}")
        least = self.planner.least(cost)
        if least > target + tolerance:
            raise ValueError(
                "Expected a target that the model and the bounds allow. Received: "
                f"{target:g}, where the least is {least:.3f}. Lower `min_kept`="
                f"{self.planner.min_kept:g}, or widen `bounds`; {kept_whole}"
            )

    def _measured(self, scores: list[np.ndarray], cost: Callable[[keras.Model], float]) -> Cost:
        """`cost` of the model with these widths over that of the given one."""
        full = float(cost(self.dependencies.model))
        if not full > 0:
            raise ValueError(f"`cost` of the given model must be positive. Received: {full}")
        return lambda kept: float(cost(self.build(self.planner.lowest(scores, kept)))) / full

    def build(self, units: np.ndarray) -> keras.Model:
        """The model without these channels."""
        additions = Additions()
        self.constants.move(units, additions)
        if self.merged is not None:
            self.merged.move(units, additions)
        return remove(self.dependencies, units, additions)

    def report(self, units: np.ndarray, round_to: int, smaller: keras.Model) -> ShrinkReport:
        """The report on the removal of these channels."""
        kept = self.planner.left(units)
        widths: dict[str, tuple[int, int]] = {}
        for group, left in zip(self.planner.groups, kept, strict=True):
            before, after = widths.get(group.name, (0, 0))
            full, rest = len(group) * group.multiple, int(left) * group.multiple
            widths[group.name] = (before + full, after + rest)
        fractions = {
            **self._macs_left(smaller),
            "parameters": parameter_cost(self.dependencies)(kept),
        }
        moved = self.constants.move(units, Additions())
        if moved:
            self.notes.append(f"constants of removed channels moved into {', '.join(moved)}")
        groups = self.planner.groups
        self.notes += sorted(
            {g.inexact for g in groups if g.inexact and np.isin(g.units, units).any()}
        )
        return ShrinkReport(
            widths,
            fractions,
            round_to,
            self.dependencies.removed_channels(units),
            self.dependencies.kept,
            tuple(self.notes),
        )

    def _macs_left(self, smaller: keras.Model) -> dict[str, float]:
        """`{"macs": fraction that is left}`; empty, with a note, where a size is not known."""
        left = {}
        try:
            left["macs"] = self._macs(smaller) / self._macs(self.dependencies.model)
        except ValueError:
            self.notes.append("MACs are not known, for a size of the inputs is not: pass `inputs`")
        uncounted = uncounted_layers(self.dependencies.model)
        if uncounted:
            self.notes.append(f"the MACs of {', '.join(uncounted)} are not known and count as none")
        return left

    def _macs(self, model: keras.Model) -> int:
        return count_macs(model, inputs=self.inputs)
