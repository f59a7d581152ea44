"""Lists what is in a .tflite: ops, tensors, dtypes, scales, zeros, bytes per layer.

Usage:
    tfcompress-inspect [--json] FILE.tflite
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence

from absl import flags

from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.delegation import Delegation, delegation
from tfcompress.tools.command import run_command


def describe(path: str, as_json: bool = False) -> str:
    """Returns the description of a `.tflite` as text, or as a JSON object.

    Args:
        path: Path of the file.
        as_json: Whether to return JSON, with the fields of `FileSummary.as_dict()` and
            `delegation`.

    Raises:
        ValueError: If there is no such file, or it is not a `.tflite`.
    """
    summary = inspect_tflite(path)
    try:
        found, refusal = delegation(path), None
    except RuntimeError as error:
        found, refusal = None, str(error)
    if as_json:
        content = summary.as_dict()
        content["delegation"] = {"error": refusal} if found is None else dataclasses.asdict(found)
        return json.dumps(content, indent=2)
    width = shutil.get_terminal_size((120, 24)).columns
    verdict = f"not loadable: {refusal}" if found is None else _verdict(found)
    return f"{path}\n{summary.render(width)}XNNPACK: {verdict}"


def _verdict(found: Delegation) -> str:
    if found.is_fully_accelerated:
        return f"takes every op, in {found.num_partitions} partition(s)"
    outside = ", ".join(found.ops_outside) or "unknown ops"
    return f"{found.num_partitions} partition(s); outside the delegate: {outside}"


def _define_flags() -> None:
    flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"Expected the path of one .tflite file. Received: {list(arguments)}")
    print(describe(arguments[0], flags.FLAGS.json))


def run() -> None:
    """Entry point of `tfcompress-inspect`."""
    run_command(_main, _define_flags, __doc__)
