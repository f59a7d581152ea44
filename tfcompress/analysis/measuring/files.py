"""A candidate as a file: exported, measured, run on samples."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.analysis.measuring.samples import Samples
from tfcompress.export.report import ExportReport
from tfcompress.export.runtime.runner import Runner
from tfcompress.export.steps.prepare import output_names
from tfcompress.export.tflite import export_tflite
from tfcompress.model.graph import Graph, input_structure
from tfcompress.model.keras_private import padding_mask
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@dataclasses.dataclass(frozen=True)
class MeasuredFile:
    """A file and what it computes.

    Attributes:
        report: Of the export.
        outputs: Its outputs on the samples: an array, or a list of arrays.
    """

    report: ExportReport
    outputs: Any


def export_and_run(
    model: keras.Model, samples: Samples, path: str | os.PathLike | None = None
) -> MeasuredFile:
    """Exports a quantized model and runs the file on samples.

    Args:
        model: The model; layers that its configuration leaves in float stay in float.
        samples: What it is run on.
        path: Where the file goes; nowhere by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "model.tflite" if path is None else pathlib.Path(path)
        with warnings.catch_warnings():
            # What an export says of agreement is in the report.
            warnings.simplefilter("ignore", UserWarning)
            report = export_tflite(
                model, target, verify_samples=32, allow_float=not _is_quantized(model)
            )
        return MeasuredFile(report, run_file(target, model, samples))


def _is_quantized(model: keras.Model) -> bool:
    """Whether anything is: with every layer left in float there is nothing to refuse."""
    return any(isinstance(layer, FakeQuantize) for layer in model.layers)


def run_file(path: str | os.PathLike, model: keras.Model, samples: Samples) -> Any:
    """The outputs of a file on samples, in the order of the outputs of the model that it is of.

    Raises:
        ValueError: The file has other outputs than the model.
    """
    runner = Runner(path)
    arrays = tree.flatten(samples.inputs)
    names = [value.spec.name for value in Graph.from_model(model).flat_inputs]
    by_name = set(names) == set(runner.input_names)
    found = runner.predict(dict(zip(names, arrays, strict=True)) if by_name else arrays)
    wanted = output_names(model)
    if not set(wanted) <= set(found):
        raise ValueError(
            f"Expected a file with the outputs of {model.name!r}: {', '.join(wanted)}. Received: "
            f"{os.fspath(path)!r} with {', '.join(found)}. Give the model that it was exported of."
        )
    outputs = [found[name] for name in wanted]
    return outputs[0] if len(outputs) == 1 else outputs


def predict(model: keras.Model, samples: Samples, batch_size: int = 128) -> Any:
    """The flat outputs of a functional Keras model: an array, or a list of arrays."""
    outputs = _run(model, samples, batch_size, lambda tensors: tensors)
    return outputs[0] if len(outputs) == 1 else outputs


def masks_of_outputs(
    model: keras.Model, samples: Samples, batch_size: int = 128
) -> list[np.ndarray]:
    """The padding mask of each flat output, `(n, steps)`; of one that has none, ones, `(n,)`."""

    def mask(tensor: tf.Tensor) -> tf.Tensor:
        found = padding_mask(tensor)
        return tf.ones(tf.shape(tensor)[:1], bool) if found is None else found

    return _run(model, samples, batch_size, lambda tensors: [mask(each) for each in tensors])


def _run(
    model: keras.Model,
    samples: Samples,
    batch_size: int,
    read: Callable[[list[tf.Tensor]], list[tf.Tensor]],
) -> list[np.ndarray]:
    """What is read of the flat outputs, batch by batch."""
    inputs = input_structure(model)
    values = tree.flatten(inputs)
    signature = [tf.TensorSpec((None, *value.shape[1:]), value.dtype) for value in values]

    def call(*arrays: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(tree.pack_sequence_as(inputs, arrays), training=False)
        return read(tree.flatten(outputs))

    # One trace for all sizes of batches: `predict` has one for each, and a search of many models
    # makes TensorFlow warn of them.
    run = tf.function(call, autograph=False).get_concrete_function(*signature)
    arrays = [
        np.asarray(array, value.dtype)
        for array, value in zip(tree.flatten(samples.inputs), values, strict=True)
    ]
    parts = []
    for start in range(0, len(samples), batch_size):
        found = run(*(tf.constant(array[start : start + batch_size]) for array in arrays))
        parts.append([np.asarray(output) for output in found])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
