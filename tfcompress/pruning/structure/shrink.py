"""`shrink`: an ordinary Keras model in, the same model with fewer channels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

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
    bounds: LayerBounds | None = None,
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
    the channels of least score go until it is reached, but for groups that hardly count in it.
    Without one, exactly the channels go that do nothing any more: those that were masked during
    `fit`, or whose batch norm has no scale left. A constant that such a channel still emits moves
    into the biases of the layers that read it; where "same" padding makes that inexact, the channel
    stays and the report says so.

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
            what XNNPACK computes in, else 1. On CPUs with AVX-512 or AMX 16 and 32 run faster. It
            is halved, with a note in the report, as long as the target cannot be met within
            `tolerance`; so is a target that cannot be met at all.
        bounds: Layer name, regular expression, class or name of a class → the fractions of its
            channels that it keeps at least and at most: `(1.0, 1.0)` leaves it alone. A group of
            layers keeps to the narrowest bounds of the layers that make it and that it passes.
        min_kept: Fraction of its channels that every group keeps at least, where there is a
            target. A layer is never emptied.
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
    check_options(ranking, round_to, tolerance)
    scoring = Scoring(
        criterion, reduction, normalization, data, loss, num_batches, batch_size, seed
    )
    # Without a target exactly what is silent goes, however much of a layer that is.
    work = _Shrinking(model, bounds, 0.0 if target is None else min_kept, merge, inputs)
    if target is None:
        units, used = work.dead(round_to or 1), round_to or 1
    elif target == "threshold":
        units, used = work.below(scoring, threshold, round_to or 1), round_to or 1
    else:
        scores = work.scores(scoring)
        if target == "target_macs" and positions_carry_channels(work.dependencies):
            cost = lambda m: count_macs(m, inputs=inputs)  # noqa: E731
        if cost is not None:
            function = work.measured(scores, cost)
        elif target == "target_macs":
            function = macs_cost(work.dependencies, inputs)
        else:
            function = parameter_cost(work.dependencies)
        options = {"ranking": ranking, "tolerance": tolerance, "refine": cost is None}
        options["round_to"] = 8 if round_to is None else round_to
        units, used = work.reach(scores, function, targets[target], **options)
    smaller = work.build(units)
    smaller.shrink_report = work.report(units, used, smaller)
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


def check_options(ranking: str, round_to: int | None, tolerance: float) -> None:
    """Raises `ValueError` for what `shrink` and `ChannelPruning` do not take."""
    if ranking not in ("global", "uniform"):
        raise ValueError(f"`ranking` must be 'global' or 'uniform'. Received: {ranking!r}")
    if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
        raise ValueError(f"`round_to` must be a whole number, 1 or more. Received: {round_to!r}")
    if tolerance < 0:
        raise ValueError(f"`tolerance` must not be negative. Received: {tolerance}")


class _Shrinking:
    """The work of one `shrink`, with what there is to report."""

    def __init__(self, model, bounds, min_kept: float, merge: float | None, inputs: Any):
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

    def scores(self, scoring: Scoring) -> list[np.ndarray]:
        return self.planner.scores(scoring, self.gone, self.notes)

    def dead(self, round_to: int) -> np.ndarray:
        """What does nothing any more, and what was merged away."""
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
        units = self.planner.below(self.scores(scoring), threshold, round_to)
        if not len(units):
            raise ValueError(
                f"Nothing to remove: no channel has a score below threshold={threshold}. Scores "
                f"are divided by the {scoring.normalization!r} of their group; normalization=None "
                "leaves them raw."
            )
        return units

    def reach(self, scores, cost: Cost, target: float, **options) -> tuple[np.ndarray, int]:
        kept_whole = f"kept whole: {self.dependencies.kept}"
        if not self.planner.groups:
            raise ValueError(f"No channel of the model can be removed; {kept_whole}")
        least = self.planner.least(cost)
        if least > target + options["tolerance"]:
            raise ValueError(
                "Expected a target that the model and the bounds allow. Received: "
                f"{target:g}, where the least is {least:.3f}. Lower `min_kept`="
                f"{self.planner.min_kept:g}, or widen `bounds`; {kept_whole}"
            )
        found = self.planner.reach(scores, cost, target, **options)
        self.notes += found.notes
        return found.units, found.round_to

    def measured(self, scores, cost: Callable[[keras.Model], float]) -> Cost:
        """`cost` of the model with these widths over that of the given one."""
        full = float(cost(self.dependencies.model))
        if not full > 0:
            raise ValueError(f"`cost` of the given model must be positive. Received: {full}")
        return lambda kept: float(cost(self.build(self.planner.lowest(scores, kept)))) / full

    def build(self, units: np.ndarray) -> keras.Model:
        additions = Additions()
        self.constants.move(units, additions)
        if self.merged is not None:
            self.merged.move(units, additions)
        return remove(self.dependencies, units, additions)

    def report(self, units: np.ndarray, round_to: int, smaller: keras.Model) -> ShrinkReport:
        kept = self.planner.left(units)
        widths: dict[str, tuple[int, int]] = {}
        for group, left in zip(self.planner.groups, kept, strict=True):
            before, after = widths.get(group.name, (0, 0))
            full, rest = len(group) * group.multiple, int(left) * group.multiple
            widths[group.name] = (before + full, after + rest)
        fractions = {}
        try:
            before = count_macs(self.dependencies.model, inputs=self.inputs)
            fractions["macs"] = count_macs(smaller, inputs=self.inputs) / before
        except ValueError:
            self.notes.append("MACs are not known, for a size of the inputs is not: pass `inputs`")
        uncounted = uncounted_layers(self.dependencies.model)
        if uncounted:
            self.notes.append(f"the MACs of {', '.join(uncounted)} are not known and count as none")
        fractions["parameters"] = parameter_cost(self.dependencies)(kept)
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
