"""A `.tflite` file as a teacher."""

from __future__ import annotations

import os
import pathlib
import threading
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.files.input_codes import input_codes
from tfcompress.files.loading import UnusableFile, check_loads


@keras.saving.register_keras_serializable(package="tfcompress")
class TFLiteTeacher:
    """Runs a `.tflite` file with LiteRT inside a train step.

    The file runs on the CPU, one call at a time: for more than one epoch, cache its outputs with
    `TeacherCache`. Integer inputs and outputs are quantized and dequantized. A file with a fixed
    batch runs once per slice of the batch. XLA cannot compile it: a `Distiller` with such a
    teacher runs without `jit_compile`. Saving keeps the path, not the file.

    Args:
        path: The file. It needs exactly one input tensor.
        num_threads: Threads of the runtime.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has several inputs, is no `.tflite`, is truncated or damaged, or
            LiteRT refuses it or crashes on it. It is loaded in another process first.
    """

    #: As of a Keras layer.
    supports_jit = False

    def __init__(self, path: str | os.PathLike, num_threads: int = 1):
        # Imported here: the runtime is needed only by those who teach with a file.
        from ai_edge_litert.interpreter import Interpreter

        self.path = os.fspath(path)
        self.num_threads = num_threads
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"Expected a .tflite file. Received: path={self.path!r}")
        data = pathlib.Path(self.path).read_bytes()
        check_loads(data, repr(self.path))
        self._lock = threading.Lock()
        try:
            # What was checked, not the path, which may name another file by now.
            self._interpreter = Interpreter(model_content=data, num_threads=num_threads)
            self._interpreter.allocate_tensors()
            inputs = self._interpreter.get_input_details()
            rescaled = [pair for found in input_codes(data).values() for pair in found.values()]
            self._outputs = self._interpreter.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise UnusableFile(
                f"Expected a .tflite that LiteRT can run. Received: {self.path!r}; {error}"
            ) from error
        if len(inputs) != 1:
            raise ValueError(
                "Expected a .tflite file with one input. Received: "
                f"{[d['name'] for d in inputs]}. Wrap the interpreter in a callable."
            )
        self._input = dict(inputs[0])
        if rescaled:
            # The values that the Keras model takes, which the file rescales.
            self._input["quantization"] = rescaled[0]
        shapes = {d["name"]: d["shape"].tolist() for d in (self._input, *self._outputs)}
        if not self._outputs or any(len(shape) < 1 or shape[0] < 1 for shape in shapes.values()):
            raise ValueError(
                "Expected a .tflite file whose input and outputs have a batch axis. Received: "
                f"shapes {shapes} in {self.path!r}."
            )

    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs as float32: one tensor, or a list in the file's order."""
        shapes = [(inputs.shape[0], *d["shape"][1:]) for d in self._outputs]
        dtypes = [tf.float32] * len(shapes)
        flat = tf.numpy_function(self.predict, [tf.cast(inputs, tf.float32)], dtypes)
        results = [tf.ensure_shape(t, s) for t, s in zip(flat, shapes, strict=True)]
        return results[0] if len(results) == 1 else results

    def predict(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Runs the file on a NumPy batch of floats and returns float32 outputs."""
        details, size = self._input, int(self._input["shape"][0])
        if tuple(inputs.shape[1:]) != tuple(details["shape"][1:]):
            raise ValueError(
                f"Expected inputs of shape {tuple(details['shape'])} for {self.path!r}. "
                f"Received: {inputs.shape}"
            )
        values = _quantize(inputs, details)
        slices = range(0, len(values), size)
        with self._lock:
            runs = [self._run(values[i : i + size], size) for i in slices]
        return [np.concatenate(parts)[: len(inputs)] for parts in zip(*runs, strict=True)]

    def get_config(self) -> dict[str, Any]:
        return {"path": self.path, "num_threads": self.num_threads}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TFLiteTeacher:
        return cls(**config)

    def _run(self, values: np.ndarray, size: int) -> list[np.ndarray]:
        missing = size - len(values)
        if missing:
            values = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
        try:
            self._interpreter.set_tensor(self._input["index"], values)
            self._interpreter.invoke()
            # An output that no operator of a damaged file writes has no memory.
            outputs = [self._interpreter.get_tensor(d["index"]) for d in self._outputs]
        except (RuntimeError, ValueError) as error:
            raise UnusableFile(
                f"Expected a .tflite that LiteRT can run. Received: {self.path!r}; {error}"
            ) from error
        return [_dequantize(y, d) for y, d in zip(outputs, self._outputs, strict=True)]


def as_callable(teacher: Any) -> Any:
    """Turns the path of a `.tflite` file into a `TFLiteTeacher`; leaves anything else."""
    return TFLiteTeacher(teacher) if isinstance(teacher, (str, os.PathLike)) else teacher


def _quantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if not np.issubdtype(details["dtype"], np.integer) or scale == 0:
        return values.astype(details["dtype"])
    info = np.iinfo(details["dtype"])
    codes = np.round(values / scale) + zero_point
    return np.clip(codes, info.min, info.max).astype(details["dtype"])


def _dequantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if not np.issubdtype(details["dtype"], np.integer) or scale == 0:
        return values.astype(np.float32)
    return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)
