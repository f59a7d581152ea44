"""TensorFlow functions on symbolic Keras tensors: each as the `keras.ops` calls that equal it.

Keras' symbolic tensors refuse raw TensorFlow functions. While `translated()` is active,
TensorFlow's dispatch of such a call (`tf.__internal__.dispatch`) ends here, and `keras.ops` answer
the functions of the table. What is not in the table raises `UnknownFunction`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops, tree

_LOCAL = threading.local()
_UNSUPPORTED = tf.__internal__.dispatch.GlobalOpDispatcher.NOT_SUPPORTED


class UnknownFunction(Exception):
    """A TensorFlow function that has no translation, or none with these arguments."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within it, TensorFlow functions of the table accept symbolic Keras tensors (this thread).

    Raises:
        UnknownFunction: On leaving it by an error behind a function that has no translation.
    """
    before = getattr(_LOCAL, "is_active", False), getattr(_LOCAL, "unknown", None)
    _LOCAL.is_active, _LOCAL.unknown = True, None
    try:
        yield
    except (TypeError, ValueError) as error:
        if _LOCAL.unknown is None:
            raise
        raise UnknownFunction(
            f"it calls TensorFlow's {_LOCAL.unknown}, which has no translation"
        ) from error
    finally:
        _LOCAL.is_active, _LOCAL.unknown = before


class _Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
    """What TensorFlow asks when a function refuses its arguments."""

    def handle(self, op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not getattr(_LOCAL, "is_active", False):
            return _UNSUPPORTED
        leaves = tree.flatten((args, kwargs))
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            return _UNSUPPORTED
        name = getattr(op, "__name__", str(op))
        translation = _TABLE.get(_key(op))
        if translation is None:
            # A function that calls this one may be known. It is asked next.
            _LOCAL.unknown = name
            return _UNSUPPORTED
        _LOCAL.unknown = None
        try:
            return translation(*args, **{k: v for k, v in kwargs.items() if k != "name"})
        except TypeError as error:
            raise UnknownFunction(
                f"it calls TensorFlow's {name} with arguments that have no translation ({error})"
            ) from error


def _convert(value: Any, dtype: Any = None, dtype_hint: Any = None) -> Any:
    return value if dtype is None else _cast(value, dtype)


def _cast(x: Any, dtype: Any) -> Any:
    wanted = keras.backend.standardize_dtype(dtype)
    return x if keras.backend.standardize_dtype(x.dtype) == wanted else ops.cast(x, wanted)


def _shape(input: Any, out_type: Any = None) -> tuple[int | None, ...]:
    return tuple(input.shape)


def _reshape(tensor: Any, shape: Any) -> Any:
    return ops.reshape(tensor, tuple(-1 if n is None else int(n) for n in shape))


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a, b = (ops.swapaxes(m, -1, -2) if t else m for m, t in ((a, transpose_a), (b, transpose_b)))
    return ops.matmul(a, b)


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    total = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(total, epsilon)))


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    width = [[int(n) for n in pair] for pair in paddings]
    if mode.upper() == "CONSTANT":
        return ops.pad(tensor, width, "constant", constant_values)
    return ops.pad(tensor, width, mode.lower())


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    ends = [sum(num_or_size_splits[: i + 1]) for i in range(len(num_or_size_splits) - 1)]
    return ops.split(value, ends, axis=axis)


def _inner(steps: Any, rank: int = 2) -> Any:
    """Strides or dilations of the positions, of those of all axes."""
    if steps is None or isinstance(steps, int):
        return steps or 1
    steps = [int(n) for n in steps]
    if len(steps) == rank + 2:
        if steps[0] != 1 or steps[-1] != 1:
            raise TypeError(f"steps {steps} over batch or channels")
        steps = steps[1:-1]
    return steps[0] if len(set(steps)) == 1 else tuple(steps)


def _padding(padding: Any) -> str:
    if not isinstance(padding, str):
        raise TypeError(f"padding {padding}")
    return padding.lower()


def _conv2d(
    input: Any,
    filters: Any,
    strides: Any,
    padding: Any,
    data_format: str = "NHWC",
    dilations: Any = None,
) -> Any:
    _check_nhwc(data_format)
    return ops.conv(
        input, filters, _inner(strides), _padding(padding), "channels_last", _inner(dilations)
    )


def _depthwise(
    input: Any,
    filter: Any,
    strides: Any,
    padding: Any,
    data_format: str | None = None,
    dilations: Any = None,
) -> Any:
    _check_nhwc(data_format or "NHWC")
    return ops.depthwise_conv(
        input, filter, _inner(strides), _padding(padding), "channels_last", _inner(dilations)
    )


def _max_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: Any = None) -> Any:
    _check_nhwc(data_format or "NHWC")
    return ops.max_pool(input, _inner(ksize), _inner(strides), _padding(padding), "channels_last")


def _avg_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: Any = None) -> Any:
    _check_nhwc(data_format or "NHWC")
    layer = keras.layers.AveragePooling2D(_inner(ksize), _inner(strides), _padding(padding))
    return layer(input)


def _check_nhwc(data_format: str) -> None:
    if data_format != "NHWC":
        raise TypeError(f"data_format {data_format}")


def _cumsum(x: Any, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Any:
    given = ops.flip(x, axis=axis) if reverse else x
    total = ops.cumsum(given, axis=axis)
    total = ops.subtract(total, given) if exclusive else total
    return ops.flip(total, axis=axis) if reverse else total


def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None) -> Any:
    if ord not in ("euclidean", 2, 2.0) or (axis is not None and not isinstance(axis, int)):
        raise TypeError(f"ord {ord} over axes {axis}")
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis, keepdims=bool(keepdims)))


def _moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False) -> tuple:
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else axes
    return ops.mean(x, axis=axes, keepdims=keepdims), ops.var(x, axis=axes, keepdims=keepdims)


def _slice(input_: Any, begin: Any, size: Any) -> Any:
    ends = [None if n == -1 else int(b) + int(n) for b, n in zip(begin, size, strict=True)]
    return input_[tuple(slice(int(b), e) for b, e in zip(begin, ends, strict=True))]


def _resize(
    images: Any,
    size: Any,
    method: Any = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    if preserve_aspect_ratio or antialias or method not in ("bilinear", "nearest"):
        raise TypeError(f"method {method}, preserve_aspect_ratio or antialias")
    return ops.image.resize(images, tuple(int(n) for n in size), interpolation=method)


def _of_blocks(function: Callable) -> Callable:
    def move(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
        _check_nhwc(data_format)
        return function(input, block_size, data_format="channels_last")

    return move


def _sort(values: Any, axis: int = -1, direction: str = "ASCENDING") -> Any:
    found = ops.sort(values, axis=axis)
    return found if direction == "ASCENDING" else ops.flip(found, axis=axis)


def _one_hot(
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


def _sum_of(inputs: Any) -> Any:
    total, *others = inputs
    for other in others:
        total = ops.add(total, other)
    return total


def _silu(features: Any, beta: float = 1.0) -> Any:
    if beta != 1.0:
        raise TypeError(f"beta {beta}")
    return ops.silu(features)


def _reduction(function: Callable) -> Callable:
    def reduce(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return function(input_tensor, axis=axis, keepdims=keepdims)

    return reduce


def _unary(function: Callable) -> Callable:
    """Of one tensor, whatever TensorFlow calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        (tensor,) = (*args, *kwargs.values())
        return function(tensor)

    return call


