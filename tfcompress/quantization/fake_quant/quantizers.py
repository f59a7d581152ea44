"""The quantizer of a tensor: a layer in the graph that rounds an activation to its codes.

It belongs to a tensor, not to the layer that produces it. A range that is used in several places
(the inputs and the output of a concatenation) is one such layer called several times, which
Keras keeps shared on load and on clone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import (
    code_range,
    fake_quantize,
    fake_quantize_tensor,
    range_parameters,
)
from tfcompress.quantization.fake_quant.shared_trace import shared_trace
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.observers import MinMax, MovingAverage
from tfcompress.quantization.placement.upstream import link_rounding
from tfcompress.quantization.schemes import (
    ActivationScheme,
    scheme_config,
    scheme_from_config,
)


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantize(TensorQuantizer, keras.layers.Layer):
    """Rounds a tensor to the codes that LiteRT will store for it.

    Its range comes from calibration or from the first training batch, then moves as the
    scheme's observer says until it is frozen. Until a range is known, and until the schedule
    starts it, the tensor passes unchanged.

    Args:
        scheme: Bits, symmetry, rounding and observer.
        fixed_range: `(low, high)` that LiteRT prescribes for an op, such as (0, 255/256) for a
            sigmoid; it neither calibrates nor moves.
        source: Name of the layer whose tensor this is, for reports.
    """

    channels_like = keras.layers.Identity
    returns_input = True

    def __init__(
        self,
        scheme: ActivationScheme | dict[str, Any] | None = None,
        *,
        fixed_range: tuple[float, float] | None = None,
        source: str | None = None,
        **kwargs,
    ):
        kwargs.pop("dtype", None)
        # float32 under any policy: 16 bits cannot hold 256 codes over a range exactly.
        super().__init__(dtype="float32", **kwargs)
        self.scheme = scheme_from_config(ActivationScheme, scheme or ActivationScheme())
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        self.source = source
        self.supports_masking = True
        self._observe = None

    def build(self, input_shape):
        def scalar(name, value, aggregation="mean"):
            return self.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
                aggregation=aggregation,
            )

        scale, zero_point = 0.0, 0.0
        if self.fixed_range is not None:
            scale, zero_point = self.parameters_of(*self.fixed_range)
        self.scale = scalar("scale", scale)
        self.zero_point = scalar("zero_point", zero_point)
        self.enabled = scalar("enabled", 1.0, "only_first_replica")
        if self.fixed_range is None:
            self.frozen = scalar("frozen", 0.0, "only_first_replica")
            # Running low, high and the sum of their weights, which debiases the average.
            self.statistics = self.add_weight(
                name="statistics",
                shape=(3,),
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation="mean",
            )
        self.built = True

    # --- the range ---------------------------------------------------------------------------

    @property
    def has_moving_range(self) -> bool:
        """Whether training moves the range once it is known."""
        return self.fixed_range is None and self.scheme.observer.every_batch

    def parameters_of(self, low: float, high: float) -> tuple[float, float]:
        """`(scale, zero_point)` that the scheme gives to a range."""
        bounds = tf.constant(low, tf.float32), tf.constant(high, tf.float32)
        scale, zero_point = range_parameters(self.scheme, *bounds)
        return float(scale), float(zero_point)

    def set_range(self, low: float, high: float) -> None:
        """Sets the range; a moving average goes on from here.

        Raises:
            ValueError: The quantizer has a fixed range, or the bounds are no finite interval.
        """
        if self.fixed_range is not None:
            raise ValueError(f"Expected a quantizer whose range can be set. Received: {self.name}.")
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(f"Expected finite low ≤ high. Received: low={low}, high={high}.")
        self.statistics.assign([low, high, 1.0])
        scale, zero_point = self.parameters_of(low, high)
        self.scale.assign(scale)
        self.zero_point.assign(zero_point)

    @property
    def range(self) -> tuple[float, float]:
        """The real values of the smallest and the largest code."""
        qmin, qmax = code_range(self.scheme.num_bits, self.scheme.narrow_range)
        scale, zero_point = float(self.scale.value), float(self.zero_point.value)
        return (qmin - zero_point) * scale, (qmax - zero_point) * scale

    def active_scale(self) -> tf.Tensor:
        if self._observe is not None:
            return tf.zeros(())
        return self.scale.value * self.enabled.value

    def observe(self, callback) -> None:
        """Hands every tensor to `callback(values)` and passes it on in float; `None` ends it."""
        self._observe = callback

    def _update(self, x) -> None:
        # No assignment stands inside a branch: under a distribution strategy none could run.
        old, frozen, scheme = self.statistics.value, self.frozen.value, self.scheme
        moving, statistics = _moved_statistics(x, old, frozen, scheme=scheme)
        self.statistics.assign(statistics)
        # Read again, for on several replicas it is their mean by now.
        known = self.statistics.value, self.scale.value, self.zero_point.value
        scale, zero_point = _moved_parameters(moving, *known, scheme=scheme)
        self.scale.assign(scale)
        self.zero_point.assign(zero_point)

    # --- the tensor --------------------------------------------------------------------------

    def link(self, inputs, call_index):
        link_rounding(inputs, self)

    def round_by(self, codes: Callable[[tf.Tensor], tf.Tensor], otherwise: tf.Tensor) -> tf.Tensor:
        if self.scheme.rounding != "nearest":
            return otherwise
        scale = self.active_scale()
        safe = tf.where(scale > 0, scale, 1.0)
        return tf.where(scale > 0, codes(safe) * safe, otherwise)

    def call(self, inputs, training=None):
        if self._observe is not None:
            self._observe(inputs)
            return inputs
        if training and self.trainable and self.fixed_range is None:
            self._update(tf.stop_gradient(inputs))
        scheme = self.scheme
        quantize = _quantize_known if scheme.rounding != "stochastic" else _quantize_known.untraced
        outputs = quantize(
            inputs,
            self.scale.value,
            self.zero_point.value,
            self.active_scale(),
            num_bits=scheme.num_bits,
            narrow_range=scheme.narrow_range,
            power_of_two=scheme.power_of_two,
            rounding=scheme.rounding,
            training=bool(training),
        )
        outputs.set_shape(inputs.shape)
        return outputs

    def stripped(self) -> list:
        """Nothing is left of it in a plain model."""
        return []

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return {
            **config,
            "scheme": scheme_config(self.scheme),
            "fixed_range": self.fixed_range,
            "source": self.source,
        }


@shared_trace
def _moved_statistics(x, old, frozen, *, scheme: ActivationScheme):
    """Whether the range moves, and its statistics after the batch `x`."""
    moving = frozen < 0.5
    if not scheme.observer.every_batch:
        # Without calibration data the first batch gives the range, which then stays.
        moving = moving & (old[2] <= 0)
    observer = scheme.observer if scheme.observer.every_batch else MinMax()
    new = tf.cond(moving, lambda: observer.update(old, x), lambda: tf.identity(old))
    # An empty or non-finite batch (the last one of a replica) must not spoil the range.
    return moving, tf.where(tf.reduce_all(tf.math.is_finite(new)), new, old)


@shared_trace
def _moved_parameters(moving, statistics, scale, zero_point, *, scheme: ActivationScheme):
    """Scale and zero point by the statistics, or as they were where the range does not move."""
    known = moving & (statistics[2] > 0)
    weight = tf.where(statistics[2] > 0, statistics[2], 1.0)
    found = range_parameters(scheme, statistics[0] / weight, statistics[1] / weight)
    return tf.where(known, found[0], scale), tf.where(known, found[1], zero_point)


@shared_trace
def _quantize_known(x, scale, zero_point, active, *, power_of_two, rounding, training, **grid):
    """`x` rounded to its codes and back; `x` itself where `active` is 0.

    Gradient: 1 inside the representable range, 0 where `x` is clipped. It is written out, because
    the one that TensorFlow derives of a branch is slow to trace, and XLA does not compile it here.
    """
    qmin, qmax = code_range(grid["num_bits"], grid["narrow_range"])
    low, high = (qmin - zero_point) * scale, (qmax - zero_point) * scale
    # The fused op rounds halves up, the runtime to even. Between scales that are powers of two
    # halves are common; between others they hardly ever occur.
    is_fused = rounding == "nearest" and not power_of_two

    def quantized():
        if is_fused:
            return fake_quantize_tensor(x, scale, zero_point, **grid)
        return fake_quantize(x, scale, zero_point, rounding=rounding, training=training, **grid)

    def passed(upstream):
        if is_fused:
            derive = tf.quantization.fake_quant_with_min_max_vars_gradient
            return derive(upstream, x, low, high, **grid)[0]
        return tf.where((x >= low) & (x <= high), upstream, tf.zeros_like(upstream))

    @tf.custom_gradient
    def quantize(x):
        def gradient(upstream):
            return tf.cond(active > 0, lambda: passed(upstream), lambda: tf.identity(upstream))

        return tf.cond(active > 0, quantized, lambda: tf.identity(x)), gradient

    return quantize(x)


def input_scheme(scheme: ActivationScheme) -> ActivationScheme:
    """The scheme of a model's input: all values ever seen, so that no pixel is ever clipped."""
    if type(scheme.observer) is MovingAverage:
        return dataclasses.replace(scheme, observer=MinMax())
    return scheme
