"""Batches of inputs: cut from arrays or read from an iterable, and checked against a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import tree

BATCH_SIZE = 32


def input_batches(data: Any, inputs: Any) -> Iterator[Any]:
    """Cuts arrays into batches of 32, or reads an iterable of batches; checks and yields each.

    Keras would take a sample without a batch axis for a batch, because it adds a missing last axis.

    Args:
        data: An array or tensor (or a list or dict of them, for several inputs), or an iterable of
            batches of inputs, such as a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator. A batch that is a tuple
            is `(inputs, targets, …)`, as for `fit`: only the inputs are read. For several inputs
            it may be the inputs too.
        inputs: The model's inputs in their structure: tensors or `Value`s. `None` for a model
            without a graph, whose batches are taken as they come.

    Yields:
        Arrays or tensors in the structure of `inputs`.

    Raises:
        TypeError: Neither arrays nor iterable.
        ValueError: Arrays of several lengths, or a batch that does not fit the inputs.
    """
    if not _is_arrays(data, None if inputs is None else len(tree.flatten(inputs))):
        by_index = isinstance(data, keras.utils.PyDataset)
        if not (by_index or hasattr(data, "__iter__")):
            raise TypeError(
                "Expected data as arrays, a tf.data.Dataset or an iterable of batches. Received: "
                f"{type(data).__name__}."
            )
        for batch in (data[i] for i in range(len(data))) if by_index else data:
            yield _fitted(_without_targets(batch, inputs), inputs)
        return
    lengths = {len(array) if len(array.shape) else 0 for array in tree.flatten(data)}
    if len(lengths) != 1:
        raise ValueError(
            f"Expected arrays of one length as data. Received: lengths {sorted(lengths)}."
        )
    for start in range(0, lengths.pop(), BATCH_SIZE):
        batch = tree.map_structure(lambda array, s=start: array[s : s + BATCH_SIZE], data)
        yield _fitted(batch, inputs)


def line_up(batch: Any, inputs: Any) -> list[Any]:
    """The arrays of a batch in the order of a model's inputs.

    As Keras does: a model whose inputs are a dict reads its keys, any other their names.

    Args:
        batch: An array, or a structure of them.
        inputs: As for `input_batches`.

    Raises:
        ValueError: A name that is missing, or another number of arrays than of inputs.
    """
    arrays = tree.flatten(batch)
    if isinstance(batch, Mapping):
        is_dict = isinstance(inputs, Mapping)
        names = sorted(inputs) if is_dict else [value.name for value in tree.flatten(inputs)]
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"Expected data for every input of the model. Received: {sorted(batch)}, without "
                f"{missing}."
            )
        arrays = [batch[name] for name in names]
    if len(arrays) != len(tree.flatten(inputs)):
        raise ValueError(
            f"Expected data for {len(tree.flatten(inputs))} inputs. Received: {len(arrays)} "
            "arrays. Of inputs and targets give the inputs alone, or batches that are tuples."
        )
    return arrays


def check_ends(data: Any, name: str) -> None:
    """Refuses batches without an end, which a loop over all of them would never leave.

    Args:
        data: Anything that data may be.
        name: The argument, for the message.

    Raises:
        ValueError: A `tf.data.Dataset` that repeats for ever, or a `PyDataset` without a length.
    """
    count: Any = 0
    if isinstance(data, tf.data.Dataset):
        count = None if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY else 0
    elif isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
    if count is None:
        raise ValueError(
            f"Expected `{name}` with an end. Received: a dataset that repeats for ever. Leave "
            ".repeat() out, or take a part: dataset.take(batches)."
        )


def check_repeatable(data: Any, name: str) -> None:
    """Refuses what has no end, and an iterator, which is empty after the first reading.

    Args:
        data: Anything that data may be.
        name: The argument, for the message.

    Raises:
        ValueError: Such data.
    """
    check_ends(data, name)
    if hasattr(data, "__next__"):
        raise ValueError(
            f"Expected `{name}` that can be read more than once. Received: an iterator. Give "
            "arrays, a tf.data.Dataset, a keras.utils.PyDataset or a list of batches."
        )


def _is_arrays(data: Any, num_inputs: int | None) -> bool:
    """Whether it is all the data; a list of more arrays than inputs is a list of batches."""
    parts = data if isinstance(data, (list, tuple)) else tree.flatten(data)
    if parts is data and num_inputs not in (None, len(data)):
        return False
    return len(parts) > 0 and all(hasattr(part, "shape") for part in parts)


def _without_targets(batch: Any, inputs: Any) -> Any:
    """The inputs of `(inputs, targets, …)`; a tuple of just the inputs is what it is."""
    if not isinstance(batch, tuple):
        return batch
    is_inputs = len(batch) == len(tree.flatten(inputs)) > 1 and hasattr(batch[0], "shape")
    return batch if is_inputs else batch[0]


def _fitted(batch: Any, inputs: Any) -> Any:
    if inputs is None:
        return batch
    values, arrays = tree.flatten(inputs), line_up(batch, inputs)
    for value, array in zip(values, arrays, strict=True):
        wanted, shape = tuple(value.shape)[1:], tuple(getattr(array, "shape", ()))
        pairs = zip(wanted, shape[1:], strict=False)
        if len(shape) != len(wanted) + 1 or any(None not in p and p[0] != p[1] for p in pairs):
            raise ValueError(
                f"Expected batches of shape {(None, *wanted)} for the input {value.name!r}. "
                f"Received: {shape}. Give one array of all samples (np.stack makes one of a list), "
                "or an iterable of batches (dataset.batch(32))."
            )
    return tree.pack_sequence_as(inputs, arrays)
