"""A loss that keeps latent weights at their codes, so that they swing less between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.oscillation.kernels import (
    RoundedKernelOf,
    rounded_kernels,
    strategy_scope,
    trace_anew,
)


def dampening_loss(model: keras.Model) -> tf.Tensor:
    """Σ (ŵ − clip(w))² over the kernels of a quantized model, as a loss term for a custom loop.

    Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", eq. 6. ŵ is the
    rounded weight, w the latent one, clipped to the range of the codes. Gradient: to w alone,
    2 (w − ŵ) inside the range and 0 outside.

    Args:
        model: What `tfc.quantize` returned. Kernels whose grid does not give its own levels back
            (`DoReFaWeights`, `APoT`) are left out.

    Returns:
        A scalar.

    Raises:
        ValueError: No kernel is left.
    """
    return tf.add_n([_distance(kernel) for kernel in _dampened(model)])


def _dampened(model: keras.Model) -> list[RoundedKernelOf]:
    kernels = rounded_kernels(model, "dampening")
    found = [kernel for kernel in kernels if kernel.rounding.scheme.quantizer.keeps_levels]
    if not found:
        raise ValueError(
            "Expected a weight quantizer that gives each of its levels back, for dampening. "
            f"Received: {kernels[0].rounding.scheme.quantizer!r}."
        )
    return found


def _distance(kernel: RoundedKernelOf, latent: tf.Tensor | None = None) -> tf.Tensor:
    scheme = kernel.rounding.scheme
    codes, values, scale = kernel.rounded(latent)
    scale = tf.stop_gradient(scale)
    low, high = scheme.quantizer.code_ends(scheme)
    clipped = tf.clip_by_value(values, low * scale, high * scale)
    return tf.reduce_sum(tf.square(tf.stop_gradient(codes) * scale - clipped))


class OscillationDampening(keras.callbacks.Callback):
    """Adds `strength · Σ (ŵ − clip(w))²` to the loss: see `tfc.dampening_loss`.

    Latent weights are drawn to the middle of what rounds to their code, so fewer of them swing
    between two codes from one step to the next. The strength grows by a cosine, as in the paper:
    too much too early keeps weights where they began. Regularizers that kernels have stay in force.

    Args:
        strength: At the end, positive; the paper's range from 10⁻⁶ to 10⁻¹ by network.
        begin_step: Of the optimizer; before it the strength is 0.
        end_step: When the strength has arrived; `None`: it is there from `begin_step` on.

    Raises:
        ValueError: An argument outside of its range; at the start of `fit`, a model without kernels
            that it could act on.
    """

    def __init__(self, strength: float = 1e-2, *, begin_step: int = 0, end_step: int | None = None):
        super().__init__()
        if not (isinstance(strength, int | float | np.number) and strength > 0):
            raise ValueError(f"Expected `strength` > 0. Received: {strength!r}.")
        if begin_step < 0 or (end_step is not None and end_step <= begin_step):
            raise ValueError(
                f"Expected 0 ≤ begin_step < end_step. Received: {begin_step=}, {end_step=}."
            )
        self.strength, self.begin_step, self.end_step = strength, begin_step, end_step

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._kernels = _dampened(model)
        with strategy_scope(model):
            self._factor = keras.Variable(
                0.0, trainable=False, aggregation="only_first_replica", name="dampening"
            )
        for kernel in self._kernels:
            inner = kernel.variable.regularizer
            kernel.variable.regularizer = _Dampened(kernel, self._factor, inner)
        trace_anew(model)

    def strength_at(self, step: int) -> float:
        """The strength at a step of the optimizer."""
        if step < self.begin_step:
            return 0.0
        if self.end_step is None:
            return self.strength
        done = min((step - self.begin_step) / (self.end_step - self.begin_step), 1.0)
        return self.strength * (1 - math.cos(math.pi * done)) / 2

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._factor.assign(self.strength_at(int(self.model.optimizer.iterations.numpy())))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        # Where another callback has wrapped the regularizer since, it stays, without an effect.
        self._factor.assign(0.0)
        for kernel in self._kernels:
            found = kernel.variable.regularizer
            if isinstance(found, _Dampened) and found.factor is self._factor:
                kernel.variable.regularizer = found.inner
        trace_anew(self.model)


class _Dampened:
    """The regularizer of a kernel, with dampening."""

    def __init__(
        self,
        kernel: RoundedKernelOf,
        factor: keras.Variable,
        inner: Callable[[Any], Any] | None,
    ):
        self.kernel, self.factor, self.inner = kernel, factor, inner

    def __call__(self, latent: tf.Tensor) -> tf.Tensor:
        loss = self.factor.value * _distance(self.kernel, latent)
        return loss if self.inner is None else loss + self.inner(latent)
