"""What Keras cannot do on several replicas, said before training."""

from __future__ import annotations

import warnings
import weakref

import keras

from tfcompress.model.keras_private import all_layers

_warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def check_replicas(model: keras.Model) -> None:
    """Checks a compiled model of a distribution strategy. One of a single replica passes.

    Raises:
        ValueError: Several steps to an execution, on which Keras fails with an error of TensorFlow
            in the middle of the first one.

    Warns:
        UserWarning: Batch norms of Keras that keep statistics of their own on each replica; once
            for a model.
    """
    strategy = getattr(model, "distribute_strategy", None)
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    if replicas == 1:
        return
    steps = model.steps_per_execution
    if steps > 1:
        raise ValueError(
            f"Expected steps_per_execution=1 on {replicas} replicas, because Keras fails with more "
            f"under a distribution strategy. Received: {steps}. Leave it out of `compile`."
        )
    found = [layer.name for layer in all_layers(model) if _drifts(layer)]
    if found and model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"Batch norm of {', '.join(found[:5])}{', ...' if len(found) > 5 else ''} keeps "
            f"statistics of its own on each of {replicas} replicas, of which only the first are "
            f"saved; and a last batch of fewer than {replicas} samples, which leaves a replica "
            "without any, makes all weights NaN. Make it BatchNormalization(synchronized=True), or "
            "batch the data with drop_remainder=True.",
            UserWarning,
            stacklevel=3,
        )


def _drifts(layer: keras.Layer) -> bool:
    return (
        isinstance(layer, keras.layers.BatchNormalization)
        and layer.built
        and layer.trainable
        and not layer.synchronized
        # Averaged in a layer of ours.
        and layer.moving_mean.aggregation != "mean"
    )
