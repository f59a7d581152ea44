"""Learned step sizes: LSQ for weights and LSQ+ for activations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient
from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    ZERO_TENSOR_SCALE,
    code_range,
    round_through,
    scale_and_round,
)
from tfcompress.quantization.fake_quant.uniform_weights import uniform_limits
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.gradients import at_least, scale_gradient
from tfcompress.quantization.grids.requirements import require_usual
from tfcompress.quantization.options import ActivationOptions, WeightOptions


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class LSQ(WeightQuantizer):
    """Uniform weights whose step the optimizer trains (Esser et al. 2020, "Learned Step Size").

    ŵ = s · round(clip(w / s, −Q_N, Q_P)) with one trained s per channel (or per kernel), which
    starts at 2 · mean|w| / √Q_P. Gradients (eq. 3): to w 1 inside the range and 0 outside; to s
    round(w/s) − w/s inside, −Q_N or Q_P outside, all of it times 1 / √(N · Q_P), where N is the
    number of weights that share the step.
    """

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options, "narrow_range")

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        return {"step": VariableSpec(grid.scale_shape, initial=1.0, trainable=True)}

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        _, qmax = code_range(grid.options.num_bits, grid.options.narrow_range)
        step = 2 * np.abs(grid.rows(kernel)).mean(1) / math.sqrt(qmax)
        step = np.where(step < MIN_SCALE, ZERO_TENSOR_SCALE, step)
        return {"step": step.astype(np.float32).reshape(grid.scale_shape)}

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        codes = code_range(grid.options.num_bits, grid.options.narrow_range)
        step = at_least(finite_gradient(state["step"].value), MIN_SCALE)
        sharing = math.prod(grid.shape) / math.prod(grid.scale_shape)
        trained = scale_gradient(step, 1 / math.sqrt(sharing * codes[1]))
        return scale_and_round(kernel, trained, 0.0, codes, round_through), trained

    def limits(self, options: WeightOptions) -> tuple[str, ...]:
        return uniform_limits(options)


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class LSQPlus(ActivationQuantizer):
    """Uniform activations whose step and offset are trained (Bhalgat et al. 2020, "LSQ+").

    x̂ = s · round(clip((x − β) / s, 0, Q)) + β, where the file's zero point is −β/s rounded, so that
    0 keeps a code. Both start from the calibrated range. Gradients (eq. 4 and 5): to s
    round(x̄) − x̄ inside the range and the code's own value outside; to β 0 inside, 1 outside; all
    times 1 / √(N · Q), where N is the number of values of a sample. With `symmetric=True` there is
    no offset: this is LSQ (Esser et al. 2020).
    """

    def check(self, options: ActivationOptions) -> None:
        require_usual(self, options, "symmetric", "narrow_range", "observer")

    def variables(self, options: ActivationOptions) -> Mapping[str, VariableSpec]:
        found = {"step": VariableSpec(trainable=True)}
        if not options.symmetric:
            found["offset"] = VariableSpec(trainable=True)
        return found

    def from_range(
        self, low: tf.Tensor, high: tf.Tensor, options: ActivationOptions
    ) -> Mapping[str, tf.Tensor]:
        values = super().from_range(low, high, options)
        found = {"step": values["scale"]}
        if not options.symmetric:
            lowest = code_range(options.num_bits, options.narrow_range)[0]
            found["offset"] = (lowest - values["zero_point"]) * values["scale"]
        return found

    def parameters(
        self, state: Mapping[str, tf.Tensor], options: ActivationOptions
    ) -> tuple[tf.Tensor, tf.Tensor]:
        step = at_least(state["step"], MIN_SCALE)
        # A step of 0 says that no range is known yet.
        scale = tf.where(state["step"] == 0, 0.0, step)
        if options.symmetric:
            return scale, tf.zeros_like(scale)
        qmin, qmax = code_range(options.num_bits, options.narrow_range)
        zero_point = qmin - round_through(state["offset"] / step)
        return scale, tf.clip_by_value(zero_point, float(qmin), float(qmax))

    def quantize(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        qmin, qmax = code_range(options.num_bits, options.narrow_range)
        largest = qmax if options.symmetric else qmax - qmin
        size, samples = tf.size(x), tf.shape(x)[0] if x.shape.rank else 1
        values = tf.cast(size / tf.maximum(samples, 1), tf.float32)
        factor = tf.math.rsqrt(tf.maximum(values, 1.0) * largest)
        scale, zero_point = scale_gradient(scale, factor), scale_gradient(zero_point, factor)
        return super().quantize(x, scale, zero_point, options, training)
