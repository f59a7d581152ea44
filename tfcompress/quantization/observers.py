"""Range estimators: which range of a tensor is worth its codes.

`MinMax` and `MovingAverage` run on every batch; the others look at the whole distribution, so
they run on the calibration data (or on a kernel) and their range then stays fixed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Observer:
    """Base class. `every_batch` tells whether the range moves during training."""

    @property
    def every_batch(self) -> bool:
        return False

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
        """Returns `(low, high)` for a sample of values.

        Args:
            values: float array, flat.
            levels: Number of codes less one (255 for 8 bits).
            symmetric: Whether the range will be made symmetric around 0.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MinMax(Observer):
    """Smallest and largest value ever seen. The choice for a model's inputs."""

    @property
    def every_batch(self) -> bool:
        return True

    def estimate(self, values, levels, symmetric):
        return float(values.min()), float(values.max())


@dataclasses.dataclass(frozen=True)
class MovingAverage(MinMax):
    """Exponential moving average of each batch's smallest and largest value, debiased.

    average ← m · average + (1 − m) · value and range = average / (1 − mᵗ) as in Adam
    (Kingma & Ba 2015), so that the start weighs nothing.

    Attributes:
        momentum: m, in [0, 1).
    """

    momentum: float = 0.99

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1). Received: {self.momentum!r}.")


@dataclasses.dataclass(frozen=True)
class Percentile(Observer):
    """Leaves out a share of the values at both ends.

    Attributes:
        percentile: In (50, 100]: 99.9 cuts 0.1 % at each end.
    """

    percentile: float = 99.99

    def __post_init__(self):
        if not 50 < self.percentile <= 100:
            raise ValueError(f"Expected `percentile` in (50, 100]. Received: {self.percentile!r}.")

    def estimate(self, values, levels, symmetric):
        if symmetric:
            high = float(np.percentile(np.abs(values), self.percentile))
            return -high, high
        low, high = np.percentile(values, [100 - self.percentile, self.percentile])
        return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class MeanStd(Observer):
    """mean ± k · standard deviation, never wider than what was seen.

    Attributes:
        num_std: k, positive.
    """

    num_std: float = 4.0

    def __post_init__(self):
        if not self.num_std > 0:
            raise ValueError(f"Expected `num_std` > 0. Received: {self.num_std!r}.")

    def estimate(self, values, levels, symmetric):
        mean, spread = float(values.mean()), self.num_std * float(values.std())
        return max(mean - spread, float(values.min())), min(mean + spread, float(values.max()))


@dataclasses.dataclass(frozen=True)
class LeastSquares(Observer):
    """The range with the least squared quantization error, found by shrinking the full range.

    Attributes:
        num_candidates: How many shrunken ranges are tried, from 100 % down to 20 %.
    """

    num_candidates: int = 80

    def __post_init__(self):
        if not self.num_candidates >= 1:
            raise ValueError(f"Expected `num_candidates` ≥ 1. Received: {self.num_candidates!r}.")

    def estimate(self, values, levels, symmetric):
        values = values.astype(np.float64)
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        if symmetric:
            high = max(-low, high)
            low = -high
        best = (np.inf, low, high)
        for factor in np.linspace(1.0, 0.2, self.num_candidates):
            # A bound at 0 (after a ReLU) stays; both ends shrink together otherwise.
            a, b = low * factor, high * factor
            scale = max((b - a) / levels, 1e-12)
            rounded = np.round(np.clip(values, a, b) / scale) * scale
            error = float(np.mean((values - rounded) ** 2))
            if error < best[0]:
                best = (error, a, b)
        return float(best[1]), float(best[2])


OBSERVERS = {c.__name__: c for c in (MinMax, MovingAverage, Percentile, MeanStd, LeastSquares)}


def observer_config(observer: Observer) -> dict[str, Any]:
    return {"class_name": type(observer).__name__, **dataclasses.asdict(observer)}


def observer_from_config(config: dict[str, Any] | Observer) -> Observer:
    if isinstance(config, Observer):
        return config
    fields = dict(config)
    return OBSERVERS[fields.pop("class_name")](**fields)
