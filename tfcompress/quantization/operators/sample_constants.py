"""Constants that every sample of a batch gets, such as class tokens: codes in the file."""

from __future__ import annotations

import tensorflow as tf

from tfcompress.model.batch_sizes import SampleConstant
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A constant, whose codes the operator that reads it holds."""
    return tf.constant(call.constants[0])


register(
    SampleConstant,
    spec=OperatorSpec(
        role=Role.ELEMENTWISE,
        constants=lambda layer, call_index: (layer.row(),),
        lower=_lower,
    ),
)
