"""Chooses the channels to remove from their scores, the bounds of layers and a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.model.finite import NotFinite
from tfcompress.model.graph import Node
from tfcompress.model.lookup import check_keys, look_up
from tfcompress.pruning.structure.costs import Cost
from tfcompress.pruning.structure.dependencies import Dependencies, Group
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.widths import Bounds, Widths, by_rank, choose_widths, uniform

#: Layer name, regular expression or type → the fractions that it keeps at least and at most.
LayerBounds = Mapping[Any, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Reached:
    """What `Planner.reach` found.

    Attributes:
        units: Labels of what goes.
        cost: What is left of the cost, as a fraction.
        round_to: What widths are multiples of.
        notes: What to know about the rounding, and about groups that were spared.
    """

    units: np.ndarray
    cost: float
    round_to: int
    notes: tuple[str, ...] = ()


class Planner:
    """Chooses channels of a model.

    Args:
        dependencies: Of the model.
        bounds: See `shrink`.
        min_kept: Fraction of its channels that every group keeps at least.

    Raises:
        ValueError: A bound is not a pair of fractions, or matches no layer.
    """

    def __init__(
        self, dependencies: Dependencies, bounds: LayerBounds | None = None, min_kept: float = 0.1
    ):
        self.dependencies = dependencies
        self.min_kept = min_kept
        _check_bounds(bounds or {})
        self._fractions = [_narrowest(g, bounds or {}, min_kept) for g in dependencies.groups]
        check_keys(bounds or {}, map(named, dependencies.graph.nodes), "bounds")

    @property
    def groups(self) -> list[Group]:
        return self.dependencies.groups

    def scores(
        self, scoring: Scoring, gone: np.ndarray, notes: list[str] | None = None
    ) -> list[np.ndarray]:
        """One array per group: the criterion's scores, `-inf` for `gone`, `inf` for no score."""
        found = []
        for group, values in zip(self.groups, scoring.scores(self.dependencies), strict=True):
            if values is None:
                values = np.full(len(group), np.inf)
                if notes is not None:
                    notes.append(f"{scoring.criterion!r} says nothing of {group.name}")
            values = np.array(values, np.float64)
            if np.isnan(values).any():
                raise NotFinite(f"Expected scores of channels. Received: NaN in {group.name}.")
            values[np.isin(group.units, gone)] = -np.inf
            found.append(values)
        return found

    def reach(
        self,
        scores: Sequence[np.ndarray],
        cost: Cost,
        target: float,
        *,
        ranking: str = "global",
        round_to: int = 8,
        tolerance: float = 0.02,
        refine: bool = True,
        relax: bool = True,
        at_most: np.ndarray | None = None,
    ) -> Reached:
        """The channels of least score, so many that the cost meets the target.

        Args:
            scores: See `scores`.
            cost: Kept numbers → fraction.
            target: The fraction to reach.
            ranking: `"global"` or `"uniform"`.
            round_to: Widths are multiples of it.
            tolerance: How near is near enough.
            relax: Whether `round_to` is halved as long as the target cannot be met.
            refine: See `choose_widths`; False where evaluating the cost takes long.
            at_most: What groups may keep at most.

        Raises:
            ValueError: No group has scores.
        """
        fixed, cheap = self._fixed(scores, cost, target + tolerance, at_most, refine, ranking)
        best: Widths | None = None
        step, found_at = round_to, round_to
        while best is None or step >= 1:
            bounds = [
                dataclasses.replace(bound, low=left, high=left) if left else bound
                for bound, left in zip(self.allowed(step, at_most), fixed, strict=True)
            ]
            # A measured cost takes minutes, and its noise would be chased.
            found = choose_widths(
                uniform(bounds) if ranking == "uniform" else by_rank(scores, bounds),
                bounds,
                cost,
                target,
                tolerance=tolerance,
                refine=refine,
                max_evaluations=40 if refine else 10,
            )
            if best is None or abs(found.cost - target) < abs(best.cost - target):
                best, found_at = found, step
            if abs(best.cost - target) <= tolerance or not relax:
                break
            step //= 2
        notes = [f"{self.groups[i].name} stays whole: its channels hardly cost" for i in cheap]
        if abs(best.cost - target) > tolerance:
            notes.append(f"the nearest to the target {target:g} is {best.cost:.3f}")
        elif found_at != round_to:
            notes.append(
                f"widths are multiples of {found_at} and not of round_to={round_to}, with which "
                f"the target {target:g} cannot be met within {tolerance:g}"
            )
        return Reached(self.lowest(scores, best.kept), best.cost, found_at, tuple(notes))

    def _fixed(
        self,
        scores: Sequence[np.ndarray],
        cost: Cost,
        target: float,
        at_most: np.ndarray | None,
        refine: bool,
        ranking: str,
    ) -> tuple[list[int], dict[int, int]]:
        """`(width of each group that keeps its width, else 0; the groups that hardly cost)`.

        Raises:
            ValueError: No group has scores.
        """
        # A group without scores keeps its channels.
        fixed = [
            0 if np.isfinite(values).any() else int(np.isposinf(values).sum()) for values in scores
        ]
        is_ranked = refine and ranking == "global"
        cheap = self._cheap(cost, target, at_most) if is_ranked else {}
        for i, most in cheap.items():
            fixed[i] = fixed[i] or most
        if all(fixed):
            raise ValueError(
                "Expected a criterion that has scores for some channels of the model. Received one "
                f"that says nothing of {', '.join(group.name for group in self.groups)}."
            )
        return fixed, cheap

    def _cheap(self, cost: Cost, target: float, at_most: np.ndarray | None) -> dict[int, int]:
        """Groups that carry less than a tenth of what groups carry on average, and their widths.

        A ranking by score alone would remove their channels without an effect on the cost: a dense
        layer behind convolutions has most of the channels and hardly any multiply-accumulates.
        Empty where the target cannot be met without them.
        """
        bounds = self.allowed(1, at_most)
        most, least = (np.array([b.allowed[end] for b in bounds]) for end in (-1, 0))
        one_narrow = np.where(np.eye(len(bounds), dtype=bool), least, most)
        saved = cost(most) - np.array([cost(kept) for kept in one_narrow])
        is_cheap = saved < 0.1 * saved.mean()
        is_met = cost(np.where(is_cheap, most, least)) <= target
        return {int(i): int(most[i]) for i in np.flatnonzero(is_cheap)} if is_met else {}

    def below(
        self, scores: Sequence[np.ndarray], threshold: float, round_to: int = 1
    ) -> np.ndarray:
        """The channels whose score is below the threshold, fewer where widths are rounded up."""
        kept = []
        for bound, values in zip(self.allowed(round_to), scores, strict=True):
            # Up, never down: what is above the threshold stays.
            allowed = bound.allowed
            enough = allowed[allowed >= (values >= threshold).sum()]
            kept.append(int(enough[0] if enough.size else allowed[-1]))
        return self.lowest(scores, np.array(kept))

    def lowest(self, scores: Sequence[np.ndarray], kept: np.ndarray) -> np.ndarray:
        """The channels of least score in each group, all but `kept` of them."""
        gone = [
            group.units[np.argsort(values, kind="stable")[: len(group) - count]]
            for group, values, count in zip(self.groups, scores, kept, strict=True)
        ]
        return np.concatenate(gone) if gone else np.zeros(0, np.int64)

    def left(self, units: np.ndarray) -> np.ndarray:
        """How many channels each group keeps without these."""
        return np.array([len(g) - int(np.isin(g.units, units).sum()) for g in self.groups])

    def least(self, cost: Cost) -> float:
        """The cost with as few channels as the bounds allow."""
        return cost(np.array([bound.allowed[0] for bound in self.allowed(1)]))

    def allowed(self, round_to: int, at_most: np.ndarray | None = None) -> list[Bounds]:
        found = []
        for i, (group, (low, high)) in enumerate(zip(self.groups, self._fractions, strict=True)):
            full = len(group)
            # A channel of the group may be several of its layers.
            step = round_to // int(np.gcd(round_to, group.multiple))
            fewest = max(1, int(np.ceil(low * full - 1e-9)))
            most = max(fewest, int(np.floor(high * full + 1e-9)))
            if at_most is not None:
                most = min(most, int(at_most[i]))
                fewest = min(fewest, most)
            found.append(Bounds(full, fewest, most, step))
        return found


def _narrowest(group: Group, bounds: LayerBounds, min_kept: float) -> tuple[float, float]:
    """The narrowest of the bounds of all layers that make the group or that it passes."""
    low, high = min_kept, 1.0
    for node in group.calls:
        least, most = look_up(bounds, *named(node), default=(0.0, 1.0))
        low, high = max(low, least), min(high, most)
    return low, max(low, high)


def named(node: Node) -> tuple[Any, str]:
    """`(layer, path)` of a call."""
    return node.operation, "/".join((*node.path, node.name))


def _check_bounds(bounds: LayerBounds) -> None:
    for pattern, bound in bounds.items():
        is_pair = isinstance(bound, (tuple, list)) and len(bound) == 2
        if not is_pair or not 0.0 <= bound[0] <= bound[1] <= 1.0:
            raise ValueError(
                "`bounds` are fractions (least, most) with 0 ≤ least ≤ most ≤ 1. Received: "
                f"{pattern!r}: {bound!r}"
            )
