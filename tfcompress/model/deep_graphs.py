"""Functional models of graphs deeper than Python's recursion limit.

Keras visits the calls of a functional model by recursion, one frame per call in a chain. A
recurrent layer that is taken apart is a chain of several calls per time step, so that a sequence
of 128 steps exceeds the default limit of 1000 frames.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from tfcompress.model.keras_private import call_of


@contextlib.contextmanager
def deep_graph(outputs: Any) -> Iterator[None]:
    """Within it, Keras can make a functional model of these symbolic outputs, however deep."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _count_tensors(outputs))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _count_tensors(outputs: Any) -> int:
    """How many symbolic tensors lead to `outputs`: a bound of the depth of their graph."""
    found: set[int] = set()
    left = tree.flatten(outputs)
    while left:
        tensor = left.pop()
        if isinstance(tensor, keras.KerasTensor) and id(tensor) not in found:
            found.add(id(tensor))
            call = call_of(tensor)
            if call is not None:
                _, args, kwargs = call
                left.extend(tree.flatten((args, kwargs)))
    return len(found)
