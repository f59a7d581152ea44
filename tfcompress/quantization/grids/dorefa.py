"""DoReFa-Net: weights of odd multiples behind a tanh, and activations in 0 … 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    code_range,
    over,
    round_through,
)
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.requirements import (
    require_bits,
    require_never_negative,
    require_usual,
)
from tfcompress.quantization.options import ActivationOptions, WeightOptions, granularity


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class DoReFaWeights(WeightQuantizer):
    """2 · round(n · x) / n − 1 with x = tanh(w) / (2 · max|tanh(w)|) + ½ and n = 2ᵇ − 1.

    Zhou et al. 2016, "DoReFa-Net", eq. 9. The levels are the odd multiples of 1/n: none of them is
    0, so pruned kernels are refused. Gradient: through the rounding straight, through tanh and the
    maximum as it is. In the file 2 and 3 bits fit INT4, 4 to 7 bits int8.

    Attributes:
        keeps_scale: Multiply by max|w|, so that a pretrained kernel keeps its size. The paper does
            not: its layers are followed by batch norm.
    """

    keeps_scale: bool = True

    @property
    def holds_zero(self) -> bool:
        return False

    @property
    def keeps_levels(self) -> bool:
        # The tanh bends what lies between the ends.
        return False

    def code_ends(self, options: WeightOptions) -> tuple[int, int]:
        steps = 2**options.num_bits - 1
        return -steps, steps

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2, 3, 4, 5, 6, 7)

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        axes, steps = grid.reduced_axes, 2**grid.options.num_bits - 1
        half = steps / 2
        squashed = tf.tanh(kernel)
        largest = tf.reduce_max(tf.abs(squashed), axes, keepdims=True)
        # Few constants in front of the rounding, for a graph may take several in another order.
        codes = 2.0 * round_through(squashed / tf.maximum(largest, MIN_SCALE) * half - 0.5) + 1.0
        size = tf.ones(grid.scale_shape)
        if self.keeps_scale:
            size = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), axes, keepdims=True))
            size = tf.where(size < MIN_SCALE * steps, 1.0, size)
        scale = over(size, steps)
        return codes * scale, scale

    def num_bits(self, options: WeightOptions) -> int:
        # Odd codes from −n to n take a bit more than b.
        return 4 if options.num_bits <= 3 else 8

    def describe(self, options: WeightOptions) -> str:
        return f"{options.num_bits}-bit odd multiples {granularity(options)}, DoReFaWeights"


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class DoReFaActivations(ActivationQuantizer):
    """round(n · clip(x, 0, 1)) / n with n = 2ᵇ − 1 (Zhou et al. 2016, "DoReFa-Net", eq. 5 and 11).

    The range is fixed: nothing is calibrated or trained. Gradient: 1 in the range, 0 outside. Only
    for tensors that are never negative: calibration refuses others.

    Attributes:
        limit: Upper end of the range, positive; 1 in the paper.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"Expected `limit` > 0. Received: {self.limit!r}.")

    def check(self, options: ActivationOptions) -> None:
        require_usual(self, options, "observer")

    def from_range(
        self, low: tf.Tensor, high: tf.Tensor, options: ActivationOptions
    ) -> Mapping[str, tf.Tensor]:
        require_never_negative(self, low)
        qmin, qmax = code_range(options.num_bits)
        scale = tf.zeros_like(high) + self.limit / (qmax - qmin)
        return {"scale": scale, "zero_point": tf.zeros_like(scale) + qmin}
