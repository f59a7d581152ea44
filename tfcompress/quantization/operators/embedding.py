"""Embedding and one-hot vectors: rows of a table of codes, looked up by index."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.compressed import compress
from tfcompress.model.transforms import FAKE_QUANT, WeightCall, WeightTransform
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


@keras.saving.register_keras_serializable(package="tfcompress")
class CodedTable(WeightTransform):
    """Tells the quantizer of the rows that are looked up of the whole table.

    The codes in the file are those of the quantizer behind the layer, so that nothing is rounded
    twice. Its range holds the rows that no batch has looked up yet, too.
    """

    order = FAKE_QUANT

    def attach(self, layer: keras.Layer, variable: keras.Variable) -> None:
        super().attach(layer, variable)
        # A function, because Keras would track the layer.
        self._table = lambda: layer.effective_weights()[variable.name]

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        quantizer.observe_also(self._table)

    def apply(self, value: tf.Tensor, call: WeightCall) -> tf.Tensor:
        return value


def _lower(call: LoweredCall, indices: tf.Tensor) -> tf.Tensor | None:
    """One GATHER; Keras' own also counts negative indices from the end."""
    table = next((v for k, v in call.constants if k.name == "embeddings"), None)
    return None if table is None else tf.gather(tf.constant(np.asarray(table)), indices)


def _call_reason(node: Any) -> str | None:
    dtype = keras.backend.standardize_dtype(node.inputs[0].spec.dtype)
    if dtype.startswith(("int", "uint")):
        return None
    return f"its indices are {dtype}; give the model an input of dtype int32"


def _lower_one_hot(call: LoweredCall, indices: tf.Tensor) -> tf.Tensor:
    """One GATHER of the rows of an identity matrix; rows of zeros for other indices."""
    count, axis = call.operation.num_classes, call.operation.axis
    rows = np.concatenate([np.zeros((1, count)), np.eye(count), np.zeros((1, count))])
    places = tf.clip_by_value(tf.cast(indices, tf.int32), -1, count) + 1
    y = tf.gather(tf.constant(rows, tf.float32), places)
    rank = len(y.shape)
    if axis % rank == rank - 1:
        return y
    order = list(range(rank - 1))
    order.insert(axis % rank, rank - 1)
    return tf.transpose(y, order)


register(
    ops.one_hot,
    spec=OperatorSpec(
        role=Role.ELEMENTWISE,
        takes_integers=True,
        lower=_lower_one_hot,
        float_reason=lambda operation: "it gives a sparse tensor" if operation.sparse else None,
    ),
)
register(
    layers.Embedding,
    spec=OperatorSpec(
        role=Role.ELEMENTWISE,
        takes_integers=True,
        quantized=lambda layer: compress(layer, {"embeddings": [CodedTable()]}),
        lower=_lower,
        call_reason=_call_reason,
    ),
)
