"""A cache as the teacher of a `Distiller`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.distillation.teachers.cache import TeacherCache
from tfcompress.distillation.teachers.sources import Features, Source, picked


class CacheSource(Source):
    """The cached outputs of the teacher, read from the samples."""

    def __init__(self, cache: TeacherCache, keys: Sequence[Any]):
        super().__init__(cache, keys, "teacher")
        self._pick(cache.rows())

    def __call__(self, inputs: Any, cached: Any = None, training: bool = False) -> Features:
        """Returns the outputs that are joined with the samples; `{}` without them."""
        return {} if cached is None else self._pick(cached)

    def specs(self, inputs: Any) -> Features:
        return self.describe(self._pick(keras.tree.map_structure(_batch_spec, self.runner.rows())))

    def activations(self, key: Any) -> list[str | None]:
        return self.runner.activations if key is None else []

    def _pick(self, rows: dict[str, Any]) -> Features:
        features = rows.get("features", {})
        outputs = [key for key in self.keys if key not in features]
        owner = f"the cached teacher (its cached layers: {sorted(features)})"
        return {None: rows["outputs"], **features, **picked(rows["outputs"], outputs, owner)}


def _batch_spec(array: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec((None, *array.shape[1:]), array.dtype)
