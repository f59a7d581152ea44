"""TensorFlow functions by `keras.ops`, where the arguments of both differ.

Each takes the arguments of its TensorFlow function, by the same names and with the same defaults.
For arguments that it does not know it raises TypeError: another function than the one that was
called would be a silent difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops


def convert(value: Any, dtype: Any = None, dtype_hint: Any = None) -> Any:
    return value if dtype is None else cast(value, dtype)


def cast(x: Any, dtype: Any) -> Any:
    wanted = keras.backend.standardize_dtype(dtype)
    return x if keras.backend.standardize_dtype(x.dtype) == wanted else ops.cast(x, wanted)


def shape_of(input: Any, out_type: Any = None) -> tuple[int | None, ...]:
    return tuple(input.shape)


def reshape(tensor: Any, shape: Any) -> Any:
    return ops.reshape(tensor, tuple(-1 if n is None else int(n) for n in shape))


def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a, b = (ops.swapaxes(m, -1, -2) if t else m for m, t in ((a, transpose_a), (b, transpose_b)))
    return ops.matmul(a, b)


def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    total = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(total, epsilon)))


def pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    width = [[int(n) for n in pair] for pair in paddings]
    if mode.upper() == "CONSTANT":
        return ops.pad(tensor, width, "constant", constant_values)
    return ops.pad(tensor, width, mode.lower())


def split(value: Any, num_or_size_splits: Any, axis: int = 0, num: int | None = None) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    sizes = [int(n) for n in num_or_size_splits]
    if -1 in sizes:
        if value.shape[axis] is None:
            raise TypeError(f"sizes {sizes} of an axis of unknown size")
        sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
    return ops.split(value, list(itertools.accumulate(sizes[:-1])), axis=axis)


def argument_of(function: Callable) -> Callable:
    def find(input: Any, axis: int | None = None, output_type: Any = None) -> Any:
        # TensorFlow's default is the first axis, that of Keras the flat tensor.
        found = function(input, axis=0 if axis is None else axis)
        return found if output_type is None else cast(found, output_type)

    return find


def softmax(function: Callable) -> Callable:
    def normalize(logits: Any, axis: int | None = None) -> Any:
        # Likewise the last axis.
        return function(logits, axis=-1 if axis is None else axis)

    return normalize


def gather(params: Any, indices: Any, axis: int | None = None, batch_dims: int = 0) -> Any:
    if batch_dims:
        raise TypeError(f"batch_dims {batch_dims}")
    return ops.take(params, indices, axis=axis or 0)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None or y is None:
        raise TypeError("a condition alone")
    return ops.where(condition, x, y)


def inner(steps: Any, rank: int = 2) -> Any:
    """Strides or dilations of the positions, of those of all axes."""
    if steps is None or isinstance(steps, int):
        return steps or 1
    steps = [int(n) for n in steps]
    if len(steps) == rank + 2:
        if steps[0] != 1 or steps[-1] != 1:
            raise TypeError(f"steps {steps} over batch or channels")
        steps = steps[1:-1]
    return steps[0] if len(set(steps)) == 1 else tuple(steps)


def padding_mode(padding: Any) -> str:
    if not isinstance(padding, str):
        raise TypeError(f"padding {padding}")
    return padding.lower()


def conv2d(
    input: Any,
    filters: Any,
    strides: Any,
    padding: Any,
    data_format: str = "NHWC",
    dilations: Any = None,
) -> Any:
    check_nhwc(data_format)
    return ops.conv(
        input, filters, inner(strides), padding_mode(padding), "channels_last", inner(dilations)
    )


def depthwise(
    input: Any,
    filter: Any,
    strides: Any,
    padding: Any,
    data_format: str | None = None,
    dilations: Any = None,
) -> Any:
    check_nhwc(data_format or "NHWC")
    return ops.depthwise_conv(
        input, filter, inner(strides), padding_mode(padding), "channels_last", inner(dilations)
    )


def max_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: Any = None) -> Any:
    check_nhwc(data_format or "NHWC")
    return ops.max_pool(input, inner(ksize), inner(strides), padding_mode(padding), "channels_last")


def avg_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: Any = None) -> Any:
    check_nhwc(data_format or "NHWC")
    layer = keras.layers.AveragePooling2D(inner(ksize), inner(strides), padding_mode(padding))
    return layer(input)


def check_nhwc(data_format: str) -> None:
    if data_format != "NHWC":
        raise TypeError(f"data_format {data_format}")


def cumsum(x: Any, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Any:
    given = ops.flip(x, axis=axis) if reverse else x
    total = ops.cumsum(given, axis=axis)
    total = ops.subtract(total, given) if exclusive else total
    return ops.flip(total, axis=axis) if reverse else total


def norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None) -> Any:
    if ord not in ("euclidean", 2, 2.0) or (axis is not None and not isinstance(axis, int)):
        raise TypeError(f"ord {ord} over axes {axis}")
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis, keepdims=bool(keepdims)))


def moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False) -> tuple:
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else axes
    return ops.mean(x, axis=axes, keepdims=keepdims), ops.var(x, axis=axes, keepdims=keepdims)


def slice_of(input_: Any, begin: Any, size: Any) -> Any:
    ends = [None if n == -1 else int(b) + int(n) for b, n in zip(begin, size, strict=True)]
    return input_[tuple(slice(int(b), e) for b, e in zip(begin, ends, strict=True))]


def resize(
    images: Any,
    size: Any,
    method: Any = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    if preserve_aspect_ratio or antialias or method not in ("bilinear", "nearest"):
        raise TypeError(f"method {method}, preserve_aspect_ratio or antialias")
    return ops.image.resize(images, tuple(int(n) for n in size), interpolation=method)


def of_blocks(function: Callable) -> Callable:
    def move(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
        check_nhwc(data_format)
        return function(input, block_size, data_format="channels_last")

    return move


def sort(values: Any, axis: int = -1, direction: str = "ASCENDING") -> Any:
    found = ops.sort(values, axis=axis)
    return found if direction == "ASCENDING" else ops.flip(found, axis=axis)


def one_hot(
    indices: Any,
    depth: int,
    on_value: Any = None,
    off_value: Any = None,
    axis: int | None = None,
    dtype: Any = None,
) -> Any:
    if on_value not in (None, 1) or off_value not in (None, 0):
        raise TypeError(f"values {on_value} and {off_value}")
    dtype = keras.backend.standardize_dtype(dtype or tf.float32)
    return ops.one_hot(indices, int(depth), axis=-1 if axis is None else axis, dtype=dtype)


def sum_of(inputs: Any) -> Any:
    total, *others = inputs
    for other in others:
        total = ops.add(total, other)
    return total


def silu(features: Any, beta: float = 1.0) -> Any:
    if beta != 1.0:
        raise TypeError(f"beta {beta}")
    return ops.silu(features)
