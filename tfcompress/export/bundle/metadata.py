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
`tfcompress.export.bundle.golden`; they have a file of their own, because only the test needs them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from tfcompress.export.bundle import golden
from tfcompress.export.bundle.plain_json import plain, read_object
from tfcompress.export.files import read_tflite, sha256, write_atomically
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.codes import TensorInfo
from tfcompress.export.runtime.runner import Inputs, Runner

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
        preprocessing: See `bundle_files`, like all further arguments.
        labels: Class names.
        report: Figures to keep with the file.
        golden_data: Samples for the golden pairs.
        num_golden: Most golden samples per signature.
        seed: Seed of synthetic samples.

    Returns:
        Path of `<name>.json`.

    Raises:
        ValueError: If the file does not exist, and as `bundle_files` does.
        TypeError: As `bundle_files` does.
    """
    path = pathlib.Path(tflite_path)
    files = bundle_files(
        read_tflite(path),
        path,
        preprocessing=preprocessing,
        labels=labels,
        report=report,
        golden_data=golden_data,
        num_golden=num_golden,
        seed=seed,
    )
    return write_files(path, files)


def write_files(tflite_path: str | os.PathLike, files: Mapping[pathlib.Path, str]) -> pathlib.Path:
    """Writes what `bundle_files` returned and removes golden pairs of an earlier export.

    Returns:
        Path of `<name>.json`.
    """
    path = pathlib.Path(tflite_path)
    golden_path = path.with_suffix(".golden.json")
    if golden_path not in files:
        golden_path.unlink(missing_ok=True)
    for place, text in files.items():
        write_atomically(place, text)
    return path.with_suffix(".json")


def bundle_files(
    data: bytes,
    tflite_path: str | os.PathLike,
    *,
    preprocessing: Sequence = (),
    labels: Sequence[str] | None = None,
    report: Mapping | None = None,
    golden_data: Inputs | Mapping[str, Inputs] | None = None,
    num_golden: int = 4,
    seed: int = 0,
) -> dict[pathlib.Path, str]:
    """Returns the files to lie beside a `.tflite`, before anything is written.

    Args:
        data: The bytes of the `.tflite`.
        tflite_path: Where it is, or will be.
        preprocessing: Steps from raw data to the model's real-valued input, in order, as values
            that JSON can hold.
        labels: Class names, as many as an output has values.
        report: Figures to keep with the file, as values that JSON or NumPy can hold.
        golden_data: Samples for the golden pairs, as `Runner.run_codes` takes them; with several
            signatures a dict from signature to samples. Synthetic by default.
        num_golden: Most golden samples per signature (large inputs get fewer); 0 for none.
        seed: Seed of the synthetic samples.

    Returns:
        Path → text, in the order in which to write them.

    Raises:
        ValueError: If `data` is no TFLite file, the number of labels fits no output, or golden
            samples are needed and missing (see `golden.golden_pairs`).
        TypeError: If JSON cannot hold `preprocessing`, `labels` or `report`.
    """
    if num_golden < 0:
        raise ValueError(f"Expected num_golden of 0 or more. Received: {num_golden=}")
    path = pathlib.Path(tflite_path)
    summary = inspect_tflite(data)
    runners = _runners(data)
    if labels is not None:
        _check_labels(labels, runners)
    golden_path = path.with_suffix(".golden.json")
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
        "preprocessing": plain(list(preprocessing), "preprocessing"),
        "labels": None if labels is None else plain(list(labels), "labels"),
        "versions": versions(),
        "report": plain(dict(report or {}), "report"),
        "golden": golden_path.name if num_golden else None,
    }
    text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files = {path.with_suffix(".json"): text}
    if num_golden:
        samples = _samples(golden_data, runners)
        pairs = [
            pair
            for key, runner in runners.items()
            for pair in golden.golden_pairs(runner, num_golden, samples[key], seed)
        ]
        # First, so that a description never names pairs that are not there.
        files = {golden_path: golden.to_json(pairs, summary.sha256), **files}
    return files


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
    metadata = read_object(path, ("format", "file", "signatures"), FORMAT)
    name = metadata.get("golden")
    if name is None:
        return Bundle(metadata, None)
    return Bundle(
        metadata, read_object(path.parent / name, ("format", "sha256", "samples"), golden.FORMAT)
    )


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
