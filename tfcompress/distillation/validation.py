"""What a `Distiller` checks before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.distillation.cache import TeacherCache
from tfcompress.distillation.loss import TensorInfo


def check_student(student: Any) -> None:
    """Raises unless `student` is a model that can be trained."""
    if not isinstance(student, keras.Model):
        raise TypeError(f"Expected `student` to be a keras.Model. Received: student={student!r}")


def check_teacher(teacher: Any) -> Any:
    """Returns `teacher`; raises unless it is something that can teach."""
    if isinstance(teacher, (list, tuple)):
        raise TypeError(
            f"Expected one teacher. Received: {len(teacher)} in a {type(teacher).__name__}. "
            "Combine several with `TeacherEnsemble(teachers, weights)`."
        )
    if not callable(teacher) and not isinstance(teacher, TeacherCache):
        raise TypeError(
            "Expected `teacher` to be a Keras model, a callable, the path of a .tflite file, a "
            f"TeacherEnsemble or a TeacherCache. Received: teacher={teacher!r}"
        )
    return teacher


def check_losses_and_weights(
    losses: Sequence[Any], loss_weights: Sequence[float] | None, student_loss_weight: float
) -> list[float]:
    """Returns one weight per loss."""
    if not losses:
        raise ValueError("Expected at least one distillation loss. Received: losses=[]")
    if loss_weights is None:
        loss_weights = [1.0] * len(losses)
    elif isinstance(loss_weights, (int, float)):
        loss_weights = [loss_weights]
    if len(loss_weights) != len(losses):
        raise ValueError(
            "Expected `loss_weights` to have one number for each loss. Received: "
            f"{len(losses)} losses and {len(loss_weights)} weights: {list(loss_weights)}"
        )
    _check_weight("student_loss_weight", student_loss_weight)
    for i, weight in enumerate(loss_weights):
        _check_weight(f"loss_weights[{i}]", weight)
    return [float(weight) for weight in loss_weights]


def check_outputs(name: str, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
    """Raises unless both sides give the same number of tensors to compare."""
    if len(teacher) != len(student):
        raise ValueError(
            f"{name}: expected as many tensors from the teacher as from the student. Received: "
            f"{len(teacher)} {[t.shape for t in teacher]} and {len(student)} "
            f"{[s.shape for s in student]}. Name the ones to compare with `teacher_layer` and "
            "`student_layer`."
        )


def unique_names(names: Sequence[str]) -> list[str]:
    """Names for the logs: `["a", "a"]` becomes `["a", "a_2"]`."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return unique


def _check_weight(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Expected `{name}` to be a number. Received: {name}={value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"Expected `{name}` to be at least 0. Received: {name}={value!r}")
