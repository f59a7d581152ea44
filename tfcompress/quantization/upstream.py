"""Which quantizer gave a tensor its codes: the link from a kernel to the scale of its input.

Looked up when a layer is called on a symbolic tensor, so it is right after load and clone.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.model.graph import producer
from tfcompress.quantization.operators import keeps_codes
from tfcompress.quantization.quantizers import FakeQuantize


def upstream_quantizer(tensor: keras.KerasTensor) -> FakeQuantize | None:
    """The quantizer whose codes `tensor` holds; `None` where it is not quantized.

    Operations that only move codes (reshape, max pooling, padding, …) are looked through.
    """
    while True:
        call = producer(tensor)
        if call is None:
            return None
        operation, args, kwargs = call
        if isinstance(operation, FakeQuantize):
            return operation
        if not keeps_codes(operation):
            return None
        tensor = first_tensor((args, kwargs))


def upstream_kernel(tensor: keras.KerasTensor) -> tuple[Any, int] | None:
    """`(layer, call index)` of the compressed layer that gave `tensor` directly, if one did."""
    call = producer(tensor)
    if call is None or not hasattr(call[0], "transformed"):
        return None
    return call[0], call[2].get("call_index", 0)


def first_tensor(arguments: Any) -> keras.KerasTensor:
    return next(leaf for leaf in tree.flatten(arguments) if isinstance(leaf, keras.KerasTensor))


class Links:
    """Call index → what one call of a layer is linked to.

    A class of its own because Keras would take the layers in a dict for sublayers.
    """

    def __init__(self):
        self._by_call: dict[int, Any] = {}

    def get(self, call_index: int) -> Any:
        return self._by_call.get(call_index)

    def set(self, call_index: int, value: Any) -> None:
        self._by_call[call_index] = value
