"""The folder of a search: what it has found so far."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfcompress.analysis.measuring.samples import Samples
from tfcompress.distillation.checksum import checksum_of_teacher
from tfcompress.files.sealed_json import read_sealed, sealed
from tfcompress.files.writing import write_atomically

_FORMAT = "tfcompress search 4"


class State:
    """Rows of a search, in a folder or in memory.

    Args:
        path: The folder, which is made; `None` for memory alone.
        origin: What the search is about: a model, samples, or checksums.
        settings: What candidates are trained with.

    Raises:
        ValueError: The folder holds another search.
    """

    def __init__(
        self, path: str | os.PathLike | None, origin: Mapping[str, Any], settings: Mapping[str, Any]
    ):
        self.folder = None if path is None else pathlib.Path(path)
        self._values: dict[str, Any] = {"format": _FORMAT, "rows": {}}
        if self.folder is None:
            return
        self._values["origin"] = {name: _checksum(value) for name, value in origin.items()}
        self._values["settings"] = dict(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "search.json"
        if file.exists():
            self._continue(file)
        else:
            self._save()

    def file(self, name: str) -> pathlib.Path | None:
        """The path of a file in the folder; `None` without one."""
        return None if self.folder is None else self.folder / name

    def get(self, key: str) -> Any:
        """What is known under a key; `None` for nothing."""
        return self._values["rows"].get(key)

    def set(self, key: str, value: Any) -> None:
        """Keeps plain values under a key."""
        self._values["rows"][key] = value
        self._save()

    def _save(self) -> None:
        if self.folder is not None:
            text = json.dumps(sealed(self._values), indent=1)
            write_atomically(self.folder / "search.json", text + "\n")

    def _continue(self, file: pathlib.Path) -> None:
        try:
            values = read_sealed(file, _FORMAT)
            before = {**values["origin"], **values["settings"]}
            rows = values["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Expected a folder of a search. Received: {str(file.parent)!r}, whose search.json "
                f"cannot be read ({error})."
            ) from error
        now = {**self._values["origin"], **self._values["settings"]}
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            raise ValueError(
                f"Expected a folder of the same search, or an empty one. Received: "
                f"{str(file.parent)!r}, whose {', '.join(other)} is another one. Give "
                "another folder, or remove it."
            )
        self._values["rows"] = rows


def _checksum(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.checksum if isinstance(value, Samples) else str(checksum_of_teacher(value))
