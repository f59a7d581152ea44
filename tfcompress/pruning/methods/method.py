"""How masks change over training: the interface that `Pruner` drives, and gradual pruning."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.pruning.masks.constraints import LatentConstraint, MaskConstraint
from tfcompress.pruning.masks.patterns import NOfM
from tfcompress.pruning.schedules import PruningSchedule, get_schedule

if TYPE_CHECKING:
    from tfcompress.pruning.pruner import Pruner


class Method(abc.ABC):
    """What decides the masks. A method holds options only; its state lives in `pruner.state`.

    Attributes:
        begin_step: The step at which it starts to act.
        end_step: The step at which it has done what it was asked for; -1 for none.
        regrows: Whether weights can come back, so that zeros alone do not tell its state.
        keeps_zeros: Whether zeros that are there at the start stay for good.
        needs_metrics: Whether it waits for the metrics of an epoch.
        needs_data: Whether its updates need gradients, and so batches.
    """

    begin_step: int = 0
    end_step: int = -1
    regrows: bool = False
    keeps_zeros: bool = True
    needs_metrics: bool = False
    needs_data: bool = False

    def check(self, pruner: Pruner) -> None:  # noqa: B027
        """Raises a `ValueError` where the method cannot work with the pruner's options."""

    def create(self, pruner: Pruner) -> list[MaskConstraint]:
        """Creates the method's variables, and returns one constraint per kernel."""
        return [MaskConstraint(mask) for mask in pruner.masks]

    def start(self, pruner: Pruner, step: int) -> None:  # noqa: B027
        """Called once before the first update of a new run; not when a run continues."""

    @abc.abstractmethod
    def due(self, last_update: int | None, step: int) -> bool:
        """Whether masks must be updated at `step` when they last were at `last_update`."""

    @abc.abstractmethod
    def update(self, pruner: Pruner, step: int, batch: Any) -> None:
        """Computes and sets new masks."""

    def on_metrics(self, pruner: Pruner, step: int, metrics: dict[str, Any], batch: Any) -> bool:
        """Looks at an epoch's metrics; returns whether masks changed."""
        return False

    def finish(self, pruner: Pruner, step: int) -> None:  # noqa: B027
        """Called once after training, before the constraints are taken off."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Returns every option: what tells this method from another of its class."""


class Gradual(Method):
    """Removes weights as a schedule says; they stay away, except with an accumulating criterion.

    Args:
        schedule: The sparsity at each step.
    """

    def __init__(self, schedule: PruningSchedule):
        self.schedule = schedule
        self.begin_step = schedule.begin_step
        self.end_step = schedule.end_step

    def check(self, pruner: Pruner) -> None:
        pattern = pruner.pattern
        if isinstance(pattern, NOfM) and abs(self.schedule.final - pattern.sparsity) > 1e-6:
            raise ValueError(
                f"{pattern!r} ends at a sparsity of {pattern.sparsity:g}, and the schedule "
                f"must end there too. Received: {self.schedule!r}"
            )
        self.regrows = pruner.criterion.accumulate

    def create(self, pruner: Pruner) -> list[MaskConstraint]:
        if not pruner.criterion.accumulate:
            return super().create(pruner)
        constraints = []
        for index, (kernel, mask) in enumerate(zip(pruner.kernels, pruner.masks, strict=True)):
            latent = pruner.create_variable(f"latent_{index}", kernel.variable.numpy())
            scores = pruner.create_variable(f"scores_{index}", np.zeros(mask.shape, np.float32))
            constraints.append(
                LatentConstraint(mask, latent, False, scores, pruner.criterion.function)
            )
        return constraints

    def start(self, pruner: Pruner, step: int) -> None:
        if self.regrows:
            remember_latent(pruner)

    def due(self, last_update: int | None, step: int) -> bool:
        update = self.schedule.last_update(step)
        return update is not None and (last_update is None or update > last_update)

    def update(self, pruner: Pruner, step: int, batch: Any) -> None:
        at = self.schedule.last_update(step)
        sparsity = self.schedule.sparsity(at)
        if self.regrows:
            scores = [
                pruner.state.variables[f"scores_{i}"].numpy() for i in range(len(pruner.kernels))
            ]
            if not any(np.any(s) for s in scores) and sparsity > 0:
                raise ValueError(
                    f"The criterion {pruner.criterion.name!r} has nothing to go by before the "
                    "first training step. Expected a schedule that begins with sparsity 0, or "
                    f"after step 0. Received: {self.schedule!r}"
                )
            pruner.set_masks(pruner.rank(scores, sparsity, pruner.found))
        else:
            pruner.prune_to(sparsity, step, batch)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule}


def remember_latent(pruner: Pruner) -> None:
    """Copies the kernels into the latent weights."""
    for index, kernel in enumerate(pruner.kernels):
        pruner.state.variables[f"latent_{index}"].assign(kernel.variable.numpy())


def get_method(schedule: Any) -> Method:
    """Returns a dynamic method as it is, and anything else as gradual pruning by a schedule."""
    if isinstance(schedule, Method):
        return schedule
    return Gradual(get_schedule(schedule))
