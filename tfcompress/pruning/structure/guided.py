"""As narrow as a metric allows: channels are masked group by group during training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from tfcompress.model.finite import LossWatch, NotFinite, warn_not_finite
from tfcompress.model.guided import GuidedCallback
from tfcompress.model.lookup import check_keys, look_up
from tfcompress.model.replicas import check_replicas
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.masks import constraints
from tfcompress.pruning.structure.dependencies import Group
from tfcompress.pruning.structure.masking import (
    ChannelMaskConstraint,
    ChannelPruner,
    check_budget,
)
from tfcompress.pruning.structure.options import DEFAULT_WIDTHS, WidthOptions
from tfcompress.pruning.structure.planner import LayerBounds, named
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.shrinking import check_round_to


class GuidedWidths(GuidedCallback):
    """Masks channels, a group of them after an epoch, while a metric holds.

    ```python
    guided = tfc.callbacks.GuidedWidths("val_accuracy", max_drop=0.01)
    model.fit(x, y, validation_data=held_out, epochs=30, callbacks=[guided])
    small = tfc.shrink(model)      # without a target: what is masked goes
    ```

    After each epoch: if the metric is within `max_drop` of the baseline, weights and masks are
    remembered, and the next group of channels that go together loses the fraction `rate` of the
    channels that it has left, those of least score. If it is not, training goes on for up to
    `patience` epochs after the change; if the metric still does not hold, what was remembered comes
    back, and the group keeps the width that it had. When training ends, what held last is what
    remains: channels of zeros, which `shrink` removes.

    It is for float models and quantized ones, alone or as the `student` of a distiller, and masks
    as `ChannelPruning` does. What is left of the budget goes to the epoch's logs as `"macs_left"`
    or `"parameters_left"`. Put it before `BackupAndRestore`: a backup holds the state of the
    search, with the remembered weights. A second `fit` searches on from the channels that it finds
    at zero. Do not combine it with `ChannelPruning`.

    Args:
        monitor: Name of the metric, as in the epoch's logs.
        max_drop: How far the metric may fall below the baseline (or rise above it, for a metric
            that is minimized), in units of the metric, >= 0.
        baseline: The value to compare with; by default the metric after the first epoch, in which
            nothing is masked yet. Give it with `validation_freq` above 1; epochs without the metric
            change nothing.
        rate: Fraction of a group's remaining channels to mask at a time, in (0, 1). Widths are
            rounded to multiples of `round_to`, by at least one multiple less.
        sensitivity: Layer name, regular expression, class or name of a class → what narrowing the
            layer costs, for the order; 0 without a key. By default the scores of the channels that
            would go.
        order: `"score"`: the group whose channels cost least for each saved unit of the budget, by
            `sensitivity` or by score; it may be the same group several times. `"turns"`: every
            group once, in that order, then every group again.
        patience: Epochs that a change gets before it counts as too much, >= 1.
        mode: `"max"`, `"min"` or `"auto"`: by the name of the metric.
        budget: What channels save: `"macs"` or `"parameters"`.
        criterion: What scores a channel; see `shrink`.
        data: Batches for criteria that need gradients or activations; see `shrink`.
        bounds: Fractions of their channels that layers keep; see `shrink`.
        round_to: Widths are multiples of it.
        inputs: An example batch, where the model's input sizes are not known, for counting MACs.
        seed: For criteria that are random.
        widths: How scores are made comparable, and the fraction that every group keeps at least
            (`min_kept`). `ranking` and `tolerance` have no meaning here.
        scoring: How a criterion reads `data`.
        verbose: 0 is silent; 1 prints what cannot be removed, and a line after each epoch.

    Attributes:
        chosen: Group → the fraction of its channels that it keeps, once training has ended.
        pruner: The `ChannelPruner` of the current or the last `fit`.

    Raises:
        ValueError: An argument is out of range, data is missing; at the start of `fit`, as
            `shrink`, or a backup of another search; after the first epoch, no such metric.

    Example:
        >>> callback = tfc.callbacks.GuidedWidths("val_loss", max_drop=0.05, rate=0.25)
        >>> callback.mode
        'min'
    """

    def __init__(
        self,
        monitor: str = "val_accuracy",
        max_drop: float = 0.01,
        baseline: float | None = None,
        rate: float = 0.25,
        sensitivity: Mapping[Any, float] | None = None,
        order: Literal["score", "turns"] = "score",
        patience: int = 1,
        mode: Literal["auto", "max", "min"] = "auto",
        *,
        budget: str = "macs",
        criterion: str | Callable[..., Any] | Criterion = "magnitude",
        data: Any = None,
        bounds: LayerBounds | None = None,
        round_to: int = 8,
        inputs: Any = None,
        seed: int = 0,
        widths: WidthOptions = DEFAULT_WIDTHS,
        scoring: ScoringOptions = DEFAULT_SCORING,
        verbose: int = 1,
    ):
        if not 0 < rate < 1:
            raise ValueError(f"`rate` must lie in (0, 1). Received: rate={rate}")
        if order not in ("score", "turns"):
            raise ValueError(f"`order` must be 'score' or 'turns'. Received: order={order!r}")
        check_budget(budget)
        check_round_to(round_to)
        Scoring(criterion, data, scoring, widths, seed)  # Raises for what does not fit together.
        settings = {"rate": rate, "order": order, "budget": budget, "round_to": round_to}
        super().__init__(monitor, max_drop, baseline, patience, mode, settings)
        self.options = {
            "budget": budget,
            "criterion": criterion,
            "data": data,
            "bounds": bounds,
            "round_to": round_to,
            "inputs": inputs,
            "seed": seed,
            "widths": widths,
            "scoring": scoring,
        }
        self.rate = rate
        self.sensitivity = sensitivity
        self.order = order
        self.verbose = verbose
        self.chosen: dict[str, float] = {}
        self.pruner: ChannelPruner | None = None
        self._watch = LossWatch("Channel masks")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_replicas(self.model)
        # What an interrupted `fit` has left would hold channels at zero that come back.
        for variable in self._trained.trainable_variables:
            constraints.detach_all(variable, ChannelMaskConstraint)
        self.pruner = ChannelPruner(self.model, None, **self.options)
        self._order = self._sensitivities(self.pruner.planner.groups)
        self._narrowed = np.zeros(len(self.pruner.planner.groups), np.int64)
        self._closed = np.zeros(len(self.pruner.planner.groups), bool)
        self._changed = -1
        self._begin()
        # The step was traced without the constraints if the model was fitted before.
        self.model.make_train_function(force=True)
        if self.verbose and self.pruner.dependencies.kept:
            kept = self.pruner.dependencies.kept
            print("GuidedWidths keeps whole: " + ", ".join(f"{n} ({w})" for n, w in kept.items()))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._start()
        self._watch.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._watch.end_batch(self.model, batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        pruner = self._attached()
        left = pruner.left()
        super().on_epoch_end(epoch, logs)
        budget = self.options["budget"]
        if logs is not None:
            logs[f"{budget}_left"] = left
        if self.verbose:
            print(
                f"GuidedWidths, step {pruner.clock()}: {100 * left:.1f} % of {budget} left, "
                f"{'holds' if self._holds else 'does not hold'}; next {100 * pruner.left():.1f} %"
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        pruner = self._attached()
        try:
            self._end()
            self._start()
        finally:
            pruner.finish()
            self.model.train_function = None
        left = pruner.planner.left(pruner.units)
        self.chosen = {
            group.name: int(kept) / len(group)
            for group, kept in zip(pruner.planner.groups, left, strict=True)
        }

    def _attached(self) -> ChannelPruner:
        if self.pruner is None:
            raise RuntimeError("Expected `on_train_begin` first, which `fit` calls.")
        return self.pruner

    def _start(self) -> None:
        """Takes up the channels that are zero, in the first epoch of a search."""
        pruner = self._attached()
        if not pruner.begun:
            pruner.update(pruner.clock())
            self._held_choice = self._choice()

    def _sensitivities(self, groups: list[Group]) -> list[float] | None:
        """What narrowing each group costs; `None` where scores say so."""
        if self.sensitivity is None:
            return None
        pruner = self._attached()
        check_keys(self.sensitivity, map(named, pruner.dependencies.graph.nodes), "sensitivity")
        found = functools.partial(look_up, self.sensitivity)
        return [max(found(*named(n), default=0.0) for n in group.calls) for group in groups]

    # ---- the changes ----------------------------------------------------------------------------

    def _choice(self) -> dict[str, np.ndarray]:
        return {"units": np.sort(self._attached().units)}

    def _choose(self, choice: Mapping[str, np.ndarray]) -> None:
        self._attached().mask(choice["units"])

    def _progress(self) -> dict[str, np.ndarray]:
        return {
            "narrowed": self._narrowed.copy(),
            "closed": self._closed.astype(np.int64),
            "changed": np.asarray(self._changed, np.int64),
        }

    def _resume(self, progress: Mapping[str, np.ndarray]) -> None:
        self._narrowed = np.array(progress["narrowed"], np.int64)
        self._closed = np.array(progress["closed"], bool)
        self._changed = int(progress["changed"])

    def _reject(self) -> None:
        """The group keeps the width that it has."""
        if self._changed >= 0:
            self._closed[self._changed] = True

    def _advance(self) -> None:
        """Masks channels of the next group, if one is left."""
        pruner = self._attached()
        planner = pruner.planner
        try:
            scores = planner.scores(pruner.scoring, pruner.units)
        except NotFinite as error:
            warn_not_finite(pruner.clock(), error, "Channel masks")
            return
        left = planner.left(pruner.units)
        whole = pruner.cost(left)
        found: list[tuple[float, float, int, int]] = []
        for i, values in enumerate(scores):
            width = 0 if self._closed[i] else self._narrower(i, int(left[i]))
            goes = np.sort(values)[len(values) - left[i] : len(values) - width]
            if not width or not np.isfinite(goes).all():
                continue
            kept = left.copy()
            kept[i] = width
            saved = whole - pruner.cost(kept)
            lost = float(goes.sum()) if self._order is None else self._order[i]
            turn = float(self._narrowed[i]) if self.order == "turns" else 0.0
            found.append((turn, lost / saved if saved > 0 else np.inf, i, width))
        if not found:
            return
        _, _, chosen, width = min(found)
        kept = left.copy()
        kept[chosen] = width
        self._narrowed[chosen] += 1
        self._changed = chosen
        pruner.mask(planner.lowest(scores, kept))

    def _narrower(self, index: int, left: int) -> int:
        """The next width of a group; 0 where it is as narrow as is allowed."""
        pruner = self._attached()
        allowed = pruner.planner.allowed(pruner.round_to)[index].allowed
        below = allowed[allowed < left]
        if not below.size:
            return 0
        wanted = below[below <= left * (1 - self.rate)]
        return int(wanted[-1] if wanted.size else below[0])
