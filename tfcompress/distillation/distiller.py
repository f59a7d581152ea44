"""`Distiller`: the Keras model that trains a student with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.distillation.losses.foreign import as_loss
from tfcompress.distillation.pairing import Pairing
from tfcompress.distillation.teachers.sources import Features, split_inputs
from tfcompress.distillation.teachers.tflite import as_callable
from tfcompress.distillation.validation import (
    check_labels,
    check_losses_and_weights,
    check_student,
    check_teacher,
    unique_names,
)
from tfcompress.distillation.weights import gate
from tfcompress.model.graph import is_functional, output_structure
from tfcompress.model.kernels import compressible_kernels
from tfcompress.model.training import PrebuiltTrainingVariables, make_training_variables


@keras.saving.register_keras_serializable(package="tfcompress")
class Distiller(PrebuiltTrainingVariables, keras.Model):
    """Trains a student on its own loss and on losses against a teacher.

    `total = student_loss_weight · (the compiled loss) + Σ wᵢ · (distillation loss i)`

    plus, as in any Keras model, what the student's layers add themselves (regularizers,
    `add_loss`), whose strength is their own. The logs hold the total as `loss`, the compiled loss
    as `student_loss` and each distillation loss by its name, before their weights.

    It is compiled, fitted, evaluated and saved like the student, and `predict` is the student's.
    In a train step the student runs once, features included; the teacher runs once, in inference
    mode, and is not trained. `evaluate` computes the same total with both in inference mode.
    `sample_weight` and `class_weight` weigh the distillation losses too: a loss on one output has
    the weights of that output, a loss on features their average. So does Keras' padding mask.
    Callbacks that compress act on the student. `distiller.student` is an ordinary model: export it.

    A teacher that is a Python function is saved by its name: load with `custom_objects` or
    register it with Keras. A lambda cannot be loaded: save `distiller.student`. A student without
    a graph that has not seen data yet is built by `distiller(x[:1])`; do that before building the
    optimizer, loading weights or `BackupAndRestore`.

    Args:
        teacher: A Keras model (it is not changed, nor frozen for others), a callable of the
            inputs, the path of a `.tflite` file, a `TeacherEnsemble` or a `TeacherCache`.
        student: A Keras model, pruned, quantized or plain.
        losses: A distillation loss or a list of them; also those of `keras.distillation`.
        loss_weights: A weight for each loss. Defaults to 1 each.
        student_loss_weight: Weight of the compiled loss, at least 0. Defaults to 1. With 0 the
            data needs no labels, and a compiled loss that is not a number does no harm. With a
            `TeacherCache`, plain validation data then has no `val_loss`: give it pairs.
        name: Name of the model.

    Attributes:
        student: The student.
        teacher: The teacher.
        distillation_losses: The losses, in order.
        loss_weights: Their weights: scalar variables, for schedules.
        student_loss_weight: A scalar variable too.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If losses and weights differ in number, a layer's name is unknown (near names
            are suggested), or outputs or features do not match. Models without a graph are
            checked at the first batch, before any update.

    Example:
        >>> teacher, student = (
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)
        ... )
        >>> distiller = tfc.Distiller(teacher, student, [tfc.LogitsDistillation(temperature=2.0)])
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, int)
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['logits_distillation', 'loss', 'student_loss']

    A quantized copy learns from its own float model:

    ```python
    quantized = tfc.quantize(model, config, calibration_data=x[:256])
    distiller = tfc.Distiller(model, quantized, tfc.LogitsDistillation(), student_loss_weight=0.0)
    ```

    A chain of teaching assistants (Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393):

    ```python
    for student in (assistant, small):
        distiller = tfc.Distiller(teacher, student, tfc.LogitsDistillation(temperature=4.0))
        distiller.compile("adam", loss)
        distiller.fit(x, y)
        teacher = student
    ```
    """

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        losses: Any,
        *,
        loss_weights: Sequence[float] | None = None,
        student_loss_weight: float = 1.0,
        name: str = "distiller",
    ):
        check_student(student)
        # The student's policy decides on loss scaling. Inputs go to both models as they are.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        losses = losses if isinstance(losses, (list, tuple)) else [losses]
        weights = check_losses_and_weights(losses, loss_weights, student_loss_weight)
        self.student = student
        self.distillation_losses = [as_loss(loss) for loss in losses]
        self._initial_weights = [*weights, float(student_loss_weight)]
        self.loss_weights = [
            self._scalar(weight, f"loss_weight_{i}") for i, weight in enumerate(weights)
        ]
        self.student_loss_weight = self._scalar(student_loss_weight, "student_loss_weight")
        self._student_tracker = keras.metrics.Mean(name="student_loss")
        names = unique_names([loss.name for loss in self.distillation_losses])
        self._loss_trackers = [keras.metrics.Mean(name=name) for name in names]
        self._compared = False
        teacher = check_teacher(as_callable(teacher))
        self._pairing = Pairing(teacher, student, self.distillation_losses)
        self.supports_jit = self._pairing.teacher.supports_jit
        self.built = student.built

    @property
    def teacher(self) -> Any:
        """The teacher. Not tracked, so that it has no part in weights, layers and training."""
        return self._pairing.teacher.runner

    @property
    def output_names(self) -> list[str]:
        """The student's, for losses and metrics given by output name."""
        return self.student.output_names

    @property
    def losses(self) -> list[Any]:
        """The losses that layers add; those of adapters only after a step that ran them."""
        return super().losses if self._compared else self.student.losses

    def compressible_kernels(self) -> tuple:
        """The kernels that pruning and other techniques may touch: the student's."""
        return compressible_kernels(self.student)

    def build(self, input_shape: Any) -> None:
        """Creates the variables of the losses, for a student without a graph.

        Args:
            input_shape: Of the student's inputs: a shape or a structure of shapes.
        """
        self._pairing.try_to_bind(split_inputs(input_shape)[0])

    def make_training_variables(self, data: Any) -> None:
        """As `PrebuiltTrainingVariables`. A loss that is not bound yet may still create some."""
        if self._pairing.bound and is_functional(self.student):
            make_training_variables(self, output_structure(self.student), data)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(split_inputs(inputs)[0], training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._run_teacher(x, training=True)
        with tf.GradientTape() as tape:  # Without the teacher.
            student = self._pairing.run_student(x, training=True)
            parts = self._parts(y, sample_weight, teacher, student, training=True)
            loss = self.optimizer.scale_loss(parts[0])
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self._logs(x, y, sample_weight, student[None], parts)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._run_teacher(x, training=False)
        student = self._pairing.run_student(x, training=False)
        parts = self._parts(y, sample_weight, teacher, student)
        return self._logs(x, y, sample_weight, student[None], parts)

    # Keras takes the step of `fit` out of AutoGraph too: converting takes longer than tracing.
    @tf.autograph.experimental.do_not_convert
    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The total loss, for custom loops.

        The teacher runs on `x`; the student too, unless `y_pred` is all that the losses compare.
        """
        teacher = self._run_teacher(x, training=training)
        if y_pred is None or self._pairing.student.keys:
            student = self._pairing.run_student(x, training=training)
        else:
            student = {None: y_pred}
        return self._parts(y, sample_weight, teacher, student, training)[0]

    def get_config(self) -> dict[str, Any]:
        save = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "teacher": save(self.teacher),
            "student": save(self.student),
            "losses": [save(loss) for loss in self.distillation_losses],
            "loss_weights": self._initial_weights[:-1],
            "student_loss_weight": self._initial_weights[-1],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Distiller:
        config = dict(config)
        restore = keras.saving.deserialize_keras_object
        config["losses"] = [restore(loss) for loss in config["losses"]]
        return cls(restore(config.pop("teacher")), restore(config.pop("student")), **config)

    def _run_teacher(self, x: Any, training: bool) -> Features:
        features = self._pairing.run_teacher(x)
        if training and not features:
            raise ValueError(
                "Expected inputs that carry the cached teacher's outputs. Received: plain inputs. "
                "Fit on `cache.pair(x)` or on `cache.attach(dataset)`."
            )
        return features

    def _parts(
        self,
        y: Any,
        sample_weight: Any,
        teacher: Features,
        student: Features,
        training: bool = False,
    ) -> list[Any]:
        """The total, the compiled loss, each distillation loss (none without a teacher)."""
        # First, since an adapter may add a loss of its own.
        terms = self._terms(sample_weight, teacher, student, training) if teacher else []
        self._compared = bool(terms)
        weight = ops.convert_to_tensor(self.student_loss_weight)
        counts = weight > 0
        own, added = self._student_loss(y, gate(student[None], counts), sample_weight)
        # `own` holds `added` too: w · (compiled + added) + (1 - w) · added, without cancellation.
        total = tf.where(counts, weight * own + (1.0 - weight) * added, added)
        for weight, term in zip(self.loss_weights, terms, strict=False):
            total = total + weight * term
        return [total, own - added, *terms]

    def _terms(
        self, sample_weight: Any, teacher: Features, student: Features, training: bool
    ) -> list[Any]:
        known, optimizer = len(self.trainable_variables), getattr(self, "optimizer", None)
        terms = self._pairing.terms(teacher, student, sample_weight, training)
        if len(self.trainable_variables) > known and optimizer is not None and optimizer.built:
            raise ValueError(
                "Expected the variables of the losses to exist before the optimizer is built. "
                "Received: a student that was not built. Call `distiller(x[:1])` first."
            )
        self.built = True
        return [term / _num_replicas() for term in terms]

    def _student_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
        """The compiled loss plus what layers add, and the latter alone."""
        added = [ops.sum(ops.cast(loss, "float32")) for loss in self.losses]
        added = sum(added) / _num_replicas() if added else ops.zeros(())
        weight = self._initial_weights[-1]
        if weight == 0 and (self.loss is None or y is None):
            return added, added
        check_labels(self.loss, y, weight)
        own = super().compute_loss(None, y, y_pred, sample_weight)
        return ops.cast(own, "float32"), added

    def _logs(
        self, x: Any, y: Any, sample_weight: Any, y_pred: Any, parts: list[Any]
    ) -> dict[str, Any]:
        size = ops.shape(keras.tree.flatten(x)[0])[0]
        own = [self._student_tracker, *self._loss_trackers]
        total = next(metric for metric in self.metrics if metric.name == "loss")
        for metric, value in zip([total, *own], parts, strict=False):
            # Each replica's part of the sum counts as a whole in the mean over the replicas. A
            # replica without samples has a loss of 0 / 0, and no part in it.
            value = tf.where(size > 0, value * _num_replicas(), 0.0)
            metric.update_state(value, sample_weight=size)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        missing = {metric.name for metric in own[len(parts) - 1 :]}
        if len(parts) == 2 and self._initial_weights[-1] == 0:
            missing.add(total.name)  # None of its terms is known.
        return {name: value for name, value in logs.items() if name not in missing}

    def _scalar(self, value: float, name: str) -> keras.Variable:
        initializer = keras.initializers.Constant(float(value))
        return self.add_weight(
            shape=(), initializer=initializer, trainable=False, dtype="float32", name=name
        )


def _num_replicas() -> int:
    """Keras sums the gradients of replicas, so that each one's loss is divided by their number."""
    return tf.distribute.get_strategy().num_replicas_in_sync