def _binary(function: Callable) -> Callable:
    return lambda x, y: function(x, y)


_UNARY = {
    "math.abs": ops.absolute,
    "math.ceil": ops.ceil,
    "math.cos": ops.cos,
    "math.erf": ops.erf,
    "math.exp": ops.exp,
    "math.expm1": ops.expm1,
    "math.floor": ops.floor,
    "math.log": ops.log,
    "math.log1p": ops.log1p,
    "math.negative": ops.negative,
    "math.reciprocal": ops.reciprocal,
    "math.round": ops.round,
    "math.rsqrt": ops.rsqrt,
    "math.sigmoid": ops.sigmoid,
    "math.sign": ops.sign,
    "math.sin": ops.sin,
    "math.softplus": ops.softplus,
    "math.sqrt": ops.sqrt,
    "math.square": ops.square,
    "math.tanh": ops.tanh,
    "identity": lambda x: x,
    "math.log_sigmoid": ops.log_sigmoid,
    "nn.relu6": ops.relu6,
    "logical_not": ops.logical_not,
    "nn.elu": ops.elu,
    "nn.relu": ops.relu,
    "nn.selu": ops.selu,
    "nn.softsign": ops.softsign,
    "stop_gradient": ops.stop_gradient,
    "zeros_like": ops.zeros_like,
    "ones_like": ops.ones_like,
}
_BINARY = {
    "math.add": ops.add,
    "math.divide": ops.divide,
    "math.truediv": ops.divide,
    "math.equal": ops.equal,
    "math.greater": ops.greater,
    "math.greater_equal": ops.greater_equal,
    "math.less": ops.less,
    "math.less_equal": ops.less_equal,
    "math.not_equal": ops.not_equal,
    "math.logical_and": ops.logical_and,
    "math.logical_or": ops.logical_or,
    "math.maximum": ops.maximum,
    "math.minimum": ops.minimum,
    "math.multiply": ops.multiply,
    "math.pow": ops.power,
    "math.squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "math.subtract": ops.subtract,
}
_REDUCTIONS = {
    "math.reduce_all": ops.all,
    "math.reduce_any": ops.any,
    "math.reduce_logsumexp": ops.logsumexp,
    "math.reduce_max": ops.max,
    "math.reduce_mean": ops.mean,
    "math.reduce_min": ops.min,
    "math.reduce_prod": ops.prod,
    "math.reduce_std": ops.std,
    "math.reduce_sum": ops.sum,
    "math.reduce_variance": ops.var,
}
_OTHERS: dict[str, Callable] = {
    "add_n": _sum_of,
    "math.add_n": _sum_of,
    "math.cumsum": _cumsum,
    "math.argmin": lambda input, axis=None: ops.argmin(input, axis=axis),
    "image.resize": _resize,
    "nn.depth_to_space": _of_blocks(ops.nn.depth_to_space),
    "nn.moments": _moments,
    "nn.space_to_depth": _of_blocks(ops.nn.space_to_depth),
    "norm": _norm,
    "one_hot": _one_hot,
    "repeat": lambda input, repeats, axis=None: ops.repeat(input, repeats, axis=axis),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis=axis),
    "slice": _slice,
    "sort": _sort,
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(shape)),
    "cast": _cast,
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "convert_to_tensor": _convert,
    "einsum": lambda equation, *inputs: ops.einsum(equation, *inputs),
    "expand_dims": lambda input, axis, name=None: ops.expand_dims(input, axis),
    "gather": lambda params, indices, axis=0: ops.take(params, indices, axis=axis),
    "linalg.matmul": _matmul,
    "math.argmax": lambda input, axis=None: ops.argmax(input, axis=axis),
    "math.l2_normalize": _l2_normalize,
    "nn.avg_pool2d": _avg_pool,
    "nn.bias_add": lambda value, bias: ops.add(value, bias),
    "nn.conv2d": _conv2d,
    "nn.depthwise_conv2d": _depthwise,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate=approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, negative_slope=alpha),
    "nn.avg_pool": _avg_pool,
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, axis=axis),
    "nn.max_pool2d": _max_pool,
    "nn.silu": _silu,
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis=axis),
    "pad": _pad,
    "reshape": _reshape,
    "reverse": lambda tensor, axis: ops.flip(tensor, axis=axis),
    "shape": _shape,
    "split": _split,
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis=axis),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "tensordot": lambda a, b, axes: ops.tensordot(a, b, axes=axes),
    "tile": lambda input, multiples: ops.tile(input, tuple(int(n) for n in multiples)),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis=axis),
    "where": lambda condition, x=None, y=None: ops.where(condition, x, y),
}


def _public(name: str) -> Any:
    found: Any = tf
    for word in name.split("."):
        found = getattr(found, word)
    return found


def _key(function: Any) -> tuple[str, str]:
    # TensorFlow's public names are bound to wrappers of what it dispatches.
    return function.__module__, function.__name__


#: TensorFlow function, by module and name → what takes its place.
_TABLE: dict[tuple[str, str], Callable] = {
    _key(_public(name)): wrap(function)
    for table, wrap in (
        (_UNARY, _unary),
        (_BINARY, _binary),
        (_REDUCTIONS, _reduction),
        (_OTHERS, lambda function: function),
    )
    for name, function in table.items()
}
_Dispatcher().register()
