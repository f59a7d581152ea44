"""Per-channel multiply-and-add layers as the runtime folds them.

Behind a convolution or dense layer, LiteRT folds a batch norm into kernel and bias; alone (and
for Rescaling and Normalization) it runs as a 1×1 depthwise convolution. Either way the offset is
an int32 bias, so in inference these layers round it to that grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.affine import code_range, round_to_grid
from tfcompress.quantization.fake_quant.shared_trace import shared_trace
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_kernel, upstream_quantizer


class FoldedAffine(Linked):
    """Mixin: y = x · factor + offset per channel, the offset rounded as an int32 bias."""

    # Of the Keras layer, beside which the mixin stands.
    compute_dtype: str

    # Call index → (compressed layer, its call index), or the quantizer of the input, or None.
    _sources: Links
    # Call index → the quantizer that rounds the layer's output, past a fused ReLU.
    sum_quantizers: Links

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sources = Links()
        self.sum_quantizers = Links()

    def factor(self) -> tf.Tensor:
        """The multiplier per channel (or a scalar), float32."""
        raise NotImplementedError

    def offset(self) -> tf.Tensor:
        """The addend per channel (or a scalar), float32."""
        raise NotImplementedError

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        kernel = upstream_kernel(inputs)
        if kernel is not None:
            layer, kernel_call = kernel
            for transform in layer.transformed.of_type(FakeQuantizeWeights).values():
                transform.set_folded(kernel_call, self, call_index)
        self._sources.set(call_index, kernel or upstream_quantizer(inputs))

    def link_rounding(self, quantizer: TensorQuantizer, call_index: int) -> None:
        self.sum_quantizers.set(call_index, quantizer)

    def is_folded(self, call_index: int = 0) -> bool:
        """Whether the runtime folds this call into the kernel before it."""
        return isinstance(self._sources.get(call_index), tuple)

    def fold(self, call_index: int = 0) -> Fold:
        """What the runtime computes with in that call."""
        factor, offset = self.factor(), self.offset()
        source = self._sources.get(call_index)
        if source is None:
            return Fold(factor, offset)
        if not isinstance(source, tuple):
            # A 1×1 depthwise kernel with one weight per channel: its code is the largest one.
            kernel_scale = tf.abs(factor) * np.float32(1 / code_range(8)[1])
            input_step = source.active_scale()
            step = input_step * kernel_scale
            return Fold(factor, round_to_grid(offset, step), input_step, step, code_range(8)[1])
        layer, kernel_call = source
        values, rounded = layer.transformed(call_index=kernel_call, training=False)
        # Not `layer.bias`, which this layer's policy would give in 16 bits.
        bias = values["bias"] if layer.use_bias else 0.0
        if rounded is None:
            return Fold(factor, offset)
        # The products are taken in the runtime's order; without the operation between them
        # TensorFlow's graph optimizer would take them in another.
        step = rounded.input_scale * tf.abs(rounded.scale * factor)
        offset = round_to_grid(offset + bias * factor, step)
        return Fold(factor, offset - bias * factor, rounded.bias_step, step, 1, bias)

    def infer(self, inputs: tf.Tensor, call_index: int) -> tf.Tensor:
        """The layer's output in inference."""
        fold = self.fold(call_index)
        x = tf.cast(inputs, tf.float32)
        outputs = x * fold.factor + fold.addend
        quantizer = self.sum_quantizers.get(call_index)
        if quantizer is not None and fold.step is not None and self.compute_dtype == "float32":
            exact = quantizer.round_sum(fold.sums(x), fold.step)
            # No step: no range is known yet, or batch norm switches the channel off.
            exact = tf.where(fold.step > 0, exact, outputs)
            # Its gradient is that of the real value: a frozen layer passes gradients on.
            outputs += tf.stop_gradient(exact - outputs)
        return tf.cast(outputs, self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class Fold:
    """y = x · factor + addend, as an int32 sum that the runtime adds up.

    Attributes:
        factor: Per channel or a scalar.
        addend: Likewise, such that the int32 bias is a whole number.
        input_step: Value of one unit of `x`; `None` where `x` has no known codes.
        step: Value of one unit of the sum.
        code: The kernel's code that multiplies a unit of `x`, but for the sign of `factor`.
        bias: What the layer before has already added to `x`.
    """

    factor: tf.Tensor
    addend: tf.Tensor
    input_step: tf.Tensor | None = None
    step: tf.Tensor | None = None
    code: int = 1
    bias: tf.Tensor | float = 0.0

    def sums(self, x: tf.Tensor) -> tf.Tensor:
        """The int32 sums, in float32 (exact to 2²⁴); meaningless where a step is 0."""
        units = tf.round(tf.math.divide_no_nan(x - self.bias, self.input_step))
        offset = tf.math.divide_no_nan(self.addend + self.bias * self.factor, self.step)
        return units * (self.code * tf.sign(self.factor)) + tf.round(offset)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedBatchNormalization(FoldedAffine, keras.layers.BatchNormalization):
    """Batch norm that the runtime folds, with statistics that a schedule can freeze.

    `frozen` is a variable in the graph: frozen, the layer normalizes by its moving statistics and
    no longer moves them, while γ and β keep training. For 4-D inputs training runs TensorFlow's
    fused op, which takes about a third off the time of a convolutional network's step.
    """

    keras_class = keras.layers.BatchNormalization

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # Read in float32 under any policy: what is folded into a kernel is not rounded first.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.frozen = self.add_weight(
            name="frozen",
            shape=(),
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def stripped(self) -> list[keras.Layer]:
        return [keras.layers.BatchNormalization.from_config(self.get_config())]

    def factor(self) -> tf.Tensor:
        deviation = tf.math.rsqrt(self.moving_variance.value + self.epsilon)
        return deviation * self.gamma.value if self.scale else deviation

    def offset(self) -> tf.Tensor:
        shift = -self.moving_mean.value * self.factor()
        return shift + self.beta.value if self.center else shift

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
        call_index: int = 0,
    ) -> tf.Tensor:
        if not (training and self.trainable):
            return self.infer(inputs, call_index)
        if mask is not None or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        x = tf.cast(inputs, tf.float32)
        ones, zeros = tf.ones_like(self.moving_mean.value), tf.zeros_like(self.moving_mean.value)
        gamma = self.gamma.value if self.scale else ones
        beta = self.beta.value if self.center else zeros
        old_mean, old_variance = self.moving_mean.value, self.moving_variance.value
        normalize = _normalize_fused if x.shape.rank == 4 else _normalize
        frozen = self.frozen.value >= 0.5
        outputs, mean, variance = normalize(
            x, gamma, beta, old_mean, old_variance, frozen, epsilon=self.epsilon
        )
        outputs.set_shape(x.shape)
        # Frozen, the moving statistics come back as they were; written so, not a bit changes.
        rate = 1.0 - self.momentum
        self.moving_mean.assign(old_mean + (mean - old_mean) * rate)
        self.moving_variance.assign(old_variance + (variance - old_variance) * rate)
        return tf.cast(outputs, self.compute_dtype)


