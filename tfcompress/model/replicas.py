"""Several replicas: what Keras cannot do on them, and variables that each has its own values of."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.empty_batches import needs_samples, stop_without_samples
from tfcompress.model.keras_private import all_layers

_warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def check_replicas(model: keras.Model) -> None:
    """Checks a compiled model of a distribution strategy. One of a single replica passes.

    Call it before the train step is traced: where a layer gives no sound gradient of a batch
    without samples, the step stops before one. Layers of the package give zeros.

    Raises:
        ValueError: Several steps to an execution, on which Keras fails with an error of TensorFlow
            in the middle of the first one.

    Warns:
        UserWarning: Batch norms of Keras that keep statistics of their own on each replica, and
            layers of Keras at which training stops where a replica has no sample; once for a
            model.
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
    unsound = [layer for layer in all_layers(model) if needs_samples(layer)]
    if not unsound:
        return
    stop_without_samples(model, _listed(unsound))
    if model in _warned:
        return
    said = []
    if norms := [x for x in unsound if isinstance(x, keras.layers.BatchNormalization)]:
        said.append(
            f"Batch norm of {_listed(norms)} keeps statistics of its own on each of {replicas} "
            "replicas, of which only the first are saved: make it "
            "BatchNormalization(synchronized=True)."
        )
    if known := [x for x in unsound if type(x).__module__.split(".")[0] == "keras"]:
        said.append(
            f"Training stops at a batch of fewer than {replicas} samples, which leaves a replica "
            f"without any: weights of {_listed(known)} would become NaN or worse. Batch the data "
            "with drop_remainder=True where the last batch may be so short."
        )
    if said:
        _warned.add(model)
        warnings.warn(" ".join(said), UserWarning, stacklevel=3)


def _listed(found: Sequence[keras.Layer]) -> str:
    return ", ".join(layer.name for layer in found[:5]) + (", ..." if len(found) > 5 else "")


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
