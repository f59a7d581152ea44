"""Distillation of features and of regression outputs, through a learned adapter where needed."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.distillation.losses.base import DistillationLoss, TensorInfo, shapes_match
from tfcompress.distillation.losses.reduction import (
    at_least_2d,
    pool_to_common,
    pooled_size,
    weighted_mean,
)


def elementwise_loss(loss: Any, teacher: Any, student: Any, sample_weight: Any) -> Any:
    """Applies a Keras loss (function or object) to features and takes the weighted mean.

    Of objects the unreduced values are taken (`Loss.call`), so that the weights of samples
    mean the same for every loss.
    """
    call = loss.call if isinstance(loss, keras.losses.Loss) else loss
    return weighted_mean(call(at_least_2d(teacher), at_least_2d(student)), sample_weight)


@keras.saving.register_keras_serializable(package="tfcompress")
class FeatureDistillation(DistillationLoss):
    """The student's features, through an adapter, learn the teacher's: FitNets' hints.

    `mean (r(v_s) - v_t)²` with the student's feature `v_s`, the teacher's `v_t`, and a learned
    linear map of the channels `r` (a 1×1 convolution) where their number differs. Maps of
    different height and width are averaged down to the smaller one. Without layer names it
    compares the outputs, which is distillation for regression, and their shapes must agree: a map
    between whole outputs would learn in the student's place.

    Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550
    (there: half the sum of squares, and hints as a stage before distillation; here they may be
    one term among several).

    Args:
        teacher_layer: The hint layer: see `DistillationLoss`.
        student_layer: The guided layer.
        loss: Name, function or object of a Keras loss, called as `loss(teacher, student)`.
        adapter: `"auto"` learns a linear map where the channels of a named layer or output differ;
            `None` demands equal shapes; or a Keras layer to put on the student's feature. It is
            trained with the student (in training mode, as its layers are) and saved with the
            distiller, and no part of the student. What it adds as a loss, such as a regularizer,
            is in the total.
        name: Name in the logs.

    Raises:
        ValueError: Before training, if the shapes cannot be brought together, or if the loss
            object with its learned adapter is already used by another `Distiller`.

    Example:

    ```python
    tfc.FeatureDistillation("conv4", "conv2")
    ```
    """

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        loss: Any = "mse",
        *,
        adapter: str | keras.Layer | None = "auto",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        if adapter not in ("auto", None) and not isinstance(adapter, keras.Layer):
            raise ValueError(
                'Expected `adapter` to be "auto", None or a Keras layer. '
                f"Received: adapter={adapter!r}"
            )
        self.loss = keras.losses.get(loss)
        if self.loss is None:
            raise ValueError(f"Expected `loss` to be a Keras loss. Received: loss={loss!r}")
        self.adapter = adapter
        self.adapters: list[keras.Layer | None] = []

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        if any(layer is not None for layer in self.adapters):
            self._raise_bound()
        if isinstance(self.adapter, keras.Layer) and len(student) != 1:
            raise ValueError(
                f"{self.name}: expected one tensor to put the given `adapter` on. Received: "
                f"{len(student)} outputs. Name one with `student_layer` and `teacher_layer`."
            )
        adapters = []
        for t, s in zip(teacher, student, strict=True):
            size = pooled_size(t.shape, s.shape)
            layer = self._adapter(t, s)
            shape = tuple(s.shape)
            if layer is not None:
                if not layer.built:  # A loaded one is, and so is one with weights to begin from.
                    layer.build(shape)
                shape = tuple(layer.compute_output_shape(shape))
                size = pooled_size(t.shape, shape)
            if size is None or (self.adapter is None and not shapes_match(t.shape, shape)):
                self._raise_shapes(t, s)
            if None not in (t.shape[-1], shape[-1]) and t.shape[-1] != shape[-1]:
                self._raise_shapes(t, s)
            adapters.append(layer)
        if self.adapters and any(layer is not None for layer in adapters):
            self._raise_bound()
        self.adapters = adapters

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        teacher, student = keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs)
        if self.adapters:
            training = kwargs.get("training")
            adapted = zip(student, self.adapters, strict=True)
            student = [s if layer is None else layer(s, training=training) for s, layer in adapted]
        return super().compute_loss(teacher, student, sample_weight, **kwargs)

    def pair_loss(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        return elementwise_loss(self.loss, *pool_to_common(teacher, student), sample_weight)

    def get_config(self) -> dict[str, Any]:
        adapter = self.adapter
        if isinstance(adapter, keras.Layer):
            adapter = keras.saving.serialize_keras_object(adapter)
        return {
            **super().get_config(),
            "loss": keras.losses.serialize(self.loss),
            "adapter": adapter,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureDistillation:
        config = dict(config)
        config["loss"] = keras.losses.deserialize(config["loss"])
        if isinstance(config["adapter"], dict):
            config["adapter"] = keras.saving.deserialize_keras_object(config["adapter"])
        return cls(**config)

    def _adapter(self, teacher: TensorInfo, student: TensorInfo) -> keras.Layer | None:
        if isinstance(self.adapter, keras.Layer):
            return self.adapter
        channels = teacher.shape[-1]
        if self.teacher_layer is None and self.student_layer is None:
            return None
        if self.adapter is None or channels is None or channels == student.shape[-1]:
            return None
        if student.shape[-1] is None:
            self._raise_shapes(teacher, student)
        # On the last axis, a Dense layer is a 1×1 convolution for maps of any rank.
        return keras.layers.Dense(channels, dtype="float32", name="adapter")

    def _raise_shapes(self, teacher: TensorInfo, student: TensorInfo) -> None:
        raise ValueError(
            f"{self.name}: expected {teacher.source} and {student.source} to have shapes that "
            "an average pooling and a linear map of the channels bring together. Received: "
            f"{teacher.shape} and {student.shape} with adapter={self.adapter!r}. Choose other "
            "layers by name (whole outputs get no learned map), or pass a layer that does it as "
            "`adapter`."
        )
