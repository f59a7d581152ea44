"""Inputs of a model in batches that fit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from keras import tree

_BATCH = 32


def input_batches(data: Any, inputs: Any) -> Iterator[Any]:
    """Cuts arrays into batches of 32, or reads an iterable of batches; checks and yields each.

    Keras would take a sample without a batch axis for a batch, because it adds a missing last axis.

    Args:
        data: An array or tensor (or a list or dict of them, for several inputs), or an iterable of
            batches of inputs.
        inputs: The model's inputs in their structure: tensors or `Value`s.

    Raises:
        TypeError: Neither arrays nor iterable.
        ValueError: Arrays of several lengths, or a batch that does not fit the inputs.
    """
    if not _is_arrays(data, len(tree.flatten(inputs))):
        if not hasattr(data, "__iter__"):
            raise TypeError(
                "Expected data as arrays or as an iterable of batches. Received: "
                f"{type(data).__name__}."
            )
        yield from (_fitted(batch, inputs) for batch in data)
        return
    lengths = {len(array) if len(array.shape) else 0 for array in tree.flatten(data)}
    if len(lengths) != 1:
        raise ValueError(
            f"Expected arrays of one length as data. Received: lengths {sorted(lengths)}."
        )
    for start in range(0, lengths.pop(), _BATCH):
        batch = tree.map_structure(lambda array, s=start: array[s : s + _BATCH], data)
        yield _fitted(batch, inputs)


def _is_arrays(data: Any, num_inputs: int) -> bool:
    """Whether it is all the data; a list of arrays for a single input is a list of batches."""
    if isinstance(data, dict):
        data = list(data.values())
    elif isinstance(data, (list, tuple)) and not 1 < num_inputs == len(data):
        return False
    parts = data if isinstance(data, (list, tuple)) else [data]
    return all(hasattr(part, "shape") for part in parts)


def _fitted(batch: Any, inputs: Any) -> Any:
    """The batch as tensors in the structure of the inputs: Keras takes no mixture of kinds."""
    values, arrays = tree.flatten(inputs), tree.flatten(batch)
    if isinstance(batch, dict):
        # As Keras does: a model whose inputs are a dict reads its keys, any other their names.
        names = sorted(inputs) if isinstance(inputs, dict) else [v.name for v in values]
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"Expected data for every input of the model. Received: {sorted(batch)}, without "
                f"{missing}."
            )
        arrays = [batch[name] for name in names]
    if len(arrays) != len(values):
        raise ValueError(
            f"Expected batches of {len(values)} inputs as data. Received: {len(arrays)} arrays. Of "
            "a dataset of inputs and targets take the inputs alone: dataset.map(lambda x, y: x)."
        )
    for value, array in zip(values, arrays, strict=True):
        wanted, shape = tuple(value.shape)[1:], tuple(getattr(array, "shape", ()))
        pairs = zip(wanted, shape[1:], strict=False)
        if len(shape) != len(wanted) + 1 or any(None not in p and p[0] != p[1] for p in pairs):
            raise ValueError(
                f"Expected batches of shape {(None, *wanted)} for the input {value.name!r}. "
                f"Received: {shape}. Give one array of all samples (np.stack makes one of a list), "
                "or an iterable of batches (dataset.batch(32))."
            )
    tensors = [a if tf.is_tensor(a) else tf.convert_to_tensor(a) for a in arrays]
    return tree.pack_sequence_as(inputs, tensors)
