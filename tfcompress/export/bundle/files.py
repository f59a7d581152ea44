"""The files beside a `.tflite`: `<name>.json` for the app and `<name>.golden.json` for its test.

For their content see `bundle.metadata` and `bundle.golden`. The golden pairs have a file of their
own, because only the test needs them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress.export.bundle import golden
from tfcompress.export.bundle.check_card import check_card
from tfcompress.export.bundle.metadata import FORMAT, metadata_content
from tfcompress.export.bundle.plain_json import read_object
from tfcompress.export.files import read_tflite, sha256
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.summary import FileSummary
from tfcompress.export.runtime.runner import Inputs, Runner
from tfcompress.files.writing import write_together


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


def bundle_names(tflite_path: str | os.PathLike) -> tuple[str, str]:
    """Names of the files beside a `.tflite`: its description and its golden pairs."""
    path = pathlib.Path(tflite_path)
    return path.with_suffix(".json").name, path.with_suffix(".golden.json").name


def write_files(
    tflite_path: str | os.PathLike,
    files: Mapping[pathlib.Path, str],
    data: bytes | None = None,
) -> pathlib.Path:
    """Writes what `bundle_files` returned and removes golden pairs of an earlier export.

    All of it is written, or nothing is changed.

    Args:
        tflite_path: Where the `.tflite` is, or will be.
        files: Path → text.
        data: The `.tflite`, to write it with them.

    Returns:
        Path of `<name>.json`.
    """
    path = pathlib.Path(tflite_path)
    golden_path = path.with_suffix(".golden.json")
    contents: dict[pathlib.Path, bytes | str] = {} if data is None else {path: data}
    contents.update(files)
    write_together(contents, [] if golden_path in files else [golden_path])
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
    """Returns the content of the files beside a `.tflite`, before anything is written.

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
    summary = inspect_tflite(data)
    return describe_files(
        pathlib.Path(tflite_path),
        summary,
        _runners(data, summary),
        preprocessing=preprocessing,
        labels=labels,
        report=report,
        golden_data=golden_data,
        num_golden=num_golden,
        seed=seed,
    )


def describe_files(
    path: pathlib.Path,
    summary: FileSummary,
    runners: Mapping[str | None, Runner],
    *,
    preprocessing: Sequence = (),
    labels: Sequence[str] | None = None,
    report: Mapping | None = None,
    golden_data: Inputs | Mapping[str, Inputs] | None = None,
    num_golden: int = 4,
    seed: int = 0,
) -> dict[pathlib.Path, str]:
    """`bundle_files` for a file that has been read and loaded already.

    Args:
        path: Where the `.tflite` is, or will be.
        summary: What is in it.
        runners: Signature key → the signature in LiteRT, in the order of the file.
        preprocessing: See `bundle_files`, like all further arguments.
        labels: Class names.
        report: Figures to keep with the file.
        golden_data: Samples for the golden pairs.
        num_golden: Most golden samples per signature.
        seed: Seed of synthetic samples.
    """
    if num_golden < 0:
        raise ValueError(f"Expected num_golden of 0 or more. Received: {num_golden=}")
    golden_path = path.with_suffix(".golden.json")
    metadata = metadata_content(
        path,
        summary,
        runners,
        preprocessing=preprocessing,
        labels=labels,
        report=report,
        golden_name=golden_path.name if num_golden else None,
    )
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

    Where the `.tflite` lies beside it, it must be the one that they were written for.

    Args:
        path: Path of `<name>.json`, or of the `.tflite` that it lies beside.

    Raises:
        ValueError: If a file is missing, is not such a bundle, is damaged, or was written for
            another `.tflite` than the one beside it.
    """
    path = pathlib.Path(path)
    given = path if path.suffix == ".tflite" else None
    if given is not None:
        path = path.with_suffix(".json")
    metadata = read_object(path, ("format", "file", "signatures"), FORMAT)
    check_card(metadata, path)
    expected = metadata["file"]["sha256"]
    tflite = path.with_suffix(".tflite") if given is None else given
    if given is not None or tflite.is_file():
        _check_same(expected, sha256(read_tflite(tflite)), tflite)
    name = metadata.get("golden")
    if name is None:
        return Bundle(metadata, None)
    # A file beside it, whatever the description names.
    pairs = path.parent / pathlib.PurePath(name).name
    content = read_object(pairs, ("format", "sha256", "samples", "steps"), golden.FORMAT)
    _check_same(expected, content["sha256"], pairs)
    return Bundle(metadata, content)


def _check_same(expected: str, found: str, path: pathlib.Path) -> None:
    if expected != found:
        raise ValueError(
            f"Expected the file that the bundle was written for, SHA-256 {expected}. Received: "
            f"{str(path)!r} with {found}. They are of two exports. Write the bundle again, or "
            "export again"
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
    _check_same(bundle.metadata["file"]["sha256"], sha256(data), pathlib.Path(tflite_path))
    if bundle.golden is None:
        raise ValueError(
            "Expected a bundle with golden pairs. Received: one that was written with none. "
            "Write it again with num_golden of 1 or more"
        )
    runners = _runners(data, inspect_tflite(data))
    pairs = golden.from_json(bundle.golden, runners)
    return golden.worst_difference(runners, bundle.golden, pairs)


def _runners(data: bytes, summary: FileSummary) -> dict[str | None, Runner]:
    keys: list[str | None] = [signature.key for signature in summary.signatures]
    keys = keys or [None]
    return {key: Runner(data, signature=key) for key in keys}


def _samples(golden_data: Any, runners: Mapping[str | None, Runner]) -> Mapping:
    if golden_data is None or len(runners) == 1:
        return dict.fromkeys(runners, golden_data)
    if not isinstance(golden_data, Mapping) or set(golden_data) != set(runners):
        keys = sorted(map(str, runners))
        raise ValueError(
            f"Expected golden_data as a dict with the signatures {keys} as keys. "
            f"Received: {sorted(golden_data) if isinstance(golden_data, Mapping) else golden_data}"
        )
    return golden_data
