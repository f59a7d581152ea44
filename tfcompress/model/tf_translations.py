"""Which `keras.ops` calls take the place of which TensorFlow function.

A function stands here by its public name, with what `tf_arguments` has for it, or with the
function of Keras whose arguments are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.model import tf_arguments


def _reduction(function: Callable) -> Callable:
    def reduce(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return function(input_tensor, axis=axis, keepdims=keepdims)

    return reduce


def _mean(function: Callable) -> Callable:
    reduce = _reduction(function)

    def mean(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        # TensorFlow's mean of whole numbers is a whole number.
        if "float" not in keras.backend.standardize_dtype(input_tensor.dtype):
            raise TypeError(f"values of type {input_tensor.dtype}")
        return reduce(input_tensor, axis, keepdims)

    return mean


def _unary(function: Callable) -> Callable:
    """Of one tensor, whatever TensorFlow calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        (tensor,) = (*args, *kwargs.values())
        return function(tensor)

    return call


def _binary(function: Callable) -> Callable:
    return lambda x, y: function(x, y)


UNARY = {
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
BINARY = {
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
REDUCTIONS = {
    "math.reduce_all": ops.all,
    "math.reduce_any": ops.any,
    "math.reduce_logsumexp": ops.logsumexp,
    "math.reduce_max": ops.max,
    "math.reduce_min": ops.min,
    "math.reduce_prod": ops.prod,
    "math.reduce_std": ops.std,
    "math.reduce_sum": ops.sum,
    "math.reduce_variance": ops.var,
}
OTHERS: dict[str, Callable] = {
    "add_n": tf_arguments.sum_of,
    "math.add_n": tf_arguments.sum_of,
    "math.cumsum": tf_arguments.cumsum,
    "math.argmin": tf_arguments.argument_of(ops.argmin),
    "image.resize": tf_arguments.resize,
    "nn.depth_to_space": tf_arguments.of_blocks(ops.nn.depth_to_space),
    "nn.moments": tf_arguments.moments,
    "nn.space_to_depth": tf_arguments.of_blocks(ops.nn.space_to_depth),
    "norm": tf_arguments.norm,
    "one_hot": tf_arguments.one_hot,
    "repeat": lambda input, repeats, axis=None: ops.repeat(input, repeats, axis=axis),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis=axis),
    "slice": tf_arguments.slice_of,
    "sort": tf_arguments.sort,
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(shape)),
    "cast": tf_arguments.cast,
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "convert_to_tensor": tf_arguments.convert,
    "einsum": lambda equation, *inputs: ops.einsum(equation, *inputs),
    "expand_dims": lambda input, axis, name=None: ops.expand_dims(input, axis),
    "gather": tf_arguments.gather,
    "linalg.matmul": tf_arguments.matmul,
    "math.argmax": tf_arguments.argument_of(ops.argmax),
    "math.l2_normalize": tf_arguments.l2_normalize,
    "math.reduce_mean": _mean(ops.mean),
    "nn.avg_pool2d": tf_arguments.avg_pool,
    "nn.bias_add": lambda value, bias: ops.add(value, bias),
    "nn.conv2d": tf_arguments.conv2d,
    "nn.depthwise_conv2d": tf_arguments.depthwise,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate=approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, negative_slope=alpha),
    "nn.avg_pool": tf_arguments.avg_pool,
    "nn.log_softmax": tf_arguments.softmax(ops.log_softmax),
    "nn.max_pool2d": tf_arguments.max_pool,
    "nn.silu": tf_arguments.silu,
    "nn.softmax": tf_arguments.softmax(ops.softmax),
    "pad": tf_arguments.pad,
    "reshape": tf_arguments.reshape,
    "reverse": lambda tensor, axis: ops.flip(tensor, axis=axis),
    "shape": tf_arguments.shape_of,
    "split": tf_arguments.split,
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis=axis),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "tensordot": lambda a, b, axes: ops.tensordot(a, b, axes=axes),
    "tile": lambda input, multiples: ops.tile(input, tuple(int(n) for n in multiples)),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis=axis),
    "where": tf_arguments.where,
}


def public(name: str) -> Any:
    """TensorFlow's function of a public name."""
    found: Any = tf
    for word in name.split("."):
        found = getattr(found, word)
    return found


def translation_of(function: Any) -> Callable | None:
    """What takes the place of a function that TensorFlow dispatches, with its arguments.

    It raises TypeError for arguments that have no translation. `None` where there is none.
    """
    return _TABLE.get(_key(function))


def _key(function: Any) -> tuple[str, str]:
    # TensorFlow's public names are bound to wrappers of what it dispatches.
    return function.__module__, function.__name__


#: Public name of a TensorFlow function → what takes its place.
TABLES: tuple[Mapping[str, Callable], ...] = (
    {name: _unary(function) for name, function in UNARY.items()},
    {name: _binary(function) for name, function in BINARY.items()},
    {name: _reduction(function) for name, function in REDUCTIONS.items()},
    OTHERS,
)
_TABLE = {_key(public(name)): f for table in TABLES for name, f in table.items()}