def _normalize(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    frozen: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`(γ·(x − mean)/σ + β, mean, variance)` over all axes but the last, as Keras defines them.

    By the batch, or `frozen` by the statistics that are given.
    """
    mean, variance = tf.cond(
        frozen,
        lambda: (tf.identity(mean), tf.identity(variance)),
        lambda: tf.nn.moments(x, list(range(x.shape.rank - 1))),
    )
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon), mean, variance


@shared_trace
def _normalize_fused(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    frozen: tf.Tensor,
    *,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The same for images, by TensorFlow's fused op and its gradient.

    The gradient that TensorFlow derives of a branch is slow to trace, and XLA does not compile it
    here, so it is written out. The statistics pass none on.
    """

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tuple, Callable]:
        def by_batch() -> tuple:
            found = tf.raw_ops.FusedBatchNormV3(
                x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon
            )
            return found.y, found.batch_mean, found.batch_variance, *found[3:]

        def by_statistics() -> tuple:
            found = tf.raw_ops.FusedBatchNormV3(
                x=x,
                scale=gamma,
                offset=beta,
                mean=mean,
                variance=variance,
                epsilon=epsilon,
                is_training=False,
            )
            return found.y, mean, variance, mean, variance, found.reserve_space_3

        outputs, new_mean, new_variance, *reserved = tf.cond(frozen, by_statistics, by_batch)

        def gradient(upstream: tf.Tensor, *_: Any) -> tuple:
            def derived(is_training: bool) -> tuple:
                found = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=upstream,
                    x=x,
                    scale=gamma,
                    reserve_space_1=reserved[0],
                    reserve_space_2=reserved[1],
                    reserve_space_3=reserved[2],
                    epsilon=epsilon,
                    is_training=is_training,
                )
                return found.x_backprop, found.scale_backprop, found.offset_backprop

            return tf.cond(frozen, lambda: derived(False), lambda: derived(True))

        # The fused op returns the unbiased variance; Keras averages the biased one.
        count = tf.cast(tf.size(x) / tf.shape(x)[-1], tf.float32)
        biased = tf.where(frozen, new_variance, new_variance * (count - 1.0) / count)
        return (outputs, new_mean, biased), gradient

    return normalize(x, gamma, beta)


