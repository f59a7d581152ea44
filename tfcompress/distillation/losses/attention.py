"""Attention transfer (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.distillation.losses.base import DistillationLoss, TensorInfo, require_positive
from tfcompress.distillation.losses.reduction import (
    flatten_samples,
    pool_to_common,
    pooled_size,
    weighted_mean,
)

_EPSILON = 1e-12


def attention_map(features: Any, p: float = 2.0) -> Any:
    """The attention map of a layer: `Q / ‖Q‖₂` with `Q = vec(mean_c |A_c|^p)`.

    Args:
        features: Channels-last tensor `(batch, positions…, channels)`.
        p: Power; higher values weigh the strongest activations more.

    Returns:
        Tensor `(batch, positions)`, each row of length 1.
    """
    # The map does not depend on the features' scale, which is taken out before `_EPSILON` comes
    # in and before small powers vanish; nor does its gradient.
    axes = tuple(range(1, len(features.shape)))
    largest = ops.max(ops.abs(features), axis=axes, keepdims=True)
    features = ops.divide_no_nan(features, ops.stop_gradient(largest))
    magnitude = ops.square(features) if p == 2.0 else ops.power(ops.abs(features), p)
    flat = flatten_samples(ops.mean(magnitude, axis=-1))
    return flat * ops.rsqrt(ops.sum(ops.square(flat), axis=-1, keepdims=True) + _EPSILON)


@keras.saving.register_keras_serializable(package="tfcompress")
class AttentionTransfer(DistillationLoss):
    """Makes the student's attention maps those of the teacher; numbers of channels may differ.

    `‖Q_t / ‖Q_t‖₂ - Q_s / ‖Q_s‖₂‖²` with `Q = vec(Σ_c |A_c|^p)`, the mean over samples. Maps of
    different height and width are averaged down to the smaller one.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017,
    https://arxiv.org/abs/1612.03928. Their weight `β / 2` with `β = 10³` divides by the number of
    positions: for an 8×8 map that is a weight of about 8 here.

    Args:
        teacher_layer: A layer of rank 3 or more, channels last: see `DistillationLoss`.
        student_layer: The same for the student.
        p: Power of the activations, at least 1.
        name: Name in the logs.

    Raises:
        ValueError: If `p < 1`; before training, if the maps cannot be compared.
    """

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        *,
        p: float = 2.0,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        self.p = require_positive("p", p)
        if self.p < 1:
            raise ValueError(f"Expected `p` to be at least 1. Received: p={p!r}")

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        for t, s in zip(teacher, student, strict=True):
            if len(t.shape) < 3 or pooled_size(t.shape, s.shape) is None:
                raise ValueError(
                    f"{self.name}: expected feature maps `(batch, positions…, channels)` of sizes "
                    f"that divide each other. Received: {t.source} of shape {t.shape} and "
                    f"{s.source} of shape {s.shape}. Choose other layers."
                )

    def pair_loss(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        t, s = (attention_map(x, self.p) for x in pool_to_common(teacher, student))
        return weighted_mean(ops.sum(ops.square(t - s), axis=-1), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "p": self.p}
