"""Trainings of recipes that go on where they were interrupted: `--backup_dir`.

A recipe skips the rows that its table has. With `--backup_dir=FOLDER` it also continues the
training that was running, from the last epoch or, with `--backup_steps=N`, the last N steps:

    python -m recipes.quantize --dataset=mnist --backup_dir=backup    # after a crash: again

Each training has a folder of its own in it, named after what it starts from: weights, optimizer,
callbacks and the first batch. One that has ended is not done again, so remove the folder when the
recipe is done. Where batches come in the order of a seed and are not changed at random by several
threads, the result is the one of an undisturbed recipe, to the bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags

import tfcompress as tfc

flags.DEFINE_string("backup_dir", None, "Where trainings are kept, to be continued.")
flags.DEFINE_integer("backup_steps", 0, "Steps from backup to backup; 0: epochs.", 0)
#: How deep callbacks are looked into.
_DEPTH = 4


def fit(
    model: keras.Model,
    data: Any,
    *,
    epochs: int,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    **options: Any,
) -> keras.callbacks.History:
    """`model.fit`, which continues where it was interrupted if `--backup_dir` is given.

    Args:
        model: A compiled model, already built.
        data: A `tf.data.Dataset` or `tfc.ShuffledBatches`, with an order of its own for each epoch.
        epochs: As of `fit`.
        callbacks: As of `fit`.
        **options: Of `fit`.
    """
    used = list(callbacks)
    folder = flags.FLAGS["backup_dir"].value
    if folder is not None:
        steps = flags.FLAGS["backup_steps"].value
        place = pathlib.Path(folder) / _name(model, data, epochs, used, options)
        used.append(_Backup(place, steps or "epoch", data))
    return model.fit(data, epochs=epochs, callbacks=used, **{"shuffle": False, **options})


class _Backup(tfc.callbacks.BackupAndRestore):
    """Also brings a dataset to the epoch that goes on, by drawing those before it."""

    def __init__(self, folder: pathlib.Path, save_freq: str | int, data: Any) -> None:
        ordered = data if isinstance(data, tfc.ShuffledBatches) else None
        super().__init__(folder, save_freq, data=ordered, delete_checkpoint=False)
        self._drawn = () if ordered is not None else data
        self._missed = 0

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self._missed = self.initial_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._draw()
        super().on_epoch_begin(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        # Where nothing was left to do, for the next training on the same data.
        self._draw()
        super().on_train_end(logs)

    def _draw(self) -> None:
        for _ in range(self._missed):
            for _ in self._drawn:
                pass
        self._missed = 0


def _name(
    model: keras.Model, data: Any, epochs: int, callbacks: Sequence[Any], options: Mapping[str, Any]
) -> str:
    """What tells a training from others of a recipe: what it starts from."""
    first = data[0] if isinstance(data, keras.utils.PyDataset) else next(iter(data))
    digest = hashlib.sha256()
    for value in (*model.variables, *keras.tree.flatten(first)):
        digest.update(np.ascontiguousarray(value).tobytes())
    optimizer = keras.saving.serialize_keras_object(model.optimizer)
    rest = [epochs, optimizer, [_plain(callback) for callback in callbacks], _plain(options)]
    digest.update(json.dumps(rest, sort_keys=True, default=_plain).encode())
    return f"{model.name}_{digest.hexdigest()[:16]}"


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """The settings of an object, as JSON holds them: the same in every process."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "shape"):
        return [str(n) for n in value.shape]
    if depth == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, depth - 1) for entry in value]
    if callable(value) and hasattr(value, "__qualname__"):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return [value.__qualname__, _plain(cells, depth - 1)]
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        fields = dict(getattr(value, "__dict__", {}))
    return [type(value).__name__, _plain(fields, depth - 1)]
