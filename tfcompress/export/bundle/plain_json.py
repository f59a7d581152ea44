"""JSON that any parser reads, and checks on what comes back."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.files.sealed_json import is_sealed


def plain(value: Any, path: str) -> Any:
    """Returns `value` in JSON's own types; NaN and infinity become null, as JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{path}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), path)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"Expected values that JSON can hold. Received: {path} of type {type(value)}. "
        "Turn it into numbers, strings, lists or dicts"
    )


def read_object(path: pathlib.Path, keys: Sequence[str], file_format: int) -> dict:
    """Reads a JSON object that has `keys` and, under `"format"`, the number `file_format`.

    Raises:
        ValueError: If the file is missing, holds something else, or is not as it was written.
    """
    if not path.is_file():
        raise ValueError(
            f"Expected the description of a .tflite. Received: {str(path)!r}, which does not "
            "exist. Write it with write_bundle, or with tfcompress bundle"
        )
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected JSON. Received: {str(path)!r}: {error}") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(
            f"Expected an object with {list(keys)}. Received: {str(path)!r} without them. "
            "Pass a file that write_bundle wrote"
        )
    found = content["format"]
    if found != file_format:
        raise ValueError(
            f"Expected format {file_format}. Received: {str(path)!r} of format {found!r}. "
            "Read it with the version of tfcompress that wrote it"
        )
    if not is_sealed(content):
        raise ValueError(
            f"Expected {str(path)!r} as it was written. Received: a content that does not fit its "
            "checksum. It is damaged or was edited: write it again with write_bundle"
        )
    return content


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number
