"""Uniform quantization of activations, with scale and zero point from the range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.affine import (
    bounds,
    fake_quantize,
    fake_quantize_tensor,
)
from tfcompress.quantization.fake_quant.shared_trace import shared_trace
from tfcompress.quantization.options import ActivationOptions, describe_details


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class UniformActivations(ActivationQuantizer):
    """scale · (clip(round(x / scale) + zero_point) − zero_point), by TensorFlow's fused op.

    Gradient: 1 inside the representable range, 0 where `x` is clipped. For another one, subclass
    `ActivationQuantizer`: here `round` and `quantize` are not called.
    """

    def quantize_known(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        active: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        return _quantize(x, scale, zero_point, active, options, training, False)

    def quantize_input(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        active: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        return _quantize(x, scale, zero_point, active, options, training, True)

    def describe(self, options: ActivationOptions) -> str:
        return f"int{options.num_bits}{describe_details(options)}"


def _quantize(
    x: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    active: tf.Tensor,
    options: ActivationOptions,
    training: bool,
    is_input: bool,
) -> tf.Tensor:
    # In one trace all tensors would draw the same random numbers.
    shares = options.rounding != "stochastic"
    quantize = _quantize_in_shared_trace if shares else _quantize_known
    settings = _settings(options, training, is_input)
    return quantize(x, scale, zero_point, active, **settings)


def quantize_in_place(
    x: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    active: tf.Tensor,
    options: ActivationOptions,
    training: bool,
    is_input: bool,
) -> tf.Tensor:
    """`UniformActivations.quantize_known` (`quantize_input`) without a trace of its own."""
    return _quantize_known(x, scale, zero_point, active, **_settings(options, training, is_input))


def _settings(options: ActivationOptions, training: bool, is_input: bool) -> dict[str, Any]:
    # The fused op rounds halves up, the runtime to even. Between scales that are powers of two
    # halves are common, and resized images of whole numbers are full of them; otherwise they hardly
    # ever occur.
    is_fused = options.rounding == "nearest" and not options.power_of_two and not is_input
    # It moves values of 16 bits off their grid by part of a step.
    is_fused = is_fused and options.num_bits <= 8
    return {
        "num_bits": options.num_bits,
        "narrow_range": options.narrow_range,
        "is_fused": is_fused,
        "rounding": options.rounding,
        "training": training,
    }


def _quantize_known(
    x: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    active: tf.Tensor,
    **settings: Any,
) -> tf.Tensor:
    """`x` rounded to its codes and back, by the fused op or not; `x` itself where `active` is 0.

    Gradient: 1 inside the representable range, 0 where `x` is clipped. It is written out, because
    the one that TensorFlow derives of a branch is slow to trace, and XLA does not compile it here.
    """
    return _known_rounding(scale, zero_point, active, **settings)(x)


def rounding_of(
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    active: tf.Tensor,
    options: ActivationOptions,
    is_input: bool,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`quantize_known` (`quantize_input`) in training, for many small tensors of one range."""
    settings = _settings(options, True, is_input)
    return _known_rounding(scale, zero_point, active, branches=False, **settings)


def _known_rounding(
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    active: tf.Tensor,
    *,
    is_fused: bool,
    rounding: str,
    training: bool,
    branches: bool = True,
    **grid: Any,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`_quantize_known` of any tensor; with `branches`, one of the two sides alone is computed."""
    is_active = active > 0
    if not branches:
        scale = tf.where(is_active, scale, 1.0)
    low, high = bounds(scale, zero_point, **grid)

    def choose(
        compute: Callable[[], tf.Tensor], otherwise: tf.Tensor, when: tf.Tensor = is_active
    ) -> tf.Tensor:
        if branches:
            return tf.cond(when, compute, lambda: tf.identity(otherwise))
        return tf.where(when, compute(), otherwise)

    def quantized(x: tf.Tensor) -> tf.Tensor:
        if is_fused:
            return fake_quantize_tensor(x, low, high, **grid)
        return fake_quantize(x, scale, zero_point, rounding=rounding, training=training, **grid)

    def passed(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        if is_fused:
            derive = tf.quantization.fake_quant_with_min_max_vars_gradient
            return derive(upstream, x, low, high, **grid)[0]
        return tf.where((x >= low) & (x <= high), upstream, tf.zeros_like(upstream))

    @tf.custom_gradient
    def quantize(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            when = is_active
            if branches and upstream.shape.rank and upstream.shape[0] is None:
                # oneDNN's depthwise convolution of no samples has the shape of its input.
                when = is_active & (tf.shape(upstream)[0] > 0)
            return choose(lambda: passed(x, upstream), upstream, when)

        return choose(lambda: quantized(x), x), gradient

    return quantize


_quantize_in_shared_trace = shared_trace(_quantize_known)
