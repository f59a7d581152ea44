"""The content of `<name>.json`: how an app feeds a `.tflite` and how it reads its outputs.

    {"format": 2,
     "file": {"name": "model.tflite", "sha256": …, "bytes": …, "gzip_bytes": …,
              "min_runtime_version": …},
     "signatures": [{"key": "serving_default",
                     "inputs": [{"name": "image", "shape": [1, 96, 96, 3], "dtype": "int8",
                                 "scale": 0.0039, "zero_point": -128}],
                     "outputs": […]}],
     "preprocessing": […], "labels": […], "versions": {…}, "report": {…},
     "golden": "model.golden.json",
     "checksum": …}

The checksum is the SHA-256 of all other entries, as JSON with sorted keys and without spaces.

A tensor that is not quantized has `null` for scale and zero point.
"""

from __future__ import annotations

import importlib.metadata
import math
import pathlib
from collections.abc import Mapping, Sequence

from tfcompress.export.bundle.plain_json import plain
from tfcompress.export.bundle.preprocessing import check_preprocessing
from tfcompress.export.flatbuffer.summary import FileSummary
from tfcompress.export.runtime.codes import TensorInfo
from tfcompress.export.runtime.runner import Runner
from tfcompress.files.sealed_json import sealed
from tfcompress.version import __version__

FORMAT = 2

_PACKAGES = ("tensorflow", "keras", "ai-edge-litert")


def metadata_content(
    path: pathlib.Path,
    summary: FileSummary,
    runners: Mapping[str | None, Runner],
    *,
    preprocessing: Sequence,
    labels: Sequence[str] | None,
    report: Mapping | None,
    golden_name: str | None,
) -> dict:
    """Returns the content of `<name>.json`, in JSON's own types.

    Args:
        path: Where the `.tflite` is, or will be.
        summary: What is in it.
        runners: Signature key → the signature in LiteRT.
        preprocessing: Steps from raw data to the model's real-valued input.
        labels: Class names.
        report: Figures to keep with the file.
        golden_name: Name of the file of the golden pairs; `None` for none.

    Raises:
        ValueError: If the number of labels fits no output.
        TypeError: If JSON cannot hold `preprocessing`, `labels` or `report`.
    """
    check_preprocessing(preprocessing)
    if labels is not None:
        _check_labels(labels, runners)
    content = {
        "format": FORMAT,
        "file": {
            "name": path.name,
            "sha256": summary.sha256,
            "bytes": summary.num_bytes,
            "gzip_bytes": summary.gzip_bytes,
            "min_runtime_version": summary.min_runtime_version,
        },
        "signatures": [
            {
                "key": key,
                "inputs": [_tensor(info) for info in runner.inputs.values()],
                "outputs": [_tensor(info) for info in runner.outputs.values()],
            }
            for key, runner in runners.items()
        ],
        "preprocessing": plain(list(preprocessing), "preprocessing"),
        "labels": None if labels is None else plain(list(labels), "labels"),
        "versions": versions(),
        "report": plain(dict(report or {}), "report"),
        "golden": golden_name,
    }
    return sealed(content)


def check_number_of_labels(
    labels: Sequence[str], outputs: Mapping[str, Sequence[int | None]]
) -> None:
    """Raises `ValueError` unless an output has as many values as there are labels.

    Args:
        labels: Class names.
        outputs: `signature/output` → its shape.
    """
    sizes = {name: math.prod(n or 1 for n in shape[1:]) for name, shape in outputs.items()}
    _check_count(labels, sizes)


def versions() -> dict[str, str | None]:
    """Returns the installed versions of what makes an export; `None` for what is missing."""
    found: dict[str, str | None] = {"tfcompress": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _tensor(info: TensorInfo) -> dict:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": str(info.dtype),
        "scale": info.scale if info.is_quantized else None,
        "zero_point": info.zero_point if info.is_quantized else None,
    }


def _check_labels(labels: Sequence[str], runners: Mapping[str | None, Runner]) -> None:
    sizes = {
        f"{key}/{name}": math.prod(info.sample_shape)
        for key, runner in runners.items()
        for name, info in runner.outputs.items()
    }
    _check_count(labels, sizes)


def _check_count(labels: Sequence[str], sizes: Mapping[str, int]) -> None:
    if isinstance(labels, str) or len(labels) not in sizes.values():
        raise ValueError(
            f"Expected as many labels as an output has values ({sizes}). "
            f"Received: {len(labels)} labels. Give one name per class"
        )
