"""Reading a kernel through a codebook, as pure functions on tensors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient


def read_codebook(
    value: tf.Tensor, codebook: tf.Tensor, index: tf.Tensor, keep_zeros: bool
) -> tf.Tensor:
    """Wᵢ = codebook[indexᵢ], and 0 where the value itself is exactly 0 and zeros are kept.

    Gradient (Han et al. 2016, eq. 3): ∂L/∂codebookⱼ = Σᵢ ∂L/∂Wᵢ · 1[indexᵢ = j], summed over the
    weights of the cluster; the value, which only decides assignments, gets ∂L/∂W straight through.
    Where a sum is NaN or infinite, the centroid gets 0: a bad batch leaves it as it is.

    Args:
        value: Latent float32 kernel.
        codebook: float32 of shape (entries,).
        index: int32 of the kernel's shape, in [0, entries).
        keep_zeros: Whether exact zeros stay.
    """

    @tf.custom_gradient
    def read(value, codebook):
        shared = tf.gather(codebook, index)
        kept = tf.not_equal(value, 0.0) if keep_zeros else tf.ones_like(value, tf.bool)

        def gradient(upstream):
            counted = tf.where(kept, upstream, tf.zeros_like(upstream))
            summed = tf.math.unsorted_segment_sum(counted, index, tf.size(codebook))
            return upstream, summed

        return tf.where(kept, shared, tf.zeros_like(shared)), gradient

    return read(value, finite_gradient(codebook))


def nearest_centroids(values: tf.Tensor, codebook: tf.Tensor, usable: tf.Tensor) -> tf.Tensor:
    """The index of the nearest usable centroid: int32 of shape (groups, weights).

    Args:
        values: float32 of shape (groups, weights).
        codebook: float32 of shape (groups, k).
        usable: bool of shape (groups, k), True for one centroid of each group at least.
    """
    # Centroids that are not usable are sorted last, with an infinite border before them.
    order = tf.argsort(tf.where(usable, codebook, np.float32(np.inf)), axis=1)
    far = tf.gather(tf.where(usable, codebook, np.float32(np.inf)), order, batch_dims=1)
    place = tf.searchsorted((far[:, :-1] + far[:, 1:]) / 2.0, values)
    return tf.gather(order, place, batch_dims=1)
