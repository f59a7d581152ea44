"""Small layers that a decomposed operation is made of, each of them one op in LiteRT."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import affine_parameters, fake_quantize
from tfcompress.quantization.operators.roles import Role


class _WithConstant(keras.layers.Layer):
    quantization_role = Role.ARITHMETIC

    def __init__(self, value: float, **kwargs):
        super().__init__(**kwargs)
        self.value = float(value)
        self.supports_masking = True

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable(package="tfcompress")
class AddConstant(_WithConstant):
    """x + value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(1.0, self.value, name=self.name)]

    def call(self, inputs):
        return inputs + self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class MultiplyConstant(_WithConstant):
    """x · value."""

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.Rescaling(self.value, name=self.name)]

    def call(self, inputs):
        return inputs * self.value


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativePart(keras.layers.Layer):
    """factor · max(−x, 0), the part of a value below zero; factor is positive."""

    quantization_role = Role.ELEMENTWISE

    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = float(factor)
        self.supports_masking = True

    def stripped(self) -> list[keras.Layer]:
        return [
            keras.layers.Rescaling(-self.factor, name=f"{self.name}_sign"),
            keras.layers.ReLU(name=self.name),
        ]

    def call(self, inputs):
        return keras.ops.relu(inputs * -self.factor)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="tfcompress")
class NegativeSlope(keras.layers.PReLU):
    """−α · n, where n is the negative part of a PReLU's input and α its trained slope.

    One slope per channel is exact in int8 (it is the scale of a 1×1 depthwise kernel); a slope
    per position is rounded with one scale.
    """

    quantization_role = Role.AFFINE

    def add_weight(self, *args, **kwargs):
        # Read in float32 under any policy, as the runtime will have it.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def stripped(self) -> list[keras.Layer]:
        # PReLU(−n) = α · (−n), for −n is never positive.
        return [
            keras.layers.Rescaling(-1.0, name=f"{self.name}_sign"),
            keras.layers.PReLU.from_config(self.get_config()),
        ]

    @property
    def per_channel(self) -> bool:
        return all(size == 1 for size in self.alpha.shape[:-1])

    def slope(self) -> tf.Tensor:
        """α as the runtime multiplies by it, of the shape of the variable."""
        alpha = tf.convert_to_tensor(self.alpha)
        if self.per_channel:
            return alpha
        largest = tf.reduce_max(tf.abs(tf.stop_gradient(alpha)))
        scale, _ = affine_parameters(-largest, largest, symmetric=True)
        return fake_quantize(alpha, tf.cast(scale, alpha.dtype), narrow_range=True)

    def call(self, inputs):
        return tf.cast(-self.slope() * tf.cast(inputs, tf.float32), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfcompress")
class ZeroPaddedAverage(keras.layers.Layer):
    """Average pooling with "same" padding that counts the padding as zeros.

    Args:
        pool_size: Window, (height, width); (1, steps) for a sequence.
        strides: Likewise.
    """

    quantization_role = Role.AVERAGE

    def __init__(self, pool_size, strides, **kwargs):
        super().__init__(**kwargs)
        self.pool_size, self.strides = tuple(pool_size), tuple(strides)

    def call(self, inputs):
        return zero_padded_average(inputs, self.pool_size, self.strides)

    def compute_output_shape(self, input_shape):
        *sizes, channels = input_shape[1:]
        strides = self.strides[-len(sizes) :]
        sizes = [None if n is None else -(-n // s) for n, s in zip(sizes, strides, strict=True)]
        return (input_shape[0], *sizes, channels)

    def stripped(self) -> list[keras.Layer]:
        # The correction that follows is dropped, so together they are what they came from.
        if len(self.input.shape) == 3:
            pool, strides = self.pool_size[1], self.strides[1]
            return [keras.layers.AveragePooling1D(pool, strides, "same", name=self.name)]
        pool, strides = self.pool_size, self.strides
        return [keras.layers.AveragePooling2D(pool, strides, "same", name=self.name)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}


@keras.saving.register_keras_serializable(package="tfcompress")
class BorderCorrection(keras.layers.Layer):
    """Multiplies what `ZeroPaddedAverage` gives by window size / cells inside the image.

    The factors are a constant tensor in the file, so they are rounded to codes of one scale.

    Args:
        image_size: (height, width) of the pooled image.
        pool_size: As for the pooling.
        strides: As for the pooling.
    """

    quantization_role = Role.ARITHMETIC

    def __init__(self, image_size, pool_size, strides, **kwargs):
        super().__init__(**kwargs)
        self.image_size = tuple(image_size)
        self.pool_size, self.strides = tuple(pool_size), tuple(strides)

    def factors(self) -> np.ndarray:
        """(1, height, width, 1), on the grid of its codes."""
        with tf.init_scope():
            ones = tf.ones((1, *self.image_size, 1))
            inside = zero_padded_average(ones, self.pool_size, self.strides).numpy()
        factors = 1.0 / inside
        step = factors.max() / 127
        return np.float32(np.round(factors / step) * step)

    def call(self, inputs):
        factors = tf.constant(self.factors())
        if len(inputs.shape) == 3:
            factors = tf.squeeze(factors, 1)
        return inputs * tf.cast(factors, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def stripped(self) -> list[keras.Layer]:
        return []

    def get_config(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("image_size", "pool_size", "strides")}
        return {**super().get_config(), **own}


def zero_padded_average(x: tf.Tensor, pool_size, strides) -> tf.Tensor:
    """Mean over windows of a "same"-padded image or sequence, padding counted as zeros."""
    image = tf.expand_dims(x, 1) if len(x.shape) == 3 else x
    paddings = [[0, 0]]
    for size, window, stride in zip(image.shape[1:3], pool_size, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        paddings.append([total // 2, total - total // 2])
    padded = tf.pad(image, [*paddings, [0, 0]])
    y = tf.nn.avg_pool2d(padded, pool_size, strides, "VALID")
    return tf.squeeze(y, 1) if len(x.shape) == 3 else y


def is_uniform_pool(image_size, pool_size, strides, padding: str) -> bool:
    """Whether every window lies wholly inside the image, so that all divide by the same count."""
    return padding == "valid" or all(
        (-(-size // stride) - 1) * stride + window <= size
        for size, window, stride in zip(image_size, pool_size, strides, strict=True)
    )
