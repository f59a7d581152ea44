"""Data with labels: inputs and labels apart."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import tree


def split_labels(data: Any, num_inputs: int) -> tuple[Any, np.ndarray | None]:
    """Returns the inputs of `data`, and its labels if it has any.

    Args:
        data: `(x, y)`; `x` alone, as `input_batches` takes it; or an iterable of batches, each of
            inputs or of `(inputs, labels)`. For a model with two inputs, a tuple of two arrays is
            its inputs.
        num_inputs: Inputs of the model.

    Returns:
        Inputs as `input_batches` takes them, and an array of labels or `None`.

    Raises:
        ValueError: Batches of which only some have labels; another number of labels than samples.
    """
    if _is_pair(data, num_inputs):
        x, y = data
        count = len(tree.flatten(x)[0])
        y = np.asarray(y)
        if y.ndim == 0 or len(y) != count:
            raise ValueError(
                f"Expected (x, y) with a label for each of the {count} samples. Received: labels "
                f"of shape {y.shape}."
            )
        return x, y
    is_iterable = hasattr(data, "__iter__") or isinstance(data, keras.utils.PyDataset)
    is_arrays = hasattr(data, "shape") or isinstance(data, dict) or not is_iterable
    if is_arrays or (
        isinstance(data, list | tuple) and all(hasattr(part, "shape") for part in data)
    ):
        return data, None
    is_indexed = isinstance(data, keras.utils.PyDataset)
    batches = [data[i] for i in range(len(data))] if is_indexed else list(data)
    pairs = [isinstance(b, tuple) and _is_pair(b[:2], num_inputs) for b in batches]
    if not any(pairs):
        return batches, None
    if not all(pairs):
        raise ValueError("Expected labels in every batch, or in none. Received: some with labels.")
    labels = np.concatenate([np.asarray(batch[1]) for batch in batches])
    return [batch[0] for batch in batches], labels


def _is_pair(data: Any, num_inputs: int) -> bool:
    if not isinstance(data, tuple) or len(data) != 2 or not hasattr(data[1], "__len__"):
        return False
    is_inputs = num_inputs == 2 and hasattr(data[0], "shape")
    return not is_inputs and not isinstance(data[1], tuple | dict)
