"""Dynamic sparse training: the sparsity is constant from the start, the connections move."""

from __future__ import annotations

import abc
import math
from typing import Any, Literal

import keras
import numpy as np

from tfcompress.pruning.masks.budgets import BUDGETS
from tfcompress.pruning.masks.groups import keep_highest
from tfcompress.pruning.methods.method import Method
from tfcompress.pruning.methods.run import PruningRun
from tfcompress.pruning.schedules import check_sparsity


class SparseTraining(Method):
    """Base of SET and RigL: drops the smallest weights, and grows as many elsewhere.

    At `begin_step` each kernel gets a mask of its budget. Then, every `frequency` steps up to
    `end_step`, the fraction `drop_fraction_at(step)` of its weights is dropped by magnitude, and
    the same number grows, from zero, where `growth` is highest among all that are then inactive.

    Args:
        sparsity: Fraction of zeros over all kernels, in [0, 1).
        end_step: Last step at which connections move.
        begin_step: The step of the first mask.
        frequency: Steps between two moves.
        drop_fraction: Fraction of the weights that moves, in (0, 1).
        budget: `"erk"` (small layers denser) or `"uniform"`.
        initial_mask: `"random"`, for training from scratch, or `"magnitude"`.
    """

    regrows = True
    keeps_zeros = False

    def __init__(
        self,
        sparsity: float,
        end_step: int,
        begin_step: int = 0,
        frequency: int = 100,
        drop_fraction: float = 0.3,
        budget: Literal["erk", "uniform"] = "erk",
        initial_mask: Literal["random", "magnitude"] = "random",
    ):
        self.sparsity = check_sparsity(sparsity, "sparsity")
        if not 0 <= begin_step <= end_step:
            raise ValueError(
                "Expected 0 <= begin_step <= end_step. "
                f"Received: begin_step={begin_step}, end_step={end_step}"
            )
        if frequency < 1:
            raise ValueError(f"`frequency` must be >= 1. Received: frequency={frequency}")
        if not 0 < drop_fraction < 1:
            raise ValueError(
                f"`drop_fraction` must lie in (0, 1). Received: drop_fraction={drop_fraction}"
            )
        if budget not in BUDGETS:
            raise ValueError(
                f"`budget` must be one of {sorted(BUDGETS)}. Received: budget={budget!r}"
            )
        if initial_mask not in ("random", "magnitude"):
            raise ValueError(
                "`initial_mask` must be 'random' or 'magnitude'. "
                f"Received: initial_mask={initial_mask!r}"
            )
        self.end_step = int(end_step)
        self.begin_step = int(begin_step)
        self.frequency = int(frequency)
        self.drop_fraction = drop_fraction
        self.budget = budget
        self.initial_mask = initial_mask

    @abc.abstractmethod
    def drop_fraction_at(self, step: int) -> float:
        """Returns the fraction of the weights that moves at `step`."""

    @abc.abstractmethod
    def growth(self, run: PruningRun, step: int, batch: Any) -> list[np.ndarray]:
        """Returns, per kernel, how much each weight deserves to grow."""

    def check(self, run: PruningRun) -> None:
        if run.pattern.sparsity is not None:
            raise ValueError(
                f"{type(self).__name__} moves single weights, blocks or channels. "
                f"Received: pattern={run.pattern!r}"
            )
        if run.criterion.name != "magnitude":
            raise ValueError(
                f"{type(self).__name__} drops by magnitude and has its own rule of growth. "
                f"Expected criterion='magnitude'. Received: {run.criterion.name!r}"
            )
        if run.scope != "layer":
            raise ValueError(
                f"{type(self).__name__} shares the weights among the layers by its `budget`. "
                f"Expected scope='layer'. Received: scope={run.scope!r}"
            )

    def due(self, last_update: int | None, step: int) -> bool:
        if step < self.begin_step:
            return False
        if last_update is None:
            return True
        at = min(step, self.end_step)
        return at - (at - self.begin_step) % self.frequency > last_update

    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        if run.last_update is None:
            run.set_masks(self._first_masks(run))
        else:
            run.set_masks(self._moved_masks(run, step, batch))

    def get_config(self) -> dict[str, Any]:
        names = (
            "sparsity",
            "end_step",
            "begin_step",
            "frequency",
            "drop_fraction",
            "budget",
            "initial_mask",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseTraining:
        return cls(**config)

    def _first_masks(self, run: PruningRun) -> list[np.ndarray]:
        shapes = [tuple(k.variable.shape) for k in run.kernels]
        masks = []
        densities = BUDGETS[self.budget](shapes, self.sparsity)
        for index, (kernel, density) in enumerate(zip(run.kernels, densities, strict=True)):
            weights = kernel.variable.numpy()
            if self.initial_mask == "magnitude":
                scores = np.abs(weights)
            else:
                scores = _noise(run.seed, index, 0, weights.shape)
            # Weights that an earlier run removed start outside the mask; they may grow later.
            alive = weights != 0 if weights.any() else np.ones(weights.shape, bool)
            masks.append(run.pattern.mask(scores, 1.0 - density, kernel.spec, alive))
        return masks

    def _moved_masks(self, run: PruningRun, step: int, batch: Any) -> list[np.ndarray]:
        fraction = self.drop_fraction_at(step)
        masks = []
        for kernel, mask, growth in zip(
            run.kernels, run.masks, self.growth(run, step, batch), strict=True
        ):
            pattern, spec = run.pattern, kernel.spec
            active = pattern.alive(mask.numpy(), spec)
            weights = pattern.reduce(np.abs(kernel.variable.numpy()), spec)
            keep = move(active, weights, pattern.reduce(growth, spec), fraction)
            masks.append(pattern.expand(keep, tuple(mask.shape), spec))
        return masks


def move(
    active: np.ndarray, magnitude: np.ndarray, growth: np.ndarray, fraction: float
) -> np.ndarray:
    """Drops the smallest active entries, and activates as many others.

    Args:
        active: 1-D boolean array.
        magnitude: What decides the drop.
        growth: What decides the growth, among all entries that are inactive after the drop.
        fraction: Fraction of the active entries that is dropped; one at least stays.

    Returns:
        A boolean array with as many True entries as `active`.
    """
    total = int(active.sum())
    moving = min(int(fraction * total), total - 1)
    kept = active & keep_highest(magnitude, total - moving, active)
    grown = keep_highest(growth, moving, ~kept)
    return kept | grown


@keras.saving.register_keras_serializable(package="tfcompress")
class SET(SparseTraining):
    """Sparse evolutionary training: the smallest weights move to random places.

    Mocanu et al. 2018, https://arxiv.org/abs/1707.04780. The arguments are those of
    `SparseTraining`; the same `drop_fraction` moves every `frequency` steps (the paper: once per
    epoch). Grown weights start at zero.
    """

    def drop_fraction_at(self, step: int) -> float:
        return self.drop_fraction

    def growth(self, run: PruningRun, step: int, batch: Any) -> list[np.ndarray]:
        return [
            _noise(run.seed, index, step, tuple(kernel.variable.shape))
            for index, kernel in enumerate(run.kernels)
        ]


@keras.saving.register_keras_serializable(package="tfcompress")
class RigL(SparseTraining):
    """Rigging the lottery: the smallest weights move to where the gradient is largest.

    Evci et al. 2020, https://arxiv.org/abs/1911.11134. The fraction that moves falls as
    `f(t) = drop_fraction / 2 · (1 + cos(pi (t - begin) / (end - begin)))`. The gradient, of the
    whole kernel, is that of the batches in `data`. The arguments are those of `SparseTraining`.
    """

    needs_data = True

    def drop_fraction_at(self, step: int) -> float:
        length = max(self.end_step - self.begin_step, 1)
        progress = min(max((step - self.begin_step) / length, 0.0), 1.0)
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * progress))

    def growth(self, run: PruningRun, step: int, batch: Any) -> list[np.ndarray]:
        return [np.abs(g) for g in run.gradients(step, batch)]


def _noise(seed: int, index: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    # Drawn anew from what identifies the update, so that a resumed run draws the same.
    return np.random.default_rng([seed, index, step]).random(shape, np.float32)
