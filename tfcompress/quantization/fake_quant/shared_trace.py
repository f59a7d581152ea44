"""Functions with one trace that all layers share.

A large quantized model calls the same few dozen operations at every tensor. Traced in place they,
their branches and the gradients of their branches took most of the time to the first step; as
functions of their own they are one node each. The runtime inlines them, so a step takes as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf


def shared_trace(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `function(*tensors, **options)`, which must neither make nor assign variables.

    There is a trace for each combination of ranks, dtypes and options. In it no size is known, so
    what comes out has none either: the caller sets the shapes that it needs. A function that draws
    random numbers is called as it is: in one trace all layers would draw the same.

    Args:
        function: Positional arguments are tensors; options are hashable.
    """

    @functools.cache
    def traced(
        kinds: tuple[tuple[int, tf.DType], ...], options: tuple[tuple[str, Any], ...]
    ) -> Callable[..., Any]:
        signature = [tf.TensorSpec([None] * rank, dtype) for rank, dtype in kinds]
        bound = functools.partial(function, **dict(options))
        return tf.function(bound, input_signature=signature, autograph=False)

    @functools.wraps(function)
    def call(*tensors: tf.Tensor, **options: Any) -> Any:
        kinds = tuple((tensor.shape.rank, tensor.dtype) for tensor in tensors)
        return traced(kinds, tuple(sorted(options.items())))(*tensors)

    return call


class SharedVariable:
    """A variable inside a shared trace: whichever the caller of the function hands over.

    Args:
        handle: The variable's resource.
        rank: The variable's rank. Its type is float32.
    """

    def __init__(self, handle: tf.Tensor, rank: int) -> None:
        self._handle, self._rank = handle, rank

    def read(self) -> tf.Tensor:
        """The value that it has now."""
        value = tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=tf.float32)
        value.set_shape([None] * self._rank)
        return value

    def assign(self, value: tf.Tensor) -> None:
        """Sets the value."""
        tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)


def shared_update(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `function(tensors, variables, **options)`, which reads and assigns variables.

    Like `shared_trace`, with reads and assignments inside of the one trace too. No gradient goes to
    the variables: what is trained is read by the caller. Every replica of a distributed step has
    variables of its own kind, and a stateless scope only records assignments: `can_share_updates`
    tells where the function must not be called.

    Args:
        function: Gets a tuple of tensors and a tuple of `SharedVariable`s; options are hashable.
    """

    @functools.cache
    def traced(
        kinds: tuple[tuple[int, tf.DType], ...],
        ranks: tuple[int, ...],
        options: tuple[tuple[str, Any], ...],
    ) -> Callable[..., Any]:
        signature = [tf.TensorSpec([None] * rank, dtype) for rank, dtype in kinds]
        signature += [tf.TensorSpec([], tf.resource)] * len(ranks)

        def run(*inputs: tf.Tensor) -> Any:
            handles = zip(inputs[len(kinds) :], ranks, strict=True)
            variables = tuple(SharedVariable(handle, rank) for handle, rank in handles)
            return function(inputs[: len(kinds)], variables, **dict(options))

        return tf.function(run, input_signature=signature, autograph=False)

    @functools.wraps(function)
    def call(
        tensors: tuple[tf.Tensor, ...], variables: tuple[keras.Variable, ...], **options: Any
    ) -> Any:
        kinds = tuple((tensor.shape.rank, tensor.dtype) for tensor in tensors)
        ranks = tuple(len(variable.shape) for variable in variables)
        handles = [variable.value.handle for variable in variables]
        return traced(kinds, ranks, tuple(sorted(options.items())))(*tensors, *handles)

    return call


def can_share_updates(variables: Iterable[keras.Variable]) -> bool:
    """Whether variables are assigned for real and on one device, as `shared_update` needs it."""
    if tf.distribute.has_strategy():
        return False
    with keras.StatelessScope(initialize_variables=False) as scope:
        if scope.original_scope is not None:
            return False
    values = [variable.value for variable in variables]
    return all(
        isinstance(value, tf.Variable) and not isinstance(value, tf.distribute.DistributedValues)
        for value in values
    )
