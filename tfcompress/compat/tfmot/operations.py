"""TensorFlow functions in the graph of a tf_keras model, as operations of Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops


def _reduced(function: Callable) -> Callable:
    def apply(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return function(input_tensor, axis=axis, keepdims=bool(keepdims))

    return apply


def _binary(function: Callable) -> Callable:
    return lambda x, y: function(x, y)


def _unary(function: Callable) -> Callable:
    # The argument is `x`, `features`, `logits` or `input`: always the first.
    return lambda x: function(x)


#: Name of the function → the operation, of its arguments but `name`.
OPERATIONS: Mapping[str, Callable] = {
    "__operators__.add": _binary(ops.add),
    "math.add": _binary(ops.add),
    "math.subtract": _binary(ops.subtract),
    "math.multiply": _binary(ops.multiply),
    "math.truediv": _binary(ops.divide),
    "math.divide": _binary(ops.divide),
    "math.maximum": _binary(ops.maximum),
    "math.minimum": _binary(ops.minimum),
    "math.pow": _binary(ops.power),
    "linalg.matmul": lambda a, b: ops.matmul(a, b),
    "math.abs": _unary(ops.absolute),
    "math.exp": _unary(ops.exp),
    "math.log": _unary(ops.log),
    "math.negative": _unary(ops.negative),
    "math.rsqrt": _unary(ops.rsqrt),
    "math.sqrt": _unary(ops.sqrt),
    "math.square": _unary(ops.square),
    "math.tanh": _unary(ops.tanh),
    "math.sigmoid": _unary(ops.sigmoid),
    "nn.relu": _unary(ops.relu),
    "nn.relu6": _unary(ops.relu6),
    "nn.silu": _unary(ops.silu),
    "nn.swish": _unary(ops.silu),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, -1 if axis is None else axis),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "math.reduce_mean": _reduced(ops.mean),
    "math.reduce_sum": _reduced(ops.sum),
    "math.reduce_max": _reduced(ops.max),
    "math.reduce_min": _reduced(ops.min),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
}


def operation(function: str, name: str) -> Callable:
    """The operation of a TensorFlow function.

    Raises:
        ValueError: There is none.
    """
    if function not in OPERATIONS:
        raise ValueError(
            f"Expected TensorFlow functions of {sorted(OPERATIONS)}. Received: {name!r}, which "
            f"calls tf.{function}. Write it with layers of tf_keras."
        )
    found = OPERATIONS[function]
    return lambda *args, **kwargs: found(
        *args, **{k: v for k, v in kwargs.items() if k != "name" and v is not None}
    )
