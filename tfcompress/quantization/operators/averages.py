"""Means over positions: average pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.code_sums import MeanOfCodes, SumOfCodes
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.on_codes import Call, OnCodes, product_with
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


@keras.saving.register_keras_serializable(package="tfcompress")
class ZeroPaddedAverage(SumOfCodes, keras.layers.Layer):
    """Average pooling with "same" padding that counts the padding as zeros.

    Args:
        pool_size: Window, (height, width); (1, steps) for a sequence.
        strides: Likewise.
    """

    channels_like = keras.layers.AveragePooling2D

    def __init__(self, pool_size: Sequence[int], strides: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_size, self.strides = tuple(pool_size), tuple(strides)

    def weight(self) -> float:
        return 1.0 / math.prod(self.pool_size)

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return zero_padded_average(inputs, self.pool_size, self.strides)

    def compute_output_shape(self, input_shape: Any) -> Any:
        *sizes, channels = input_shape[1:]
        strides = self.strides[-len(sizes) :]
        sizes = [None if n is None else -(-n // s) for n, s in zip(sizes, strides, strict=True)]
        return (input_shape[0], *sizes, channels)

    def stripped(self) -> list[keras.Layer]:
        # `BorderCorrection`, which follows, is stripped to nothing.
        if len(self.input.shape) == 3:
            steps, stride = self.pool_size[1], self.strides[1]
            return [keras.layers.AveragePooling1D(steps, stride, "same", name=self.name)]
        pool, strides = self.pool_size, self.strides
        return [keras.layers.AveragePooling2D(pool, strides, "same", name=self.name)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedAveragePooling1D(SumOfCodes, layers.AveragePooling1D):
    """Means over windows of codes that lie inside the sequence."""

    keras_class = layers.AveragePooling1D

    def weight(self) -> float:
        return 1.0 / math.prod(self.pool_size)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedAveragePooling2D(SumOfCodes, layers.AveragePooling2D):
    """Means over windows of codes that lie inside the image."""

    keras_class = layers.AveragePooling2D

    def weight(self) -> float:
        return 1.0 / math.prod(self.pool_size)


class _MeanOfPositions(MeanOfCodes):
    """Mixin: the mean over all axes but those of samples and channels."""

    input_spec: keras.layers.InputSpec

    def reduced_axes(self) -> list[int]:
        return list(range(1, self.input_spec.ndim - 1))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGlobalAveragePooling1D(_MeanOfPositions, layers.GlobalAveragePooling1D):
    """The mean of a sequence of codes."""

    keras_class = layers.GlobalAveragePooling1D

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        call_index: int = 0,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        if mask is not None:
            return layers.GlobalAveragePooling1D.call(self, inputs, mask=mask)
        return super().call(inputs, training, call_index)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGlobalAveragePooling2D(_MeanOfPositions, layers.GlobalAveragePooling2D):
    """The mean of an image of codes."""

    keras_class = layers.GlobalAveragePooling2D


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGlobalAveragePooling3D(_MeanOfPositions, layers.GlobalAveragePooling3D):
    """The mean of a volume of codes."""

    keras_class = layers.GlobalAveragePooling3D


@keras.saving.register_keras_serializable(package="tfcompress")
class BorderCorrection(OnCodes, keras.layers.Layer):
    """Multiplies what `ZeroPaddedAverage` gives by window size / cells inside the image.

    The factors are a constant tensor in the file, so they are rounded to codes of one scale. In
    inference the products are rounded as XNNPACK does, to the bit.

    Args:
        image_size: (height, width) of the pooled image.
        pool_size: As for the pooling.
        strides: As for the pooling.
    """

    channels_like = keras.layers.Identity

    def __init__(
        self,
        image_size: Sequence[int],
        pool_size: Sequence[int],
        strides: Sequence[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = tuple(image_size)
        self.pool_size, self.strides = tuple(pool_size), tuple(strides)

    def _codes(self) -> tuple[np.ndarray, np.float32]:
        """Codes of the factors, (1, height, width, 1), and their scale."""
        with tf.init_scope():
            ones = tf.ones((1, *self.image_size, 1))
            inside = zero_padded_average(ones, self.pool_size, self.strides).numpy()
        factors = 1.0 / inside
        step = factors.max() / 127
        return np.round(factors / step), step

    def factors(self) -> np.ndarray:
        """(1, height, width, 1), on the grid of its codes."""
        codes, step = self._codes()
        return (codes * step).astype(np.float32)

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.constant(self._factors_of(inputs), inputs.dtype)

    def rounded(self, call: Call) -> tf.Tensor:
        return product_with(self._factors_of(call.inputs), call)

    def _factors_of(self, inputs: tf.Tensor) -> np.ndarray:
        factors = self.factors()
        return factors[:, 0] if len(inputs.shape) == 3 else factors

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list[keras.Layer]:
        return []

    def get_config(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("image_size", "pool_size", "strides")}
        return {**super().get_config(), **own}


def zero_padded_average(
    x: tf.Tensor, pool_size: Sequence[int], strides: Sequence[int]
) -> tf.Tensor:
    """Mean over windows of a "same"-padded image or sequence, padding counted as zeros."""
    image = tf.expand_dims(x, 1) if len(x.shape) == 3 else x
    paddings = [[0, 0]]
    for size, window, stride in zip(image.shape[1:3], pool_size, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        paddings.append([total // 2, total - total // 2])
    padded = tf.pad(image, [*paddings, [0, 0]])
    y = tf.nn.avg_pool2d(padded, pool_size, strides, "VALID")
    return tf.squeeze(y, 1) if len(x.shape) == 3 else y


def is_uniform_pool(
    image_size: Sequence[int], pool_size: Sequence[int], strides: Sequence[int], padding: str
) -> bool:
    """Whether every window lies wholly inside the image, so that all divide by the same count."""
    return padding == "valid" or all(
        (-(-size // stride) - 1) * stride + window <= size
        for size, window, stride in zip(image_size, pool_size, strides, strict=True)
    )


def _pooling(node: Node) -> tuple[tuple, tuple, tuple]:
    """`(image size, window, strides)`, those of a sequence as (1, steps)."""
    layer, shape = node.operation, node.inputs[0].shape
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    if len(window) == 1:
        return (1, shape[1]), (1, *window), (1, *strides)
    return tuple(shape[1:3]), window, strides


def _is_uniform(node: Node) -> bool:
    """Whether no window reaches beyond the border."""
    return is_uniform_pool(*_pooling(node), node.operation.padding)


def _average_pool(b: Builder, node: Node) -> Value | None:
    """A mean, then a factor at the border, where Keras divides by fewer cells."""
    image, window, strides = _pooling(node)
    if is_uniform_pool(image, window, strides, node.operation.padding):
        return None
    mean = b.call(lambda n: ZeroPaddedAverage(window, strides, name=n), "zeros", node.inputs[0])
    return b.call(
        lambda n: BorderCorrection(image, window, strides, name=n),
        "",
        mean,
        variant="x".join(map(str, image)),
    )


def _lower_average(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A depthwise convolution with constant weights."""
    layer = call.operation
    if not call.reads_codes:
        return None
    pool, strides = tuple(layer.pool_size), tuple(layer.strides)
    # What pads with zeros has no `padding` of its own.
    padding = getattr(layer, "padding", "same")
    if len(x.shape) == 4:
        return _constant_average(x, pool, strides, padding)
    image = tf.expand_dims(x, 1)
    # A sequence's window has one number, unless the layer has written it as an image's.
    pool, strides = (1, pool[-1]), (1, strides[-1])
    return tf.squeeze(_constant_average(image, pool, strides, padding), 1)


