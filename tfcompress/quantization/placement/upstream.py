"""What a symbolic tensor comes from: the quantizer whose codes it holds, or a layer's int32 sum.

Looked up when a layer is called on a symbolic tensor, so it is right after load and clone.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.model.compressed import Compressed
from tfcompress.model.graph import producer
from tfcompress.model.kernels import channels_are_last
from tfcompress.model.linking import Linked
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.registry import Role, keeps_codes, role


def upstream_quantizer(tensor: keras.KerasTensor) -> TensorQuantizer | None:
    """The quantizer whose codes `tensor` holds; `None` where it is not quantized.

    Operations that only move codes (reshape, max pooling, padding, …) are looked through.
    """
    while True:
        call = producer(tensor)
        if call is None:
            return None
        operation, args, kwargs = call
        if isinstance(operation, TensorQuantizer):
            return operation
        if not keeps_codes(operation):
            return None
        tensor = first_tensor((args, kwargs))


def upstream_kernel(tensor: keras.KerasTensor) -> tuple[Compressed, int] | None:
    """`(layer, call index)` of the compressed layer that gave `tensor` directly, if one did.

    Only of a layer whose channels a batch norm over the last axis scales.
    """
    call = producer(tensor)
    if call is None or not isinstance(call[0], Compressed) or not channels_are_last(call[0]):
        return None
    return call[0], call[2].get("call_index", 0)


def link_rounding(tensor: keras.KerasTensor, quantizer: TensorQuantizer) -> None:
    """Tells the layer that gave `tensor` that `quantizer` rounds it.

    A ReLU in between fuses into the same rounding.
    """
    call = producer(tensor)
    if call is not None and role(call[0]) is Role.RELU and not _rounds_itself(call):
        call = producer(first_tensor(call[1:]))
    if call is not None and isinstance(call[0], Linked):
        call[0].link_rounding(quantizer, call[2].get("call_index", 0))


def _rounds_itself(call: tuple[Any, tuple, dict[str, Any]]) -> bool:
    operation, _, kwargs = call
    return isinstance(operation, Linked) and operation.rounds_itself(kwargs.get("call_index", 0))


def first_tensor(arguments: Any) -> keras.KerasTensor:
    return next(leaf for leaf in tree.flatten(arguments) if isinstance(leaf, keras.KerasTensor))
