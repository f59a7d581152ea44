"""`Pairing`: the losses of a `Distiller` with the tensors of both models that they compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.distillation.features import name_of_tensor
from tfcompress.distillation.losses.base import DistillationLoss
from tfcompress.distillation.teachers.cache import TeacherCache
from tfcompress.distillation.teachers.cache_source import CacheSource
from tfcompress.distillation.teachers.sources import (
    Features,
    Source,
    input_specs,
    source_of,
    split_inputs,
)
from tfcompress.distillation.validation import check_outputs
from tfcompress.distillation.weights import weights_of


class Pairing:
    """Both models, and the losses between their tensors.

    Args:
        teacher: The teacher; see `Distiller`.
        student: The student.
        losses: The losses.

    Attributes:
        teacher: The teacher's source.
        student: The student's source.
        bound: Whether the losses know the shapes of what they compare.

    Raises:
        ValueError: If a loss names a layer or tensor that is not there, or, for models with a
            graph, if outputs or shapes do not match.
    """

    def __init__(self, teacher: Any, student: keras.Model, losses: Sequence[DistillationLoss]):
        for loss in losses:
            for side, model in (("teacher_layer", teacher), ("student_layer", student)):
                if isinstance(getattr(loss, side), keras.KerasTensor):
                    setattr(loss, side, name_of_tensor(model, getattr(loss, side)))
        keys = [loss.teacher_layer for loss in losses]
        if isinstance(teacher, TeacherCache):
            self.teacher: Source = CacheSource(teacher, keys)
        else:
            self.teacher = source_of(teacher, keys, "teacher")
        self.student = source_of(student, [loss.student_layer for loss in losses], "student")
        self.bound = False
        self._losses = losses
        inputs = input_specs(student)
        if inputs is not None:
            self._bind(*self._specs(inputs))
        else:
            self.try_to_bind((student.get_build_config() or {}).get("input_shape"))

    def try_to_bind(self, input_shape: Any) -> None:
        """Binds the losses if both models run on such inputs, of types that are a guess."""
        if self.bound or input_shape is None:
            return
        try:
            specs = self._specs(shape_specs(input_shape, self.student.runner.input_dtype))
        except ValueError:
            return  # The first batch decides.
        self._bind(*specs)

    def run_teacher(self, x: Any) -> Features:
        """The teacher's tensors, without a gradient; `{}` where a cache's do not come with `x`."""
        freeze = keras.tree.map_structure
        features = self.teacher(*split_inputs(x))
        return {key: freeze(ops.stop_gradient, value) for key, value in features.items()}

    def run_student(self, x: Any, training: bool) -> Features:
        """The student's tensors."""
        return self.student(split_inputs(x)[0], training=training)

    def terms(
        self, teacher: Features, student: Features, sample_weight: Any, training: bool
    ) -> list[Any]:
        """The value of each loss."""
        if not self.bound:
            self._bind(self.teacher.describe(teacher), self.student.describe(student))
        terms = []
        for loss in self._losses:
            key = loss.student_layer
            weights = weights_of(self.student, key, student, sample_weight)
            pair = (teacher[loss.teacher_layer], student[key])
            terms.append(loss.compute_loss(*pair, sample_weight=weights, training=training))
        return terms

    def _specs(self, inputs: Any) -> tuple[Features, Features]:
        # The student first: what it runs on is what the teacher must run on.
        student = self.student.specs(inputs)
        return self.teacher.specs(inputs), student

    def _bind(self, teacher: Features, student: Features) -> None:
        for loss in self._losses:
            pair = (teacher[loss.teacher_layer], student[loss.student_layer])
            check_outputs(loss.name, *pair)
            loss.bind(*map(keras.tree.flatten, pair))
        self.bound = True


def shape_specs(shapes: Any, dtype: str) -> Any:
    """A shape or a structure of shapes as `tf.TensorSpec`s of any batch; `None` for none."""
    if shapes is None:
        return None
    if isinstance(shapes, dict):
        return {key: shape_specs(shape, dtype) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf.TensorSpec((None, *shapes[1:]), dtype)
    return [shape_specs(shape, dtype) for shape in shapes]
