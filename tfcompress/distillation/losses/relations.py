"""Losses on relations between the samples of a batch: features of any shapes can be compared."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.distillation.losses.base import DistillationLoss, TensorInfo
from tfcompress.distillation.losses.reduction import flatten_samples, per_sample

_EPSILON = 1e-12


def huber(difference: Any) -> Any:
    """`½ d²` where `|d| ≤ 1`, else `|d| - ½`."""
    size = ops.abs(difference)
    return ops.where(size <= 1.0, 0.5 * ops.square(difference), size - 0.5)


def similarity_matrix(features: Any, present: Any) -> Any:
    """`G = A Aᵀ` with rows of length 1, for `A` of shape `(batch, features)`.

    Args:
        features: Float tensor `(batch, features)`.
        present: `(batch,)` of 0 and 1: samples of weight 0 have no influence, also not through
            the lengths of the rows.
    """
    features = _scaled(features, present[:, None])
    gram = ops.matmul(features, ops.transpose(features)) * present[None, :]
    largest = ops.max(ops.abs(gram), axis=-1, keepdims=True)
    gram = ops.divide_no_nan(gram, ops.stop_gradient(largest))
    return gram * ops.rsqrt(ops.sum(ops.square(gram), axis=-1, keepdims=True) + _EPSILON)


def distance_matrix(features: Any) -> Any:
    """`‖xᵢ - xⱼ‖₂`, with a gradient of 0, not NaN, where two samples coincide."""
    square = ops.sum(ops.square(features), axis=-1)
    product = ops.matmul(features, ops.transpose(features))
    squared = ops.maximum(square[:, None] + square[None, :] - 2.0 * product, 0.0)
    apart = squared > _EPSILON
    return ops.where(apart, ops.sqrt(ops.where(apart, squared, 1.0)), 0.0)


def angle_tensor(features: Any) -> Any:
    """`cos ∠ xᵢ xⱼ xₖ` at `[j, i, k]`: the angle at sample `j`, shape `(batch, batch, batch)`."""
    edges = features[None, :, :] - features[:, None, :]
    norm = ops.sqrt(ops.sum(ops.square(edges), axis=-1, keepdims=True) + _EPSILON)
    unit = edges / norm
    return ops.matmul(unit, ops.transpose(unit, (0, 2, 1)))


class _Relational(DistillationLoss):
    """Compares batches of flattened features; only the batch size must agree."""

    def bind(self, teacher: list[TensorInfo], student: list[TensorInfo]) -> None:
        for info in (*teacher, *student):
            if len(info.shape) < 2:
                raise ValueError(
                    f"{self.name}: expected features of shape `(batch, …)`. Received: "
                    f"{info.source} of shape {info.shape}."
                )

    def pair_loss(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        teacher, student = flatten_samples(teacher), flatten_samples(student)
        weight = per_sample(sample_weight)  # Of a padded sample: by its share of positions.
        if weight is None:
            weight = ops.ones_like(student[:, 0])
        return self.relation_loss(teacher, student, weight)

    def relation_loss(self, teacher: Any, student: Any, weight: Any) -> Any:
        """The loss of flattened features `(batch, …)` with weights `(batch,)`: a scalar."""
        raise NotImplementedError(
            "Expected a loss that implements relation_loss(teacher, student, weight). Received: "
            f"{type(self).__name__}, which does not."
        )


@keras.saving.register_keras_serializable(package="tfcompress")
class SimilarityPreserving(_Relational):
    """Makes similarities between samples those of the teacher.

    `1/b² · ‖G_t - G_s‖²_F` with `G = A Aᵀ`, rows scaled to length 1, over the flattened features
    `A` of a batch of `b` samples. Sample weights multiply the pairs: `wᵢ wⱼ`.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", 2019,
    https://arxiv.org/abs/1907.09682 (there with a weight of 3000).

    Args:
        teacher_layer: What to compare: see `DistillationLoss`.
        student_layer: The same for the student.
        name: Name in the logs.
    """

    def relation_loss(self, teacher: Any, student: Any, weight: Any) -> Any:
        present = ops.cast(weight > 0, teacher.dtype)
        delta = similarity_matrix(teacher, present) - similarity_matrix(student, present)
        return ops.mean(weight[:, None] * weight[None, :] * ops.square(delta))


@keras.saving.register_keras_serializable(package="tfcompress")
class RelationalDistance(_Relational):
    """Makes distances between samples, relative to their mean, those of the teacher.

    `mean_{i≠j} huber(‖tᵢ - tⱼ‖ / μ_t - ‖sᵢ - sⱼ‖ / μ_s)` with the mean distance `μ` of the batch.
    Sample weights multiply the pairs: `wᵢ wⱼ`.

    Park et al., "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068
    (RKD-D, there with a weight of 25).

    Args:
        teacher_layer: What to compare: see `DistillationLoss`.
        student_layer: The same for the student.
        name: Name in the logs.
    """

    def relation_loss(self, teacher: Any, student: Any, weight: Any) -> Any:
        present = ops.cast(weight > 0, teacher.dtype)
        teacher, student = (_centred(x, present[:, None]) for x in (teacher, student))
        pairs = present[:, None] * present[None, :] * _off_diagonal(teacher)
        delta = _relative_distances(teacher, pairs) - _relative_distances(student, pairs)
        weighted = weight[:, None] * weight[None, :] * _off_diagonal(teacher) * huber(delta)
        return ops.divide_no_nan(ops.sum(weighted), ops.sum(_off_diagonal(teacher)))


@keras.saving.register_keras_serializable(package="tfcompress")
class RelationalAngle(_Relational):
    """Makes angles between triples of samples those of the teacher.

    `mean_{i,j,k distinct} huber(cos ∠ tᵢ tⱼ tₖ - cos ∠ sᵢ sⱼ sₖ)`. It takes `O(b³)` memory for a
    batch of `b`: compare a small embedding. Sample weights multiply the triples: `wᵢ wⱼ wₖ`.

    Park et al., "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068
    (RKD-A, there with a weight of 50).

    Args:
        teacher_layer: What to compare: see `DistillationLoss`.
        student_layer: The same for the student.
        name: Name in the logs.
    """

    def relation_loss(self, teacher: Any, student: Any, weight: Any) -> Any:
        present = ops.cast(weight > 0, teacher.dtype)
        teacher, student = (_centred(x, present[:, None]) for x in (teacher, student))
        off = _off_diagonal(teacher)
        distinct = off[:, :, None] * off[:, None, :] * off[None, :, :]
        triples = weight[:, None, None] * weight[None, :, None] * weight[None, None, :]
        delta = angle_tensor(teacher) - angle_tensor(student)
        return ops.divide_no_nan(ops.sum(triples * distinct * huber(delta)), ops.sum(distinct))


def _scaled(features: Any, present: Any) -> Any:
    """Features whose largest value is 1.

    The relations here do not depend on the scale, nor do their gradients, but their small
    constants do.
    """
    largest = ops.max(ops.abs(features * present))
    return ops.divide_no_nan(features, ops.stop_gradient(largest))


def _centred(features: Any, present: Any) -> Any:
    """The same around 0, for relations that do not depend on the place either."""
    count = ops.sum(present)
    mean = ops.divide_no_nan(ops.sum(features * present, axis=0, keepdims=True), count)
    return _scaled(features - ops.stop_gradient(mean), present)


def _off_diagonal(features: Any) -> Any:
    index = ops.arange(ops.shape(features)[0])
    return ops.cast(index[:, None] != index[None, :], features.dtype)


def _relative_distances(features: Any, pairs: Any) -> Any:
    distances = distance_matrix(features)
    mean = ops.divide_no_nan(ops.sum(distances * pairs), ops.sum(pairs))
    return ops.divide_no_nan(distances, mean)
