"""Several replicas: what Keras cannot do on them, and variables that each has its own values of."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

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


def replica_variables(optimizer: keras.optimizers.Optimizer | None) -> list[keras.Variable]:
    """The variables of an optimizer, or of those inside it, that differ between replicas.

    An optimizer of the package names them in `replica_variables`.
    """
    found: list[keras.Variable] = []
    while optimizer is not None:
        found += getattr(optimizer, "replica_variables", ())
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return found


class ReplicaState:
    """Reads and writes `replica_variables`, whose values differ between replicas.

    Args:
        optimizer: That of a training.
        strategy: Of its variables.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy
    ) -> None:
        self.optimizer, self.strategy = optimizer, strategy
        self._rows = tf.function(self._gathered)

    def values(self) -> list[np.ndarray]:
        """Of each variable, on all replicas, in their order: `(replicas, …)`.

        Under `MultiWorkerMirroredStrategy` all workers must call it.
        """
        variables = replica_variables(self.optimizer)
        if not variables:
            return []
        if not isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return [np.stack([part.numpy() for part in self._parts(v)]) for v in variables]
        # One message for all of them.
        rows = self.strategy.experimental_local_results(self._rows())[0].numpy()
        ends = np.cumsum([int(np.prod(v.shape)) for v in variables])
        parts = np.split(rows, ends[:-1], axis=1)
        return [p.reshape(-1, *v.shape) for p, v in zip(parts, variables, strict=True)]

    def assign(self, values: Sequence[np.ndarray]) -> None:
        """Gives each replica its values again.

        Another number of replicas gets equal shares of the sum.

        Args:
            values: Of each variable, what `values` has returned; none where there were no replicas.
        """
        variables = replica_variables(self.optimizer)
        if not variables:
            return
        # What was saved on one replica is what Keras has loaded.
        values = values or [np.asarray(v)[None] for v in variables]
        count = self.strategy.num_replicas_in_sync
        ids = self.strategy.run(
            lambda: tf.convert_to_tensor(
                tf.distribute.get_replica_context().replica_id_in_sync_group
            )
        )
        places = [int(i) for i in self.strategy.experimental_local_results(ids)]
        for variable, value in zip(variables, values, strict=True):
            each = value if len(value) == count else [value.sum(0) / count] * count
            for part, place in zip(self._parts(variable), places, strict=True):
                part.assign(each[place])

    def _gathered(self) -> tf.Tensor:
        def row() -> tf.Tensor:
            own = [tf.reshape(v.value, (-1,)) for v in replica_variables(self.optimizer)]
            return tf.distribute.get_replica_context().all_gather(tf.concat(own, 0)[None], axis=0)

        return self.strategy.run(row)

    def _parts(self, variable: keras.Variable) -> Sequence[tf.Variable]:
        """The variable of each replica of this process."""
        return self.strategy.experimental_local_results(variable.value)
