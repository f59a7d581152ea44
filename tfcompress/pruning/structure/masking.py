"""Channels held at zero while a model trains, so that `shrink` can remove them afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import NotFinite, warn_not_finite
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.masks import constraints
from tfcompress.pruning.schedules import get_schedule
from tfcompress.pruning.structure.constants import Constants
from tfcompress.pruning.structure.costs import macs_cost, parameter_cost
from tfcompress.pruning.structure.dependencies import Dependencies
from tfcompress.pruning.structure.options import DEFAULT_WIDTHS, WidthOptions
from tfcompress.pruning.structure.planner import LayerBounds, Planner
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.shrinking import check_round_to
from tfcompress.pruning.structure.tracer import Kept, Member, Role


class ChannelPruner:
    """Masks whole channels of a model while a custom training loop trains it.

    ```python
    with ChannelPruner(model, tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=1000)) as pruner:
        pruner.update(0)
        for step, batch in enumerate(data, start=1):
            train_step(batch)      # traced after the pruner was made: it holds the zeros
            pruner.update(step)
    model = tfc.shrink(model)      # without a target: what is masked goes
    ```

    A masked channel is zero in everything that makes it and that it passes (kernels, biases, γ and
    β), and in the rows of the kernels that read it, so that no output depends on it. Masks are
    held by constraints on the variables and never grow back; a new run starts from the
    channels that it finds at zero.

    Args:
        model: A built Sequential or Functional model, or a distiller with such a `student`.
        schedule: Fraction of the budget that is gone at each step; `None` where `mask` says which
            channels are masked.
        budget: What the schedule counts: `"macs"` or `"parameters"`.
        criterion: What scores a channel; see `shrink`.
        data: Batches for criteria that need gradients or activations; see `shrink`.
        bounds: Fractions of their channels that layers keep; see `shrink`.
        round_to: Widths are multiples of it, where the schedule ends.
        inputs: An example batch, where the model's input sizes are not known, for counting MACs.
        seed: For criteria that are random.
        widths: How scores become widths.
        scoring: How a criterion reads `data`.

    Raises:
        TypeError: Not a Keras model.
        ValueError: As `shrink`.
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Any,
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
    ):
        check_budget(budget)
        check_round_to(round_to)
        self.model = model
        self.budget = budget
        self.schedule = None if schedule is None else get_schedule(schedule)
        self.round_to = round_to
        self.widths = widths
        strategy = getattr(model, "distribute_strategy", None)
        self.scoring = Scoring(criterion, data, scoring, widths, seed, model, strategy)
        self.dependencies = Dependencies(getattr(model, "student", model))
        self._attach()
        self._pin_what_no_mask_silences()
        self.planner = Planner(self.dependencies, bounds, widths.min_kept)
        if not self.planner.groups:
            raise ValueError(
                f"No channel of the model can be removed; kept whole: {self.dependencies.kept}"
            )
        is_macs = budget == "macs"
        self.cost = (
            macs_cost(self.dependencies, inputs) if is_macs else parameter_cost(self.dependencies)
        )
        self._check_reachable()
        self.units = np.zeros(0, np.int64)
        self.last_update: int | None = None
        self.begun = False
        self._warned: set[str] = set()
        self._step = 0

    def _check_reachable(self) -> None:
        if self.schedule is None:
            return
        least, target = self.planner.least(self.cost), 1.0 - self.schedule.final
        if least > target + self.widths.tolerance:
            raise ValueError(
                "Expected a schedule that ends at what the model and the bounds allow. Received: "
                f"{self.schedule!r}, which leaves {target:g} of the {self.budget}, where the least "
                f"is {least:.3f}. Lower `min_kept`={self.widths.min_kept:g}, or widen `bounds`; "
                f"kept whole: {self.dependencies.kept}"
            )

    # ---- what a training loop calls -------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether `update(step)` would choose channels anew."""
        update = None if self.schedule is None else self.schedule.last_update(int(step))
        is_new = self.last_update is None or (update is not None and update > self.last_update)
        return not self.begun or (update is not None and is_new)

    def update(self, step: int) -> bool:
        """Brings the masks to where they belong at `step`, and applies them.

        Returns:
            Whether channels were chosen anew.

        Warns:
            UserWarning: Weights, or gradients or activations of a batch, are NaN or infinite; the
                layers are named. The masks stay as they were until they are finite again.
        """
        self._step = step = int(step)
        if not self.begun:
            self.begun = True
            self.units = self._found()
        schedule, changed = self.schedule, False
        due = None if schedule is None else schedule.last_update(step)
        is_new = due is not None and (self.last_update is None or due > self.last_update)
        if schedule is not None and due is not None and is_new:
            gone = schedule.sparsity(due)
            try:
                self._choose(gone, schedule.final)
                self.last_update = due
                changed = True
            except NotFinite as error:
                if str(error) not in self._warned:
                    self._warned.add(str(error))
                    warn_not_finite(step, error, "Channel masks")
        self.apply_masks()
        return changed

    def mask(self, units: np.ndarray) -> None:
        """Masks these channels and no others.

        What was masked before is zero until weights are assigned to it.

        Args:
            units: Labels of channels, as in the groups of `planner`.
        """
        self.begun = True
        self.units = np.unique(units)
        self.apply_masks()

    def apply_masks(self) -> None:
        """Sets masked channels to zero."""
        self._set_masks(self.units)

    def _set_masks(self, units: np.ndarray) -> None:
        kept = self.dependencies.removed(units)
        for variable, mask in self._masks.items():
            mask.assign(self._mask_of(variable, kept))
        self._apply()

    def finish(self) -> None:
        """Applies the masks a last time and takes the constraints off."""
        if self.begun:
            self.apply_masks()
        for variable, constraint in self._constraints.items():
            constraints.detach(self._variables[variable], constraint)

    def left(self) -> float:
        """Fraction of the budget that is left once masked channels are removed."""
        return self.cost(self.planner.left(self.units))

    def __enter__(self) -> ChannelPruner:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.finish()

    def clock(self) -> int:
        """The current step: the optimizer's where there is one."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and optimizer.built:
            return int(optimizer.iterations.numpy())
        return self._step

    # ---- inside ---------------------------------------------------------------------------------

    def _choose(self, gone: float, final: float) -> None:
        target = 1.0 - gone
        # On the way there, widths that are no multiples could not become multiples again.
        relax = gone >= final
        at_most = self.planner.left(self.units)
        if target >= self.cost(at_most):
            return
        scores = self.planner.scores(self.scoring, self.units)
        found = self.planner.reach(
            scores,
            self.cost,
            target,
            ranking=self.widths.ranking,
            round_to=self.round_to,
            tolerance=self.widths.tolerance,
            relax=relax,
            at_most=at_most,
        )
        # Rounded widths may overshoot where the schedule is to end, and nothing grows back.
        is_beyond = found.cost < 1.0 - final - self.widths.tolerance
        if relax or not is_beyond:
            self.units = np.union1d(self.units, found.units)

    def _found(self) -> np.ndarray:
        """The channels whose makers, and all that they pass, are zero."""
        zero = []
        for group in self.planner.groups:
            silent = np.ones(len(group), bool)
            for place in group.places:
                if _is_masked(place.member) and place.member.role is not Role.INPUT:
                    value = np.moveaxis(np.asarray(place.member.variable), place.member.axis, 0)
                    rows = value[place.indices].reshape(len(group), -1)
                    silent &= (rows == 0).all(1)
            # A group that is nothing but zeros counts as freshly initialized.
            zero.append(group.units[silent] if not silent.all() else group.units[:0])
        return np.concatenate(zero)

    def _attach(self) -> None:
        members = [m for m in self.dependencies.tracer.members if _is_masked(m)]
        self._variables = {id(m.variable): m.variable for m in members}
        self._axes: dict[int, list[Member]] = {key: [] for key in self._variables}
        for member in members:
            self._axes[id(member.variable)].append(member)
        strategy = getattr(self.model, "distribute_strategy", None)
        self._masks, self._constraints = {}, {}
        for key, variable in self._variables.items():
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                self._masks[key] = keras.Variable(
                    np.ones(variable.shape, bool),
                    dtype="bool",
                    trainable=False,
                    autocast=False,
                    aggregation="only_first_replica",
                    name="channel_mask",
                )
            if variable.trainable:
                self._constraints[key] = ChannelMaskConstraint(self._masks[key])
                constraints.attach(variable, self._constraints[key])
        self._apply = tf.function(self._assign_masked)

    def _pin_what_no_mask_silences(self) -> None:
        """Keeps channels that could not be removed though they are zero.

        They are normalized together with others, or an operation maps zero to another value: a sum
        over sigmoids, a quotient, a logarithm. Found by setting all of them to zero.
        """
        for group in self.dependencies.groups:
            if group.inexact:
                self.dependencies.pin(group.units, group.inexact)
        self.dependencies.regroup()
        if not self.dependencies.groups:
            return
        every = np.concatenate([group.units for group in self.dependencies.groups])
        before = {key: np.array(variable) for key, variable in self._variables.items()}
        try:
            self._set_masks(every)
            dead = Constants(self.dependencies).dead()
        finally:
            self._set_masks(every[:0])
            for key, variable in self._variables.items():
                variable.assign(before[key])
        self.dependencies.pin(np.setdiff1d(every, dead), "has an influence even where it is zero")
        self.dependencies.regroup()

    def _mask_of(self, variable: int, kept: Kept) -> np.ndarray:
        mask = np.ones(self._variables[variable].shape, bool)
        for member in self._axes[variable]:
            if member.labels is None:
                continue
            shape = [1] * mask.ndim
            shape[member.axis] = -1
            mask &= kept.of(member.labels).reshape(shape)
        return mask

    def _assign_masked(self) -> None:
        for key, variable in self._variables.items():
            value = tf.convert_to_tensor(variable)
            mask = tf.convert_to_tensor(self._masks[key])
            variable.assign(tf.where(mask, value, tf.zeros_like(value)))


class ChannelMaskConstraint(constraints.MaskConstraint):
    """The mask of whole channels, which a pruner of single weights leaves where it is."""


def check_budget(budget: str) -> None:
    """Raises `ValueError` for what no channels are counted by."""
    if budget not in ("macs", "parameters"):
        raise ValueError(f"`budget` must be 'macs' or 'parameters'. Received: {budget!r}")


def _is_masked(member: Member) -> bool:
    """All but a variance; a moving mean of zeros stays zero where all inputs are zero."""
    return member.labels is not None and member.variable.name != "moving_variance"
