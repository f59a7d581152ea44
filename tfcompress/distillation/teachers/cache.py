"""`TeacherCache`: outputs of a teacher, computed once and stored with a checksum of the data."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.distillation.checksum import (
    Checksum,
    checksum_of_arrays,
    checksum_of_teacher,
    sample_batches,
)
from tfcompress.distillation.teachers.sources import STUDENT_INPUTS, TEACHER_OUTPUTS, source_of
from tfcompress.distillation.teachers.tflite import as_callable

_FORMAT = 1


@keras.saving.register_keras_serializable(package="tfcompress")
class TeacherCache:
    """Teacher outputs per sample, with a checksum of the data they were computed on.

    It takes the place of a teacher: `Distiller(cache, student, losses)`, and the train step runs no
    teacher. The outputs are joined with the samples, so that shuffling and augmentation
    keep them together: `fit(cache.pair(x), y)` for arrays, `cache.attach(dataset)` for a
    `tf.data.Dataset`, before shuffling and augmentation. Augmented samples thus have the teacher's
    outputs for the original.

    Make one with `TeacherCache.compute`.

    Attributes:
        outputs: Array or structure of arrays, one row per sample. What NumPy has no type for
            (bfloat16) is kept as float32.
        features: The same for layers, by name.
        checksum: SHA-256 of the samples, in order.
        teacher_checksum: Of the teacher's weights or file; `None` for a callable.
        activations: `"softmax"`, `"sigmoid"`, `"none"` or `None` for each output.
        path: The file it is in, or `None`.
    """

    def __init__(
        self,
        outputs: Any,
        features: dict[str, Any],
        checksum: str,
        teacher_checksum: str | None,
        activations: Sequence[str | None],
        path: str | None = None,
    ):
        self.outputs = outputs
        self.features = features
        self.checksum = checksum
        self.teacher_checksum = teacher_checksum
        self.activations = list(activations)
        self.path = path

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.outputs)[0])

    @classmethod
    def compute(
        cls,
        teacher: Any,
        data: Any,
        path: str | os.PathLike | None = None,
        *,
        layers: Sequence[str] = (),
        batch_size: int = 256,
    ) -> TeacherCache:
        """Runs the teacher over the data once, or takes what `path` holds for this data.

        Args:
            teacher: A Keras model, a callable, or the path of a `.tflite` file.
            data: Arrays (one, or a structure for several inputs), or an unbatched
                `tf.data.Dataset` of `x`, `(x, y)` or `(x, y, sample_weight)` in a fixed order.
            path: Where to keep the outputs, a `.npz` file; `None` keeps them in memory.
            layers: Names of teacher layers whose features to keep too.
            batch_size: Samples per run of the teacher.

        Returns:
            The cache.

        Raises:
            ValueError: If `path` holds the outputs for other data, of another teacher (which is
                not known of a plain callable), or lacks a layer.
        """
        if path is not None and os.path.exists(path):
            cache = cls.load(path)
            cache.verify(data)
            made_by = checksum_of_teacher(as_callable(teacher))
            if made_by != cache.teacher_checksum:
                raise ValueError(
                    f"Expected the outputs of this teacher in {os.fspath(path)!r}. Received: those "
                    "of a teacher with other weights. Delete the file or take another path."
                )
            missing = [name for name in layers if name not in cache.features]
            if missing:
                raise ValueError(
                    f"Expected the features of {missing} in {os.fspath(path)!r}. Received: "
                    f"{sorted(cache.features)}. Delete the file to compute them."
                )
            return cache
        source = source_of(as_callable(teacher), layers, "teacher")
        keys = (None, *source.keys)

        def run_once(batch: Any) -> list[Any]:
            features = source(batch)
            return [features[key] for key in keys]

        run = tf.function(run_once, autograph=False, reduce_retracing=True)
        checksum, collected = Checksum(), []
        for batch in sample_batches(data, batch_size):
            checksum.update(batch)
            collected.append(keras.tree.map_structure(_as_array, run(batch)))
        if not collected:
            raise ValueError("Expected at least one sample. Received: no data.")
        rows = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *collected)
        infos = keras.tree.flatten(source.describe({None: rows[0]})[None])
        kinds = [info.activation for info in infos]
        features = dict(zip(source.keys, rows[1:], strict=True))
        made_by = checksum_of_teacher(source.runner)
        cache = cls(rows[0], features, checksum.hexdigest(), made_by, kinds)
        if path is not None:
            cache.save(path)
        return cache

    def pair(self, x: Any) -> dict[str, Any]:
        """Joins arrays with their teacher outputs: the `x` to fit a `Distiller` on.

        Raises:
            ValueError: If `x` is not what the cache was computed on.
        """
        self.verify(x)
        return {STUDENT_INPUTS: x, TEACHER_OUTPUTS: self.rows()}

    def attach(self, dataset: tf.data.Dataset, *, verify: bool = True) -> tf.data.Dataset:
        """Joins each sample of an unbatched dataset with its teacher outputs.

        Call it before shuffling and augmentation; a later `map` finds the sample under
        `x["student_inputs"]`.

        Args:
            dataset: Of `x`, `(x, y)` or `(x, y, sample_weight)`, in a fixed order.
            verify: Whether to read the dataset once and compare its checksum.

        Returns:
            The dataset with `x` replaced by a dict of `student_inputs` and `teacher_outputs`.

        Raises:
            ValueError: If the dataset is not what the cache was computed on.
        """
        if verify:
            self.verify(dataset)
        rows = tf.data.Dataset.from_tensor_slices(self.rows())

        def join(sample: Any, row: Any) -> Any:
            head, *rest = sample if isinstance(sample, tuple) else (sample,)
            joined = {STUDENT_INPUTS: head, TEACHER_OUTPUTS: row}
            return (joined, *rest)

        return tf.data.Dataset.zip((dataset, rows)).map(join)

    def verify(self, data: Any) -> None:
        """Raises `ValueError` unless `data` is what the cache was computed on."""
        checksum = Checksum()
        for batch in sample_batches(data, 1024):
            checksum.update(batch)
        if checksum.hexdigest() != self.checksum:
            raise ValueError(
                f"Expected the {len(self)} samples that this cache of teacher outputs "
                f"({self.path or 'in memory'}) was computed on. Received: {checksum.count} "
                "samples with another checksum. Give the same data in the same order, before "
                "shuffling and augmentation, or compute a new cache."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file: to a temporary name first, then renamed."""
        path = pathlib.Path(path)
        arrays: dict[str, np.ndarray] = {}

        def store(array: np.ndarray) -> str:
            arrays[f"array_{len(arrays)}"] = array
            return f"array_{len(arrays) - 1}"

        index = keras.tree.map_structure(store, {"o": self.outputs, "f": self.features})
        meta = {
            "format": _FORMAT,
            "checksum": self.checksum,
            "teacher_checksum": self.teacher_checksum,
            "activations": self.activations,
            "index": keras.saving.serialize_keras_object(index),
            "contents": checksum_of_arrays(arrays),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                contents: dict[str, Any] = {"meta": np.array(json.dumps(meta)), **arrays}
                np.savez(file, **contents)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        self.path = os.fspath(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TeacherCache:
        """Reads a file that `save` wrote.

        Raises:
            ValueError: If the file is damaged or of another kind.
        """
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                arrays = {name: file[name] for name in file.files if name != "meta"}
            if meta["format"] != _FORMAT or meta["contents"] != checksum_of_arrays(arrays):
                raise ValueError("the contents do not match their checksum")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"Expected a file of cached teacher outputs. Received: {os.fspath(path)!r}, "
                f"{error}. Delete it to compute it again."
            ) from error
        index = keras.saving.deserialize_keras_object(meta["index"])
        whole = keras.tree.map_structure(lambda name: arrays[name], index)
        sums = (meta["checksum"], meta["teacher_checksum"])
        return cls(whole["o"], whole["f"], *sums, meta["activations"], os.fspath(path))

    def get_config(self) -> dict[str, Any]:
        if self.path is None:
            raise ValueError(
                "Expected a cache that is in a file, to save a Distiller taught by it. Received: "
                "a cache in memory. Compute it with `path=…`, or save `distiller.student` alone."
            )
        return {"path": self.path}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TeacherCache:
        return cls.load(config["path"])

    def rows(self) -> dict[str, Any]:
        """What is joined with the samples: the outputs and the features."""
        return {"outputs": self.outputs, **({"features": self.features} if self.features else {})}


def _as_array(tensor: Any) -> np.ndarray:
    array = np.asarray(tensor)
    # NumPy would write bfloat16 as raw bytes.
    return array.astype("float32") if array.dtype.kind == "V" else array
