"""Functions with one trace that all layers share.

A large quantized model calls the same few dozen operations at every tensor. Traced in place they,
their branches and the gradients of their branches took most of the time to the first step; as
functions of their own they are one node each. The runtime inlines them, so a step takes as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

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
