"""JSON files: read without surprises, and sealed by a checksum of their own."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

#: Key of the checksum of all other entries.
CHECKSUM = "checksum"


def sealed(content: Mapping) -> dict:
    """`content`, as JSON holds it, with its own checksum under `"checksum"`; see `is_sealed`."""
    # Keys become text, whose order is another one than that of numbers.
    given = json.loads(json.dumps(content))
    rest = {key: value for key, value in given.items() if key != CHECKSUM}
    return {**rest, CHECKSUM: _checksum(rest)}


def is_sealed(content: Mapping) -> bool:
    """Whether an object is as it was when it was sealed."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return content.get(CHECKSUM) == _checksum(rest)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        ValueError: No JSON, no UTF-8, nested too deeply, or something else than an object.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, no object")
    return content


def read_sealed(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The object in a sealed JSON file, without its format and checksum.

    Args:
        path: The file.
        kind: What it must have under `"format"`.

    Raises:
        ValueError: Another file, or one that is damaged or was edited.
    """
    content = parse_object(pathlib.Path(path).read_bytes())
    if content.get("format") != kind:
        raise ValueError(f"its format is {content.get('format')!r:.80}, not {kind!r}")
    if not is_sealed(content):
        raise ValueError("its content does not fit its checksum: it is damaged or was edited")
    return {key: value for key, value in content.items() if key not in (CHECKSUM, "format")}


def _checksum(content: Mapping) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