def _constant_average(
    x: tf.Tensor, pool: Sequence[int], strides: Sequence[int], padding: str
) -> tf.Tensor:
    """Average pooling as a constant depthwise convolution; padding counts as zeros."""
    channels = x.shape[-1]
    kernel = np.full((*pool, channels, 1), 1.0 / (pool[0] * pool[1]), np.float32)
    return tf.nn.depthwise_conv2d(x, tf.constant(kernel), [1, *strides, 1], padding.upper())


def _lower_correction(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """A product with constants."""
    if not call.reads_codes:
        return None
    factors = call.operation.factors()
    return forms.multiply_constant(x, factors if len(x.shape) == 4 else factors[:, 0])


def _remade(cls: type[keras.Layer]) -> Callable[[keras.Layer], keras.Layer]:
    return lambda layer: cls.from_config(layer.get_config())


for _cls, _quantized in (
    (layers.AveragePooling1D, QuantizedAveragePooling1D),
    (layers.AveragePooling2D, QuantizedAveragePooling2D),
):
    register(
        _cls,
        spec=OperatorSpec(
            role=Role.AVERAGE,
            decompose=_average_pool,
            quantized=_remade(_quantized),
            lower=_lower_average,
            int16=_is_uniform,
        ),
    )
for _cls, _quantized in (
    (layers.GlobalAveragePooling2D, QuantizedGlobalAveragePooling2D),
    (layers.GlobalAveragePooling3D, QuantizedGlobalAveragePooling3D),
):
    register(
        _cls,
        spec=OperatorSpec(
            role=Role.AVERAGE,
            quantized=_remade(_quantized),
            int16=_cls is layers.GlobalAveragePooling2D,
        ),
    )
register(ZeroPaddedAverage, spec=OperatorSpec(role=Role.AVERAGE, lower=_lower_average))
register(
    BorderCorrection,
    spec=OperatorSpec(
        role=Role.ARITHMETIC,
        quantized=lambda layer: BorderCorrection.from_config(layer.get_config()),
        lower=_lower_correction,
    ),
)
