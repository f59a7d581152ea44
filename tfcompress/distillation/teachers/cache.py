"""`TeacherCache`: outputs of a teacher, computed once and stored with a checksum of the data."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any, Literal

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
from tfcompress.files.writing import check_writable, write_atomically

_FORMAT = 2
#: What the format can say of the activation of an output.
_ACTIVATIONS = ("softmax", "sigmoid", "none", None)


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
                not known of a plain callable), or lacks a layer; if it cannot be written, which is
                said before the teacher runs; or the teacher gives NaN or infinite values.
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
        if path is not None:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            check_writable(path)
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
            _check_finite(collected[-1], sum(_length(part) for part in collected[:-1]))
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
        """Writes one `.npz` file, whole or not at all."""
        path = pathlib.Path(path)
        arrays: dict[str, np.ndarray] = {}

        def store(value: Any) -> Any:
            """The structure of arrays in JSON's types, with the name of an array for each."""
            if isinstance(value, dict):
                return {"dict": {str(key): store(entry) for key, entry in value.items()}}
            if isinstance(value, list | tuple):
                kind = "tuple" if isinstance(value, tuple) else "list"
                return {kind: [store(entry) for entry in value]}
            arrays[f"array_{len(arrays)}"] = np.asarray(value)
            return f"array_{len(arrays) - 1}"

        meta = {
            "format": _FORMAT,
            "checksum": self.checksum,
            "teacher_checksum": self.teacher_checksum,
            "activations": self.activations,
            "outputs": store(self.outputs),
            "features": store(self.features),
        }
        contents = {"meta": np.array(json.dumps(meta)), **arrays}
        sealed = {"contents": np.array(checksum_of_arrays(contents)), **contents}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, **sealed))  # type: ignore[arg-type]
        self.path = os.fspath(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TeacherCache:
        """Reads a file that `save` wrote.

        Nothing in it is executed or resolved: it holds arrays, and names for them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or of another kind, or holds NaN or infinite values.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"Expected a file of cached teacher outputs. Received: {os.fspath(path)!r}"
            )
        try:
            contents = _read_arrays(path)
            if str(contents.pop("contents")) != checksum_of_arrays(contents):
                raise ValueError("the contents do not match their checksum")
            meta = json.loads(str(contents.pop("meta")))
            if meta["format"] != _FORMAT:
                raise ValueError(f"the format is {meta['format']}, not {_FORMAT}")
            outputs, features = (_restored(meta[k], contents) for k in ("outputs", "features"))
            cache = cls(
                outputs,
                _typed(features, dict),
                _typed(meta["checksum"], str),
                _typed(meta["teacher_checksum"], str | None),
                _typed(meta["activations"], list),
                os.fspath(path),
            )
            if any(activation not in _ACTIVATIONS for activation in cache.activations):
                raise ValueError(f"the activations are {cache.activations}")
            rows = {len(array) for array in keras.tree.flatten([outputs, features])}
            if len(rows) != 1:
                raise ValueError(f"its arrays have {sorted(rows)} rows")
        except Exception as error:
            raise ValueError(
                f"Expected a file of cached teacher outputs. Received: {os.fspath(path)!r}, "
                f"{error}. Delete it to compute it again."
            ) from error
        _check_finite([cache.outputs, cache.features], 0)
        return cache

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


def _length(rows: Any) -> int:
    return len(keras.tree.flatten(rows)[0])


def _check_finite(rows: Any, offset: int) -> None:
    """Refuses NaN and infinite values, by the number of the sample."""
    for array in keras.tree.flatten(rows):
        if array.dtype.kind not in "fc":
            continue
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        if bad.any():
            raise ValueError(
                "Expected finite outputs of the teacher. Received: NaN or infinity for sample "
                f"{offset + int(np.flatnonzero(bad)[0])} and {int(bad.sum()) - 1} others, which "
                "would make the student's weights NaN. Leave them out, or mend the teacher"
            )


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` without compression, none larger than its bytes in the file.

    `np.load` takes the memory that the file claims.
    """
    arrays = {}
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its arrays are compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its arrays are larger than the file")
        for entry in entries:
            data = file.read(entry)
            stream = io.BytesIO(data)
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, is_fortran, dtype = read(stream)
            if dtype.hasobject:
                raise ValueError("it holds objects")
            flat = np.frombuffer(data, np.uint8, offset=stream.tell())
            if math.prod(shape) * dtype.itemsize != flat.size:
                raise ValueError("an array has another size than it says")
            order: Literal["F", "C"] = "F" if is_fortran else "C"
            values = flat.view(dtype) if dtype.itemsize else np.zeros(shape, dtype)
            arrays[entry.filename.removesuffix(".npy")] = values.reshape(shape, order=order)
    return arrays


def _restored(index: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The structure that `save` has stored, with the arrays in it."""
    if isinstance(index, str):
        return arrays[index]
    ((kind, entries),) = index.items()
    if kind == "dict":
        return {key: _restored(entry, arrays) for key, entry in entries.items()}
    if kind in ("list", "tuple"):
        found = [_restored(entry, arrays) for entry in entries]
        return found if kind == "list" else tuple(found)
    raise ValueError(f"{kind} is no structure of arrays")


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"there is {type(value).__name__} in place of {kind}")
    return value
