"""Keras' own distillation losses (`keras.distillation`) as terms of a `Distiller`."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from tfcompress.distillation.losses.base import DistillationLoss, TensorInfo, snake_case
from tfcompress.distillation.losses.hints import elementwise_loss
from tfcompress.distillation.losses.reduction import weights_per_output


@keras.saving.register_keras_serializable(package="tfcompress")
class KerasDistillationLoss(DistillationLoss):
    """Runs a `keras.distillation.DistillationLoss`, with the sample weights it does not know.

    Keras' `LogitsDistillation` and `FeatureDistillation` are computed by their formulas, per
    sample; without weights the result is theirs. Any other subclass is called as it is, and must
    take `sample_weight` to be trained with weights. Their options keep Keras' meaning: outputs
    of `LogitsDistillation` are logits.

    Args:
        loss: The loss object.
        name: Name in the logs. Defaults to `keras_` and the class name in snake case.
    """

    def __init__(self, loss: Any, *, name: str | None = None, **kwargs: Any):
        for side in ("teacher_layer", "student_layer"):
            kwargs.setdefault(side, getattr(loss, f"{side}_name", None))
        super().__init__(name=name or f"keras_{snake_case(type(loss).__name__)}", **kwargs)
        self.wrapped = loss

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        if type(self.wrapped) in _BY_FORMULA:
            super().bind(teacher, student)

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        teacher = keras.tree.map_structure(_frozen, teacher_outputs)
        student = keras.tree.map_structure(lambda s: ops.cast(s, "float32"), student_outputs)
        self.wrapped.validate_outputs(teacher, student)
        # Keras' own by formula, weights or not: its reductions divide by the number of replicas,
        # as the distiller does.
        formula = _BY_FORMULA.get(type(self.wrapped))
        if formula is None and sample_weight is None:
            return self.wrapped.compute_loss(teacher, student)
        if formula is None:
            self._require_sample_weight()
            return self.wrapped.compute_loss(teacher, student, sample_weight=sample_weight)
        losses = keras.tree.flatten(self.wrapped.loss)
        columns = (losses, *map(keras.tree.flatten, (teacher, student)))
        weights = weights_per_output(sample_weight, len(losses))
        rows = zip(*columns, weights, strict=True)
        return sum(formula(self.wrapped, *row) for row in rows if row[0] is not None)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "loss": keras.saving.serialize_keras_object(self.wrapped)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasDistillationLoss:
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})

    def _require_sample_weight(self) -> None:
        parameters = inspect.signature(self.wrapped.compute_loss).parameters
        if "sample_weight" not in parameters:
            raise ValueError(
                "Expected a distillation loss that takes `sample_weight`, since the data has "
                f"weights, or the student a padding mask. Received: {self.name}, whose "
                f"`compute_loss` takes ({', '.join(parameters)}). Add the argument, or train "
                "without weights."
            )


def as_loss(loss: Any) -> DistillationLoss:
    """Returns a loss of this package: `loss` itself, or a wrapper around one of Keras'."""
    if isinstance(loss, DistillationLoss):
        return loss
    if isinstance(loss, keras.distillation.DistillationLoss):
        return KerasDistillationLoss(loss)
    raise TypeError(
        "Expected distillation losses such as `LogitsDistillation()`, of this package or of "
        f"`keras.distillation`. Received: {loss!r}"
    )


def _frozen(tensor: Any) -> Any:
    return ops.stop_gradient(ops.cast(tensor, "float32"))


def _logits_term(wrapped: Any, loss: Any, teacher: Any, student: Any, weight: Any) -> Any:
    temperature = wrapped.temperature
    teacher, student = teacher / temperature, student / temperature
    if not isinstance(loss, keras.losses.KLDivergence):
        return elementwise_loss(loss, teacher, student, weight)
    soft = (ops.softmax(teacher, axis=-1), ops.softmax(student, axis=-1))
    return temperature**2 * elementwise_loss(loss, *soft, weight)


def _feature_term(wrapped: Any, loss: Any, teacher: Any, student: Any, weight: Any) -> Any:
    return elementwise_loss(loss, teacher, student, weight)


_BY_FORMULA = {
    keras.distillation.LogitsDistillation: _logits_term,
    keras.distillation.FeatureDistillation: _feature_term,
}