@keras.saving.register_keras_serializable(package="tfcompress")
class ChannelAffine(FoldedAffine, keras.layers.Layer):
    """y = x · factor + offset with constants per channel: a Rescaling or an adapted Normalization.

    Args:
        factor: One number, or one per channel.
        offset: Likewise.
    """

    channels_like = keras.layers.Rescaling

    def __init__(self, factor: Any, offset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.constants = [np.ravel(c).astype(np.float32).tolist() for c in (factor, offset)]
        self.supports_masking = True

    def stripped(self) -> list[keras.Layer]:
        scale, offset = (c[0] if len(c) == 1 else c for c in self.constants)
        return [keras.layers.Rescaling(scale, offset, name=self.name, dtype=self.dtype_policy)]

    def factor(self) -> tf.Tensor:
        return tf.constant(self.constants[0])

    def offset(self) -> tf.Tensor:
        return tf.constant(self.constants[1])

    def call(self, inputs: tf.Tensor, call_index: int = 0) -> tf.Tensor:
        return self.infer(inputs, call_index)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        factor, offset = self.constants
        return {**super().get_config(), "factor": factor, "offset": offset}


def affine_layer(layer: keras.Layer) -> keras.Layer:
    """The layer that takes the place of a BatchNormalization, Rescaling or Normalization."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return QuantizedBatchNormalization.from_config(layer.get_config())
    if isinstance(layer, keras.layers.Rescaling):
        factor, offset = layer.scale, layer.offset
    else:
        # Keras keeps the deviation at or above its epsilon.
        deviation = np.maximum(np.sqrt(layer.variance), keras.backend.epsilon())
        factor, offset = 1.0 / deviation, -np.asarray(layer.mean) / deviation
    return ChannelAffine(factor, offset, name=layer.name, dtype=layer.dtype_policy)


def _batch_norm_reason(layer: keras.layers.BatchNormalization) -> str | None:
    if layer.renorm:
        return "batch renormalization has no counterpart in LiteRT"
    return _axis_reason(layer, layer.axis)


def _normalization_reason(layer: keras.layers.Normalization) -> str | None:
    if layer.invert:
        return "an inverted Normalization is not a multiplier and an offset of its input"
    return _axis_reason(layer, layer.axis)


def _axis_reason(layer: keras.Layer, axis: Any) -> str | None:
    if isinstance(axis, (list, tuple)):
        if not axis:
            # A Normalization with axis=None has one mean and one variance for everything.
            return None
        axis = axis[0] if len(axis) == 1 else None
    shape = (layer.get_build_config() or {}).get("input_shape")
    is_last = axis == -1 or (shape is not None and axis == len(shape) - 1)
    return None if is_last else "its statistics are not along the last axis"


def _constants(layer: keras.Layer, call_index: int) -> tuple[np.ndarray, np.ndarray]:
    fold = layer.fold(call_index)
    return np.asarray(fold.factor), np.asarray(fold.addend)


def _lower(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """Folded into the kernel before it, or a depthwise convolution of its own."""
    if call.operation.is_folded(call.call_index):
        return x
    factor, offset = call.constants
    return forms.channel_affine(x, factor, offset)


register(
    keras.layers.BatchNormalization,
    spec=OperatorSpec(
        role=Role.AFFINE,
        folds_into_kernel=True,
        quantized=affine_layer,
        float_reason=_batch_norm_reason,
    ),
)
register(keras.layers.Rescaling, spec=OperatorSpec(role=Role.AFFINE, quantized=affine_layer))
register(
    keras.layers.Normalization,
    spec=OperatorSpec(role=Role.AFFINE, quantized=affine_layer, float_reason=_normalization_reason),
)
register(
    QuantizedBatchNormalization,
    ChannelAffine,
    spec=OperatorSpec(role=Role.AFFINE, constants=_constants, lower=_lower),
)
