"""PACT: activations that are cut off at a trained value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    ZERO_TENSOR_SCALE,
    code_range,
    over,
)
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.grids.gradients import at_least, with_gradient_of
from tfcompress.quantization.grids.requirements import require_never_negative, require_usual
from tfcompress.quantization.options import ActivationOptions


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class PACT(ActivationQuantizer):
    """A ReLU with a trained ceiling α, quantized uniformly in 0 … α (Choi et al. 2018, "PACT").

    y = s · round(clip(x, 0, α) / s) with s = α / (2ᵇ − 1); α starts at the calibrated maximum and
    has an L2 penalty. Gradients (eq. 3): to x 1 in 0 … α and 0 outside; to α 1 where x ≥ α, else 0.
    Only for tensors that are never negative: calibration refuses others.

    Attributes:
        decay: Weight λ ≥ 0 of the penalty λ · α².
    """

    decay: float = 2e-4

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise ValueError(f"Expected `decay` ≥ 0. Received: {self.decay!r}.")

    def check(self, options: ActivationOptions) -> None:
        require_usual(self, options, "observer")

    def variables(self, options: ActivationOptions) -> Mapping[str, VariableSpec]:
        penalty = keras.regularizers.L2(self.decay) if self.decay else None
        return {"alpha": VariableSpec(trainable=True, regularizer=penalty)}

    def from_range(
        self, low: tf.Tensor, high: tf.Tensor, options: ActivationOptions
    ) -> Mapping[str, tf.Tensor]:
        require_never_negative(self, low)
        levels = 2**options.num_bits - 1
        return {"alpha": tf.where(high < MIN_SCALE * levels, ZERO_TENSOR_SCALE * levels, high)}

    def parameters(
        self, state: Mapping[str, tf.Tensor], options: ActivationOptions
    ) -> tuple[tf.Tensor, tf.Tensor]:
        qmin, qmax = code_range(options.num_bits)
        alpha = at_least(state["alpha"], MIN_SCALE * (qmax - qmin))
        # An α of 0 says that no range is known yet.
        scale = tf.where(state["alpha"] == 0, 0.0, over(alpha, qmax - qmin))
        return scale, tf.zeros_like(scale) + qmin

    def quantize(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        rounded = super().quantize(x, scale, zero_point, options, training)
        alpha = scale * (2**options.num_bits - 1)
        return with_gradient_of(rounded, tf.clip_by_value(x, 0.0, alpha))
