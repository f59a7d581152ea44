"""What lies beside a `.tflite` for the app: `<name>.json`, and `<name>.golden.json` for its test.

`<name>.json` tells an app how to feed the file and how to read its outputs:

    {"format": 1,
     "file": {"name": "model.tflite", "sha256": …, "bytes": …, "gzip_bytes": …,
              "min_runtime_version": …},
     "signatures": [{"key": "serving_default",
                     "inputs": [{"name": "image", "shape": [1, 96, 96, 3], "dtype": "int8",
                                 "scale": 0.0039, "zero_point": -128}],
                     "outputs": […]}],
     "preprocessing": […], "labels": […], "versions": {…}, "report": {…},
     "golden": "model.golden.json"}

A tensor that is not quantized has `null` for scale and zero point. For the golden pairs see
`tfcompress.export.golden`; they have a file of their own, because only the test needs them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.export import golden
from tfcompress.export.codes import TensorInfo
from tfcompress.export.files import read_tflite, sha256, write_atomically
from tfcompress.export.inspect import inspect_tflite
from tfcompress.export.runtime import Inputs, Runner

FORMAT = 1

_PACKAGES = ("tfcompress", "tensorflow", "keras", "ai-edge-litert")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What `read_bundle` found.

    Attributes:
        metadata: Content of `<name>.json`.
        golden: Content of `<name>.golden.json`; `None` where there is none.
    """

    metadata: Mapping
    golden: Mapping | None


def write_bundle(
    tflite_path: str | os.PathLike,
    *,
    preprocessing: Sequence = (),
    labels: Sequence[str] | None = None,
    report: Mapping | None = None,
    golden_data: Inputs | Mapping[str, Inputs] | None = None,
    num_golden: int = 4,
    seed: int = 0,
) -> pathlib.Path:
    """Writes `<name>.json` and `<name>.golden.json` beside `<name>.tflite`.

    Args:
        tflite_path: The exported file.
        preprocessing: Steps from raw data to the model's real-valued input, in order, as values
            that JSON can hold.
        labels: Class names, as many as an output has values.
        report: Figures to keep with the file, as values that JSON or NumPy can hold.
        golden_data: Samples for the golden pairs, as `Runner.run_codes` takes them; with several
            signatures a dict from signature to samples. Synthetic by default.
        num_golden: Most golden samples per signature (large inputs get fewer); 0 for none.
        seed: Seed of the synthetic samples.

    Returns:
        Path of `<name>.json`.

    Raises:
        ValueError: If the file does not exist, the number of labels fits no output, or golden
            samples are needed and missing (see `golden.golden_pairs`).
        TypeError: If JSON cannot hold `preprocessing`, `labels` or `report`.
    """
    path = pathlib.Path(tflite_path)
    data = read_tflite(path)
    runners = _runners(data)
    if labels is not None:
        _check_labels(labels, runners)
    if num_golden < 0:
        raise ValueError(f"Expected num_golden of 0 or more. Received: {num_golden=}")
    summary = inspect_tflite(data)
    metadata = {
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
        "preprocessing": _plain(list(preprocessing), "preprocessing"),
        "labels": None if labels is None else _plain(list(labels), "labels"),
        "versions": versions(),
        "report": _plain(dict(report or {}), "report"),
        "golden": None,
    }
    golden_path = path.with_suffix(".golden.json")
    if num_golden:
        samples = _samples(golden_data, runners)
        pairs = [
            pair
            for key, runner in runners.items()
            for pair in golden.golden_pairs(runner, num_golden, samples[key], seed)
        ]
        write_atomically(golden_path, golden.to_json(pairs, summary.sha256))
        metadata["golden"] = golden_path.name
    else:
        # Pairs of an earlier export would belong to another file.
        golden_path.unlink(missing_ok=True)
    text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path.with_suffix(".json"), text + "\n")


