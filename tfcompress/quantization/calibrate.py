"""Calibration: ranges from data, before any training.

The model runs in float and every quantizer's estimator looks at what comes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.graph import input_structure, is_functional
from tfcompress.quantization.quantizers import FakeQuantize

_BATCH = 32
# A range estimator sees at most this many values of a tensor; more would not change a quantile.
_SAMPLE = 2_000_000


def calibration_batches(model: keras.Model, data: Any, *, limit: int | None = None) -> list:
    """Cuts calibration data into batches of the model's input structure, and checks them.

    Args:
        model: The model whose inputs the data must fit.
        data: One array (or a list or dict of arrays for several inputs) with a batch axis; a
            `tf.data.Dataset`, generator or other iterable of batches. A batch that is a tuple
            is (inputs, targets, …), as for `fit`; only the inputs are used.
        limit: Most batches to read from an iterable.

    Raises:
        ValueError: No data, a shape that does not fit, NaN or infinite values.
    """
    batches = []
    for i, batch in enumerate(_batches(model, data)):
        if limit is not None and i >= limit:
            break
        batches.append(_checked(model, batch))
    if not batches:
        raise ValueError("Expected calibration data with at least one sample. Received: none.")
    return batches


def calibrate(
    model: keras.Model, batches: list, *, only: Sequence[FakeQuantize] | None = None
) -> None:
    """Sets the range of every quantizer of `model` from batches of inputs.

    Args:
        model: A quantized model; its variables other than ranges are untouched.
        batches: As `calibration_batches` gives them.
        only: The quantizers whose ranges to set; all of them by default.
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    wanted = quantizers if only is None else only
    collectors = {q: _Collector(q) for q in wanted if q.fixed_range is None}
    try:
        for quantizer in quantizers:
            quantizer.observe(collectors.get(quantizer, _ignore))
        for batch in batches:
            model(batch, training=False)
    finally:
        for quantizer in quantizers:
            quantizer.observe(None)
    for quantizer, collector in collectors.items():
        if collector.count:
            quantizer.set_range(*collector.estimate())


def first_samples(batches: list, most: int | None = None) -> list[np.ndarray]:
    """The first samples of calibration batches, one array per input of the model."""
    flat = [tree.flatten(batch) for batch in batches]
    return [np.concatenate(arrays)[:most] for arrays in zip(*flat, strict=True)]


def _ignore(values) -> None:
    pass


class _Collector:
    """Gathers what one estimator needs: batch extremes, or a sample of the values."""

    def __init__(self, quantizer: FakeQuantize):
        self.scheme = quantizer.scheme
        self.count = 0
        self.low, self.high = np.inf, -np.inf
        self.samples: list[np.ndarray] = []
        self._random = np.random.default_rng(0)

    def __call__(self, values: tf.Tensor) -> None:
        values = np.asarray(values, np.float32).ravel()
        if not values.size:
            return
        self.count += 1
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if not self.scheme.observer.every_batch:
            share = _SAMPLE // 32
            if values.size > share:
                values = self._random.choice(values, share, replace=False)
            self.samples.append(values)

    def estimate(self) -> tuple[float, float]:
        if self.scheme.observer.every_batch:
            return self.low, self.high
        values = np.concatenate(self.samples)
        if values.size > _SAMPLE:
            values = self._random.choice(values, _SAMPLE, replace=False)
        levels = 2**self.scheme.num_bits - 1 - self.scheme.narrow_range
        return self.scheme.observer.estimate(values, levels, self.scheme.symmetric)


def _batches(model: keras.Model, data: Any) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset) or not _is_arrays(data):
        if not hasattr(data, "__iter__"):
            raise ValueError(
                "Expected calibration data as arrays, a tf.data.Dataset or an iterable of "
                f"batches. Received: {type(data)}."
            )
        yield from (batch[0] if isinstance(batch, tuple) else batch for batch in data)
        return
    arrays = tree.map_structure(np.asarray, data)
    count = {len(a) if a.ndim else 0 for a in tree.flatten(arrays)}
    if len(count) != 1:
        raise ValueError(
            f"Expected calibration arrays of one length. Received: lengths {sorted(count)}."
        )
    for start in range(0, count.pop(), _BATCH):
        yield tree.map_structure(lambda a, s=start: a[s : s + _BATCH], arrays)


def _is_arrays(data: Any) -> bool:
    if isinstance(data, (np.ndarray, tf.Tensor)):
        return True
    if isinstance(data, dict):
        return all(_is_arrays(v) for v in data.values())
    return (
        isinstance(data, (list, tuple))
        and len(data) > 0
        and all(isinstance(v, (np.ndarray, tf.Tensor)) for v in data)
    )


def _checked(model: keras.Model, batch: Any) -> Any:
    """The batch in the structure of the model's inputs."""
    if not is_functional(model):
        return batch
    structure = input_structure(model)
    inputs, flat = tree.flatten(structure), tree.flatten(batch)
    if isinstance(batch, dict):
        # A model whose input is a dict is fed by its keys, any other by the names of its inputs.
        is_dict = isinstance(structure, dict)
        names = sorted(structure) if is_dict else [t.name for t in inputs]
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"Expected calibration data with a value for every input. Received: "
                f"{sorted(batch)}; missing: {missing}."
            )
        flat = [batch[name] for name in names]
    if len(flat) != len(inputs):
        raise ValueError(
            f"Expected calibration data for {len(inputs)} inputs. Received: {len(flat)}."
        )
    for i, (value, tensor) in enumerate(zip(flat, inputs, strict=True)):
        flat[i] = value = np.asarray(value)
        wanted = tuple(tensor.shape[1:])
        fits = len(value.shape) == len(wanted) + 1 and all(
            w is None or w == s for w, s in zip(wanted, value.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"Expected calibration batches of shape (batch, {', '.join(map(str, wanted))}) "
                f"for the input {tensor.name!r}. Received: {value.shape}."
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"Expected finite calibration data for the input {tensor.name!r}. Received: NaN "
                "or infinite values. Clean the data: one such value would spoil every range."
            )
    # A quantized model takes what the given model takes.
    return tree.pack_sequence_as(structure, flat)
