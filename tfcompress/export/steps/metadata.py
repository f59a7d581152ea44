"""Between the third and the fourth step: TFLite metadata, where class names are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.bundle.tflite_metadata import InputDescription, with_tflite_metadata
from tfcompress.export.options import BundleOptions
from tfcompress.export.steps.prepare import Signature
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput

_UINT8 = schema.TensorType.UINT8


def with_labels(
    data: bytes, name: str, signatures: Sequence[Signature], options: BundleOptions
) -> tuple[bytes, tuple[str, ...]]:
    """The file with TFLite metadata and labels, and notes of what readers of it must know.

    It is written for a file with one signature, the only kind that the schema describes.

    Args:
        data: The file.
        name: Name of the model.
        signatures: What it computes.
        options: Labels, and the steps from raw data to the model's input.
    """
    if options.labels is None or len(signatures) != 1:
        return data, ()
    model, labels = signatures[0].model, options.labels
    graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
    names = _names(data)
    inputs, notes = [], []
    for i in range(graph.InputsLength()):
        index = graph.Inputs(i)
        tensor = graph.Tensors(index)
        shape = tuple(int(n) for n in tensor.ShapeAsNumpy())
        given = InputDescription(names[index], shape)
        if given.is_image:
            mean, deviation = _normalization(model, given.name, options.preprocessing)
            given = InputDescription(given.name, shape, mean, deviation)
            notes += _byte_notes(tensor, given)
        inputs.append(given)
    outputs: list[str] = []
    labelled: dict[str, Sequence[str]] = {}
    for i in range(graph.OutputsLength()):
        index = graph.Outputs(i)
        outputs.append(names[index])
        if math.prod(graph.Tensors(index).ShapeAsNumpy()) == len(labels) and not labelled:
            labelled = {names[index]: labels}
    return with_tflite_metadata(data, name, inputs, outputs, labelled), tuple(notes)


def _names(data: bytes) -> dict[int, str]:
    """Index of an input or output tensor → its name in the signature."""
    signature = schema.Model.GetRootAs(data, 0).SignatureDefs(0)
    entries = [signature.Inputs(i) for i in range(signature.InputsLength())]
    entries += [signature.Outputs(i) for i in range(signature.OutputsLength())]
    return {entry.TensorIndex(): entry.Name().decode() for entry in entries}


def _normalization(
    model: keras.Model, name: str, preprocessing: Sequence
) -> tuple[list[float], list[float]]:
    """Mean and deviation from raw pixels to the real values of an input of the file."""
    for layer in model.layers:
        if isinstance(layer, RescaledInput) and layer.source == name:
            shift = float(layer.shift.numpy())
            return [-shift / layer.factor], [1 / layer.factor]
    factor, offset = np.ones(1), np.zeros(1)
    for step in preprocessing:
        if step["op"] == "rescale":
            scale = np.ravel(step["scale"])
            factor, offset = factor * scale, offset * scale + np.ravel(step.get("offset", 0.0))
        elif step["op"] == "normalize":
            deviation = np.sqrt(np.ravel(step["variance"]))
            factor, offset = factor / deviation, (offset - np.ravel(step["mean"])) / deviation
    return (-offset / factor).tolist(), np.broadcast_to(1 / factor, offset.shape).tolist()


def _byte_notes(tensor: Any, given: InputDescription) -> list[str]:
    """Says where a reader that feeds bytes as they are would feed other values than were meant."""
    if tensor.Type() != _UINT8 or given.mean is None or given.deviation is None:
        return []
    scale, zero_point = tensor.Quantization().Scale(0), tensor.Quantization().ZeroPoint(0)
    pixels = np.array([[0.0], [255.0]])
    codes = (pixels - np.array(given.mean)) / np.array(given.deviation) / scale + zero_point
    if np.abs(codes - pixels).max() <= 1:
        return []
    return [
        f"MediaPipe feeds {given.name!r} with the bytes of a picture, which are other codes than "
        "its scale and zero point give. Calibrate on pictures of 0 to 255, with a Rescaling of one "
        "number in the model, or export with float_io=True."
    ]
