"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.distillation.activations import output_activations
from tfcompress.distillation.losses.base import shapes_match
from tfcompress.distillation.teachers.tflite import as_callable


@keras.saving.register_keras_serializable(package="tfcompress")
class TeacherEnsemble(keras.Model):
    """The weighted mean of several teachers' outputs.

    `Σ wᵢ · outputᵢ / Σ wᵢ`. For probabilities that is their arithmetic mean, for logits the
    geometric mean of the probabilities: both are in Hinton et al. 2015, section 2. The teachers
    must give the same structure and shapes, and all logits or all probabilities.

    Args:
        teachers: Keras models or callables; paths of `.tflite` files.
        weights: One non-negative number for each teacher. Defaults to equal weights.
        name: Name of the model.

    Raises:
        ValueError: If there is no teacher, if the weights do not fit, or if some teachers are
            known to give logits and others probabilities; when it runs, if their outputs differ in
            structure or shape.
    """

    def __init__(
        self,
        teachers: Sequence[Any],
        weights: Sequence[float] | None = None,
        name: str = "teacher_ensemble",
    ):
        # The teachers see the data as it is, whatever the global policy.
        super().__init__(name=name, autocast=False)
        self.teachers = [as_callable(teacher) for teacher in teachers]
        weights = [1.0] * len(self.teachers) if weights is None else list(map(float, weights))
        if len(weights) != len(self.teachers) or not self.teachers:
            raise ValueError(
                "Expected at least one teacher and as many weights as teachers. Received: "
                f"{len(self.teachers)} teachers and {len(weights)} weights."
            )
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"Expected weights of at least 0, not all 0. Received: weights={weights}"
            )
        self.teacher_weights = weights
        #: Read by `LogitsDistillation`.
        self.activations = _common([output_activations(t) for t in self.teachers])
        self.supports_jit = all(getattr(t, "supports_jit", True) for t in self.teachers)
        self.built = True

    def call(self, inputs: Any) -> Any:
        total = sum(self.teacher_weights)
        results = [
            t(inputs, training=False) if isinstance(t, keras.Layer) else t(inputs)
            for t in self.teachers
        ]

        for result in results[1:]:
            _check_alike(results[0], result)

        def mean(*outputs: Any) -> Any:
            pairs = zip(self.teacher_weights, outputs, strict=True)
            return sum(ops.cast(x, "float32") * (w / total) for w, x in pairs)

        return keras.tree.map_structure(mean, *results)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "teachers": [keras.saving.serialize_keras_object(t) for t in self.teachers],
            "weights": self.teacher_weights,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TeacherEnsemble:
        config = dict(config)
        restore = keras.saving.deserialize_keras_object
        config["teachers"] = [restore(t) for t in config["teachers"]]
        return cls(**config)


def _common(activations: list[list[str | None]]) -> list[str | None]:
    """The activation of each output, `None` where it is not known of one teacher."""
    known = [kinds for kinds in activations if kinds]
    if len({len(kinds) for kinds in known}) > 1:
        return []  # Their outputs differ, which is an error when they run.
    columns = list(zip(*known, strict=True))
    if any(len(set(column) - {None}) > 1 for column in columns):
        raise ValueError(
            "Expected teachers that all end in the same activation, since a mean of logits "
            f"and probabilities is neither. Received: {activations}"
        )
    if len(known) < len(activations):
        return []
    return [None if None in column else column[0] for column in columns]


def _check_alike(first: Any, other: Any) -> None:
    a, b = (dict(keras.tree.flatten_with_path(side)) for side in (first, other))
    if a.keys() != b.keys() or not all(
        shapes_match(tuple(a[path].shape), tuple(b[path].shape)) for path in a
    ):
        shapes = [[tuple(tensor.shape) for tensor in side.values()] for side in (a, b)]
        raise ValueError(
            "Expected teachers with outputs of the same structure and shapes. Received: "
            f"{shapes[0]} and {shapes[1]}. Wrap a teacher in a callable that picks its output."
        )
