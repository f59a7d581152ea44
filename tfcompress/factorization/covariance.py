"""E[x xᵀ] of the inputs of layers, computed on data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfcompress.factorization.decompositions import Metric
from tfcompress.factorization.forms import possible
from tfcompress.model.calls import watch_calls

#: Values of patches that are laid out at once.
_MOST_VALUES = 2**25


def input_metrics(
    model: keras.Model, chosen: Sequence[keras.Layer], batches: Iterable[Any]
) -> dict[keras.Layer, dict[str, Metric]]:
    """Layer → method → the metric of its inputs, summed over all its calls.

    A layer whose inputs were all zeros is left out.

    For `"svd"` x is the input of the whole kernel, a patch of height · width · channels; for
    `"spatial"` it is the input of the first factor, a column of it. Tucker-2 has no metric.

    Args:
        model: The model.
        chosen: Dense and convolution layers of it.
        batches: Batches of its inputs.

    Raises:
        ValueError: No batch, inputs of a layer that are not finite, or a dilated Conv3D.
    """
    sums: dict[tuple[int, str], np.ndarray] = {}
    counts: dict[tuple[int, str], int] = {}

    def add(layer, args, kwargs, outputs):
        inputs = args[0] if args else kwargs["inputs"]
        for method in possible(layer):
            if method == "tucker2":
                continue
            key = id(layer), method
            for part in _parts(layer, tf.cast(inputs, tf.float32)):
                seen = _seen(layer, method, part)
                flat = np.asarray(tf.reshape(seen, [-1, seen.shape[-1]]), np.float64)
                sums[key] = sums.get(key, 0.0) + flat.T @ flat
                counts[key] = counts.get(key, 0) + len(flat)

    with watch_calls(chosen, add):
        num_batches = 0
        for batch in batches:
            # Keras takes no mixture of arrays and tensors.
            model(tree.map_structure(tf.convert_to_tensor, batch), training=False)
            num_batches += 1
    if not num_batches:
        raise ValueError("Expected at least one batch of inputs as data. Received: none.")
    found: dict[keras.Layer, dict[str, Metric]] = {}
    for layer in chosen:
        covariances = {
            method: sums[id(layer), method] / counts[id(layer), method]
            for method in possible(layer)
            if (id(layer), method) in sums
        }
        if not all(np.all(np.isfinite(c)) for c in covariances.values()):
            raise ValueError(
                "Expected data on which every layer reads finite values. Received: NaN or "
                f"infinity before {layer.name!r}. Look for them in the data."
            )
        if covariances and all(np.any(c) for c in covariances.values()):
            found[layer] = {m: Metric.from_covariance(c) for m, c in covariances.items()}
    return found


def _parts(layer: keras.Layer, inputs: tf.Tensor) -> Iterator[tf.Tensor]:
    """Slices of a batch whose patches fit into memory: each value is in many of them."""
    times = math.prod(getattr(layer, "kernel_size", (1,)))
    count = max(1, _MOST_VALUES // (times * math.prod(inputs.shape[1:])))
    for start in range(0, inputs.shape[0], count):
        yield inputs[start : start + count]


def _seen(layer: keras.Layer, method: str, inputs: tf.Tensor) -> tf.Tensor:
    """The vectors that the first factor's kernel is multiplied with."""
    if isinstance(layer, layers.Dense):
        return inputs
    size, strides = list(layer.kernel_size), list(layer.strides)
    rates, padding = list(layer.dilation_rate), layer.padding.upper()
    if method == "spatial":
        size[1] = strides[1] = rates[1] = 1
    if isinstance(layer, layers.Conv3D):
        if rates != [1, 1, 1] or padding == "CAUSAL":
            raise ValueError(
                "Expected a Conv3D without dilation where data is given. Received: "
                f"{layer.name!r}. Factorize without data."
            )
        return tf.extract_volume_patches(inputs, [1, *size, 1], [1, *strides, 1], padding)
    if isinstance(layer, layers.Conv1D):
        if padding == "CAUSAL":
            left = (size[0] - 1) * rates[0]
            inputs, padding = tf.pad(inputs, [[0, 0], [left, 0], [0, 0]]), "VALID"
        inputs = inputs[:, :, None]
        size, strides, rates = ([values[0], 1] for values in (size, strides, rates))
    return tf.image.extract_patches(
        inputs, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], padding
    )
