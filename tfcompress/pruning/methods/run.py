"""What a pruning method works with: the kernels of a run, their masks, and the saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import keras
import numpy as np

from tfcompress.model.kernels import Kernel
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.masks.constraints import MaskConstraint
from tfcompress.pruning.masks.patterns import Pattern
from tfcompress.pruning.state import PruningState


class PruningRun(Protocol):
    """One pruning run on one model, as `Method`s see it; `Pruner` implements it.

    Attributes:
        model: The model, or the distiller around it.
        kernels: The kernels that are pruned.
        names: Their names.
        masks: One boolean variable per kernel, True where a weight stays.
        constraints: What `Method.create` returned, one per kernel.
        found: One boolean array per kernel: False for zeros that were there at the start and stay.
        state: Arrays and variables that are saved with the model, by name.
        criterion: Scores the weights.
        pattern: Groups the weights that go together.
        scope: `"layer"` or `"global"`: whether every kernel gets the same sparsity.
        seed: Seed of random scores and masks.
        last_update: Step of the last mask update; `None` before the first.
    """

    model: keras.Model
    kernels: tuple[Kernel, ...]
    names: list[str]
    masks: list[keras.Variable]
    constraints: list[MaskConstraint]
    found: list[np.ndarray]
    state: PruningState
    criterion: Criterion
    pattern: Pattern
    scope: Literal["layer", "global"]
    seed: int
    last_update: int | None

    def scores(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The criterion's scores, one array per kernel."""

    def gradients(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The gradient of each kernel, averaged over the batches of an update."""

    def rank(
        self, scores: Sequence[np.ndarray], sparsity: float, current: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Turns scores into masks by the pattern and the scope; weights in `current` rank first."""

    def prune_to(self, sparsity: float, step: int, batch: Any = None) -> None:
        """Removes the lowest scores among the weights that are left, up to this sparsity."""

    def set_masks(self, new: Sequence[np.ndarray]) -> None:
        """Sets the masks and applies them."""

    def create_variable(self, name: str, value: np.ndarray) -> keras.Variable:
        """Creates a variable that is saved with the model under `name`."""

    def overall_sparsity(self) -> float:
        """Fraction of weights outside the masks, over all kernels of the run."""
