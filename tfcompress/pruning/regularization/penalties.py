"""Penalties that make weights small, and the proximal steps that make them zero.

`R(w)` is what a penalty adds to the loss. `prox(w, t)` is its proximal operator,
`argmin_u R(u) t + ||u - w||² / 2`, in closed form: one step of size `t` towards smaller `R`.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tfcompress.model.kernels import KernelSpec


def l1_penalty(w: tf.Tensor) -> tf.Tensor:
    """`Σ |w|`."""
    return tf.reduce_sum(tf.abs(w))


def l2_penalty(w: tf.Tensor) -> tf.Tensor:
    """`Σ w²`."""
    return tf.reduce_sum(tf.square(w))


def group_lasso_penalty(w: tf.Tensor, spec: KernelSpec) -> tf.Tensor:
    """`Σ_c sqrt(n) ||w_c||₂` over the output channels `c`, each with `n` weights.

    Yuan and Lin 2006; Wen et al. 2016, https://arxiv.org/abs/1608.03665.
    """
    return math.sqrt(group_size(w.shape, spec)) * tf.reduce_sum(channel_norms(w, spec))


def soft_threshold(w: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """`sign(w) max(|w| - t, 0)`, the proximal operator of L1 (Tibshirani 1996)."""
    return tf.sign(w) * tf.maximum(tf.abs(w) - t, 0.0)


def shrink(w: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """`w / (1 + 2 t)`, the proximal operator of L2."""
    return w / (1.0 + 2.0 * t)


def group_soft_threshold(w: tf.Tensor, t: tf.Tensor, spec: KernelSpec) -> tf.Tensor:
    """`w_c max(1 - sqrt(n) t / ||w_c||₂, 0)`, the proximal operator of the group lasso."""
    norms = channel_norms(w, spec, keepdims=True)
    threshold = math.sqrt(group_size(w.shape, spec)) * t
    return w * tf.maximum(1.0 - tf.math.divide_no_nan(threshold, norms), 0.0)


def channel_norms(w: tf.Tensor, spec: KernelSpec, keepdims: bool = False) -> tf.Tensor:
    """L2 norm of the weights that feed each output channel."""
    squares = tf.reduce_sum(tf.square(w), axis=_within(w.shape, spec), keepdims=keepdims)
    # The square root has an infinite slope at 0, which a channel of zeros would turn into NaN.
    positive = squares > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


def group_size(shape: tf.TensorShape, spec: KernelSpec) -> int:
    """Number of weights that feed one output channel."""
    return math.prod(int(shape[a]) for a in _within(shape, spec))


def _within(shape: tf.TensorShape, spec: KernelSpec) -> list[int]:
    outputs = {a % len(shape) for a in spec.output_axes}
    return [a for a in range(len(shape)) if a not in outputs]
