"""Results of recipes: one row of a CSV file per finished run, and tables of mean ± deviation.

A recipe that is started again skips the rows that are there, so a long one can be interrupted. A
row is added in one write, so two recipes may fill one file.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipes.origin import commit


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
        return any(wanted.items() <= row.items() for row in self.rows)

    def add(self, **row: Any) -> None:
        """Appends a row; where it has no `commit`, that of the code that runs joins it.

        Raises:
            ValueError: If the file has other columns.
        """
        row = {**row, "commit": row["commit"] if "commit" in row else commit()}
        lines = io.StringIO()
        writer = csv.writer(lines)
        if self.path.exists():
            with self.path.open(newline="") as file:
                columns = next(csv.reader(file))
            if columns != list(row):
                raise ValueError(
                    f"Expected the columns of {self.path}: {columns}. Received: {list(row)}. "
                    "Give another folder for results."
                )
        else:
            writer.writerow(row)
        writer.writerow(row.values())
        with self.path.open("a", newline="") as file:
            file.write(lines.getvalue())


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """`"81.62 ± 0.12"`, the one value where there is one, nothing where a value is NaN."""
    if any(map(math.isnan, values)):
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def grouped(
    rows: Iterable[Mapping[str, Any]], by: Sequence[str]
) -> dict[tuple, list[Mapping[str, Any]]]:
    """Returns the rows of each setting: those that agree in the columns `by`, in their order."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return groups


def summary(
    rows: Iterable[Mapping[str, Any]], by: Sequence[str], means: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Returns a line of cells per setting: its values, how many seeds, mean ± deviation.

    Args:
        rows: Rows of the file.
        by: Columns that make the setting.
        means: Column of numbers → digits after the point.
    """
    return [
        (
            *map(str, setting),
            str(len(same)),
            *(mean_and_deviation([float(r[n]) for r in same], d) for n, d in means.items()),
        )
        for setting, same in grouped(rows, by).items()
    ]


def markdown(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
