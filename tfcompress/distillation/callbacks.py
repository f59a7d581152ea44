"""The callback that schedules the temperature and the weights of a distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcompress.distillation.distiller import Distiller

Schedule = Callable[[int], Any]


class DistillationSchedule(keras.callbacks.Callback):
    """Sets temperatures and weights as functions of the step.

    The clock is `optimizer.iterations`, so that a resumed run goes on where it was. With
    `steps_per_execution` of more than 1 the values change once per execution.

    Args:
        temperature: `step -> T`, for every loss that has a temperature.
        student_loss_weight: `step -> weight` of the compiled loss.
        loss_weights: One `step -> weight` for each distillation loss, `None` to leave one alone.

    Raises:
        TypeError: If a schedule is not callable.
        ValueError: When training begins, if the model is no `Distiller`, if it has no loss with
            a temperature, or if the number of `loss_weights` is not that of the losses; later, if
            a schedule gives a temperature that is not above 0, or a weight below 0.

    Example: from the teacher to the labels in 1000 steps.

    ```python
    tfc.callbacks.DistillationSchedule(loss_weights=[lambda step: max(0.0, 1 - step / 1000)])
    ```
    """

    def __init__(
        self,
        *,
        temperature: Schedule | None = None,
        student_loss_weight: Schedule | None = None,
        loss_weights: Sequence[Schedule | None] | None = None,
    ):
        super().__init__()
        self.temperature = temperature
        self.student_loss_weight = student_loss_weight
        self.loss_weights = list(loss_weights or [])
        for schedule in (temperature, student_loss_weight, *self.loss_weights):
            if schedule is not None and not callable(schedule):
                raise TypeError(
                    "Expected a schedule: a function of the step such as `lambda step: 4.0`. "
                    f"Received: {schedule!r}"
                )
        self._moved: list[tuple[str, keras.Variable, Schedule]] = []

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if not isinstance(model, Distiller):
            raise ValueError(
                "Expected DistillationSchedule in the `fit` of a Distiller. Received: "
                f"{type(model).__name__}."
            )
        if self.loss_weights and len(self.loss_weights) != len(model.loss_weights):
            raise ValueError(
                f"Expected one schedule (or None) for each of {len(model.loss_weights)} losses. "
                f"Received: {len(self.loss_weights)} in `loss_weights`."
            )
        losses = model.distillation_losses
        temperatures = [x.temperature for x in losses if x.temperature is not None]
        if self.temperature is not None and not temperatures:
            raise ValueError(
                "Expected a loss with a temperature, such as LogitsDistillation. Received: "
                f"{[type(loss).__name__ for loss in losses]} and a schedule of `temperature`."
            )
        moved: list[tuple[str, Any, Any]]
        moved = [("temperature", variable, self.temperature) for variable in temperatures]
        moved += [("student_loss_weight", model.student_loss_weight, self.student_loss_weight)]
        weights = zip(model.loss_weights, self.loss_weights, strict=False)
        moved += [("loss_weights", *pair) for pair in weights]
        self._moved = [one for one in moved if one[-1] is not None]

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.update(int(self.model.optimizer.iterations.numpy()))

    def update(self, step: int) -> None:
        """Sets every temperature and weight to that of `step`.

        A custom loop calls `set_model` once, and this before every step.
        """
        for name, variable, schedule in self._moved:
            value = float(schedule(step))
            is_temperature = name == "temperature"
            if not (value > 0 if is_temperature else value >= 0):
                raise ValueError(
                    f"Expected the schedule of `{name}` to give numbers "
                    f"{'above 0' if is_temperature else 'from 0 on'}. Received: {value} at step "
                    f"{step}"
                )
            variable.assign(value)
