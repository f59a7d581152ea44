"""Arguments that name model files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence


def named_paths(arguments: Sequence[str]) -> dict[str, pathlib.Path]:
    """`["a.keras", "int8=b.tflite"]` → `{"a.keras": Path("a.keras"), "int8": Path("b.tflite")}`.

    Raises:
        ValueError: Two models of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        # A path may hold the sign itself.
        if not path or pathlib.Path(argument).exists():
            name, path = "", argument
        name = name or (pathlib.Path(path).name if pathlib.Path(path).name not in found else path)
        if name in found:
            raise ValueError(
                f"Expected a name of its own for each model. Received: {name!r} "
                "twice. Write NAME=PATH"
            )
        found[name] = pathlib.Path(path)
    return found
