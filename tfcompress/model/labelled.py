"""Data with labels: inputs and labels apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

#: Labels of one output, or of several by name.
Labels = np.ndarray | dict[str, np.ndarray]


def split_labels(data: Any, num_inputs: int) -> tuple[Any, Labels | None]:
    """Returns the inputs of `data`, and its labels if it has any.

    Args:
        data: `(x, y)`; `x` alone, as `input_batches` takes it; or an iterable of batches, each of
            inputs or of `(inputs, labels)`. For a model with two inputs, a tuple of two arrays is
            its inputs. Labels of a model with several outputs are a dict by output.
        num_inputs: Inputs of the model.

    Returns:
        Inputs as `input_batches` takes them; and an array of labels, a dict of them or `None`.

    Raises:
        ValueError: Batches of which only some have labels; another number of labels than samples.
    """
    if _is_pair(data, num_inputs):
        x, y = data
        count = len(tree.flatten(x)[0])
        y = _arrays(y)
        for array in y.values() if isinstance(y, dict) else [y]:
            if array.ndim == 0 or len(array) != count:
                raise ValueError(
                    f"Expected (x, y) with a label for each of the {count} samples. Received: "
                    f"labels of shape {array.shape}."
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
    parts = [_arrays(batch[1]) for batch in batches]
    names = {tuple(part) if isinstance(part, dict) else None for part in parts}
    if len(names) > 1:
        raise ValueError(
            "Expected labels for the same outputs in every batch. Received: "
            f"{sorted(map(str, names))}."
        )
    labels = tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    return [batch[0] for batch in batches], labels


def labels_by_output(labels: Labels, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Output → its labels; outputs without labels are left out.

    Args:
        labels: An array for the only output, or a dict by output.
        names: Of the outputs.

    Raises:
        ValueError: An array for several outputs; labels of an output that is none.
    """
    if isinstance(labels, dict):
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise ValueError(
                f"Expected labels by output, of {list(names)}. Received: labels of {unknown}."
            )
        return labels
    if len(names) != 1:
        raise ValueError(
            f"Expected labels by output, {{name: labels}}, of a model with the outputs "
            f"{list(names)}. Received: one array."
        )
    return {names[0]: labels}


def _arrays(labels: Any) -> Labels:
    if isinstance(labels, Mapping):
        return {str(name): np.asarray(array) for name, array in labels.items()}
    return np.asarray(labels)


def _is_pair(data: Any, num_inputs: int) -> bool:
    if not isinstance(data, tuple) or len(data) != 2 or not hasattr(data[1], "__len__"):
        return False
    if isinstance(data[1], Mapping):
        return True
    is_inputs = num_inputs == 2 and hasattr(data[0], "shape")
    return not is_inputs and not isinstance(data[1], tuple)
