"""What is in a `.tflite` and what XNNPACK takes of it, for the command line."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.delegation import Delegation, delegation


def describe(path: str | os.PathLike, width: int = 240) -> tuple[str, dict[str, Any]]:
    """Describes a `.tflite` as text, and as plain values.

    Args:
        path: Path of the file.
        width: Characters to a line of the text.

    Returns:
        The text; and the fields of `FileSummary.as_dict()` with `delegation`.

    Raises:
        ValueError: If there is no such file, or it is not a `.tflite`.
    """
    summary = inspect_tflite(path)
    try:
        found, refusal = delegation(path), None
    except RuntimeError as error:
        found, refusal = None, str(error)
    content = summary.as_dict()
    content["delegation"] = {"error": refusal} if found is None else dataclasses.asdict(found)
    verdict = f"not loadable: {refusal}" if found is None else _verdict(found)
    return f"{path}\n{summary.render(width)}XNNPACK: {verdict}", content


def _verdict(found: Delegation) -> str:
    if found.is_fully_accelerated:
        return f"takes every op, in {found.num_partitions} partition(s)"
    outside = ", ".join(found.ops_outside) or "unknown ops"
    return f"{found.num_partitions} partition(s); outside the delegate: {outside}"
