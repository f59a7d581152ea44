"""`DistillationLoss`: the base class of the distillation losses, with its options and variables."""

from __future__ import annotations

import dataclasses
import numbers
import re
from typing import Any

import keras
from keras import ops

from tfcompress.distillation.losses.reduction import at_least_2d, weights_per_output


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known about a tensor before the first step.

    Attributes:
        shape: With the batch axis; unknown sizes are `None`.
        activation: `"softmax"`, `"sigmoid"`, `"none"`, or `None` where it cannot be told.
        source: How to call the tensor in an error message.
    """

    shape: tuple[int | None, ...]
    activation: str | None = None
    source: str = ""


class DistillationLoss(keras.layers.Layer, keras.distillation.DistillationLoss):
    """Base class: compares one tensor of the teacher with one tensor of the student.

    A subclass implements `pair_loss`, and `bind` where it must check shapes or make variables.
    It is a Keras layer, so that its variables (a temperature that a schedule moves, a learned
    adapter) are trained, tracked and saved with the `Distiller`; and a
    `keras.distillation.DistillationLoss`, so that Keras' own `Distiller` takes it too.

    Args:
        teacher_layer: What to compare: `None` for the model's outputs; the name of a layer, also
            of one inside a nested model (`"backbone/conv5"`), with `":1"` for the second call of
            a shared layer; the key or index of one of several outputs; or a `KerasTensor` of the
            model's graph.
        student_layer: The same for the student.
        name: Name in the logs. Defaults to the class name in snake case.
    """

    #: The variable that a schedule of the temperature moves; `None` for a loss without one.
    temperature: keras.Variable | None = None

    def __init__(
        self,
        teacher_layer: str | int | keras.KerasTensor | None = None,
        student_layer: str | int | keras.KerasTensor | None = None,
        *,
        name: str | None = None,
        **kwargs: Any,
    ):
        # float32 whatever the student's policy: small differences vanish in 16 bit.
        kwargs.pop("dtype", None)
        super().__init__(name=name or snake_case(type(self).__name__), dtype="float32", **kwargs)
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer
        self.built = True

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        """Checks the tensors to compare, before the first step, and makes what depends on them.

        Args:
            teacher: One entry for each output compared, in `keras.tree.flatten` order.
            student: The same for the student.

        Raises:
            ValueError: If the tensors cannot be compared, or if the loss is bound already, to
                tensors that it would treat otherwise: each `Distiller` needs losses of its own.
        """
        for t, s in zip(teacher, student, strict=True):
            if not shapes_match(t.shape, s.shape):
                raise ValueError(
                    f"{self.name}: expected {t.source} and {s.source} to have the same shape. "
                    f"Received: {t.shape} and {s.shape}. Name matching tensors with "
                    "`teacher_layer` and `student_layer`, or use `FeatureDistillation`, which "
                    "learns an adapter."
                )

    def _raise_bound(self) -> None:
        raise ValueError(
            f"{self.name}: expected a loss of its own for each Distiller. Received: one that "
            "belongs to another Distiller and would change there. Make a new loss."
        )

    def pair_loss(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        """The loss for one pair of float32 tensors: a scalar."""
        raise NotImplementedError(
            "Expected a loss that implements pair_loss(teacher, student, sample_weight). Received: "
            f"{type(self).__name__}, which does not."
        )

    def compute_loss(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The sum of `pair_loss` over the outputs.

        Args:
            teacher_outputs: A tensor or a structure of tensors.
            student_outputs: The same structure.
            sample_weight: `None`, a tensor, or a structure of the outputs' weights.
            **kwargs: `training`, whether this is a train step, for losses that learn a layer.

        Returns:
            A float32 scalar.
        """
        del kwargs
        teacher, student = (
            [at_least_2d(ops.cast(x, "float32")) for x in keras.tree.flatten(side)]
            for side in (teacher_outputs, student_outputs)
        )
        weights = weights_per_output(sample_weight, len(student))
        pairs = zip(teacher, student, weights, strict=True)
        return sum(self.pair_loss(ops.stop_gradient(t), s, w) for t, s, w in pairs)

    def get_config(self) -> dict[str, Any]:
        for side in ("teacher_layer", "student_layer"):
            if isinstance(getattr(self, side), keras.KerasTensor):
                raise ValueError(
                    f"{self.name}: `{side}` is a KerasTensor, which cannot be saved before the "
                    "loss is in a Distiller. Give the layer's name."
                )
        config = super().get_config()
        del config["dtype"]
        return {**config, "teacher_layer": self.teacher_layer, "student_layer": self.student_layer}


def shapes_match(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    """Whether two shapes may be equal; an unknown size matches any."""
    return len(a) == len(b) and all(x == y or None in (x, y) for x, y in zip(a, b, strict=True))


def require_positive(name: str, value: float) -> float:
    """Returns `value` as a float; raises where it is no positive number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected `{name}` to be a number. Received: {name}={value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"Expected `{name}` to be positive. Received: {name}={value!r}")
    return float(value)


def snake_case(name: str) -> str:
    """`"LogitsDistillation"` → `"logits_distillation"`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
