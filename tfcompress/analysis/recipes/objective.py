"""What a model is trained to: the compiled loss of each output, and what a teacher says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.analysis.measuring.measures import Kind
from tfcompress.distillation.losses.base import DistillationLoss
from tfcompress.distillation.losses.hints import FeatureDistillation
from tfcompress.distillation.losses.logits import LogitsDistillation
from tfcompress.model.compilation import by_output
from tfcompress.model.graph import output_structure
from tfcompress.model.keras_private import compile_arguments
from tfcompress.model.user_class import overridden_methods

#: Of each kind of output, whether its channels are labels of their own, and logits.
_SCORES: dict[Kind, tuple[bool, bool]] = {
    "logits": (False, True),
    "probabilities": (False, False),
    "logit": (True, True),
    "probability": (True, False),
}
# Losses of two values that are measured in one unit: an output may have them against a teacher's.
_OF_VALUES = (
    *(keras.losses.MeanSquaredError, keras.losses.mean_squared_error),
    *(keras.losses.MeanAbsoluteError, keras.losses.mean_absolute_error),
    *(keras.losses.MeanAbsolutePercentageError, keras.losses.mean_absolute_percentage_error),
    *(keras.losses.MeanSquaredLogarithmicError, keras.losses.mean_squared_logarithmic_error),
    *(keras.losses.Huber, keras.losses.huber, keras.losses.LogCosh, keras.losses.log_cosh),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What a model is trained to.

    Attributes:
        kinds: What each output holds, in the order in which `tree.flatten` has them.
        losses: The compiled loss of each; `None` where an output has none, or the model.
        weights: The weight of each.
    """

    kinds: Sequence[Kind]
    losses: Sequence[Any]
    weights: Sequence[float]

    @property
    def is_silent(self) -> bool:
        """Whether no output has a loss."""
        return all(loss is None for loss in self.losses)

    def compile_arguments(self, model: keras.Model) -> dict[str, Any]:
        """The loss, as a model takes it that has the same outputs under any names."""
        if self.is_silent:
            return {"loss": None}
        structure = output_structure(model)
        losses = tree.pack_sequence_as(structure, list(self.losses))
        if all(weight == 1 for weight in self.weights):
            return {"loss": losses}
        weights = tree.pack_sequence_as(structure, list(self.weights))
        return {"loss": losses, "loss_weights": weights}

    def lessons(self, temperature: float) -> list[tuple[DistillationLoss, float]]:
        """What a teacher of the same outputs says of each, and the weight of the output.

        Class scores and probabilities of yes and no are taught by the KL divergence; values by the
        compiled loss with the teacher's in place of labels, or by the squared error where that is
        another function. An output without a loss or with the weight 0, which is not trained, is
        not taught.

        Args:
            temperature: Of the KL divergence.
        """
        found = []
        for i, (kind, loss, weight) in enumerate(
            zip(self.kinds, self.losses, self.weights, strict=True)
        ):
            if weight == 0 or (loss is None and not self.is_silent):
                continue
            place = None if len(self.kinds) == 1 else i
            found.append((_lesson(kind, loss, place, temperature), weight))
        return found


def objective_of(model: keras.Model, kinds: Sequence[Kind]) -> Objective:
    """What a float model was compiled to be trained to.

    Args:
        model: The model, functional. Without a loss, class scores of a single output have the
            cross-entropy with class numbers.
        kinds: What each output holds.
    """
    given = compile_arguments(model)
    losses = by_output(model, given.get("loss"))
    weights = [1.0 if w is None else float(w) for w in by_output(model, given.get("loss_weights"))]
    if len(kinds) == 1 and losses == [None] and kinds[0] in ("logits", "probabilities"):
        losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=kinds[0] == "logits")]
    return Objective(tuple(kinds), losses, weights)


def trains_itself(model: keras.Model) -> bool:
    """Whether a model is of a class with a train step of its own, which a teacher would replace."""
    return bool({"train_step", "compute_loss"} & set(overridden_methods(type(model))))


def _lesson(kind: Kind, loss: Any, place: int | None, temperature: float) -> DistillationLoss:
    if kind == "values":
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        is_own = any(loss is known or type(loss) is known for known in _OF_VALUES)
        return FeatureDistillation(place, place, loss if is_own else "mse", adapter=None)
    multi_label, is_logits = _SCORES[kind]
    return LogitsDistillation(
        temperature,
        multi_label=multi_label,
        teacher_from_logits=is_logits,
        student_from_logits=is_logits,
        teacher_layer=place,
        student_layer=place,
    )
