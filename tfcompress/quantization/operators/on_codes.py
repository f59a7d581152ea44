"""Layers that compute, in inference, with the integers of the runtime instead of real values."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.requantize import requantized_steps
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.runtime_arithmetic import factor_scale
from tfcompress.quantization.placement.upstream import upstream_quantizer


@dataclasses.dataclass(frozen=True)
class Call:
    """One call in inference, whose codes are known.

    Attributes:
        inputs: What the layer reads.
        outputs: Its real values.
        scale: Positive scale of the input's codes.
        source: The quantizer of the input.
        rounding: That of the output.
    """

    inputs: tf.Tensor
    outputs: tf.Tensor
    scale: tf.Tensor
    source: TensorQuantizer
    rounding: TensorQuantizer


def product_with(values: np.ndarray | float, call: Call) -> tf.Tensor:
    """The product with constants, in the codes and the scale that the file holds of them."""
    if np.all(np.asarray(values) == 1):
        # The converter leaves such a product out.
        return call.rounding.round_by(
            lambda new: requantized_steps(call.inputs, call.scale, new), call.outputs
        )
    step = factor_scale(values)
    codes = np.round(np.asarray(values, np.float32) / step)
    return call.rounding.round_sum(tf.round(call.inputs / call.scale) * codes, call.scale * step)


class OnCodes(Linked):
    """Mixin: the layer rounds what it computes from the codes of its input.

    Where these are not known (a tensor in float, no range yet, 16-bit computation) it computes as
    the Keras layer that the mixin is combined with.
    """

    # Set by the Keras layer that the mixin is combined with.
    compute_dtype: str

    # Call index → the quantizer of the input, and the one that rounds the output.
    _quantizers: Links
    _roundings: Links

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._quantizers, self._roundings = Links(), Links()

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        """What the layer computes, not rounded: the `call` of the Keras layer."""
        return super().call(inputs)  # type: ignore[misc]

    def rounded(self, call: Call) -> tf.Tensor:
        """What the runtime gives."""
        raise NotImplementedError(
            f"Expected a layer that implements rounded(call). Received: {type(self).__name__}."
        )

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self._quantizers.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._roundings.set(call_index, quantizer)

    def reads_codes(self, call_index: int) -> bool:
        """Whether a call reads codes and is rounded to codes."""
        is_read = self._quantizers.get(call_index) is not None
        return is_read and self._roundings.get(call_index) is not None

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = self.real_values(inputs)
        source = self._quantizers.get(call_index)
        rounding = self._roundings.get(call_index)
        if training or source is None or rounding is None or self.compute_dtype != "float32":
            return outputs
        scale = source.active_scale()
        safe = tf.where(scale > 0, scale, 1.0)
        exact = self.rounded(Call(inputs, outputs, safe, source, rounding))
        # Its gradient is that of the real values, for layers that are frozen in training.
        return outputs + tf.stop_gradient(tf.where(scale > 0, exact, outputs) - outputs)

    def compute_output_spec(
        self,
        inputs: keras.KerasTensor,
        training: bool | None = None,
        call_index: int = 0,
        **kwargs: Any,
    ) -> keras.KerasTensor:
        return super().compute_output_spec(inputs)  # type: ignore[misc]

    def stripped(self) -> list[keras.Layer]:
        cls: Any = self.keras_class  # type: ignore[attr-defined]
        return [cls.from_config(self.get_config())]  # type: ignore[attr-defined]
