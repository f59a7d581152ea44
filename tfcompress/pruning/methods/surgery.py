"""Dynamic network surgery: removed weights go on learning and come back when they matter."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.pruning.masks.constraints import LatentConstraint, MaskConstraint
from tfcompress.pruning.methods.method import Method, remember_latent
from tfcompress.pruning.methods.run import PruningRun
from tfcompress.pruning.schedules import get_schedule

#: What a removed weight's magnitude counts in the last update: their order stays, behind the rest.
_LAST = 2.0**-40


@keras.saving.register_keras_serializable(package="tfcompress")
class DynamicNetworkSurgery(Method):
    """Prunes and splices by the magnitude of latent weights that all go on learning.

    The layer computes with `mask ⊙ latent`; the optimizer's step on it moves every latent weight,
    the removed ones too. At each update of the schedule, with `t` the magnitude at which the
    schedule's sparsity would be reached,

    - a weight with `|latent| < (1 - margin) t` is removed,
    - one with `|latent| > (1 + margin) t` is kept or comes back,
    - those in between stay as they are;

    the update at `end_step` is exact, weights that are in use come first in it, and the masks are
    final from there on (Guo et al. 2016, https://arxiv.org/abs/1608.04493, whose thresholds come
    from the layer's mean and deviation instead of a schedule). Needs a Keras optimizer.

    A removed weight's gradient does not fade as its weight grows, for its growth changes nothing
    until it is back. Updates must therefore be frequent (the paper's are in every step): with
    Adam and 100 steps between them, so many weights come back at once, and so large, that at
    98 % sparsity a LeNet-300-100 that should err by 2 % errs by 20 to 60 %.

    Args:
        schedule: The sparsity at each step. Its own `frequency` is not used.
        margin: Half the width of the band of hysteresis, relative to `t`, in [0, 1).
        frequency: Steps between two updates, >= 1.
    """

    regrows = True
    keeps_zeros = False

    def __init__(self, schedule: Any, margin: float = 0.1, frequency: int = 8):
        if not 0 <= margin < 1:
            raise ValueError(f"`margin` must lie in [0, 1). Received: margin={margin}")
        if int(frequency) != frequency or frequency < 1:
            raise ValueError(
                f"`frequency` must be an integer >= 1. Received: frequency={frequency}"
            )
        self.schedule = get_schedule(schedule)
        self.margin = margin
        self.frequency = int(frequency)
        self.begin_step = self.schedule.begin_step
        self.end_step = self.schedule.end_step

    def check(self, run: PruningRun) -> None:
        if run.criterion.name != "magnitude" or run.pattern.sparsity is not None:
            raise ValueError(
                "DynamicNetworkSurgery goes by magnitude, and not in n-of-m groups. "
                f"Received: criterion={run.criterion.name!r}, pattern={run.pattern!r}"
            )

    def create(self, run: PruningRun) -> list[MaskConstraint]:
        return [
            LatentConstraint(mask, run.create_variable(f"latent_{i}", k.variable.numpy()), True)
            for i, (k, mask) in enumerate(zip(run.kernels, run.masks, strict=True))
        ]

    def start(self, run: PruningRun, step: int) -> None:
        remember_latent(run)

    def due(self, last_update: int | None, step: int) -> bool:
        if step < self.begin_step:
            return False
        return last_update is None or self._last_update(step) > last_update

    def _last_update(self, step: int) -> int:
        """The latest update step that is <= `step`, from `begin_step` on."""
        if self.schedule.end_step != -1 and step >= self.schedule.end_step:
            return self.schedule.end_step
        return step - (step - self.begin_step) % self.frequency

    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        at = self._last_update(step)
        magnitudes = [np.abs(c.latent.numpy()) for c in run.constraints]
        everything = [np.ones(m.shape, bool) for m in magnitudes]
        sparsity = self.schedule.sparsity(at)
        if at == self.schedule.end_step:
            in_use = [np.where(m.numpy() != 0, 1.0, _LAST) for m in run.masks]
            ranked = [m * first for m, first in zip(magnitudes, in_use, strict=True)]
            run.set_masks(run.rank(ranked, sparsity, everything))
            return
        target = run.rank(magnitudes, sparsity, everything)
        masks = []
        for kernel, magnitude, goal, mask in zip(
            run.kernels, magnitudes, target, run.masks, strict=True
        ):
            pattern, spec = run.pattern, kernel.spec
            keep = splice(
                pattern.reduce(magnitude, spec),
                pattern.alive(goal, spec),
                pattern.alive(mask.numpy(), spec),
                self.margin,
            )
            masks.append(pattern.expand(keep, magnitude.shape, spec))
        run.set_masks(masks)

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "margin": self.margin,
            "frequency": self.frequency,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DynamicNetworkSurgery:
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def splice(
    magnitude: np.ndarray, target: np.ndarray, current: np.ndarray, margin: float
) -> np.ndarray:
    """Returns the mask after pruning and splicing with hysteresis around the target's threshold.

    Args:
        magnitude: 1-D scores of the latent weights.
        target: The mask without hysteresis.
        current: The mask in force.
        margin: Half the width of the band, relative to the threshold.
    """
    threshold = magnitude[target].min() if target.any() else np.inf
    if target.all():
        return target.copy()
    keep = np.where(magnitude < (1 - margin) * threshold, False, current)
    return np.where(magnitude > (1 + margin) * threshold, True, keep)
