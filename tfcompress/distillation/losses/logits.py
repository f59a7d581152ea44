"""Distillation of class scores (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.distillation.losses.base import DistillationLoss, TensorInfo, require_positive
from tfcompress.distillation.losses.reduction import weighted_mean

_EPSILON = 1e-7


def softened_kl(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Any:
    """`T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))` over the last axis.

    The factor `T²` keeps the size of the gradient when `T` changes: the soft targets' gradients
    scale as `1/T²`.

    Args:
        teacher_logits: Float tensor `(…, classes)`; -∞ for a class that is ruled out.
        student_logits: Float tensor of the same shape.
        temperature: Positive scalar.

    Returns:
        Tensor `(…,)`.
    """
    log_p = ops.log_softmax(teacher_logits / temperature, axis=-1)
    log_q = ops.log_softmax(student_logits / temperature, axis=-1)
    return temperature**2 * ops.sum(_divergence(ops.exp(log_p), log_p, log_q), axis=-1)


def softened_binary_kl(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Any:
    """`T² · mean_k KL(σ(z_t,k / T) ‖ σ(z_s,k / T))`: independent labels on the last axis.

    The mean over labels is what `keras.losses.BinaryCrossentropy` takes.

    Returns:
        Tensor `(…,)`.
    """
    t, s = teacher_logits / temperature, student_logits / temperature
    p = ops.sigmoid(t)
    on = _divergence(p, ops.log_sigmoid(t), ops.log_sigmoid(s))
    off = _divergence(1.0 - p, ops.log_sigmoid(-t), ops.log_sigmoid(-s))
    return temperature**2 * ops.mean(on + off, axis=-1)


def _divergence(p: Any, log_p: Any, log_q: Any) -> Any:
    """`p · (log p - log q)`, which is 0 where `p` is, also for a class of logit -∞."""
    ratio = ops.where(p > 0, log_p, 0.0) - ops.where(p > 0, log_q, 0.0)
    return p * ratio


def logits_from_probabilities(probabilities: Any, multi_label: bool = False) -> Any:
    """`log p`, or `log(p / (1 - p))` for independent labels, with `p` kept off 0 and 1.

    The softmax of `log(p) / T` is the softened distribution: the constant that `log p` misses
    cancels.
    """
    p = ops.clip(probabilities, _EPSILON, 1.0 - _EPSILON)
    return ops.log(p) - ops.log(1.0 - p) if multi_label else ops.log(p)


@keras.saving.register_keras_serializable(package="tfcompress")
class LogitsDistillation(DistillationLoss):
    """The student learns the teacher's softened class probabilities.

    `T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))`, the mean over samples (and positions, for
    segmentation and sequences); with `multi_label` the same per label with sigmoids. Its gradient
    is that of the cross-entropy with soft targets. It needs no labels: with
    `student_loss_weight=0` the student learns from the teacher alone.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531.

    Args:
        temperature: `T > 0`, also a variable that a `DistillationSchedule` may move. The default
            of 1 is safe for students of few bits, which a high temperature ruins: they cannot
            follow the teacher's small probabilities, and `T²` makes them dominate. (A student whose
            outputs have 4 bits themselves, 16 values, follows nothing well: leave its last layer
            at 8.) Float students often learn more at 2 to 10.
        multi_label: Whether classes are independent (sigmoids) or exclusive (softmax).
        teacher_from_logits: Whether the teacher gives logits (`True`) or probabilities (`False`).
            `None` looks at the last activation of a Keras model, and raises where that cannot be
            told.
        student_from_logits: The same for the student. Prefer a student that ends in logits: the
            gradient of a saturated probability vanishes.
        teacher_layer: Which output, if not all: see `DistillationLoss`.
        student_layer: The same for the student.
        name: Name in the logs.

    Raises:
        ValueError: If `temperature` is not positive; before training, if the shapes differ, if
            logits or probabilities cannot be told or contradict `multi_label`, or if there is
            one class only.

    Example:
        >>> teacher, student = (
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)
        ... )
        >>> loss = tfc.LogitsDistillation(temperature=4.0)
        >>> distiller = tfc.Distiller(teacher, student, loss, student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> history = distiller.fit(np.ones((8, 4), "float32"), verbose=0)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        multi_label: bool = False,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        teacher_layer: Any = None,
        student_layer: Any = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        self._initial_temperature = require_positive("temperature", temperature)
        self.multi_label = multi_label
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self._initial_temperature),
            trainable=False,
            dtype="float32",
            name="temperature",
        )
        # What `bind` found out, for each output.
        self._teacher_logits: list[bool] = []
        self._student_logits: list[bool] = []

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        super().bind(teacher, student)
        for info in student:
            if not self.multi_label and (len(info.shape) < 2 or info.shape[-1] == 1):
                raise ValueError(
                    f"{self.name}: expected at least two classes on the last axis of "
                    f"{info.source}: a softmax over one class is always 1. Received: shape "
                    f"{info.shape}. Pass `multi_label=True` for a sigmoid output, or use "
                    "`FeatureDistillation` for regression."
                )
        found = (
            self._from_logits(teacher, self.teacher_from_logits, "teacher_from_logits"),
            self._from_logits(student, self.student_from_logits, "student_from_logits"),
        )
        if self._teacher_logits and found != (self._teacher_logits, self._student_logits):
            self._raise_bound()
        self._teacher_logits, self._student_logits = found

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        teacher, student = keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs)
        if not self._teacher_logits:
            self.bind(
                [TensorInfo(tuple(t.shape), source="the teacher's output") for t in teacher],
                [TensorInfo(tuple(s.shape), source="the student's output") for s in student],
            )
        teacher = self._as_logits(teacher, self._teacher_logits)
        student = self._as_logits(student, self._student_logits)
        return super().compute_loss(teacher, student, sample_weight, **kwargs)

    def pair_loss(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        divergence = softened_binary_kl if self.multi_label else softened_kl
        return weighted_mean(divergence(teacher, student, self.temperature), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature": self._initial_temperature,
            "multi_label": self.multi_label,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
        }

    def _as_logits(self, outputs: list[Any], from_logits: list[bool]) -> list[Any]:
        floats = [ops.cast(x, "float32") for x in outputs]
        return [
            x if is_logits else logits_from_probabilities(x, self.multi_label)
            for x, is_logits in zip(floats, from_logits, strict=True)
        ]

    def _from_logits(
        self, infos: list[TensorInfo], stated: bool | None, argument: str
    ) -> list[bool]:
        return [self._is_logits(info, stated, argument) for info in infos]

    def _is_logits(self, info: TensorInfo, stated: bool | None, argument: str) -> bool:
        if stated is not None:
            return stated
        if info.activation is None:
            raise ValueError(
                f"{self.name}: expected to find the last activation of {info.source}, to know "
                "whether it gives logits or probabilities; it cannot be told. Received: "
                f"{argument}=None. Pass `{argument}=True` for logits, `False` for probabilities."
            )
        expected = "sigmoid" if self.multi_label else "softmax"
        if info.activation not in ("none", expected):
            raise ValueError(
                f"{self.name}: expected {info.source} to end in {expected} or in logits, since "
                f"`multi_label` is {self.multi_label}. Received: {info.activation}. Pass "
                f"`multi_label={not self.multi_label}`, or state `{argument}`."
            )
        return info.activation == "none"
