"""Pooling in three dimensions and to a given size, by pooling of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


@keras.saving.register_keras_serializable(package="tfcompress")
class Gather(keras.layers.Layer):
    """The values at constant positions along an axis.

    Args:
        indices: The positions.
        axis: The axis, 1 or more.
    """

    channels_like = keras.layers.MaxPooling2D

    def __init__(self, indices: Sequence[int], axis: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices, self.axis = [int(i) for i in indices], int(axis)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.gather(inputs, self.indices, axis=self.axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[: self.axis], len(self.indices), *input_shape[self.axis + 1 :])

    def stripped(self) -> list[Callable]:
        return [lambda x: ops.take(x, self.indices, axis=self.axis)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indices": self.indices, "axis": self.axis}


register(Gather, spec=OperatorSpec(role=Role.MOVE))

# --- three dimensions ---------------------------------------------------------------------------


def _lower_max_pooling(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """Pooling of each slice as an image, then of the depth."""
    layer = call.operation
    (depth, *window), (stride, *strides) = layer.pool_size, layer.strides
    padding = layer.padding.upper()
    y = tf.reshape(x, x.shape[1:])
    if (*window, *strides) != (1, 1, 1, 1):
        y = tf.nn.max_pool2d(y, window, strides, padding)
    slices, height, width, channels = y.shape
    if (depth, stride) != (1, 1):
        y = tf.reshape(y, (1, slices, height * width, channels))
        y = tf.nn.max_pool2d(y, (depth, 1), (stride, 1), padding)
        slices = y.shape[1]
    return tf.reshape(y, (1, slices, height, width, channels))


def _sizes(x: Value) -> list[int]:
    """The sizes of all axes but that of the samples; 0 for unknown ones."""
    return [0 if n is None else int(n) for n in x.shape[1:]]


def _average_pooling(b: Builder, node: Node) -> Value | None:
    """A mean over the depth, then over each slice."""
    layer, y = node.operation, node.inputs[0]
    (depth, *window), (stride, *strides) = layer.pool_size, layer.strides
    slices, height, width, channels = _sizes(y)
    if 0 in (slices, height, width, channels):
        return None
    variant = f"{slices}x{height}x{width}"

    def part(make: Callable[[str], Any], suffix: str, x: Value) -> Value:
        return b.call(make, suffix, x, variant=variant)

    def reshape(suffix: str, x: Value, *shape: int) -> Value:
        return part(lambda n: layers.Reshape(shape, name=n), suffix, x)

    def pool(suffix: str, x: Value, window: Sequence[int], strides: Sequence[int]) -> Value:
        make = layers.AveragePooling2D
        return part(lambda n: make(window, strides, layer.padding, name=n), suffix, x)

    y = reshape("columns", y, slices, height * width, channels)
    y = pool("depth", y, (depth, 1), (stride, 1))
    slices = _sizes(y)[0]
    y = reshape("slices", y, slices, height, width, channels)
    y = part(lambda n: layers.Permute((2, 3, 1, 4), name=n), "channels", y)
    y = reshape("image", y, height, width, slices * channels)
    y = pool("area", y, window, strides)
    y = reshape("pooled", y, *_sizes(y)[:2], slices, channels)
    return part(lambda n: layers.Permute((3, 1, 2, 4), name=n), "", y)


register(layers.MaxPooling3D, spec=OperatorSpec(role=Role.MOVE, lower=_lower_max_pooling))
register(layers.AveragePooling3D, spec=OperatorSpec(decompose=_average_pooling))

# --- to a given size ----------------------------------------------------------------------------


def _adaptive_average(b: Builder, node: Node) -> Value | None:
    """Means over windows of one size; where they have two, one pooling each and a choice."""
    x, sizes = node.inputs[0], tuple(np.atleast_1d(node.operation.output_size))
    counts = _sizes(x)[:-1]
    if float_reason(node.operation) or 0 in counts or len(sizes) != len(counts):
        return None
    variant = "x".join(map(str, counts))
    pooling = layers.AveragePooling1D if len(sizes) == 1 else layers.AveragePooling2D
    if all(count % size == 0 for count, size in zip(counts, sizes, strict=True)):
        window = [int(count // size) for count, size in zip(counts, sizes, strict=True)]
        return b.call(lambda n: pooling(_plain(window), name=n), "", x, variant=variant)
    for axis, (count, size) in enumerate(zip(counts, sizes, strict=True), 1):
        last = axis == len(sizes)
        x = _pooled_along(b, x, axis, int(count), int(size), pooling, last, variant)
    return x


def _pooled_along(
    b: Builder,
    x: Value,
    axis: int,
    count: int,
    size: int,
    pooling: type[keras.Layer],
    is_last: bool,
    variant: str,
) -> Value:
    """The means along one axis, of the windows i · count / size … (i + 1) · count / size."""
    starts = [i * count // size for i in range(size)]
    widths = [-(-(i + 1) * count // size) - start for i, start in enumerate(starts)]
    rank, pooled, offsets, total = len(x.shape) - 2, [], {}, 0
    for width in sorted(set(widths)):
        window = [width if i + 1 == axis else 1 for i in range(rank)]
        strides = [1] * rank

        def make(n: str, window: list = window, strides: list = strides) -> keras.Layer:
            return pooling(_plain(window), _plain(strides), name=n)

        pooled.append(b.call(make, f"axis{axis}_{width}", x, variant=variant))
        offsets[width] = total
        total += _sizes(pooled[-1])[axis - 1]
    y = pooled[0]
    if len(pooled) > 1:
        y = b.call(
            lambda n: layers.Concatenate(axis, name=n), f"axis{axis}_both", *pooled, variant=variant
        )
    indices = [offsets[width] + start for start, width in zip(starts, widths, strict=True)]
    suffix = "" if is_last else f"axis{axis}"
    return b.call(lambda n: Gather(indices, axis, name=n), suffix, y, variant=variant)


def _plain(numbers: Sequence[int]) -> Any:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _average_pool(b: Builder, node: Node) -> Value | None:
    """Its layer."""
    operation, rank = node.operation, len(node.inputs[0].shape) - 2
    makers = {1: layers.AveragePooling1D, 2: layers.AveragePooling2D, 3: layers.AveragePooling3D}
    if float_reason(operation) or rank not in makers:
        return None
    options = (operation.pool_size, operation.strides, operation.padding)
    return b.call(lambda n: makers[rank](*options, name=n), "", node.inputs[0])


def float_reason(operation: Any) -> str | None:
    """Why an operation on images has no int8 form; `None` where it has one."""
    is_last = (operation.data_format or keras.config.image_data_format()) == "channels_last"
    return None if is_last else "LiteRT's kernels are channels-last"


register(
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    ops.nn.adaptive_average_pool,
    spec=OperatorSpec(decompose=_adaptive_average, float_reason=float_reason),
)
register(ops.average_pool, spec=OperatorSpec(decompose=_average_pool, float_reason=float_reason))
register(
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    ops.nn.adaptive_max_pool,
    spec=OperatorSpec(role=Role.MOVE, float_reason=float_reason),
)
