"""What one batch with NaN or infinite values must not spoil, and how it is named."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class NotFinite(ValueError):
    """Weights, gradients, activations or scores that are NaN or infinite."""


def warn_not_finite(step: int, error: object, keeps: str) -> None:
    """Warns of a step whose numbers are not finite.

    Args:
        step: Steps taken so far.
        error: What was found, and in which layer.
        keeps: What stays as it was, in the plural.
    """
    warnings.warn(
        f"Step {step}: {error} {keeps} stay as they were; the next step tries again.",
        UserWarning,
        stacklevel=3,
    )


class LossWatch:
    """Names the first batch of an epoch after which the loss is no longer finite.

    Args:
        keeps: What that batch has not changed, in the plural.
    """

    def __init__(self, keeps: str):
        self.keeps = keeps
        self._warned = False

    def begin_epoch(self) -> None:
        """Starts anew: Keras averages the loss over an epoch, so NaN stays in it until then."""
        self._warned = False

    def end_batch(self, model: keras.Model, batch: int, logs: dict[str, Any] | None) -> None:
        """Warns, once an epoch, where the loss in `logs` is not finite.

        Args:
            model: The model in training.
            batch: Number of the batch in its epoch.
            logs: What Keras hands to callbacks.
        """
        loss = (logs or {}).get("loss")
        if self._warned or loss is None or np.isfinite(loss):
            return
        self._warned = True
        optimizer = getattr(model, "optimizer", None)
        step = int(optimizer.iterations.numpy()) if optimizer is not None else batch
        hit = layers_not_finite(model)
        weights = (
            f"Weights that are not finite now: {_listed(hit)}. Load an earlier checkpoint, and "
            "lower the learning rate, clip gradients or leave the samples of this batch out."
            if hit
            else "All weights are finite."
        )
        strategy = getattr(model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            weights += (
                " Of a batch of fewer samples than replicas some replica gets none, and a loss of "
                "0 / 0: batch the data with drop_remainder=True."
            )
        warnings.warn(
            f"Step {step} (batch {batch} of the epoch): the loss is {loss}. {self.keeps} stay as "
            f"they were. {weights}",
            UserWarning,
            stacklevel=3,
        )


def finite_gradient(x: tf.Tensor) -> tf.Tensor:
    """`x`; where its gradient is NaN or infinite, it is 0.

    For trained ranges and codebooks, which a batch with NaN thus leaves as they are. Kernels get
    such gradients all the same, by which a loss scale sees an overflow.

    Args:
        x: float32 of any shape.
    """

    @tf.custom_gradient
    def same(x: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.where(tf.math.is_finite(upstream), upstream, tf.zeros_like(upstream))

        return tf.identity(x), gradient

    return same(x)


def layers_not_finite(model: keras.Model) -> list[str]:
    """Paths of the trainable weights of a model that hold NaN or infinite values."""
    return [
        variable.path
        for variable in model.trainable_variables
        if keras.backend.is_float_dtype(variable.dtype)
        and not np.isfinite(np.asarray(variable, np.float32)).all()
    ]


def check_finite(values: Sequence[np.ndarray], names: Sequence[str], what: str) -> None:
    """Raises `NotFinite` where an array holds NaN or infinite values, by its name.

    Args:
        values: Arrays.
        names: Their names.
        what: What they are, in the plural.
    """
    hit = [n for n, v in zip(names, values, strict=True) if not np.isfinite(v).all()]
    if hit:
        raise NotFinite(f"Expected finite {what}. Received: NaN or infinity in {_listed(hit)}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
