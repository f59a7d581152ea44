"""Batch norm: trained by TensorFlow's fused operation, folded by the runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.shared_trace import (
    SharedVariable,
    can_share_updates,
    shared_trace,
    shared_update,
)
from tfcompress.quantization.operators.channel_affine import (
    FOLDED_SPEC,
    FoldedAffine,
    axis_reason,
)
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


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
        kwargs["autocast"] = False
        if str(kwargs.get("name", "")).startswith("moving_"):
            # Each replica sees other samples; Keras' own layer lets its statistics drift apart.
            kwargs["aggregation"] = "mean"
        return super().add_weight(*args, **kwargs)

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
        gamma = self.gamma.value if self.scale else tf.ones_like(self.moving_mean.value)
        beta = self.beta.value if self.center else tf.zeros_like(self.moving_mean.value)
        variables = (self.moving_mean, self.moving_variance, self.frozen)
        if x.shape.rank == 4 and can_share_updates(variables):
            tensors = (x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
            outputs = _normalize_and_update(
                tensors, variables, epsilon=self.epsilon, momentum=self.momentum
            )
            outputs.set_shape(x.shape)
            return tf.cast(outputs, self.compute_dtype)
        old_mean, old_variance = self.moving_mean.value, self.moving_variance.value
        normalize = _normalize_in_shared_trace if x.shape.rank == 4 else _normalize
        # A replica may get no sample of a last batch: its statistics would be 0 / 0.
        frozen = (self.frozen.value >= 0.5) | tf.equal(tf.size(x), 0)
        outputs, mean, variance = normalize(
            x, gamma, beta, old_mean, old_variance, frozen, epsilon=self.epsilon
        )
        outputs.set_shape(x.shape)
        # Frozen, the moving statistics come back as they were; written so, not a bit changes.
        mean, variance = _finite_or_old(mean, variance, old_mean, old_variance)
        rate = 1.0 - self.momentum
        self.moving_mean.assign(old_mean + (mean - old_mean) * rate)
        self.moving_variance.assign(old_variance + (variance - old_variance) * rate)
        return tf.cast(outputs, self.compute_dtype)


def _finite_or_old(
    mean: tf.Tensor, variance: tf.Tensor, old_mean: tf.Tensor, old_variance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Statistics of the batch; of channels that are not finite the old ones.

    One NaN would stay in a moving average for good.
    """
    is_finite = tf.math.is_finite(mean) & tf.math.is_finite(variance)
    return tf.where(is_finite, mean, old_mean), tf.where(is_finite, variance, old_variance)


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


_normalize_in_shared_trace = shared_trace(_normalize_fused)


@shared_update
def _normalize_and_update(
    tensors: tuple[tf.Tensor, ...],
    variables: tuple[SharedVariable, ...],
    *,
    epsilon: float,
    momentum: float,
) -> tf.Tensor:
    """A training step of a batch norm of images: its output; moves the statistics.

    Args:
        tensors: The input, γ and β.
        variables: Moving mean, moving variance and `frozen`.
        epsilon: Of the batch norm.
        momentum: Likewise.
    """
    x, gamma, beta = tensors
    moving_mean, moving_variance, is_frozen = variables
    old_mean, old_variance, frozen = moving_mean.read(), moving_variance.read(), is_frozen.read()
    outputs, mean, variance = _normalize_fused(
        x, gamma, beta, old_mean, old_variance, frozen >= 0.5, epsilon=epsilon
    )
    mean, variance = _finite_or_old(mean, variance, old_mean, old_variance)
    rate = 1.0 - momentum
    moving_mean.assign(old_mean + (mean - old_mean) * rate)
    moving_variance.assign(old_variance + (variance - old_variance) * rate)
    return outputs


def quantized_batch_norm(layer: keras.layers.BatchNormalization) -> keras.Layer:
    """The (unbuilt) layer that takes the place of a BatchNormalization."""
    return QuantizedBatchNormalization.from_config(layer.get_config())


def _batch_norm_reason(layer: keras.layers.BatchNormalization) -> str | None:
    if layer.renorm:
        return "batch renormalization has no counterpart in LiteRT"
    return axis_reason(layer, layer.axis)


register(
    keras.layers.BatchNormalization,
    spec=OperatorSpec(
        role=Role.AFFINE,
        folds_into_kernel=True,
        quantized=quantized_batch_norm,
        float_reason=_batch_norm_reason,
        int16=True,
    ),
)
register(QuantizedBatchNormalization, spec=FOLDED_SPEC)
