"""Checks of the arguments and tensors of a `Distiller` before training."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.distillation.teachers.cache import TeacherCache
from tfcompress.model.keras_features import check_float_kernels


def check_student(student: Any) -> None:
    """Raises unless `student` is a model that can be trained, and compressed afterwards."""
    if not isinstance(student, keras.Model):
        raise TypeError(f"Expected `student` to be a keras.Model. Received: student={student!r}")
    check_float_kernels(student)


def check_teacher(teacher: Any) -> Any:
    """Returns `teacher`; raises unless it can be a teacher."""
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
    elif isinstance(loss_weights, numbers.Real):
        loss_weights = [float(loss_weights)]
    if len(loss_weights) != len(losses):
        raise ValueError(
            "Expected `loss_weights` to have one number for each loss. Received: "
            f"{len(losses)} losses and {len(loss_weights)} weights: {list(loss_weights)}"
        )
    _check_weight("student_loss_weight", student_loss_weight)
    for i, weight in enumerate(loss_weights):
        _check_weight(f"loss_weights[{i}]", weight)
    return [float(weight) for weight in loss_weights]


def check_outputs(name: str, teacher: Any, student: Any) -> None:
    """Raises unless both sides, structures of `TensorInfo`, give the same tensors to compare."""
    (teacher_paths, t), (student_paths, s) = (
        zip(*keras.tree.flatten_with_path(side), strict=True) for side in (teacher, student)
    )
    remedy = "Name the ones to compare with `teacher_layer` and `student_layer`, one loss for each."
    if len(t) != len(s):
        raise ValueError(
            f"{name}: expected as many tensors from the teacher as from the student. Received: "
            f"{len(t)} {[info.shape for info in t]} and {len(s)} "
            f"{[info.shape for info in s]}. {remedy}"
        )
    # Otherwise a dict (sorted by its keys) would be paired with a list by chance.
    if len(t) > 1 and teacher_paths != student_paths:
        raise ValueError(
            f"{name}: expected several outputs of the teacher and of the student to be in the "
            f"same structure, with the same keys. Received: {_keys(teacher_paths)} and "
            f"{_keys(student_paths)}. {remedy}"
        )


def check_labels(loss: Any, y: Any, weight: float) -> None:
    """Raises unless there are a compiled loss and the labels for it."""
    if loss is not None and y is not None:
        return
    expected, received = "labels", "data without `y`"
    if loss is None:
        expected, received = "`compile(loss=...)`", "loss=None"
    raise ValueError(
        f"Expected {expected}, since the compiled loss has a weight of {weight}. Received: "
        f"{received}. To learn from the teacher alone, pass `student_loss_weight=0.0`."
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """Names for the logs: `["a", "a"]` becomes `["a", "a_2"]`."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return unique


def _keys(paths: Sequence[tuple]) -> list[str]:
    return ["/".join(map(str, path)) for path in paths]


def _check_weight(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected `{name}` to be a number. Received: {name}={value!r}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"Expected `{name}` to be at least 0. Received: {name}={value!r}")
