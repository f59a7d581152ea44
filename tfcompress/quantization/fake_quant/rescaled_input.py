"""The quantizer of an input of pixels that a Rescaling follows: one layer for both.

The codes of pixels 0 … 255 are the pixels themselves, but for a constant. Rescaled by one factor
and one offset they are the same codes of another scale and zero point. So the file needs no
operator for the Rescaling: its input has the scale and the zero point of the rescaled tensor.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize

#: The largest pixel.
LARGEST_PIXEL = 255.0
# Values up to here are no pixels of 0 … 255: they were scaled to 0 … 1 before.
_SMALL = 16.0
# Of a step: less is float32's error.
_TIE = 1e-3


@keras.saving.register_keras_serializable(package="tfcompress")
class RescaledInput(FakeQuantize):
    """Rounds pixels to their codes, and gives them as codes of factor · pixel + offset.

    With scale S and zero point Z of the pixels, the rescaled tensor has the scale factor · S and
    the zero point round(Z − offset / (factor · S)), halves up. Where that rounds, all values are
    off by the same part of a step, at most half of one: pixels / 127.5 − 1 become
    (pixels − 128) / 127.5. Training computes with the same.

    The range holds 0 … 255, so that S is 1, unless no value lies above 16: such values were scaled
    before.

    Args:
        scheme: As for `FakeQuantize`.
        factor: Positive number.
        offset: A number; −offset / factor lies in 0 … 255.
        rescaling: Name of the layer that rescales, for reports and for `strip`.
        **kwargs: As for `FakeQuantize`.
    """

    channels_like = keras.layers.Rescaling
    returns_input = False

    def __init__(
        self,
        scheme: Any = None,
        *,
        factor: float,
        offset: float,
        rescaling: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(scheme, **kwargs)
        self.factor, self.offset = float(factor), float(offset)
        self.rescaling = rescaling
        self.rounds_input = True

    @property
    def zero_pixel(self) -> float:
        """The pixel whose rescaled value is 0, such as 127.5 of pixels / 127.5 − 1."""
        return -self.offset / self.factor

    @property
    def given_scale(self) -> tf.Tensor:
        return self.parameters()[0]

    @property
    def given_zero_point(self) -> tf.Tensor:
        return self.parameters()[1]

    @property
    def scale(self) -> tf.Tensor:
        return self.given_scale * np.float32(self.factor)

    @property
    def zero_point(self) -> tf.Tensor:
        exact = self.given_zero_point - tf.math.divide_no_nan(np.float32(self.offset), self.scale)
        lowest, highest = code_range(8)
        return tf.clip_by_value(
            tf.floor(exact + np.float32(0.5 + _TIE)), float(lowest), float(highest)
        )

    @property
    def shift(self) -> tf.Tensor:
        """What is added to factor · pixel: the offset, rounded to whole steps."""
        return self.scale * (self.given_zero_point - self.zero_point)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        computed: bool = False,
        call_index: int = 0,
    ) -> tf.Tensor:
        pixels = super().call(inputs, training, computed, call_index)
        rescaled = pixels * np.float32(self.factor) + np.float32(self.offset)
        if self._observe is not None:
            return rescaled
        given, scale = self.given_scale, self.scale
        is_active = given * self.enabled.value > 0
        units = tf.round(pixels / tf.where(is_active, given, 1.0))
        exact = (units + (self.given_zero_point - self.zero_point)) * scale
        # The gradient of the range and of the pixels is that of the real values.
        return rescaled + tf.stop_gradient(tf.where(is_active, exact, rescaled) - rescaled)

    def _updates_in_one_call(self) -> bool:
        return False

    def set_range(self, low: float, high: float) -> None:
        super().set_range(*(float(bound) for bound in self._with_bounds(low, high)))

    def _observed(self, inputs: tf.Tensor) -> tf.Tensor:
        if self._observe is not None:
            # Calibration looks at channels, and sets the range by `set_range`.
            return inputs
        bounds = self._with_bounds(tf.reduce_min(inputs), tf.reduce_max(inputs))
        return tf.stack([tf.cast(bound, inputs.dtype) for bound in bounds])

    def _with_bounds(self, low: Any, high: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The range with 0 and the pixel whose rescaled value is 0, of pixels up to 255."""
        zero = self.zero_pixel
        largest = tf.where(tf.cast(high, tf.float32) > _SMALL, LARGEST_PIXEL, zero)
        low, high = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
        return tf.minimum(low, min(zero, 0.0)), tf.maximum(high, tf.maximum(largest, zero))

    def stripped(self) -> list:
        return [keras.layers.Rescaling(self.factor, self.offset, name=self.rescaling)]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("fixed_range")
        config.pop("gradients")
        return {
            **config,
            "factor": self.factor,
            "offset": self.offset,
            "rescaling": self.rescaling,
        }
