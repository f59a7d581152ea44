"""What each layer of a model receives and returns: recorded while the model runs.

Works on any model (functional, nested, subclassed), because it watches the layers' own `call`
and asks nothing of the graph. A shared layer is recorded once per call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras


@contextlib.contextmanager
def watch_calls(
    layers: Sequence[keras.Layer],
    on_call: Callable[[keras.Layer, tuple[Any, ...], dict[str, Any], Any], None],
) -> Iterator[None]:
    """Calls `on_call(layer, args, kwargs, outputs)` after every call of one of the layers.

    Args:
        layers: The layers to watch.
        on_call: What to do with a call.
    """
    watched: list[keras.Layer] = []
    try:
        for layer in layers:
            if "call" not in vars(layer):
                _watch(layer, on_call)
                watched.append(layer)
        yield
    finally:
        for layer in watched:
            object.__delattr__(layer, "call")


def _watch(layer: keras.Layer, on_call: Callable[..., None]) -> None:
    original = layer.call

    @functools.wraps(original)
    def call(*args, **kwargs):
        outputs = original(*args, **kwargs)
        on_call(layer, args, kwargs, outputs)
        return outputs

    # Not `setattr`: Keras' own would look for state to track in what is only a function.
    object.__setattr__(layer, "call", call)