def read_bundle(path: str | os.PathLike) -> Bundle:
    """Reads `<name>.json`, and the golden pairs that it names.

    Args:
        path: Path of `<name>.json`, or of the `.tflite` that it lies beside.

    Raises:
        ValueError: If a file is missing or is not such a bundle.
    """
    path = pathlib.Path(path)
    if path.suffix == ".tflite":
        path = path.with_suffix(".json")
    metadata = _read_json(path, ("format", "file", "signatures"))
    name = metadata.get("golden")
    if name is None:
        return Bundle(metadata, None)
    return Bundle(metadata, _read_json(path.parent / name, ("format", "sha256", "samples")))


def check_golden(
    tflite_path: str | os.PathLike, bundle_path: str | os.PathLike | None = None
) -> float:
    """Runs the golden inputs and returns the worst difference from the golden outputs.

    Args:
        tflite_path: Path of the `.tflite`.
        bundle_path: Path of its `<name>.json`; the one beside it by default.

    Returns:
        Largest difference in steps of the output; more than `golden.TOLERANCE_STEPS` is a
        failure.

    Raises:
        ValueError: If the bundle is missing, has no golden pairs, or describes another file.
    """
    data = read_tflite(tflite_path)
    bundle = read_bundle(tflite_path if bundle_path is None else bundle_path)
    if bundle.golden is None:
        raise ValueError(
            "Expected a bundle with golden pairs. Received: one that was written with none. "
            "Write it again with num_golden of 1 or more"
        )
    expected = {bundle.metadata["file"]["sha256"], bundle.golden["sha256"]}
    if expected != {sha256(data)}:
        raise ValueError(
            f"Expected the file that the bundle was written for, SHA-256 {sorted(expected)}. "
            f"Received: {os.fspath(tflite_path)!r} with {sha256(data)}. Write the bundle again"
        )
    runners = _runners(data)
    pairs = golden.from_json(bundle.golden, runners)
    return golden.worst_difference(runners, bundle.golden, pairs)


def versions() -> dict[str, str | None]:
    """Returns the installed versions of what makes an export; `None` for what is missing."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _runners(data: bytes) -> dict[str | None, Runner]:
    keys = [signature.key for signature in inspect_tflite(data).signatures] or [None]
    return {key: Runner(data, signature=key) for key in keys}


def _samples(golden_data, runners: Mapping[str | None, Runner]) -> Mapping:
    if golden_data is None or len(runners) == 1:
        return dict.fromkeys(runners, golden_data)
    if not isinstance(golden_data, Mapping) or set(golden_data) != set(runners):
        raise ValueError(
            f"Expected golden_data as a dict with the signatures {sorted(runners)} as keys. "
            f"Received: {sorted(golden_data) if isinstance(golden_data, Mapping) else golden_data}"
        )
    return golden_data


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
    if isinstance(labels, str) or len(labels) not in sizes.values():
        raise ValueError(
            f"Expected as many labels as an output has values ({sizes}). "
            f"Received: {len(labels)} labels. Give one name per class"
        )


def _plain(value, path: str):
    """Returns `value` in JSON's own types; NaN and infinity become null, as JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{path}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), path)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"Expected values that JSON can hold. Received: {path} of type {type(value)}. "
        "Turn it into numbers, strings, lists or dicts"
    )


def _read_json(path: pathlib.Path, keys: Sequence[str]) -> dict:
    if not path.is_file():
        raise ValueError(
            f"Expected the description of a .tflite. Received: {str(path)!r}, which does not "
            "exist. Write it with write_bundle"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON. Received: {str(path)!r}: {error}") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(
            f"Expected an object with {list(keys)}. Received: {str(path)!r} without them. "
            "Pass a file that write_bundle wrote"
        )
    if content["format"] != FORMAT:
        raise ValueError(
            f"Expected format {FORMAT}. Received: {str(path)!r} of format {content['format']!r}. "
            "Read it with the version of tfcompress that wrote it"
        )
    return content
