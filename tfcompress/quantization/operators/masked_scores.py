"""Masked scores: what is set to −1e9 or so before a softmax or a maximum, which then ignores it.

A range that reaches there has no codes left for the scores. In its place stands the lowest code of
the scores, whose range is so much wider that a softmax gives what is masked e^−8 of the weight of
the smallest other value. Both ways to write it are known: `where(mask, scores, -1e9)` and
`scores + (1 - mask) * -1e9`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.free_ranges import with_room_for
from tfcompress.quantization.operators.products import MASKED
from tfcompress.quantization.operators.registry import (
    OperatorSpec,
    Role,
    activation_of,
    register,
    role,
)

#: A number from here on downwards is no score.
FAR = -1e3
# How far below all others a masked score is.
_MARGIN = 8.0

_READERS = (
    *("Softmax", "ScaledSoftmax", "LogSoftmax", "Max", "Amax", "Argmax", "TopK"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
)


@keras.saving.register_keras_serializable(package="tfcompress")
class MaskScores(Linked, layers.Layer):
    """x where a mask is true, else as low as the range of x goes. Called on `[x, mask]` or on x.

    In training that is 8 below the least value that is not masked, so that the range holds it.

    Args:
        filled: Which value of the mask marks what is masked.
        mask: The mask where it is a constant, broadcast against x.
    """

    channels_like = layers.Identity

    def __init__(self, filled: bool = False, mask: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filled = bool(filled)
        self.mask = None if mask is None else np.asarray(mask, bool).tolist()
        self._rounding = Links()

    def link(self, inputs: Any, call_index: int) -> None:
        return None

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._rounding.set(call_index, quantizer)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def call(self, inputs: Any, training: bool | None = None, call_index: int = 0) -> tf.Tensor:
        x, mask = self.both(inputs)
        mask = tf.broadcast_to(tf.cast(mask, tf.bool), tf.shape(x))
        kept = tf.logical_not(mask) if self.filled else mask
        least = tf.reduce_min(tf.where(kept, x, tf.reduce_max(x))) - tf.cast(_MARGIN, x.dtype)
        least = tf.stop_gradient(least)
        quantizer = None if training else self._rounding.get(call_index)
        if quantizer is not None:
            # What saturates, as in the file.
            least = tf.where(quantizer.active_scale() > 0, tf.cast(MASKED, x.dtype), least)
        return tf.where(kept, x, least)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(self.both(inputs)[0].shape, dtype=self.compute_dtype)

    def both(self, inputs: Any) -> tuple[Any, Any]:
        """The scores and the mask."""
        return tuple(inputs) if self.mask is None else (inputs, np.asarray(self.mask, bool))

    def stripped(self) -> list[Callable]:
        def plain(inputs: Any) -> Any:
            x, mask = self.both(inputs)
            return ops.where(mask, *((MASKED, x) if self.filled else (x, MASKED)))

        return [plain]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filled": self.filled, "mask": self.mask}


def _lower(call: LoweredCall, inputs: Any) -> tf.Tensor:
    """SELECT_V2 with a constant that saturates."""
    x, mask = call.operation.both(inputs)
    masked = tf.constant(MASKED, x.dtype)
    return tf.where(mask, masked, x) if call.operation.filled else tf.where(mask, x, masked)


register(
    MaskScores,
    spec=OperatorSpec(
        role=Role.RESAMPLE,
        takes_integers=True,
        quantized=lambda layer: MaskScores.from_config(layer.get_config()),
        lower=_lower,
    ),
)


def masked_scores(b: Builder, x: Value, value: Any, mask: Any, filled: bool) -> Value | None:
    """The fill of a node's scores with a number far below them.

    Args:
        b: The builder, at the call that fills.
        x: The scores.
        value: What they are filled with.
        mask: Where; a tensor, or a constant.
        filled: Which value of the mask marks what is filled.

    Returns:
        `None` where the number may be a score, or is read by more than a softmax or a maximum.
    """
    is_far = np.size(value) == 1 and float(np.ravel(value)[0]) <= FAR
    if not is_far or not is_ignored(b, b.node.output):
        return None
    x = with_room_for(b, x, FAR)
    if not isinstance(mask, Value):
        return b.call(lambda n: MaskScores(filled, mask, name=n), "", x)
    return b.call(lambda n: MaskScores(filled, name=n), "", x, mask)


def is_ignored(b: Builder, value: Value) -> bool:
    """Whether all that reads a value ignores what is far below the rest."""
    readers = b.graph.consumers(value)
    return (
        bool(readers)
        and not b.graph.is_output(value)
        and all(
            type(r.operation).__name__ in _READERS
            or activation_of(r.operation) == "softmax"
            or (moves(r) and is_ignored(b, r.output))
            for r in readers
        )
    )


def moves(node: Node) -> bool:
    return role(node.operation) is Role.MOVE and len(node.inputs) == len(node.outputs) == 1
