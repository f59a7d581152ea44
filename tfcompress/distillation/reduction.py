"""How a distillation loss becomes one number, and how feature maps of two sizes are compared."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops


def weighted_mean(values: Any, sample_weight: Any = None) -> Any:
    """The mean of `values · sample_weight`, over all values, as Keras reduces its losses.

    Args:
        values: Tensor `(batch,)` or `(batch, positions…)`.
        sample_weight: `None`, or a tensor `(batch,)`, `(batch, 1)`, or one that has a weight per
            position, as in `Model.fit`. Weights of positions that `values` no longer has are
            averaged.

    Returns:
        A scalar: the sum over all values divided by their number (not by the sum of the weights,
        so that a weight of 2 counts twice).
    """
    if sample_weight is None:
        return ops.mean(values)
    weight = ops.cast(sample_weight, values.dtype)
    if len(weight.shape) > len(values.shape):
        axes = tuple(range(len(values.shape), len(weight.shape)))
        weight = ops.mean(weight, axis=axes)
    while len(weight.shape) < len(values.shape):
        weight = ops.expand_dims(weight, -1)
    return ops.mean(values * weight)


def per_sample(sample_weight: Any) -> Any:
    """Reduces weights of any rank to one per sample; `None` stays `None`."""
    if sample_weight is None:
        return None
    weight = ops.cast(sample_weight, "float32")
    if len(weight.shape) == 1:
        return weight
    return ops.mean(weight, axis=tuple(range(1, len(weight.shape))))


def weights_per_output(sample_weight: Any, num_outputs: int) -> list[Any]:
    """Spreads the `sample_weight` of a train step over the outputs a loss compares.

    One tensor serves every output. A structure with a weight for every output is taken in order.
    A loss that compares something else (one output, a feature) gets the average per sample.
    """
    flat = [] if sample_weight is None else list(keras.tree.flatten(sample_weight))
    flat = [w for w in flat if w is not None]
    if not flat:
        return [None] * num_outputs
    if len(flat) == 1:
        return flat * num_outputs
    if len(flat) == num_outputs:
        return flat
    mean = sum(per_sample(w) for w in flat) / len(flat)
    return [mean] * num_outputs


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


def average_pool_to(x: Any, size: tuple[int | None, ...]) -> Any:
    """Average pooling of a channels-last map to the spatial `size`; dividing sizes only."""
    pairs = list(zip(x.shape[1:-1], size, strict=True))
    if all(have == want or None in (have, want) for have, want in pairs):
        return x
    split: list[int] = []
    for have, want in pairs:
        want = have if want is None else want
        split += [want, have // want]
    x = ops.reshape(x, (-1, *split, x.shape[-1]))
    return ops.mean(x, axis=tuple(range(2, 2 + 2 * len(size), 2)))


def flatten_samples(x: Any) -> Any:
    """`(batch, …)` → `(batch, features)`."""
    if len(x.shape) == 2:
        return x
    known = [d for d in x.shape[1:] if d is not None]
    features = math.prod(known) if len(known) == len(x.shape) - 1 else -1
    return ops.reshape(x, (ops.shape(x)[0], features))
