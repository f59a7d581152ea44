"""Results of recipes: one row of a CSV file per finished run, and tables of mean ± deviation.

A recipe that is started again skips the rows that are there, so a long one can be interrupted.
"""

from __future__ import annotations

import csv
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any


class Results:
    """The rows of one CSV file.

    Args:
        path: The file; it is made with the first row.
        key: Columns that tell runs apart.
    """

    def __init__(self, path: pathlib.Path, key: Sequence[str]):
        self.path, self.key = pathlib.Path(path), tuple(key)

    @property
    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def has(self, **key: Any) -> bool:
        wanted = {name: str(key[name]) for name in self.key}
        return any(all(row[n] == v for n, v in wanted.items()) for row in self.rows)

    def add(self, **row: Any) -> None:
        rows = [*self.rows, {name: str(value) for name, value in row.items()}]
        partial = self.path.with_suffix(".part")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path)


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """`"81.62 ± 0.12"`, or the one value where there is one."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
