"""Checksums of data, of teachers and of arrays, for caches of outputs."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Checksum:
    """SHA-256 of a stream of samples, the same however they are batched.

    Attributes:
        count: Samples seen.
    """

    def __init__(self):
        self.count = 0
        self._hashes: list[Any] = []

    def update(self, batch: Any) -> None:
        """Takes the next samples: an array, or a structure of arrays of one length."""
        leaves = [np.asarray(leaf) for leaf in keras.tree.flatten(batch)]
        if not self._hashes:
            self._hashes = [hashlib.sha256(_header(leaf)) for leaf in leaves]
        for digest, leaf in zip(self._hashes, leaves, strict=True):
            digest.update(_content(leaf))
        self.count += len(leaves[0])

    def hexdigest(self) -> str:
        whole = hashlib.sha256(str(self.count).encode())
        for digest in self._hashes:
            whole.update(digest.digest())
        return whole.hexdigest()


def sample_batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Goes through arrays, or an unbatched dataset of `x` or `(x, …)`, in batches of `x`.

    Raises:
        ValueError: If the arrays differ in length.
    """
    if isinstance(data, tf.data.Dataset):
        for sample in data.batch(batch_size).as_numpy_iterator():
            yield sample[0] if isinstance(sample, tuple) else sample
        return
    sizes = {len(leaf) for leaf in keras.tree.flatten(data)}
    if len(sizes) != 1:
        raise ValueError(f"Expected arrays of one length. Received: lengths {sorted(sizes)}")
    for start in range(0, sizes.pop(), batch_size):
        part = slice(start, start + batch_size)
        yield keras.tree.map_structure(lambda a, part=part: np.asarray(a[part]), data)


def checksum_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of named arrays."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(f"{name}{arrays[name].shape}".encode() + _header(arrays[name]))
        whole.update(_content(arrays[name]))
    return whole.hexdigest()


def checksum_of_teacher(teacher: Any) -> str | None:
    """SHA-256 of all that a teacher computes with; `None` where that is not known.

    Of a Keras model its configuration and weights, of a file its bytes, of an ensemble its weights
    and its teachers; of a plain callable nothing is known.
    """
    members = getattr(teacher, "teachers", None)
    if members is not None:
        checksums = [checksum_of_teacher(member) for member in members]
        if None in checksums:
            return None
        return hashlib.sha256(repr((checksums, teacher.teacher_weights)).encode()).hexdigest()
    if isinstance(teacher, keras.Layer):
        weights = {f"{i:06d}": np.asarray(w) for i, w in enumerate(teacher.weights)}
        whole = checksum_of_arrays(weights) + _configuration(teacher)
        return hashlib.sha256(whole.encode()).hexdigest()
    path = getattr(teacher, "path", None)
    if path is None:
        return None
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _configuration(layer: keras.Layer) -> str:
    """The configuration without names, which Keras counts up: a copy has the same."""
    try:
        config = keras.saving.serialize_keras_object(layer)
    except (NotImplementedError, TypeError, ValueError):  # A model of the user's, not to be saved.
        return type(layer).__qualname__
    return repr(_without_names(config, {}))


#: Entries of a configuration that do not change what is computed.
_NOT_COMPUTED = ("name", "registered_name", "build_config", "compile_config")
#: Entries of a model's configuration with the connections of its layers, by name.
_CONNECTIONS = ("keras_history", "input_layers", "output_layers")


def _without_names(config: Any, places: dict[str, int], connects: bool = False) -> Any:
    """Leaves out names; a connection has the place of its layer among the model's layers."""
    if isinstance(config, dict):
        if str(config.get("class_name")).endswith("DTypePolicy"):
            return repr(config)  # It has only a name.
        layers = config.get("layers")
        if isinstance(layers, (list, tuple)):
            names = [str(layer.get("name")) for layer in layers if isinstance(layer, dict)]
            places = {name: place for place, name in enumerate(names)}
        return {
            key: _without_names(value, places, connects or key in _CONNECTIONS)
            for key, value in sorted(config.items())
            if key not in _NOT_COMPUTED
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(item, places, connects) for item in config]
    if connects and isinstance(config, str):
        return places.get(config, config)
    return config if config is None or isinstance(config, (bool, int, float)) else str(config)


def _header(array: np.ndarray) -> bytes:
    return f"{array.dtype.str}{array.shape[1:]}".encode()


def _content(array: np.ndarray) -> Any:
    if array.dtype.hasobject:  # Strings: the buffer holds addresses.
        return repr(array.tolist()).encode()
    # As bytes, since NumPy's buffers do not know every type (bfloat16).
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
