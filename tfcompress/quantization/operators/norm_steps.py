"""The steps of norms, each a layer with a rounding: means, squares, roots, products, γ and β.

The sum of squares over the last axes is a product of matrices, which adds up in int32 and rounds
once. Rounding each square to 8 bits first, as MUL and MEAN do, takes the small ones for 0: with
outlying channels (20 times the others) the file's signal-to-noise ratio is 5 dB worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.model.graph import producer
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.arithmetic import QuantizedMultiply, QuantizedSubtract
from tfcompress.quantization.operators.channel_affine import FOLDED_SPEC, FoldedAffine
from tfcompress.quantization.operators.code_sums import MeanOfCodes, SumOfCodes
from tfcompress.quantization.operators.elementwise import CODE_TABLE, CodeTable
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_quantizer


class NormPart:
    """Mixin of the steps of a norm: the last one is stripped to the norm, the others to nothing.

    Args:
        original: Of the last step, the configuration of the layer, serialized.
    """

    def __init__(self, original: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Behind a function: Keras would track what is in the dictionary.
        self._original: Callable[[], Any] = lambda: original

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "original": self._original()}  # type: ignore[misc]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """That of the values that are normalized, the first of several inputs."""
        return previous_mask[0] if isinstance(previous_mask, (list, tuple)) else previous_mask

    def stripped(self) -> list[Any]:
        original = self._original()
        return [] if original is None else [keras.saving.deserialize_keras_object(original)]


class Reduced:
    """Mixin of what adds up over axes, whose mask nobody reads."""

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


def _operation_class(reduction: Callable) -> type:
    """The class of a reduction of `keras.ops`, which is not public."""
    call = producer(reduction(keras.KerasTensor((1, 1)), axis=1))
    assert call is not None
    return type(call[0])


@keras.saving.register_keras_serializable(package="tfcompress")
class MeanOverAxes(Reduced, NormPart, MeanOfCodes, keras.layers.Layer):
    """The mean over axes, which stay as axes of size 1 by default."""

    channels_like = _operation_class(ops.mean)

    def __init__(self, axes: Sequence[int], keepdims: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes, self.keepdims = list(axes), bool(keepdims)

    @property
    def axis(self) -> list[int]:
        """The axes, by the name that they have in `keras.ops`."""
        return self.axes

    def reduced_axes(self) -> list[int]:
        return self.axes

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(inputs, self.axes, keepdims=self.keepdims)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return _reduced(input_shape, self.axes, self.keepdims)

    def get_config(self) -> dict[str, Any]:
        own = {"axes": self.axes, "keepdims": self.keepdims}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tfcompress")
class SumOverAxes(MeanOverAxes):
    """The sum over axes, which stay as axes of size 1 by default."""

    channels_like = _operation_class(ops.sum)
    adds = True

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(inputs, self.axes, keepdims=self.keepdims)


def _reduced(shape: Sequence[Any], axes: Sequence[int], keepdims: bool) -> tuple:
    """A shape without some axes, or with 1 in place of them."""
    sizes = [1 if i in axes else n for i, n in enumerate(shape)]
    return tuple(n for i, n in enumerate(sizes) if keepdims or i not in axes)


@keras.saving.register_keras_serializable(package="tfcompress")
class SumOfSquares(Reduced, NormPart, Linked, keras.layers.Layer):
    """Σ x² over the last axes, from `first_axis` on, which stay as axes of size 1 by default."""

    def __init__(self, first_axis: int, keepdims: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first_axis, self.keepdims = first_axis, bool(keepdims)
        # Call index → the quantizer of the input, and → that of the sum.
        self._sources, self._rounding = Links(), Links()

    def link(self, inputs: Any, call_index: int) -> None:
        self._sources.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self._rounding.set(call_index, quantizer)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        axes = list(range(self.first_axis, inputs.shape.rank))
        outputs = tf.reduce_sum(tf.square(inputs), axes, keepdims=self.keepdims)
        source: TensorQuantizer | None = self._sources.get(call_index)
        target: TensorQuantizer | None = self._rounding.get(call_index)
        if training or source is None or target is None or self.compute_dtype != "float32":
            return outputs
        active = source.active_scale()
        step = tf.where(active > 0, active, 1.0)
        codes = tf.cast(tf.round(inputs / step), tf.int32)
        total = tf.reduce_sum(codes * codes, axes, keepdims=self.keepdims)
        is_symmetric = tf.equal(source.zero_point, 0.0)
        exact = target.round_by(
            lambda scale: rounded_square_sum(total, step, scale, is_symmetric), outputs
        )
        return outputs + tf.stop_gradient(tf.where(active > 0, exact, outputs) - outputs)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        axes = range(self.first_axis, len(input_shape))
        return _reduced(input_shape, axes, self.keepdims)

    def get_config(self) -> dict[str, Any]:
        own = {"first_axis": self.first_axis, "keepdims": self.keepdims}
        return {**super().get_config(), **own}


def rounded_square_sum(
    total: tf.Tensor, step: tf.Tensor, scale: tf.Tensor, is_symmetric: tf.Tensor
) -> tf.Tensor:
    """The code of total · step² at `scale`, as the runtime rounds the sum of BATCH_MATMUL.

    XNNPACK takes operands whose zero point is 0, multiplies in float32 and rounds to even. For
    others LiteRT's own kernel multiplies by a number of 31 bits and shifts to the right; it rounds
    after each of the two, halves away from 0 (gemmlowp), which a single rounding misses for one
    sum in 2ˢʰⁱᶠᵗ.

    Args:
        total: Σ of the squares of codes less their zero point, int32.
        step: Scale of these codes, a positive scalar, float32.
        scale: That of the result.
        is_symmetric: Whether the zero point of the codes is 0.

    Returns:
        float32 whole numbers, without a zero point.
    """
    in_float = tf.round(tf.cast(total, tf.float32) * (step * step / scale))
    step, scale = tf.cast(step, tf.float64), tf.cast(scale, tf.float64)
    multiplier = step * step / scale
    # multiplier = fraction · 2^exponent with a fraction in [0.5, 1), from the bits of the float.
    exponent = tf.bitwise.right_shift(tf.bitcast(multiplier, tf.int64), 52) - 1022
    power = tf.bitcast(tf.bitwise.left_shift(exponent + 1023, 52), tf.float64)
    fraction = tf.cast(tf.round(multiplier / power * 2.0**31), tf.int64)
    left, right = tf.maximum(exponent, 0), tf.maximum(-exponent, 0)
    wide = tf.bitwise.left_shift(tf.cast(total, tf.int64), left)
    high = tf.bitwise.right_shift(wide * fraction + 2**30, 31)
    half = tf.bitwise.right_shift(tf.bitwise.left_shift(tf.ones_like(right), right), 1)
    in_integers = tf.bitwise.right_shift(high + half, right)
    return tf.where(is_symmetric, in_float, tf.cast(in_integers, tf.float32))


def _lower_squares(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A BATCH_MATMUL of every vector with itself."""
    first = call.operation.first_axis
    shape = [int(n) for n in x.shape]
    count, size = int(np.prod(shape[:first], dtype=int)), int(np.prod(shape[first:], dtype=int))
    row = tf.reshape(x, [count, 1, size])
    column = tf.reshape(x, [count, size, 1])
    axes = range(first, len(shape))
    return tf.reshape(tf.matmul(row, column), _reduced(shape, axes, call.operation.keepdims))


