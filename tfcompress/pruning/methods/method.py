"""`Method`: how masks change over training; the interface that `Pruner` calls."""

from __future__ import annotations

import abc
from typing import Any

from tfcompress.pruning.masks.constraints import MaskConstraint
from tfcompress.pruning.methods.run import PruningRun


class Method(abc.ABC):
    """Decides the masks. A method holds options only; its state is in `run.state`.

    A subclass takes the place of a schedule: `Pruning(MyMethod(...))`. One that a saved object
    refers to is registered with `keras.saving.register_keras_serializable`.

    Attributes:
        begin_step: The step at which it starts to act.
        end_step: The step of its last change of the masks; -1 for none.
        regrows: Whether weights can come back, so that its state cannot be read off the zeros.
        keeps_zeros: Whether zeros that are there at the start stay for good.
        needs_metrics: Whether `on_metrics` is called with the metrics of each epoch.
        needs_data: Whether its updates need gradients, and so batches.
    """

    begin_step: int = 0
    end_step: int = -1
    regrows: bool = False
    keeps_zeros: bool = True
    needs_metrics: bool = False
    needs_data: bool = False

    def check(self, run: PruningRun) -> None:  # noqa: B027
        """Raises a `ValueError` where the method cannot work with the pruner's options."""

    def create(self, run: PruningRun) -> list[MaskConstraint]:
        """Creates the method's variables, and returns one constraint per kernel."""
        return [MaskConstraint(mask) for mask in run.masks]

    def start(self, run: PruningRun, step: int) -> None:  # noqa: B027
        """Called once before the first update of a new run; not when a run continues."""

    @abc.abstractmethod
    def due(self, last_update: int | None, step: int) -> bool:
        """Whether masks must be updated at `step` when they last were at `last_update`."""

    @abc.abstractmethod
    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        """Computes and sets new masks."""

    def on_metrics(self, run: PruningRun, step: int, metrics: dict[str, Any], batch: Any) -> bool:
        """Updates the masks by the metrics of an epoch; returns whether they changed."""
        return False

    def finish(self, run: PruningRun, step: int) -> None:  # noqa: B027
        """Called once after training, before the constraints are taken off."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Returns every constructor argument."""


def remember_latent(run: PruningRun) -> None:
    """Copies the kernels into the variables `latent_0`, `latent_1`, ... of the run."""
    for index, kernel in enumerate(run.kernels):
        run.state.variables[f"latent_{index}"].assign(kernel.variable.numpy())
