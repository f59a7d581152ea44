"""Gradients and activations of a model over a few batches, for the criteria that need them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.calls import watch_calls
from tfcompress.model.kernels import Kernel

Loss = Callable[[keras.Model, Any, Any, Any], Any]


def batches(
    data: Any, num_batches: int, batch_size: int = 128, offset: int = 0
) -> Iterator[tuple[Any, ...]]:
    """Yields `num_batches` batches of `data`.

    Args:
        data: A tuple of arrays `(x, y)` or `(x, y, sample_weight)`, a `tf.data.Dataset`, or any
            iterable of such batches that can be iterated again, such as a list of tuples.
        num_batches: Number of batches.
        batch_size: Batch size for arrays.
        offset: For arrays, where to begin, in batches; so that successive updates see other
            examples, and the same ones after a resume.

    Batches without a sample are passed over: their means are not numbers.
    """
    arrays = isinstance(data, tuple) or (
        isinstance(data, list) and len(data) > 0 and hasattr(data[0], "shape")
    )
    if arrays:
        size = len(keras.tree.flatten(data[0])[0])
        for index in range(num_batches if size else 0):
            start = (offset + index) * batch_size
            rows = np.arange(start, start + min(batch_size, size)) % size
            yield keras.tree.map_structure(lambda a, rows=rows: np.asarray(a)[rows], tuple(data))
        return
    yield from itertools.islice(filter(_has_samples, map(_as_tuple, data)), num_batches)


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _has_samples(batch: tuple[Any, ...]) -> bool:
    shape: Any = getattr(keras.tree.flatten(batch[0])[0], "shape", ())
    return len(shape) == 0 or shape[0] != 0


class Statistics:
    """Computes what criteria need from batches, without a trace in the model.

    The model runs in training mode; batch-norm statistics, observers and seeds are put back
    afterwards.

    Args:
        model: The model.
        kernels: The kernels whose gradients and activations are wanted.
        loss: `loss(model, x, y, sample_weight)`; by default the compiled loss.
    """

    def __init__(self, model: keras.Model, kernels: Sequence[Kernel], loss: Loss | None = None):
        self.model = model
        self.kernels = tuple(kernels)
        self.loss = loss or compiled_loss
        self._gradients = tf.function(self._compute_gradients, reduce_retracing=True)

    def gradients(self, batch: tuple[Any, ...]) -> list[np.ndarray]:
        """Returns the gradient of the batch's loss with respect to each kernel."""
        with _preserved(self.model):
            batch = keras.tree.map_structure(tf.convert_to_tensor, batch)
            gradients = self._gradients(batch)
        missing = [
            kernel.name
            for kernel, gradient in zip(self.kernels, gradients, strict=True)
            if gradient is None
        ]
        if missing:
            raise ValueError(
                f"The loss does not depend on the kernels of {missing}, so they have no gradient. "
                "Leave these layers out with `layers=`, or choose a criterion without gradients."
            )
        return [g.numpy() for g in gradients]

    def activations(self, batch: tuple[Any, ...]) -> list[np.ndarray]:
        """Returns each layer's output, averaged over positions and laid out along its kernel.

        The shape is `(examples, ...)`, where `...` has the rank of the kernel, and size 1 on every
        axis that is not an output axis.
        """
        seen: dict[int, Any] = {}

        def remember(layer, args, kwargs, outputs):
            seen[id(layer)] = keras.tree.flatten(outputs)[0]

        layers = list({id(k.layer): k.layer for k in self.kernels}.values())
        with _preserved(self.model), watch_calls(layers, remember):
            self.model(keras.tree.map_structure(tf.convert_to_tensor, batch[0]), training=True)
        blind = [
            kernel.name
            for kernel in self.kernels
            if not hasattr(seen.get(id(kernel.layer)), "numpy")
        ]
        if blind:
            raise ValueError(
                f"The activations of {blind} cannot be observed: the layers did not run, or run "
                "inside a layer that hides them. Leave them out with `layers=`."
            )
        return [_along_kernel(seen[id(k.layer)].numpy(), k) for k in self.kernels]

    def _compute_gradients(self, batch):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        # float16 underflows without a loss scale.
        scale = 1024.0 if self.model.compute_dtype == "float16" else 1.0
        with tf.GradientTape() as tape:
            loss = tf.cast(self.loss(self.model, x, y, sample_weight), tf.float32) * scale
        gradients = tape.gradient(
            loss,
            [k.variable.value for k in self.kernels],
        )
        return [None if g is None else tf.convert_to_tensor(g) / scale for g in gradients]


def compiled_loss(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> Any:
    """The loss that the model was compiled with, in training mode."""
    predictions = model(x, training=True)
    return model.compute_loss(x=x, y=y, y_pred=predictions, sample_weight=sample_weight)


class _preserved:
    """Puts the non-trainable state of a model back: what a forward pass must not leave behind."""

    def __init__(self, model: keras.Model):
        self.variables = [v for v in model.variables if not v.trainable]

    def __enter__(self):
        self.values = [v.numpy() for v in self.variables]

    def __exit__(self, *exception):
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)


def _along_kernel(outputs: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Averages outputs over positions, and gives them the axes of the kernel they came from."""
    if getattr(kernel.layer, "data_format", None) == "channels_first":
        outputs = np.moveaxis(outputs, 1, -1)
    shape = kernel.variable.shape
    axes = sorted(a % len(shape) for a in kernel.spec.output_axes)
    sizes = [shape[a] for a in axes]
    trailing = min(len(sizes), outputs.ndim - 1)
    if outputs.shape[-trailing:] != tuple(sizes[-trailing:]):
        trailing = 1
    channels = int(np.prod(outputs.shape[-trailing:]))
    values = outputs.astype(np.float32).reshape(len(outputs), -1, channels).mean(axis=1)
    wanted = int(np.prod(sizes))
    if wanted % channels:
        raise ValueError(
            f"The {channels} output channels of {kernel.name!r} do not match the {wanted} columns "
            "of its kernel; leave it out with `layers=`."
        )
    # The kernel of a recurrent layer holds one block of columns per gate.
    values = np.tile(values, (1, wanted // channels))
    full = [shape[a] if a in axes else 1 for a in range(len(shape))]
    return values.reshape(len(outputs), *full)
