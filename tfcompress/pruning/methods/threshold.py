"""Removal of every weight below a threshold, at given steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.pruning.masks.patterns import Unstructured
from tfcompress.pruning.methods.method import Method
from tfcompress.pruning.methods.run import PruningRun


class Threshold(Method):
    """Removes, at given steps, every weight whose magnitude is below a threshold.

    Args:
        prune_steps: The steps, in ascending order.
        threshold: Absolute threshold, or `None`.
        num_std: Threshold in standard deviations of the layer's weights, or `None`.
    """

    def __init__(self, prune_steps: Sequence[int], threshold: float | None, num_std: float | None):
        self.prune_steps = tuple(prune_steps)
        self.threshold = threshold
        self.num_std = num_std
        self.begin_step = self.prune_steps[0]
        self.end_step = self.prune_steps[-1]

    def check(self, run: PruningRun) -> None:
        by_magnitude = run.criterion.name == "magnitude" and run.pattern == Unstructured()
        if not by_magnitude or run.scope != "layer":
            raise ValueError(
                "A threshold on magnitudes removes single weights of each layer. Expected "
                "criterion='magnitude', pattern='unstructured', scope='layer'. Received: "
                f"criterion={run.criterion.name!r}, pattern={run.pattern!r}, "
                f"scope={run.scope!r}"
            )

    def get_config(self) -> dict[str, Any]:
        names = ("prune_steps", "threshold", "num_std")
        return {name: getattr(self, name) for name in names}

    def due(self, last_update: int | None, step: int) -> bool:
        reached = [s for s in self.prune_steps if s <= step]
        return bool(reached) and (last_update is None or last_update < reached[-1])

    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        run.set_masks(
            [
                below_threshold(k.variable.numpy(), m.numpy(), self.threshold, self.num_std)
                for k, m in zip(run.kernels, run.masks, strict=True)
            ]
        )


def below_threshold(
    kernel: np.ndarray, mask: np.ndarray, threshold: float | None, num_std: float | None
) -> np.ndarray:
    """Returns the mask without what is below the threshold; the largest weight always stays.

    Args:
        kernel: The weights.
        mask: The mask in force.
        threshold: Absolute threshold, or `None` for `num_std · std(kernel)`.
        num_std: See `threshold` (Han 2015, https://arxiv.org/abs/1506.02626).
    """
    magnitude = np.abs(kernel)
    if threshold is None:
        if num_std is None:
            raise ValueError("Expected `threshold` or `num_std`. Received: neither.")
        threshold = num_std * float(np.std(kernel))
    keep = mask & (magnitude >= min(threshold, float(magnitude.max())))
    return keep if keep.any() else mask
