"""Pruning schedules: functions `step -> (whether masks are updated, sparsity)`."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import keras


class PruningSchedule(abc.ABC):
    """Base of the schedules that decide the sparsity from the step alone.

    Masks are updated at `begin_step`, every `frequency` steps after it, and always at `end_step`.
    Between two updates the sparsity in force is that of the last one. The step is the number of
    optimizer steps taken so far (`optimizer.iterations`).

    Calling a schedule returns `(should_prune, sparsity)`, the contract of
    `tfmot.sparsity.keras.PruningSchedule`.

    Args:
        begin_step: First step at which the mask is updated, >= 0.
        end_step: Last step at which it is updated; `-1` for never ending.
        frequency: Steps between two updates, >= 1.

    Raises:
        ValueError: If the schedule ends before it begins, or `frequency` is below 1.
    """

    def __init__(self, begin_step: int, end_step: int, frequency: int):
        for name, value, least in (
            ("begin_step", begin_step, 0),
            ("end_step", end_step, -1),
            ("frequency", frequency, 1),
        ):
            if int(value) != value or value < least:
                raise ValueError(
                    f"`{name}` must be an integer >= {least}. Received: {name}={value}"
                )
        if end_step != -1 and end_step < begin_step:
            raise ValueError(
                "A schedule must not end before it begins: expected begin_step <= end_step. "
                f"Received: begin_step={begin_step}, end_step={end_step}"
            )
        self.begin_step = int(begin_step)
        self.end_step = int(end_step)
        self.frequency = int(frequency)

    @abc.abstractmethod
    def sparsity(self, step: int) -> float:
        """Returns the fraction of zeros, in [0, 1), that belongs to `step`."""

    @property
    @abc.abstractmethod
    def final(self) -> float:
        """The sparsity at the end."""

    def last_update(self, step: int) -> int | None:
        """Returns the latest update step that is <= `step`, or `None` before `begin_step`."""
        if step < self.begin_step:
            return None
        if self.end_step != -1 and step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def __call__(self, step: int) -> tuple[bool, float]:
        step = int(step)
        return self.last_update(step) == step, self.sparsity(step)

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Returns every constructor argument."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PruningSchedule:
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def _progress(self, step: int) -> float:
        if self.end_step == self.begin_step:
            return float(step >= self.begin_step)
        return min(max((step - self.begin_step) / (self.end_step - self.begin_step), 0.0), 1.0)


@keras.saving.register_keras_serializable(package="tfcompress")
class ConstantSparsity(PruningSchedule):
    """The same sparsity from `begin_step` on.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: First step at which the mask is updated.
        end_step: Last step at which it is updated; `-1` (default) for never ending.
        frequency: Steps between two updates.
    """

    def __init__(
        self,
        target_sparsity: float,
        begin_step: int = 0,
        end_step: int = -1,
        frequency: int = 100,
    ):
        super().__init__(begin_step, end_step, frequency)
        self.target_sparsity = check_sparsity(target_sparsity, "target_sparsity")

    def sparsity(self, step: int) -> float:
        return self.target_sparsity

    @property
    def final(self) -> float:
        return self.target_sparsity

    def get_config(self) -> dict[str, Any]:
        return {
            "target_sparsity": self.target_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


class _Ramp(PruningSchedule):
    """From `initial_sparsity` to `final_sparsity` between two steps."""

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        frequency: int = 100,
    ):
        super().__init__(begin_step, end_step, frequency)
        if end_step == -1:
            raise ValueError(
                f"`{type(self).__name__}` needs an end_step >= begin_step to reach its final "
                "sparsity. Received: end_step=-1"
            )
        self.initial_sparsity = check_sparsity(initial_sparsity, "initial_sparsity")
        self.final_sparsity = check_sparsity(final_sparsity, "final_sparsity")

    @property
    def final(self) -> float:
        return self.final_sparsity

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_sparsity": self.initial_sparsity,
            "final_sparsity": self.final_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class PolynomialDecay(_Ramp):
    """Gradual pruning: fast while much is redundant, slow towards the end.

    `s(t) = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin)) ^ power`, clipped to its ends
    (Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878).

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: First step at which the mask is updated.
        end_step: Last step at which it is updated.
        power: Exponent, > 0.
        frequency: Steps between two updates.

    Example:
        >>> schedule = tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=1000)
        >>> schedule(500)    # (whether masks are updated, the sparsity)
        (True, 0.4375)
        >>> schedule(750)
        (False, 0.4921875)
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int = 100,
    ):
        super().__init__(initial_sparsity, final_sparsity, begin_step, end_step, frequency)
        if not power > 0:
            raise ValueError(f"`power` must be > 0. Received: power={power}")
        self.power = power

    def sparsity(self, step: int) -> float:
        remaining = (1.0 - self._progress(step)) ** self.power
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * remaining

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="tfcompress")
class CosineSchedule(_Ramp):
    """Half a cosine wave: slow at both ends, fastest in the middle.

    `s(t) = s_f + (s_i - s_f) (1 + cos(pi (t - begin) / (end - begin))) / 2`, clipped to its ends.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: First step at which the mask is updated.
        end_step: Last step at which it is updated.
        frequency: Steps between two updates.
    """

    def sparsity(self, step: int) -> float:
        remaining = 0.5 * (1.0 + math.cos(math.pi * self._progress(step)))
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * remaining


