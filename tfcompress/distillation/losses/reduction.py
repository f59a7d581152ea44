"""How a distillation loss becomes one number, and how feature maps of two sizes are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def weighted_mean(values: Any, sample_weight: Any = None) -> Any:
    """The mean of `values · sample_weight`, over all values, as Keras reduces its losses.

    Args:
        values: Tensor `(batch,)` or `(batch, positions…)`.
        sample_weight: `None`, or a tensor `(batch,)`, `(batch, 1)`, or one that has a weight per
            position, as in `Model.fit`. Weights of more positions than `values` has are averaged:
            over the positions of the model's output that fall into one, or over the sample where
            the sizes do not divide each other.

    Returns:
        A scalar: the sum over all values divided by their number (not by the sum of the weights,
        so that a weight of 2 counts twice).
    """
    if sample_weight is None:
        return ops.mean(values)
    return ops.mean(values * _weight_for(values, ops.cast(sample_weight, values.dtype)))


def _weight_for(values: Any, weight: Any) -> Any:
    """`weight` in a shape that broadcasts against `values`."""
    if len(weight.shape) > len(values.shape):
        axes = tuple(range(len(values.shape), len(weight.shape)))
        weight = ops.mean(weight, axis=axes)
    while len(weight.shape) < len(values.shape):
        weight = ops.expand_dims(weight, -1)
    # One weight for all positions of an axis stays one.
    size = [1 if w == 1 else v for w, v in zip(weight.shape[1:], values.shape[1:], strict=True)]
    pairs = list(zip(weight.shape[1:], size, strict=True))
    if any(None not in pair and pair[0] % pair[1] for pair in pairs):
        shape = (-1, *[1] * (len(values.shape) - 1))
        return ops.reshape(per_sample(weight), shape)
    shape = ops.shape(values)[1:]
    size = [s if s is not None else shape[i] for i, s in enumerate(size)]
    return average_pool_to(weight[..., None], tuple(size))[..., 0]


def per_sample(sample_weight: Any) -> Any:
    """Reduces weights of any rank to one per sample; `None` stays `None`."""
    if sample_weight is None:
        return None
    weight = ops.cast(sample_weight, "float32")
    if len(weight.shape) == 1:
        return weight
    return ops.mean(weight, axis=tuple(range(1, len(weight.shape))))


def weights_per_output(sample_weight: Any, num_outputs: int) -> list[Any]:
    """Spreads the weights that a loss was given over the outputs it compares.

    One tensor serves every output. A structure with a weight for every output is taken in order,
    `None` where one has none. Any other number of weights is averaged per sample.
    """
    flat = keras.tree.flatten(sample_weight)
    if len(flat) == 1:
        return flat * num_outputs
    return flat if len(flat) == num_outputs else [mean_per_sample(flat)] * num_outputs


def mean_per_sample(weights: Sequence[Any]) -> Any:
    """The average of several outputs' weights, one per sample; one without weights counts 1."""
    if all(weight is weights[0] for weight in weights):
        return weights[0]
    return sum(1.0 if weight is None else per_sample(weight) for weight in weights) / len(weights)


def at_least_2d(x: Any) -> Any:
    """`(batch,)` → `(batch, 1)`, so that a loss over the last axis is one over the features."""
    return ops.expand_dims(x, -1) if len(x.shape) == 1 else x


def pooled_size(teacher: tuple, student: tuple) -> tuple[int | None, ...] | None:
    """The common spatial size of two channels-last shapes: the smaller one of each axis.

    Returns:
        The spatial size, or `None` where the shapes cannot be brought together by average pooling
        (different ranks, or sizes that do not divide each other).
    """
    if len(teacher) != len(student):
        return None
    sizes = []
    for a, b in zip(teacher[1:-1], student[1:-1], strict=True):
        if a is None or b is None or a == b:
            sizes.append(a if b is None else b)
        elif max(a, b) % min(a, b) == 0:
            sizes.append(min(a, b))
        else:
            return None
    return tuple(sizes)


def pool_to_common(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Averages two channels-last maps down to the smaller size of each axis.

    Sizes that the graph does not know are compared when it runs.

    Raises:
        tf.errors.InvalidArgumentError: When it runs, if sizes do not divide each other.
    """
    size = []
    shapes = (ops.shape(teacher), ops.shape(student))
    for axis in range(1, len(teacher.shape) - 1):
        a, b = (shape[axis] for shape in shapes)
        known = isinstance(a, int) and isinstance(b, int)
        size.append(min(a, b) if known else ops.minimum(a, b))
    return average_pool_to(teacher, tuple(size)), average_pool_to(student, tuple(size))


def average_pool_to(x: Any, size: tuple[Any, ...]) -> Any:
    """Average pooling of a channels-last map to the spatial `size`; dividing sizes only."""
    shape = ops.shape(x)
    pairs = list(zip(shape[1:-1], size, strict=True))
    if all(isinstance(a, int) and isinstance(b, int) and a == b for a, b in pairs):
        return x
    split: list[Any] = []
    for have, want in pairs:
        split += [want, have // want]
    x = ops.reshape(x, (-1, *split, shape[-1]))
    return ops.mean(x, axis=tuple(range(2, 2 + 2 * len(size), 2)))


def flatten_samples(x: Any) -> Any:
    """`(batch, …)` → `(batch, features)`."""
    if len(x.shape) == 2:
        return x
    known = [d for d in x.shape[1:] if d is not None]
    features = math.prod(known) if len(known) == len(x.shape) - 1 else -1
    return ops.reshape(x, (ops.shape(x)[0], features))
