"""`BackupAndRestore`: a training that is killed at any step goes on as if nothing had happened."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.distribute import is_chief
from tfcompress.files.writing import STAGING_PREFIX
from tfcompress.model.graph import is_functional, output_structure
from tfcompress.model.keras_private import set_initial_epoch
from tfcompress.model.replicas import ReplicaState
from tfcompress.model.shuffled_batches import ShuffledBatches
from tfcompress.model.training import make_training_variables

_FILE = "backup.weights.h5"
_KEY = "training_progress"


class BackupAndRestore(keras.callbacks.Callback):
    """Saves a training every few steps, and lets `fit` go on from there after a crash.

    ```python
    backup = tfc.callbacks.BackupAndRestore("backup", save_freq=100, data=batches)
    model.fit(batches, epochs=10, shuffle=False, callbacks=[pruning, backup])
    ```

    Run the same script again: `fit` begins in the epoch, and at the step, of the last backup.
    Beside what `keras.callbacks.BackupAndRestore` keeps (weights, optimizer, epoch), and what
    techniques save with the weights (masks, ranges, codebooks), a backup holds the step within the
    epoch, the states of seed generators, such as those of dropout, and the metrics of the epoch so
    far. The batches that were trained on already are drawn and left out. A backup is replaced as a
    whole: killed in the middle of writing one, the training goes on from the one before.

    The continuation is equal to the bit where the data comes in the same order: unshuffled, in a
    fixed order, or from `ShuffledBatches`, given as `data` too. `fit(x, y, shuffle=True)` and
    `Dataset.shuffle` draw anew in each process. Give this callback last. The state of Keras' own
    callbacks, such as `EarlyStopping`, and of the global random generators of Python, NumPy and
    TensorFlow is not kept.

    On several machines every worker restores, and the first one writes: the folder must be one that
    all of them can read.

    Args:
        backup_dir: A folder of this training alone; it is made where there is none.
        save_freq: `"epoch"`: after every epoch; or a number of steps, after which, and after
            every epoch, a backup is written.
        data: The `ShuffledBatches` that `fit` gets, whose order this callback sets.
        delete_checkpoint: Whether the folder's backup is removed when the training has ended. If it
            stays, the same `fit` in another process restores the trained model and does nothing.

    Attributes:
        initial_epoch: The epoch in which `fit` begins: that of the restored backup, or 0.

    Raises:
        TypeError: `data` is something else.
        ValueError: `save_freq` is neither; at the start of `fit`, a model that is not built, or a
            backup of another model; after the first batches, `data` in the order of
            `fit(..., shuffle=True)`.
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: str | int = "epoch",
        *,
        data: ShuffledBatches | None = None,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        is_steps = isinstance(save_freq, int) and save_freq >= 1
        if save_freq != "epoch" and not is_steps:
            raise ValueError(
                f"Expected save_freq='epoch' or a number of steps from 1 on. Received: "
                f"{save_freq!r}."
            )
        if data is not None and not isinstance(data, ShuffledBatches):
            raise TypeError(f"Expected ShuffledBatches as `data`. Received: {type(data).__name__}.")
        self.folder = pathlib.Path(backup_dir)
        self.save_freq, self.data = save_freq, data
        self.delete_checkpoint = delete_checkpoint
        self.initial_epoch = 0
        self._epoch = 0
        self._saved_at = 0
        self._left = 0
        self._restored: _Progress | None = None

    @property
    def path(self) -> pathlib.Path:
        """The file of the last backup."""
        return self.folder / _FILE

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.model.built:
            raise ValueError(
                f"Expected a built model, whose weights can be restored. Received: "
                f"{self.model.name!r}. Call it on a batch before `fit`."
            )
        self._restored, self._left, self.initial_epoch = None, 0, 0
        self._replicas = ReplicaState(self.model.optimizer, self.model.distribute_strategy)
        if is_chief():
            for stage in self.folder.glob(STAGING_PREFIX + "*"):
                shutil.rmtree(stage, ignore_errors=True)
        if self.path.exists():
            self._restore()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._saved_at = epoch, 0
        if self.data is not None:
            self.data.epoch = epoch
        restored = self._restored
        if restored is not None and restored.epoch == epoch and restored.batch:
            self._saved_at = restored.batch
            self._skip(restored)
        self._restored = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.data is not None and not self.data.in_order:
            raise ValueError(
                "Expected the batches of `data` in their own order, which a restarted training "
                "finds again. Received: another order. Pass shuffle=False to `fit`."
            )
        done = batch + 1
        if self.save_freq != "epoch" and done - self._saved_at >= int(self.save_freq):
            self._saved_at = done
            self._save(self._epoch, done)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._save(epoch + 1, 0)

    def on_train_end(self, logs: Any = None) -> None:
        # Keras would begin a later `fit` in that epoch too.
        set_initial_epoch(self.model, None)
        if self.delete_checkpoint and is_chief():
            self.path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _save(self, epoch: int, batch: int) -> None:
        # Of every worker, before the first one writes.
        states = _states(self.model, self._replicas)
        if not is_chief():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stage = pathlib.Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.folder))
        try:
            with _attached(self.model, _Progress(epoch, batch, states)):
                self.model.save_weights(stage / _FILE)
            with open(stage / _FILE, "rb") as file:
                os.fsync(file.fileno())
            os.replace(stage / _FILE, self.path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _restore(self) -> None:
        optimizer = self.model.optimizer
        if not optimizer.built:
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        progress = _Progress(0, 0, {})
        with _attached(self.model, progress):
            self.model.load_weights(self.path)
        for variable, value in zip(_seeds(self.model), progress.values("seed"), strict=False):
            variable.assign(value)
        self._replicas.assign(progress.values("replicas"))
        set_initial_epoch(self.model, progress.epoch)
        self._restored, self.initial_epoch = progress, progress.epoch

    def _skip(self, progress: _Progress) -> None:
        """Draws the batches of the epoch that were trained on, and trains on those after them."""
        model, train = self.model, self.model.train_function
        self._left = progress.batch

        def skip(iterator: Any) -> Any:
            if self._left == progress.batch:
                _restore_metrics(model, iterator, progress.values("metric"))
            for _ in range(min(model.steps_per_execution, self._left)):
                next(iterator)
                self._left -= 1
            if not self._left and model.train_function is skip:
                model.train_function = train
            return model.get_metrics_result()

        model.train_function = skip


class _attached:
    """Within it, progress is a part of what Keras saves and loads with a model's weights."""

    def __init__(self, model: keras.Model, progress: _Progress) -> None:
        self.model, self.progress = model, progress

    def __enter__(self) -> None:
        # Not by Keras' own `__setattr__`, which would track it.
        object.__setattr__(self.model, _KEY, self.progress)

    def __exit__(self, *exception: object) -> None:
        object.__delattr__(self.model, _KEY)


class _Progress(keras.Operation):
    """How far a training has come, as a part of a weights file.

    Args:
        epoch: The epoch that goes on.
        batch: Steps taken of it.
        states: Name → array; see `_states`.
    """

    def __init__(self, epoch: int, batch: int, states: dict[str, np.ndarray]) -> None:
        super().__init__(name=_KEY)
        self.epoch, self.batch, self.states = epoch, batch, states

    def call(self, *args: Any) -> Any:
        raise NotImplementedError(
            f"Expected {self.name!r} to be saved and loaded with its model. Received: a call of it."
        )

    def values(self, kind: str) -> list[np.ndarray]:
        """The arrays of one kind, in order."""
        names = [name for name in self.states if name.startswith(kind + "_")]
        return [self.states[name] for name in sorted(names, key=lambda n: int(n.split("_")[1]))]

    def save_own_variables(self, store: Any) -> None:
        store["epoch"], store["batch"] = np.asarray(self.epoch), np.asarray(self.batch)
        for name, value in self.states.items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        arrays = {name: np.asarray(store[name]) for name in list(store.keys())}
        self.epoch, self.batch = int(arrays.pop("epoch")), int(arrays.pop("batch"))
        self.states = arrays


def _states(model: keras.Model, replicas: ReplicaState) -> dict[str, np.ndarray]:
    states = {f"seed_{i}": np.asarray(v) for i, v in enumerate(_seeds(model))}
    # Those of several replicas are summed when they are read, which all workers would have to do.
    if model.distribute_strategy.num_replicas_in_sync == 1:
        metrics = enumerate(model.metrics_variables)
        states |= {f"metric_{i}": np.asarray(v) for i, v in metrics}
    else:
        states |= {f"replicas_{i}": value for i, value in enumerate(replicas.values())}
    return states


def _seeds(model: keras.Model) -> list[keras.Variable]:
    """The variables of a model that a weights file leaves out, without those of metrics."""
    known = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in known]


def _restore_metrics(model: keras.Model, iterator: Any, values: list[np.ndarray]) -> None:
    """Restores the metrics of the epoch so far, where they can be made before the first step."""
    if not values:
        return
    make: Callable[[Any], None] | None = getattr(model, "make_training_variables", None)
    if isinstance(iterator, tf.data.Iterator):
        if make is not None:
            make(iterator.element_spec)
        elif is_functional(model):
            make_training_variables(model, output_structure(model), iterator.element_spec)
    variables = model.metrics_variables
    if [tuple(v.shape) for v in variables] == [v.shape for v in values]:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
