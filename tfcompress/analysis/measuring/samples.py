"""Reading of samples and labels: arrays, `tf.data.Dataset`, `PyDataset` or other batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.distillation.checksum import checksum_of_arrays
from tfcompress.model.batches import check_ends, line_up
from tfcompress.model.graph import input_structure


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs of a model and their labels.

    Attributes:
        inputs: Arrays in the structure of the model's inputs, `(n, …)` each.
        labels: Labels in the structure that the data has them in; `None` without labels.
        weights: Sample weights, likewise.
    """

    inputs: Any
    labels: Any = None
    weights: Any = None

    def __len__(self) -> int:
        return len(tree.flatten(self.inputs)[0])

    @property
    def checksum(self) -> str:
        """SHA-256 of inputs, labels and weights."""
        arrays = tree.flatten((self.inputs, self.labels, self.weights))
        return checksum_of_arrays(
            {f"{i:03d}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
        )


def read_samples(data: Any, model: keras.Model, count: int | None = None) -> Samples:
    """The first samples of data.

    Args:
        data: `(x, y)` or `x` as arrays (several inputs as a list or dict), or batches: a
            `tf.data.Dataset`, a `PyDataset` or an iterable of batches `(x, y)` or `x`. Sample
            weights may follow the labels, as for `fit`.
        model: The functional model that takes the inputs.
        count: How many samples; all of them by default.

    Raises:
        TypeError: Neither arrays nor batches.
        ValueError: No samples, arrays of several lengths, or inputs that do not fit the model.
    """
    if count is None:
        check_ends(data, "data")
    inputs = input_structure(model)
    parts, seen = [], 0
    for x, y, weights in _parts(data, inputs):
        specs = tree.flatten(inputs)
        arrays = [_as_input(a, s.dtype) for a, s in zip(line_up(x, inputs), specs, strict=True)]
        _check(arrays, (y, weights), inputs)
        size = len(arrays[0])
        left = size if count is None else min(size, count - seen)
        parts.append(([a[:left] for a in arrays], _cut(y, left), _cut(weights, left)))
        seen += left
        if count is not None and seen >= count:
            break
    if not seen:
        raise ValueError("Expected data with at least one sample. Received: none.")
    given, labels, weights = zip(*parts, strict=True)
    columns = [np.concatenate(column) for column in zip(*given, strict=True)]
    return Samples(tree.pack_sequence_as(inputs, columns), _joined(labels), _joined(weights))


def _cut(arrays: Any, count: int) -> Any:
    if arrays is None:
        return None
    return tree.map_structure(lambda a: None if a is None else np.asarray(a)[:count], arrays)


def _joined(parts: Sequence[Any]) -> Any:
    if parts[0] is None:
        return None
    return tree.map_structure(lambda *a: None if a[0] is None else np.concatenate(a), *parts)


def _as_input(array: Any, dtype: str) -> np.ndarray:
    """An array in the type that the model takes: a file takes whole numbers for codes."""
    array = np.asarray(array)
    kinds = keras.backend.is_float_dtype(dtype), array.dtype.kind
    return array.astype(dtype) if kinds[0] and kinds[1] in "fiub" else array


def _parts(data: Any, inputs: Any) -> Iterator[tuple[Any, Any, Any]]:
    """`(x, y, sample weights)` of each batch; arrays are one batch."""
    if isinstance(data, keras.utils.PyDataset):
        yield from (_split(data[i]) for i in range(len(data)))
        return
    if isinstance(data, tuple) and data and all(_is_arrays(part) for part in data):
        yield _split(data)
        return
    several = len(tree.flatten(inputs)) > 1
    if hasattr(data, "shape") or isinstance(data, dict) or (several and _is_arrays(data)):
        yield data, None, None
        return
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "Expected data as arrays (x, y), a tf.data.Dataset, a PyDataset or an iterable of "
            f"batches. Received: {type(data).__name__}."
        )
    yield from map(_split, data)


def _split(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple):
        return batch, None, None
    x, y, weights = (*batch, None, None)[:3]
    return x, y, weights


def _is_arrays(part: Any) -> bool:
    leaves = tree.flatten(part)
    return len(leaves) > 0 and all(leaf is None or hasattr(leaf, "shape") for leaf in leaves)


def _check(arrays: list[np.ndarray], rest: Any, inputs: Any) -> None:
    for array, value in zip(arrays, tree.flatten(inputs), strict=True):
        wanted = tuple(value.shape)[1:]
        fits = len(array.shape) == len(wanted) + 1 and all(
            n is None or n == m for n, m in zip(wanted, array.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"Expected samples of shape {(None, *wanted)} for the input {value.name!r}. "
                f"Received: {array.shape}. A dataset of single samples is batched by "
                "dataset.batch(32)."
            )
    shapes = [np.shape(a) for a in (*arrays, *tree.flatten(rest)) if a is not None]
    lengths = {shape[0] if shape else 1 for shape in shapes}
    if len(lengths) != 1:
        raise ValueError(
            f"Expected inputs and labels of one length. Received: lengths {sorted(lengths)}."
        )