class CallableSchedule(PruningSchedule):
    """Any callable `step -> (should_prune, sparsity)`, such as a subclass of tfmot's schedule.

    The callable is called once for every step, because updates may be due at any step.
    """

    def __init__(self, function: Callable[[int], tuple[Any, Any]]):
        begin = int(getattr(function, "begin_step", 0))
        super().__init__(begin, int(getattr(function, "end_step", -1)), 1)
        self.function = function
        self._seen = -1
        self._last: int | None = None

    def sparsity(self, step: int) -> float:
        return check_sparsity(float(self.function(int(step))[1]), "sparsity")

    @property
    def final(self) -> float:
        return self.sparsity(self.end_step if self.end_step != -1 else 2**31 - 1)

    def last_update(self, step: int) -> int | None:
        if step < self.begin_step:
            return None
        if self.end_step != -1 and step >= self.end_step:
            return self.end_step
        if step < self._seen:
            self._seen, self._last = -1, None
        for candidate in range(max(self._seen + 1, self.begin_step), step + 1):
            if bool(self.function(candidate)[0]):
                self._last = candidate
        self._seen = step
        return self._last

    def get_config(self) -> dict[str, Any]:
        return {"function": self.function}


_TFMOT_SCHEDULES = {"ConstantSparsity": ConstantSparsity, "PolynomialDecay": PolynomialDecay}


def get_schedule(schedule: Any) -> PruningSchedule:
    """Returns `schedule` as a `PruningSchedule`.

    Args:
        schedule: One of ours, one of `tfmot.sparsity.keras`, or any callable
            `step -> (should_prune, sparsity)`.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(schedule, PruningSchedule):
        return schedule
    if type(schedule).__module__.startswith("tensorflow_model_optimization"):
        config = schedule.get_config()
        own = _TFMOT_SCHEDULES.get(config["class_name"])
        if own is not None:
            return own(**config["config"])
    if callable(schedule):
        return CallableSchedule(schedule)
    raise TypeError(
        "A pruning schedule must be a tfcompress schedule, a tfmot schedule or a callable "
        f"`step -> (should_prune, sparsity)`. Received: {schedule!r} of type {type(schedule)}"
    )


def check_sparsity(value: float, name: str) -> float:
    """Returns `value` as a float in [0, 1), or raises a `ValueError` that names it."""
    if not 0.0 <= value < 1.0:
        raise ValueError(
            f"`{name}` is the fraction of zeros and must lie in [0, 1). Received: {name}={value}"
        )
    return float(value)
