"""What a command gives: text for a terminal, and the same as plain values for `--json`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Output:
    """The result of a command.

    Attributes:
        text: What is printed.
        content: The same as plain values; dataclasses and NumPy values may be among them.
        exit_code: Of the process.
    """

    text: str
    content: Any
    exit_code: int = 0

    def as_json(self) -> str:
        """`content` as JSON. Numbers that JSON does not have (NaN, infinity) become `null`."""
        return json.dumps(plain(self.content), indent=2, ensure_ascii=False, allow_nan=False)


def progress_of(options: argparse.Namespace) -> Any:
    """The `verbose` of a call that may take long: by default a bar, in a terminal alone."""
    if options.quiet:
        return 0
    return 1 if options.verbose else "auto"


def output_folder(folder: str, names: Sequence[str]) -> pathlib.Path:
    """Makes a folder of results. Refuses, before the work, one that they could not be written to.

    Args:
        folder: The folder; those above it are made too.
        names: Of the files that will be written there.
    """
    from tfcompress.files.writing import check_writable

    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"Expected a folder of results. Received: the file {folder!r}.")
    path.mkdir(parents=True, exist_ok=True)
    check_writable(path / names[0], names)
    return path


def plain(value: Any) -> Any:
    """Returns `value` in JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