@keras.saving.register_keras_serializable(package="tfcompress")
class MeanOverGroups(NormPart, SumOfCodes, keras.layers.Layer):
    """The mean over each group of neighbouring channels, written to all of its channels."""

    def __init__(self, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = groups

    def build(self, input_shape: Any) -> None:
        self._size = input_shape[-1] // self.groups
        self.built = True

    def weight(self) -> float:
        return 1.0 / self._size

    def kernel(self, channels: int) -> np.ndarray:
        """(channels, channels): the share of each channel in each mean."""
        size = channels // self.groups
        return np.kron(np.eye(self.groups), np.full((size, size), 1.0 / size)).astype(np.float32)

    def real_values(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.matmul(inputs, tf.constant(self.kernel(inputs.shape[-1]), inputs.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


def _lower_groups(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A 1×1 convolution with constant weights."""
    channels = int(x.shape[-1])
    kernel = tf.constant(call.operation.kernel(channels)[None, None])
    y = tf.nn.conv2d(tf.reshape(x, [1, 1, -1, channels]), kernel, 1, "VALID")
    return tf.reshape(y, x.shape)


@keras.saving.register_keras_serializable(package="tfcompress")
class InverseRoot(NormPart, CodeTable):
    """min(1 / √(x · factor + epsilon), largest), value by value."""

    def __init__(
        self,
        factor: float = 1.0,
        epsilon: float = 0.0,
        largest: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.factor, self.epsilon, self.largest = float(factor), float(epsilon), largest

    def function(self, x: tf.Tensor) -> tf.Tensor:
        y = tf.math.rsqrt(x * self.factor + self.epsilon)
        return y if self.largest is None else tf.minimum(y, self.largest)

    def get_config(self) -> dict[str, Any]:
        own = {"factor": self.factor, "epsilon": self.epsilon, "largest": self.largest}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tfcompress")
class Centered(NormPart, QuantizedSubtract):
    """x − mean."""


@keras.saving.register_keras_serializable(package="tfcompress")
class Normalized(NormPart, QuantizedMultiply):
    """(x − mean) · inverse root, or a square."""

    def stripped(self) -> list[Any]:
        norm = super().stripped()
        return [lambda factors: norm[0](factors[0])] if norm else []


@keras.saving.register_keras_serializable(package="tfcompress")
class NormAffine(NormPart, FoldedAffine, keras.layers.Layer):
    """x · γ + β, with γ and β trained, of the sizes of some axes of x.

    Args:
        axes: The axes.
        scale: Name of the variable of γ, `None` for none.
        offset: Name of the variable of β, `None` for none.
    """

    def __init__(
        self, axes: Sequence[int], scale: str | None, offset: str | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.axes, self.scale, self.offset_name = list(axes), scale, offset
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        shape = tuple(input_shape[axis] for axis in self.axes)
        # In front of the axes between those of γ; the last axes need none.
        rank = len(input_shape)
        broadcast = [n if i in self.axes else 1 for i, n in enumerate(input_shape)]
        self._shape = broadcast[min(self.axes) :] if self.axes else [1] * rank

        def variable(name: str | None, initializer: str) -> keras.Variable | None:
            if name is None:
                return None
            return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

        self.gamma, self.beta = variable(self.scale, "ones"), variable(self.offset_name, "zeros")
        self.built = True

    def factor(self) -> tf.Tensor:
        value = tf.ones(()) if self.gamma is None else self.gamma.value
        return tf.reshape(value, self._shape) if self.gamma is not None else value

    def offset(self) -> tf.Tensor:
        return tf.zeros(()) if self.beta is None else tf.reshape(self.beta.value, self._shape)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        if training and self.trainable:
            outputs = tf.cast(inputs, tf.float32) * self.factor() + self.offset()
            return tf.cast(outputs, self.compute_dtype)
        return self.infer(inputs, call_index)

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"axes": self.axes, "scale": self.scale, "offset": self.offset_name}
        return {**super().get_config(), **own}


def _lower_affine(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """A depthwise convolution with a channel for each γ."""
    factor, offset = (np.asarray(c, np.float32) for c in call.constants)
    if all(c.size in (1, x.shape[-1]) and c.ndim <= 1 for c in (factor, offset)):
        return forms.channel_affine(x, factor, offset)
    shape = [int(n) for n in x.shape]
    flat = tf.reshape(x, [1, 1, 1, int(np.prod(shape))])
    gamma, beta = (np.broadcast_to(c, shape[1:]).ravel() for c in (factor, offset))
    return tf.reshape(forms.channel_affine(flat, gamma, beta), shape)


def _lower_mean(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """MEAN or SUM."""
    return call.operation.real_values(x)


def _requantized(layer: keras.Layer) -> keras.Layer:
    return type(layer).from_config(layer.get_config())


register(
    *(MeanOverAxes, SumOverAxes),
    spec=OperatorSpec(role=Role.AVERAGE, quantized=_requantized, lower=_lower_mean),
)
register(
    SumOfSquares,
    spec=OperatorSpec(
        role=Role.AVERAGE,
        quantized=_requantized,
        lower=_lower_squares,
        outside=lambda layer: "BATCH_MATMUL",
    ),
)
register(
    MeanOverGroups,
    spec=OperatorSpec(role=Role.AVERAGE, quantized=_requantized, lower=_lower_groups),
)
register(InverseRoot, spec=CODE_TABLE)
register(Centered, Normalized, spec=OperatorSpec(role=Role.ARITHMETIC, quantized=_requantized))
register(
    NormAffine,
    spec=OperatorSpec(
        role=Role.AFFINE,
        quantized=_requantized,
        constants=FOLDED_SPEC.constants,
        lower=_lower_affine,
    ),
)
