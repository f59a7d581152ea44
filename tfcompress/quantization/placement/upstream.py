"""Who stands before a tensor: the quantizer whose codes it holds, or the int32 sum it comes from.

Looked up when a layer is called on a symbolic tensor, so it is right after load and clone.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.model.graph import producer
from tfcompress.quantization.operators.registry import Role, keeps_codes, role


def upstream_quantizer(tensor: keras.KerasTensor) -> Any | None:
    """The quantizer whose codes `tensor` holds; `None` where it is not quantized.

    Operations that only move codes (reshape, max pooling, padding, …) are looked through.
    """
    while True:
        call = producer(tensor)
        if call is None:
            return None
        operation, args, kwargs = call
        if hasattr(operation, "active_scale"):
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


def upstream_sums(tensor: keras.KerasTensor) -> list[tuple[Links, int]]:
    """Where the layer whose int32 sum one rounding turns into `tensor` keeps its quantizer.

    That is its `sum_quantizers` with the index of the call. A ReLU in between fuses into the same
    rounding. The list is empty where no such layer stands before the tensor.
    """
    call = producer(tensor)
    if call is not None and role(call[0]) is Role.RELU:
        call = producer(first_tensor(call[1:]))
    if call is None:
        return []
    operation, _, kwargs = call
    transformed = getattr(operation, "transformed", None)
    chains = [] if transformed is None else transformed.chains.values()
    owners = [operation, *(transform for chain in chains for transform in chain)]
    found = (getattr(owner, "sum_quantizers", None) for owner in owners)
    return [(links, kwargs.get("call_index", 0)) for links in found if links is not None]


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
