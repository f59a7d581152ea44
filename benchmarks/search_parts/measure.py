"""What is measured of a compressed model: its file."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras

import tfcompress as tfc
from benchmarks.search_parts.nets import Net


def file_row(model: keras.Model, net: Net) -> dict[str, Any]:
    """Bytes, multiply-accumulates, and accuracy on the test set, of the file of a model."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.tflite"
        report = tfc.export_tflite(model, file, verify_samples=32, allow_float=True)
        accuracy = tfc.evaluate_file(file, net.model, net.test)
    return {
        "bytes": report.num_bytes,
        "gzip": report.gzip_bytes,
        "macs": tfc.count_macs(model),
        "accuracy": f"{100 * accuracy:.2f}",
    }


def float_row(net: Net) -> dict[str, Any]:
    """Likewise of the float model, of which no file is measured."""
    accuracy = tfc.evaluate_file(net.model, net.model, net.test)
    return {"macs": tfc.count_macs(net.model), "accuracy": f"{100 * accuracy:.2f}"}
