"""The sample weights of each distillation loss: those of the outputs that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.distillation.losses.reduction import mean_per_sample
from tfcompress.distillation.teachers.sources import Features, Source
from tfcompress.model.keras_private import padding_mask, set_padding_mask


def weights_of(source: Source, key: Any, features: Features, sample_weight: Any) -> Any:
    """The weights of the student's tensors under `key`.

    An output has its own weights; a feature has the average of all outputs' weights, where an
    output without weights counts 1. Keras' padding mask of a tensor is one more weight: as in
    Keras' own losses, the mean is then over the positions that are there.

    Args:
        source: The student.
        key: What a loss compares: `None` for all outputs, or the key of one feature.
        features: The student's tensors, by key.
        sample_weight: `None`, a tensor for all outputs, or a structure like the outputs'.

    Returns:
        `None`, a tensor, or a list with one entry (or `None`) for each of several tensors.
    """
    paths, outputs = zip(*keras.tree.flatten_with_path(features[None]), strict=True)
    own = _by_output(sample_weight, paths, getattr(source.runner, "output_names", ()))
    index = source.output_index(key)
    weights = []
    for tensor in keras.tree.flatten(features[key]):
        same = [w for w, output in zip(own, outputs, strict=True) if output is tensor]
        if not same and index is not None:
            same = [own[index]]
        weights.append(_masked(same[0] if same else mean_per_sample(own), tensor))
    if all(weight is None for weight in weights):
        return None
    return weights[0] if len(weights) == 1 else weights


def gate(outputs: Any, is_open: Any) -> Any:
    """The same outputs, but no gradient, not even NaN, comes back through a closed gate.

    Args:
        outputs: Structure of tensors.
        is_open: Boolean scalar tensor.
    """

    def gated(tensor: Any) -> Any:
        # `where` also selects the gradient; a product would give 0 · NaN = NaN.
        result = tf.where(is_open, tensor, ops.stop_gradient(tensor))
        set_padding_mask(result, padding_mask(tensor))
        return result

    return keras.tree.map_structure(gated, outputs)


def _by_output(sample_weight: Any, paths: Sequence[tuple], names: Sequence[str]) -> list[Any]:
    """One entry per output: found by its path or one above it, by its name, or by its place."""
    given = dict(keras.tree.flatten_with_path(sample_weight))
    known: Sequence[str | None] = names if len(names) == len(paths) else [None] * len(paths)
    found = []
    for path, name in zip(paths, known, strict=True):
        ways = [path[:i] for i in range(len(path), -1, -1)] + [(name,)]
        found.append(next((way for way in ways if way in given), None))
    if not any(way is not None for way in found) and len(given) == len(paths):
        return list(given.values())
    return [given.get(way) for way in found]


def _masked(weight: Any, tensor: Any) -> Any:
    mask = padding_mask(tensor)
    if mask is None:
        return weight
    mask = ops.cast(mask, "float32")
    mask = mask * ops.divide_no_nan(ops.cast(ops.size(mask), "float32"), ops.sum(mask))
    if weight is None:
        return mask
    weight = ops.cast(weight, "float32")
    while len(weight.shape) < len(mask.shape):
        weight = ops.expand_dims(weight, -1)
    while len(mask.shape) < len(weight.shape):
        mask = ops.expand_dims(mask, -1)
    return weight * mask
