"""What a search was given, checked before any work."""

from __future__ import annotations

import math
import os
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.analysis.measuring.metrics import Metric, check_labels
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.distillation.checksum import checksum_of_arrays
from tfcompress.model.keras_private import compile_arguments

# Seeds that NumPy takes.
_MOST_SEEDS = 2**32


def check_max_drop(max_drop: Any) -> None:
    """Refuses what is no number from 0 on."""
    if not _is_number(max_drop) or not 0 <= max_drop < math.inf:
        raise ValueError(f"Expected `max_drop` to be a number >= 0. Received: {max_drop!r}")


def check_arguments(
    model: Any,
    max_drop: Any,
    confidence: Any,
    learning_rate: Any,
    path: Any,
    **whole: Any,
) -> None:
    """Refuses numbers that cannot be what they stand for.

    Args:
        model: Of `search`, as all others.
        max_drop: `None`, or a number from 0 on.
        confidence: In (0.5, 1).
        learning_rate: Positive.
        path: `None`, or a path.
        whole: Whole numbers from 1 on, but for `epochs` and `seed`, which may be 0.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a Keras model. Received: {model!r}.")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"Expected `path` to be a folder, or None. Received: {path!r}.")
    if max_drop is not None:
        check_max_drop(max_drop)
    if not _is_number(confidence) or not 0.5 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0.5, 1). Received: {confidence!r}")
    if not _is_number(learning_rate) or not 0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be a positive number. Received: {learning_rate!r}")
    for name, value in whole.items():
        least = 0 if name in ("epochs", "seed") else 1
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_whole or value < least:
            raise ValueError(
                f"`{name}` must be a whole number, {least} or more. Received: {value!r}"
            )
    if whole.get("seed", 0) >= _MOST_SEEDS:
        raise ValueError(f"`seed` must be below 2**32. Received: {whole['seed']!r}")


def check_data(held: Samples, scored: Samples, metric: Metric, reference: Any) -> None:
    """Refuses data that the metric or a training could not read.

    Args:
        held: Validation samples.
        scored: The first training samples.
        metric: What is held.
        reference: The float model's outputs of the validation samples.
    """
    check_labels(held.labels, metric)
    if scored.labels is None:
        raise ValueError(
            "Expected `train` with labels, which candidates are trained with: data as (x, y), or "
            "batches of them. Received: inputs alone."
        )
    for name, samples in (("validation", held), ("train", scored)):
        check_finite(samples, name)
    metric.value(held.labels, reference)


def check_finite(samples: Samples, name: str) -> None:
    """Refuses NaN and infinite inputs."""
    for array in tree.flatten(samples.inputs):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"Expected finite inputs in `{name}`. Received: NaN or infinite values."
            )


def check_other_data(validation: Any, other: Any, name: str) -> None:
    """Refuses a validation set that is the data something else was found on."""
    pairs = [(validation, other)]
    if isinstance(validation, tuple) and validation:
        arrays = other if isinstance(other, tuple) else (other,)
        pairs += [(tree.flatten(validation[0])[:1], tree.flatten(arrays[0])[:1])]
    for first, second in pairs:
        same = first is second or (
            isinstance(first, list) and len(first) == len(second) == 1 and first[0] is second[0]
        )
        if same:
            raise ValueError(
                f"Expected `validation` to be other samples than `{name}`, so that the drop is "
                "not measured on what decided. Received: the same object."
            )


def check_other_samples(held: Samples, other: Samples, name: str) -> None:
    """Likewise by content: the same samples in the same order, such as two equal slices."""
    count = min(len(held), len(other))
    pairs = zip(tree.flatten(held.inputs), tree.flatten(other.inputs), strict=True)
    if all(np.array_equal(a[:count], b[:count]) for a, b in pairs):
        raise ValueError(
            f"Expected `validation` to be other samples than `{name}`, so that the drop is not "
            f"measured on what decided. Received: the same first {count} samples."
        )


def checksum_of_training(train: Any, scored: Samples) -> str:
    """SHA-256 of training data: of arrays all of them, of batches the first samples."""
    leaves = tree.flatten(train) if isinstance(train, tuple) else []
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        return scored.checksum
    return checksum_of_arrays({f"{i:03d}": np.asarray(leaf) for i, leaf in enumerate(leaves)})


def compiled_loss(model: keras.Model) -> Any:
    """The loss that a model was compiled with, and the weights of its outputs."""
    given = compile_arguments(model)
    return (given["loss"], given["loss_weights"]) if given else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
