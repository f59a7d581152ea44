"""Gradual pruning: the sparsity follows a schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.pruning.masks.constraints import LatentConstraint, MaskConstraint
from tfcompress.pruning.methods.method import Method, remember_latent
from tfcompress.pruning.methods.run import PruningRun
from tfcompress.pruning.schedules import PruningSchedule, get_schedule


class Gradual(Method):
    """Removes weights on a schedule, for good; with an accumulating criterion they may come back.

    Args:
        schedule: The sparsity at each step.
    """

    def __init__(self, schedule: PruningSchedule):
        self.schedule = schedule
        self.begin_step = schedule.begin_step
        self.end_step = schedule.end_step

    def check(self, run: PruningRun) -> None:
        pattern = run.pattern
        if pattern.sparsity is not None and abs(self.schedule.final - pattern.sparsity) > 1e-6:
            raise ValueError(
                f"{pattern!r} ends at a sparsity of {pattern.sparsity:g}, and the schedule "
                f"must end there too. Received: {self.schedule!r}"
            )
        self.regrows = run.criterion.accumulate

    def create(self, run: PruningRun) -> list[MaskConstraint]:
        if not run.criterion.accumulate:
            return super().create(run)
        constraints = []
        for index, (kernel, mask) in enumerate(zip(run.kernels, run.masks, strict=True)):
            latent = run.create_variable(f"latent_{index}", kernel.variable.numpy())
            scores = run.create_variable(f"scores_{index}", np.zeros(mask.shape, np.float32))
            constraints.append(
                LatentConstraint(mask, latent, False, scores, run.criterion.function)
            )
        return constraints

    def start(self, run: PruningRun, step: int) -> None:
        if self.regrows:
            remember_latent(run)

    def due(self, last_update: int | None, step: int) -> bool:
        update = self.schedule.last_update(step)
        return update is not None and (last_update is None or update > last_update)

    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        at = self.schedule.last_update(step)
        assert at is not None  # `update` follows `due`.
        sparsity = self.schedule.sparsity(at)
        if self.regrows:
            scores = [run.state.variables[f"scores_{i}"].numpy() for i in range(len(run.kernels))]
            if not any(np.any(s) for s in scores) and sparsity > 0:
                raise ValueError(
                    f"The criterion {run.criterion.name!r} has no scores before the "
                    "first training step. Expected a schedule that begins with sparsity 0, or "
                    f"after step 0. Received: {self.schedule!r}"
                )
            run.set_masks(run.rank(scores, sparsity, run.found))
        else:
            run.prune_to(sparsity, step, batch)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule}


def get_method(schedule: Any) -> Method:
    """Returns a dynamic method as it is, and anything else as gradual pruning by a schedule."""
    if isinstance(schedule, Method):
        return schedule
    return Gradual(get_schedule(schedule))
