"""Range estimators: which range of a tensor is worth its codes.

`MinMax` and `MovingAverage` update their range on every training batch. The others look at the
whole distribution, so they run on the calibration data (or on a kernel) and their range then
stays fixed.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.configurable import Configurable


@dataclasses.dataclass(frozen=True)
class Observer(Configurable):
    """Base class of range estimators, for your own ones too.

    A subclass is a frozen dataclass whose fields are its options, and it implements `estimate`. One
    whose range moves during training implements `update` as well. Register the class with
    `keras.saving.register_keras_serializable()`, or pass it as a custom object, so that a model
    that uses it can be loaded and cloned.
    """

    @property
    def every_batch(self) -> bool:
        """Whether the range moves during training: by default, whether `update` is implemented."""
        return type(self).update is not Observer.update

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
        """Returns `(low, high)` for a sample of values: at calibration, or of a kernel.

        Args:
            values: float array, flat.
            levels: Number of codes less one (255 for 8 bits).
            symmetric: Whether the range will be made symmetric around 0.
        """
        raise NotImplementedError(
            f"Expected an observer that implements estimate(values, levels, symmetric). Received: "
            f"{type(self).__name__}, which does not."
        )

    def update(self, state: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        """Returns the state after a training batch. It runs inside the train step.

        The range is (low / weight, high / weight). A result that is not finite is dropped.

        Args:
            state: `(low, high, weight)`, float32 of shape (3,): zeros before the first batch, and
                `(low, high, 1)` after calibration.
            batch: The tensor in training, float32 of any shape; it may be empty.
        """
        raise NotImplementedError(
            f"Expected an observer that implements update(state, batch). Received: "
            f"{type(self).__name__}, which does not."
        )


def batch_extremes(batch: tf.Tensor) -> tf.Tensor:
    """`(smallest, largest, 1)` of a tensor, float32 of shape (3,); not finite where it is empty."""
    return tf.stack([tf.reduce_min(batch), tf.reduce_max(batch), 1.0])


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class MinMax(Observer):
    """Smallest and largest value ever seen. The choice for a model's inputs."""

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    def update(self, state: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        extremes = batch_extremes(batch)
        seen = state[2] > 0
        low = tf.where(seen, tf.minimum(state[0], extremes[0]), extremes[0])
        high = tf.where(seen, tf.maximum(state[1], extremes[1]), extremes[1])
        return tf.stack([low, high, 1.0])


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class MovingAverage(MinMax):
    """Exponential moving average of each batch's smallest and largest value, debiased.

    average ← m · average + (1 − m) · value and range = average / (1 − mᵗ) as in Adam
    (Kingma & Ba 2015), so that the start weighs nothing.

    Attributes:
        momentum: m, in [0, 1).
    """

    momentum: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1). Received: {self.momentum!r}.")

    def update(self, state: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        return self.momentum * state + (1.0 - self.momentum) * batch_extremes(batch)


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class Percentile(Observer):
    """Leaves out a share of the values at both ends.

    Attributes:
        percentile: In (50, 100]: 99.9 cuts 0.1 % at each end.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"Expected `percentile` in (50, 100]. Received: {self.percentile!r}.")

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
        if symmetric:
            high = float(np.percentile(np.abs(values), self.percentile))
            return -high, high
        low, high = np.percentile(values, [100 - self.percentile, self.percentile])
        return float(low), float(high)


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class MeanStd(Observer):
    """mean ± k · standard deviation, never wider than what was seen.

    Attributes:
        num_std: k, positive.
    """

    num_std: float = 4.0

    def __post_init__(self) -> None:
        if not self.num_std > 0:
            raise ValueError(f"Expected `num_std` > 0. Received: {self.num_std!r}.")

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
        mean, spread = float(values.mean()), self.num_std * float(values.std())
        return max(mean - spread, float(values.min())), min(mean + spread, float(values.max()))


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class LeastSquares(Observer):
    """The range with the least squared quantization error, found by shrinking the full range.

    Attributes:
        num_candidates: How many shrunken ranges are tried, from 100 % down to 20 %.
    """

    num_candidates: int = 80

    def __post_init__(self) -> None:
        if not self.num_candidates >= 1:
            raise ValueError(f"Expected `num_candidates` ≥ 1. Received: {self.num_candidates!r}.")

    def estimate(self, values: np.ndarray, levels: int, symmetric: bool) -> tuple[float, float]:
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
