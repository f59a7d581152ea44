"""Averages and sums over codes, rounded as the runtime rounds them, to the bit.

A mean whose range is that of its input has many values exactly between two codes: of two by two
values every fourth. So in inference these layers round the integers that the runtime rounds, not
the real values.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.placement.upstream import upstream_quantizer


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

    def rounded(
        self,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        scale: tf.Tensor,
        source: TensorQuantizer,
        rounding: TensorQuantizer,
    ) -> tf.Tensor:
        """What the runtime gives.

        Args:
            inputs: What the layer reads.
            outputs: Its real values.
            scale: Positive scale of the input's codes.
            source: The quantizer of the input.
            rounding: That of the output.
        """
        raise NotImplementedError

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self._quantizers.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._roundings.set(call_index, quantizer)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        outputs = self.real_values(inputs)
        source = self._quantizers.get(call_index)
        rounding = self._roundings.get(call_index)
        if training or source is None or rounding is None or self.compute_dtype != "float32":
            return outputs
        scale = source.active_scale()
        exact = self.rounded(inputs, outputs, tf.where(scale > 0, scale, 1.0), source, rounding)
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


class SumOfCodes(OnCodes):
    """Mixin: the layer gives w · Σ x of some of the values x that it reads.

    The file holds it as a depthwise convolution with the constant weight w, whose code is 127.
    """

    def weight(self) -> float:
        """The constant w, positive."""
        raise NotImplementedError

    def rounded(
        self,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        scale: tf.Tensor,
        source: TensorQuantizer,
        rounding: TensorQuantizer,
    ) -> tf.Tensor:
        weight, code = np.float32(self.weight()), code_range(8)[1]
        sums = tf.round(outputs / (scale * weight)) * code
        return rounding.round_sum(sums, scale * (weight * np.float32(1 / code)))


class MeanOfCodes(OnCodes):
    """Mixin: the layer gives the mean, or the sum, over some axes.

    XNNPACK adds the codes qᵢ of the n values as they are, and then computes in float32: with
    f = scale / output scale · (1 / n), where a sum has no 1 / n, the code is
    round(f · Σ qᵢ + (output zero point − f · n · zero point)), halves to even.
    """

    #: Whether it is a sum.
    adds = False

    def reduced_axes(self) -> list[int]:
        """The axes."""
        raise NotImplementedError

    def keeps_axes(self) -> bool:
        """Whether the output has the axes, with size 1."""
        return bool(self.keepdims)  # type: ignore[attr-defined]

    def rounded(
        self,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        scale: tf.Tensor,
        source: TensorQuantizer,
        rounding: TensorQuantizer,
    ) -> tf.Tensor:
        axes, zero, output_zero = self.reduced_axes(), source.zero_point, rounding.zero_point
        # Whole numbers: exact in float32 up to 2²⁴, which 65,000 values do not reach.
        codes = tf.round(inputs / scale) + zero
        total = tf.reduce_sum(codes, axes, keepdims=self.keeps_axes())
        count = tf.cast(tf.reduce_prod([tf.shape(inputs)[axis] for axis in axes]), tf.float32)
        share = tf.ones(()) if self.adds else 1.0 / count

        def codes_at(output_scale: tf.Tensor) -> tf.Tensor:
            factor = (scale / output_scale) * share
            offset = output_zero - factor * (count * zero)
            return tf.round(total * factor + offset) - output_zero

        return rounding.round_by(codes_at, outputs)
