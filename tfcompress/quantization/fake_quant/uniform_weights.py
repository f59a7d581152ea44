"""Uniform quantization of weights: codes of b bits times a scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    code_range,
    range_parameters,
    round_through,
    scale_and_round,
)
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.options import WeightOptions, describe_details, granularity


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class UniformWeights(WeightQuantizer):
    """scale · clip(round(w / scale)), with all the options of a `WeightScheme`.

    With the `MinMax` observer the scale is computed from the kernel in every step and nothing is
    clipped; any other observer estimates it when the model is quantized, and then it stays.

    Gradient: 1 inside the range, 0 where a weight is clipped. A subclass that overrides `round`
    has another one.
    """

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        if _is_recomputed(grid.options):
            return {}
        return {name: VariableSpec(grid.scale_shape) for name in ("scale", "zero_point")}

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        options = grid.options
        if _is_recomputed(options):
            return {}
        qmin, qmax = code_range(options.num_bits, options.narrow_range)
        estimate = options.observer.estimate
        bounds = [estimate(row, qmax - qmin, options.symmetric) for row in grid.rows(kernel)]
        low, high = np.array(bounds, np.float32).T.reshape(2, *grid.scale_shape)
        scale, zero_point = range_parameters(options, tf.constant(low), tf.constant(high))
        return {"scale": np.asarray(scale), "zero_point": np.asarray(zero_point)}

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if _is_recomputed(grid.options):
            scale, zero_point = range_parameters(grid.options, *extremes(kernel, grid))
            return self._on_grid(kernel, scale, zero_point, grid.options, training), scale
        scale = state["scale"].value
        known = scale > 0
        safe = tf.where(known, scale, 1.0)
        rounded = self._on_grid(kernel, safe, state["zero_point"].value, grid.options, training)
        return tf.where(known, rounded, kernel), scale

    def round(self, codes: tf.Tensor, options: WeightOptions, training: bool) -> tf.Tensor:
        """Rounds clipped codes to whole numbers, differentiably."""
        return round_through(codes, options.rounding, training)

    def _on_grid(
        self,
        kernel: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        options: WeightOptions,
        training: bool,
    ) -> tf.Tensor:
        return scale_and_round(
            kernel,
            scale,
            zero_point,
            code_range(options.num_bits, options.narrow_range),
            lambda codes: self.round(codes, options, training),
        )

    def limits(self, options: WeightOptions) -> tuple[str, ...]:
        return uniform_limits(options)

    def describe(self, options: WeightOptions) -> str:
        return f"int{options.num_bits} {granularity(options)}{describe_details(options)}"


def uniform_limits(options: WeightOptions) -> tuple[str, ...]:
    """What of uniform weights no `.tflite` can hold."""
    limits = []
    if not options.symmetric:
        limits.append("affine weights (int8 kernels have zero point 0)")
    if not options.narrow_range and options.num_bits == 8:
        limits.append("weights with code −128 (int8 kernels use −127 … 127)")
    return tuple(limits)


def _is_recomputed(options: WeightOptions) -> bool:
    """Whether the scale is computed from the kernel in every step."""
    return type(options.observer) is MinMax


def extremes(kernel: tf.Tensor, grid: KernelGrid) -> tuple[tf.Tensor, tf.Tensor]:
    """Smallest and largest value of each scale's weights.

    Not in a trace of its own: through a function's call XLA takes the kernel for a constant and
    would compile every step anew.
    """
    constant = tf.stop_gradient(kernel)
    if not grid.options.symmetric:
        low = tf.reduce_min(constant, grid.reduced_axes, keepdims=True)
        return low, tf.reduce_max(constant, grid.reduced_axes, keepdims=True)
    high = tf.reduce_max(tf.abs(constant), grid.reduced_axes, keepdims=True)
    # Any scale holds a channel of zeros; one of ordinary size keeps its bias in int32. Weight decay
    # leaves tiny values in channels that are switched off.
    least = MIN_SCALE * code_range(grid.options.num_bits)[1]
    widest = tf.reduce_max(high)
    high = tf.where(high > least, high, tf.where(widest > least, widest, 1.0))
    return -high, high
