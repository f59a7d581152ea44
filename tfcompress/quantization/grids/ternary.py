"""Ternary weights: with the mean of what is left, and with two trained values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient
from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    ZERO_TENSOR_SCALE,
    over,
    round_through,
)
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.gradients import at_least, with_gradient_of
from tfcompress.quantization.grids.requirements import require_bits, require_usual
from tfcompress.quantization.options import WeightOptions, granularity

_LARGEST = 127


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class TernaryWeights(WeightQuantizer):
    """−s, 0, s (Li et al. 2016, "Ternary Weight Networks").

    A weight is 0 where |w| ≤ Δ = threshold · mean|w|; s is the mean |w| of the others (eq. 5, 6).
    Gradient: straight through. `num_bits` of the scheme is 2.

    Attributes:
        threshold: Positive; 0.7 in the paper.
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"Expected `threshold` > 0. Received: {self.threshold!r}.")

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
        axes, size = grid.reduced_axes, tf.abs(tf.stop_gradient(kernel))
        is_used = size > self.threshold * tf.reduce_mean(size, axes, keepdims=True)
        used = tf.cast(is_used, tf.float32)
        total = tf.reduce_sum(size * used, axes, keepdims=True)
        scale = tf.math.divide_no_nan(total, tf.reduce_sum(used, axes, keepdims=True))
        scale = tf.where(scale < MIN_SCALE, ZERO_TENSOR_SCALE, scale)
        return with_gradient_of(tf.sign(kernel) * used * scale, kernel), scale


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class TrainedTernary(WeightQuantizer):
    """−Wₙ, 0, Wₚ with two trained values (Zhu et al. 2017, "Trained Ternary Quantization").

    A weight is 0 where |w| ≤ threshold · max|w|. Gradients (eq. 7 and 8): to Wₚ the sum over the
    weights above, to Wₙ minus the sum over those below; to w times Wₚ above, times Wₙ below, times
    1 between. A file holds one scale per channel, so the smaller value is rounded to 1/127 of the
    larger, in training too: what is trained is exact in int8. It takes a byte per weight, where
    `TernaryWeights` takes two bits.

    Attributes:
        threshold: In (0, 1); 0.05 in the paper.
    """

    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"Expected `threshold` in (0, 1). Received: {self.threshold!r}.")

    @property
    def has_fixed_codes(self) -> bool:
        return False

    def code_ends(self, options: WeightOptions) -> tuple[int, int]:
        return -_LARGEST, _LARGEST

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2)

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        spec = VariableSpec(grid.scale_shape, initial=1.0, trainable=True)
        return {"positive": spec, "negative": spec}

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        rows = grid.rows(kernel)
        least = self.threshold * np.abs(rows).max(1, keepdims=True)
        values = {}
        for name, sign in (("positive", 1), ("negative", -1)):
            used = sign * rows > least
            mean = np.abs(rows * used).sum(1) / np.maximum(used.sum(1), 1)
            mean = np.where(mean < MIN_SCALE, ZERO_TENSOR_SCALE, mean)
            values[name] = mean.astype(np.float32).reshape(grid.scale_shape)
        return values

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        above, below = (
            at_least(finite_gradient(state[name].value), MIN_SCALE * _LARGEST)
            for name in ("positive", "negative")
        )
        latent = tf.stop_gradient(kernel)
        least = self.threshold * tf.reduce_max(tf.abs(latent), grid.reduced_axes, keepdims=True)
        is_above, is_below = (
            tf.cast(found, tf.float32) for found in (latent > least, -latent > least)
        )
        larger = tf.stop_gradient(tf.maximum(above, below))
        # The maximum keeps the graph optimizer from moving the constant into the divisions below.
        scale = tf.maximum(over(larger, _LARGEST), MIN_SCALE)
        above, below = (round_through(value / scale) * scale for value in (above, below))
        values = is_above * above - is_below * below
        # Straight through to the kernel, by the size of what the weight becomes.
        slope = tf.stop_gradient(is_above * above + is_below * below + 1.0 - is_above - is_below)
        return values + slope * (kernel - latent), scale

    def num_bits(self, options: WeightOptions) -> int:
        return 8

    def describe(self, options: WeightOptions) -> str:
        return f"ternary in int8 {granularity(options)}, TrainedTernary"
