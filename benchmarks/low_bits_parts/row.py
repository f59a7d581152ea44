"""What a part of the benchmark is, and the columns that all parts share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

#: Columns of a row behind those that name it. A part leaves out what it does not measure.
COLUMNS = (
    "learning_rate",
    "keras_accuracy",
    "file_accuracy",
    "equal",
    "bytes",
    "stored",
    "ratio",
    "cpu_seconds",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command was asked for.

    Attributes:
        data_dir: Folder of the data sets.
        resnet8: A trained float ResNet-8 for CIFAR-10, or `None`.
        mobilenet: Where the float MobileNetV2 is kept, or trained for the first row.
        folder: Where files go.
    """

    data_dir: str | None
    resnet8: str | None
    mobilenet: pathlib.Path
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Part:
    """A table.

    Attributes:
        rows: Names of the rows, those with a goal first.
        epochs: Epochs of training, unless the command says otherwise.
        measure: `(name, seed, epochs, settings)` → the figures of a row, by names of `COLUMNS`.
    """

    rows: tuple[str, ...]
    epochs: int
    measure: Callable[[str, int, int, Settings], Mapping[str, Any]]
