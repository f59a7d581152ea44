"""Samples and labels as arrays, of whatever `fit` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfcompress.model.batches import check_ends, input_batches
from tfcompress.model.labelled import Labels, split_labels


def sample_arrays(
    data: Any, num_inputs: int, output: str | None = None
) -> tuple[Any, np.ndarray | None]:
    """All samples as arrays, and their labels.

    Args:
        data: Samples with or without labels; of several outputs a dict of labels by output.
        num_inputs: Inputs of the model.
        output: The output whose labels are wanted.
    """
    x, given = split_labels(data, num_inputs)
    labels = None if given is None else _labels_of(given, output)
    if hasattr(x, "shape"):
        return np.asarray(x), labels
    if isinstance(x, Mapping):
        return {name: np.asarray(array) for name, array in x.items()}, labels
    if isinstance(x, list | tuple) and x and len(x) == num_inputs and hasattr(x[0], "shape"):
        return [np.asarray(array) for array in x], labels
    check_ends(x, "x")
    batches = list(input_batches(x, None))
    if not batches:
        raise ValueError("Expected data with at least one sample. Received: none")
    if isinstance(batches[0], Mapping):
        return {n: np.concatenate([np.asarray(b[n]) for b in batches]) for n in batches[0]}, labels
    if isinstance(batches[0], list | tuple):
        columns = zip(*batches, strict=True)
        return [np.concatenate([np.asarray(part) for part in column]) for column in columns], labels
    return np.concatenate([np.asarray(batch) for batch in batches]), labels


def _labels_of(labels: Labels, output: str | None) -> np.ndarray:
    if not isinstance(labels, dict):
        return labels
    name = next(iter(labels)) if output is None and len(labels) == 1 else output
    if name not in labels:
        raise ValueError(
            f"Expected the name of an output with labels: {', '.join(labels)}. Received: "
            f"{output=}. Name one of them"
        )
    return labels[name]
