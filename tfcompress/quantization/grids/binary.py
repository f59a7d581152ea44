"""Binary weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import MIN_SCALE, ZERO_TENSOR_SCALE
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.gradients import with_gradient_of
from tfcompress.quantization.grids.requirements import require_bits, require_usual
from tfcompress.quantization.options import WeightOptions, granularity


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class BinaryWeights(WeightQuantizer):
    """α · sign(w) with α = mean|w| (Rastegari et al. 2016, "XNOR-Net", eq. 6).

    Gradient: that of sign is 1 where |w| ≤ 1 and 0 elsewhere; α is differentiated as it is. No
    level is 0, so pruned kernels are refused. `num_bits` of the scheme is 2, the fewest there are.
    """

    @property
    def holds_zero(self) -> bool:
        return False

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2)

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scale = tf.reduce_mean(tf.abs(kernel), grid.reduced_axes, keepdims=True)
        scale = tf.where(scale < MIN_SCALE, ZERO_TENSOR_SCALE, scale)
        signs = tf.where(kernel < 0, -1.0, 1.0)
        signs = with_gradient_of(signs, tf.clip_by_value(kernel, -1.0, 1.0))
        return signs * scale, tf.stop_gradient(scale)

    def describe(self, options: WeightOptions) -> str:
        return f"binary {granularity(options)}, BinaryWeights"
