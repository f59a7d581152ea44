"""A model to compare, in whatever form: a Keras model or a `.tflite`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from tfcompress.export.conversion.converter import ConversionError
from tfcompress.export.files import read_tflite
from tfcompress.export.model_bytes import model_file
from tfcompress.export.runtime.parity import run_model
from tfcompress.export.runtime.runner import Runner
from tfcompress.model.batches import line_up
from tfcompress.model.graph import Graph, input_structure
from tfcompress.model.loading import KERAS_SUFFIXES, load_model
from tfcompress.model.rewrite import as_float32
from tfcompress.model.subclassed import functional_for

ModelOrFile: TypeAlias = keras.Model | str | os.PathLike | bytes


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is ready to be run.

    Attributes:
        name: As the user calls it.
        kind: `"Keras"`, `"Keras, int8"` or `".tflite"`.
        input_names: Names of its inputs, in order.
        input_shapes: Shape of a sample of each; `None` for axes of any size.
        run: Inputs, one array each, in order → output name → array.
        data: Its file: a Keras model's is the `.tflite` that it converts to, in float unless it is
            quantized. `None` where no file holds it.
        note: Why there is no file; else empty.
        model: The Keras model in float32, with its quantizers if it has any; `None` for a file.
        output_names: Of the Keras model, in the order in which it gives them.
    """

    name: str
    kind: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    run: Callable[[list[np.ndarray]], Mapping[str, np.ndarray]]
    data: bytes | None
    note: str = ""
    model: keras.Model | None = None
    output_names: tuple[str, ...] = ()

    def line_up(self, x: Any) -> list[np.ndarray]:
        """Arrays in the order of the inputs, checked against their shapes.

        Raises:
            ValueError: Another number of arrays, or another shape.
        """
        arrays = [x[name] for name in self.input_names] if _has_names(x, self) else x
        if isinstance(arrays, Mapping):
            arrays = list(arrays.values())
        arrays = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
        arrays = [np.asarray(array) for array in arrays]
        shapes = [array.shape[1:] for array in arrays]
        if len(arrays) != len(self.input_shapes) or not all(map(_fits, shapes, self.input_shapes)):
            wanted = list(self.input_shapes)
            raise ValueError(
                f"Expected samples of shape {wanted[0] if len(wanted) == 1 else wanted}, which "
                f"{self.name!r} takes. Received: data of shape "
                f"{shapes[0] if len(shapes) == 1 else shapes}. Choose the data that the model was "
                "made for"
            )
        return arrays


def _has_names(x: Any, subject: Subject) -> bool:
    return isinstance(x, Mapping) and set(subject.input_names) <= set(x)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in pairs)


def subject(name: str, model: ModelOrFile) -> Subject:
    """Prepares a model.

    Args:
        name: What to call it.
        model: A Keras model; the path or the bytes of a `.tflite`; or the path of a `.keras` or
            `.h5` file.

    Raises:
        TypeError: Something else.
        ValueError: A file that cannot be read.
    """
    if isinstance(model, keras.Model):
        return _of_keras(name, model)
    if isinstance(model, str | os.PathLike) and pathlib.Path(model).suffix in KERAS_SUFFIXES:
        return _of_keras(name, load_model(model))
    if isinstance(model, str | os.PathLike | bytes):
        return _of_file(name, model)
    raise TypeError(
        f"Expected a Keras model, or the path of a .keras, .h5 or .tflite file. Received: {model!r}"
    )


def _of_file(name: str, source: str | os.PathLike | bytes) -> Subject:
    data = read_tflite(source)
    # Of the path, so that an error names it.
    runner = Runner(source)
    shapes = tuple(info.sample_shape for info in runner.inputs.values())
    return Subject(name, ".tflite", runner.input_names, shapes, runner.predict, data)


def _of_keras(name: str, model: keras.Model) -> Subject:
    try:
        found = model_file(model)
        ready, names = found.signature.model, found.signature.output_names
        kind = "Keras, int8" if found.signature.is_quantized else "Keras"
        data, note = found.data, ""
    except (ValueError, ConversionError) as error:
        # It has no file, but it can still be run.
        ready = as_float32(functional_for(model))
        graph = Graph.from_model(ready)
        names, kind, data = list(graph.output_names), "Keras", None
        note = f"{name} has no .tflite: {' '.join(str(error).split())}"

    def run(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        flat = line_up(arrays, input_structure(ready))
        return dict(zip(names, run_model(ready, flat), strict=True))

    inputs = tuple(tensor.name for tensor in ready.inputs)
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in ready.inputs)
    return Subject(name, kind, inputs, shapes, run, data, note, ready, tuple(names))
