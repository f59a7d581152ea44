"""`shrink`: an ordinary Keras model in, the same model with fewer channels out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tfcompress.pruning.structure.constants import Constants
from tfcompress.pruning.structure.costs import Cost, macs_cost, parameter_cost
from tfcompress.pruning.structure.dependencies import Dependencies, Group
from tfcompress.pruning.structure.merging import merge_duplicates
from tfcompress.pruning.structure.removal import Additions, remove
from tfcompress.pruning.structure.report import ShrinkReport
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.widths import Bounds, Widths, by_rank, choose_widths, uniform

#: Fractions of channels that every group keeps at least and at most, by layer name.
BoundsByName = Mapping[str, tuple[float, float]]


def shrink(
    model: keras.Model,
    *,
    criterion: Any = "magnitude",
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_cost: float | None = None,
    cost: Callable[[keras.Model], float] | None = None,
    ranking: Literal["global", "uniform"] = "global",
    threshold: float | None = None,
    round_to: int | None = None,
    bounds: BoundsByName | None = None,
    min_kept: float = 0.1,
    tolerance: float = 0.02,
    reduction: str = "mean",
    normalization: str | None = "mean",
    merge: float | None = None,
    data: Any = None,
    loss: Any = None,
    num_batches: int = 4,
    batch_size: int = 128,
    inputs: Any = None,
    seed: int = 0,
) -> keras.Model:
    """Returns a smaller model: whole channels removed, weights sliced, nothing else changed.

    Which channels go together is read off the graph (see `Dependencies`; print it). With a target
    the channels of least score go until it is reached. Without one, exactly the channels go that
    do nothing any more: those that were masked during `fit`, or whose batch norm has no scale
    left. A constant that such a channel still emits moves into the biases of the layers that read
    it; where "same" padding makes that inexact, the channel stays and the report says so.

    The result is of ordinary Keras layers, can be trained further, and is saved and loaded without
    tfcompress. A quantized model stays quantized: its masks, scales and ranges are cut along.

    To go in steps, shrink, train, and shrink again: a target is a fraction of the model given, so
    two steps to a half are 0.707 each.

    Args:
        model: A built Sequential or Functional model; it is left untouched.
        criterion: What a channel is worth: a criterion of pruning (`"magnitude"`, `"l2"`,
            `"taylor"`, `"fisher"`, `"random"`, ..., or a function) or one for whole channels
            (`"batch_norm_scale"`, `"geometric_median"`, `"activation_mean"`,
            `"activation_entropy"`, `"apoz"`).
        target_macs: Multiply-accumulates to keep, as a fraction of the model's, in (0, 1).
        target_parameters: Weights to keep, likewise.
        target_cost: What `cost` may come to, likewise.
        cost: `cost(model) -> number`, such as a measured latency. About ten models are built.
        ranking: `"global"`: one ranking of all channels. `"uniform"`: every group loses the same
            fraction.
        threshold: Instead of a target: channels with a score below it go, with
            `normalization=None` a raw score.
        round_to: Widths are multiples of it, or unchanged: 8 by default with a target, which is
            what XNNPACK computes in, else 1. It is halved, with a note in the report, as long as
            the target cannot be met within `tolerance`.
        bounds: Name of a layer, or a regular expression → the fractions of its channels that it
            keeps at least and at most: `(1.0, 1.0)` leaves it alone.
        min_kept: Fraction of its channels that every group keeps at least. A layer is never
            emptied.
        tolerance: How far from the target, in fractions of the model's cost, is near enough.
        reduction: How the scores of layers that go together become one: `"mean"`, `"sum"`,
            `"max"`, `"min"`, `"l2"`.
        normalization: How groups are made comparable for a global ranking: divided by their
            `"mean"`, `"max"`, `"sum"` or `"l2"`, `"standard"`, or `None`.
        merge: Where given, channels whose weights differ by no more than this fraction of their
            size are first merged into one, which the following layers read with the sum of their
            weights.
        data: Batches for criteria that need gradients or activations: a tuple `(x, y)` of arrays,
            or a `tf.data.Dataset`.
        loss: `loss(model, x, y, sample_weight)` for gradients; by default the compiled loss.
        num_batches: How many batches are looked at.
        batch_size: Where `data` is a tuple of arrays.
        inputs: An example batch, where the model's input sizes are not known, for counting MACs.
        seed: For criteria that are random.

    Returns:
        The smaller model, uncompiled, with the report as its attribute `shrink_report`.

    Raises:
        TypeError: Not a Keras model.
        ValueError: A subclassed or unbuilt model; several targets or one outside (0, 1); a target
            that the bounds do not allow; data missing; nothing to remove.
    """
    targets = {
        "target_macs": target_macs,
        "target_parameters": target_parameters,
        "target_cost": target_cost,
        "threshold": threshold,
    }
    target = _one_target(targets, cost)
    _check_options(ranking, round_to, min_kept, tolerance)
    scoring = Scoring(
        criterion, reduction, normalization, data, loss, num_batches, batch_size, seed
    )
    planner = _Planner(model, bounds or {}, min_kept, inputs)
    if merge is not None:
        planner.merged = merge_duplicates(planner.dependencies, merge)
    if target is None:
        units = planner.dead(round_to or 1)
        used_round = round_to or 1
    elif target == "threshold":
        used_round = round_to or 1
        units = planner.below(scoring, threshold, used_round)
    else:
        costs = {"target_macs": planner.macs, "target_parameters": planner.parameters}
        function = costs[target] if target in costs else planner.measured(scoring, cost)
        units, used_round = planner.reach(
            scoring,
            function,
            targets[target],
            ranking,
            8 if round_to is None else round_to,
            tolerance,
            refine=target != "target_cost",
        )
    smaller = planner.build(units)
    smaller.shrink_report = planner.report(units, used_round)
    return smaller


def _one_target(targets: Mapping[str, float | None], cost) -> str | None:
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"Expected one target. Received: {given}")
    for name, value in given.items():
        if name != "threshold" and not 0.0 < value < 1.0:
            raise ValueError(
                f"`{name}` is the fraction to keep and must lie in (0, 1). Received: {value}"
            )
    if ("target_cost" in given) != (cost is not None):
        raise ValueError(
            "Expected `cost` and `target_cost` together: a function of a model, and the fraction "
            f"of its value for the given model. Received: cost={cost}, {given}"
        )
    return next(iter(given), None)


def _check_options(ranking, round_to, min_kept, tolerance) -> None:
    if ranking not in ("global", "uniform"):
        raise ValueError(f"`ranking` must be 'global' or 'uniform'. Received: {ranking!r}")
    if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
        raise ValueError(f"`round_to` must be a whole number, 1 or more. Received: {round_to!r}")
    if not 0.0 <= min_kept <= 1.0:
        raise ValueError(f"`min_kept` must lie in [0, 1]. Received: {min_kept}")
    if tolerance < 0:
        raise ValueError(f"`tolerance` must not be negative. Received: {tolerance}")


class _Planner:
    """Finds what goes; keeps what there is to report."""

    def __init__(self, model, bounds: BoundsByName, min_kept: float, inputs: Any = None):
        self.dependencies = Dependencies(model)
        self.constants = Constants(self.dependencies)
        self.notes: list[str] = []
        self._min_kept, self._inputs = min_kept, inputs
        self.merged = None
        for reason, labels in self.constants.refused().items():
            count = len(np.unique(self.dependencies.tracer.units.find(labels)))
            self.notes.append(f"{count} channels stay: each {reason}")
            self.dependencies.pin(labels, reason)
        self.dependencies.regroup()
        self._bounds = [self._fractions(g, bounds) for g in self.groups]
        self._check_names(bounds)
        self._dead = set(self.constants.dead().tolist())

    @property
    def groups(self) -> list[Group]:
        return self.dependencies.groups

    # ---- what goes ------------------------------------------------------------------------------

    def dead(self, round_to: int) -> np.ndarray:
        """The units that do nothing any more (and what was merged away)."""
        gone = set(self._dead)
        if self.merged is not None:
            gone |= set(self.merged.removed.tolist())
        scores = [np.array([0.0 if u in gone else 1.0 for u in g.units]) for g in self.groups]
        units = self._below(scores, 0.5, round_to)
        if not len(units):
            raise ValueError(
                "Nothing to remove: every channel still does something. Expected target_macs, "
                "target_parameters, target_cost or threshold, or a model whose channels were "
                "masked during fit (callbacks.ChannelPruning). Received: none of them."
                + "".join(f" Note: {note}." for note in self.notes)
            )
        return units

    def below(self, scoring: Scoring, threshold: float, round_to: int) -> np.ndarray:
        """The units whose score is below the threshold."""
        units = self._below(self._scores(scoring), threshold, round_to)
        if not len(units):
            raise ValueError(
                f"Nothing to remove: no channel has a score below threshold={threshold}. Scores "
                f"are divided by {scoring.normalization!r} of their group; normalization=None "
                "leaves them raw."
            )
        return units

    def reach(
        self, scoring, cost: Cost, target, ranking, round_to, tolerance, refine
    ) -> tuple[np.ndarray, int]:
        """The units of least score, so many that the cost meets the target."""
        if not self.groups:
            raise ValueError(f"No channel can be removed. Kept: {self.dependencies.kept}")
        scores = self._scores(scoring)
        best: Widths | None = None
        step, found_at = round_to, round_to
        while step >= 1:
            bounds = self._allowed(step)
            path = uniform(bounds) if ranking == "uniform" else by_rank(scores, bounds)
            # A measured cost costs minutes, and its noise would be chased.
            options = {} if refine else {"tolerance": tolerance, "max_evaluations": 10}
            found = choose_widths(path, bounds, cost, target, refine=refine, **options)
            if best is None or abs(found.cost - target) < abs(best.cost - target):
                best, found_at = found, step
            if abs(best.cost - target) <= tolerance:
                break
            step //= 2
        if found_at != round_to:
            self.notes.append(
                f"widths are multiples of {found_at} and not of round_to={round_to}, with which "
                f"the target {target:g} cannot be met within {tolerance:g}"
            )
        if abs(best.cost - target) > tolerance and refine:
            raise ValueError(
                f"Expected a target that the bounds allow. Received: {target:g}, where the nearest "
                f"is {best.cost:.3f}. Lower `min_kept`={self._min_kept} or widen `bounds`; kept "
                f"whole: {self.dependencies.kept}"
            )
        if abs(best.cost - target) > tolerance:
            self.notes.append(f"the cost is {best.cost:.3f} of the model's, not {target:g}")
        return self._lowest(scores, best.kept), found_at

    # ---- costs ----------------------------------------------------------------------------------

    @property
    def macs(self) -> Cost:
        return macs_cost(self.dependencies, self._inputs)

    @property
    def parameters(self) -> Cost:
        return parameter_cost(self.dependencies)

    def measured(self, scoring: Scoring, cost: Callable[[keras.Model], float]) -> Cost:
        """`cost` of a model with these widths over that of the given one."""
        scores = self._scores(scoring)
        full = float(cost(self.dependencies.model))
        if not full > 0:
            raise ValueError(f"`cost` of the given model must be positive. Received: {full}")
        return lambda kept: float(cost(self.build(self._lowest(scores, kept)))) / full

    # ---- the result -----------------------------------------------------------------------------

    def build(self, units: np.ndarray) -> keras.Model:
        additions = Additions()
        self.constants.move(units, additions)
        if self.merged is not None:
            self.merged.move(units, additions)
        return remove(self.dependencies, units, additions)

    def report(self, units: np.ndarray, round_to: int) -> ShrinkReport:
        kept = np.array([len(g) - np.isin(g.units, units).sum() for g in self.groups])
        widths: dict[str, tuple[int, int]] = {}
        for group, left in zip(self.groups, kept, strict=True):
            full = len(group) * group.multiple
            before, after = widths.get(group.name, (0, 0))
            widths[group.name] = (before + full, after + int(left) * group.multiple)
        fractions = {}
        try:
            fractions["macs"] = self.macs(kept)
        except ValueError:
            self.notes.append("MACs are not known, for a size of the inputs is not: pass `inputs`")
        fractions["parameters"] = self.parameters(kept)
        moved = self.constants.move(units, Additions())
        if moved:
            self.notes.append(f"constants of removed channels moved into {', '.join(moved)}")
        inexact = {g.inexact for g in self.groups if g.inexact and np.isin(g.units, units).any()}
        self.notes += sorted(inexact)
        if self.merged is not None:
            self.notes.append(f"{len(self.merged.removed)} near-duplicate channels merged")
        return ShrinkReport(widths, fractions, round_to, self.dependencies.kept, tuple(self.notes))

    # ---- inside ---------------------------------------------------------------------------------

    def _scores(self, scoring: Scoring) -> list[np.ndarray]:
        """One per channel: what does nothing first of all, what cannot be scored never."""
        if not hasattr(self, "_scored"):
            self._scored = []
            for group, scores in zip(self.groups, scoring.scores(self.dependencies), strict=True):
                if scores is None:
                    self.notes.append(
                        f"the criterion {scoring.criterion!r} says nothing of {group.name}"
                    )
                    scores = np.full(len(group), np.inf)
                scores = np.array(scores, np.float64)
                gone = [u in self._dead for u in group.units.tolist()]
                if self.merged is not None:
                    gone = gone | np.isin(group.units, self.merged.removed)
                scores[gone] = -np.inf
                self._scored.append(scores)
        return self._scored

    def _below(self, scores, threshold: float, round_to: int) -> np.ndarray:
        allowed = self._allowed(round_to)
        kept = []
        for bound, values in zip(allowed, scores, strict=True):
            count = int((values >= threshold).sum())
            # Up, never down: what is above the threshold stays.
            larger = bound.allowed[bound.allowed >= count]
            kept.append(int(larger[0]) if larger.size else int(bound.allowed[-1]))
        return self._lowest(scores, np.array(kept))

    def _lowest(self, scores: Sequence[np.ndarray], kept: np.ndarray) -> np.ndarray:
        gone = [
            group.units[np.argsort(values, kind="stable")[: len(group) - count]]
            for group, values, count in zip(self.groups, scores, kept, strict=True)
        ]
        return np.concatenate(gone) if gone else np.zeros(0, np.int64)

    def _allowed(self, round_to: int) -> list[Bounds]:
        found = []
        for group, (low, high) in zip(self.groups, self._bounds, strict=True):
            full = len(group)
            step = round_to // int(np.gcd(round_to, group.multiple))
            fewest = max(1, int(np.ceil(low * full - 1e-9)))
            most = max(fewest, int(np.floor(high * full + 1e-9)))
            found.append(Bounds(full, fewest, most, step))
        return found

    def _fractions(self, group: Group, bounds: BoundsByName) -> tuple[float, float]:
        """The narrowest of the bounds of the layers that make the group."""
        low, high = self._min_kept, 1.0
        for place in group.makers:
            for pattern, (least, most) in bounds.items():
                if not 0.0 <= least <= most <= 1.0:
                    raise ValueError(
                        "`bounds` are fractions (least, most) with 0 ≤ least ≤ most ≤ 1. "
                        f"Received: {pattern!r}: {(least, most)}"
                    )
                name = place.member.layer.name
                if pattern == name or re.fullmatch(pattern, name):
                    low, high = max(low, least), min(high, most)
        return low, max(low, high)

    def _check_names(self, bounds: BoundsByName) -> None:
        names = {layer.name for layer in self.dependencies.graph.operations()}
        for pattern in bounds:
            if not any(pattern == n or re.fullmatch(pattern, n) for n in names):
                raise ValueError(
                    f"`bounds` name layers of the model. Received: {pattern!r}, which matches none "
                    f"of {sorted(names)}"
                )
