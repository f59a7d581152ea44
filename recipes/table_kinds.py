"""Kinds of tables that show rows of `recipes/results/`, each line with its commits."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from recipes.results import grouped, markdown, mean_and_deviation

RESULTS = pathlib.Path(__file__).parent / "results"

Row = Mapping[str, str]
#: Digits after the point of a mean ± deviation; `None` for a whole number with separators, the mean
#: alone; `"raw"` for what the file says.
Digits = int | Literal["raw"] | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A line per setting: what it is, mean ± deviation of its seeds, and its commits.

    Attributes:
        file: The csv file, without its ending.
        by: Head → column, of what makes a setting.
        shown: Head → (column, digits), of what was measured.
        where: Column → the values of rows that are shown; every row where it is empty.
        names: Value of a `by` column → what the table says in its place; also the order of lines.
        seeds: Whether to show how many seeds a line has.
        percent: Columns of shares, to be shown as percentages.
    """

    file: str
    by: Mapping[str, str]
    shown: Mapping[str, tuple[str, Digits]]
    where: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: bool = True
    percent: Sequence[str] = ()

    def markdown(self) -> str:
        found = list(grouped(rows_of(self.file, self.where), tuple(self.by.values())).items())
        order = list(self.names)
        if order:
            found.sort(key=lambda item: [order.index(v) if v in order else 99 for v in item[0]])
        cells = []
        for setting, rows in found:
            line = [self.names.get(value, value) for value in setting]
            line += [str(len(rows))] if self.seeds else []
            for column, digits in self.shown.values():
                line.append(_shown([row[column] for row in rows], digits, column in self.percent))
            cells.append((*line, commits(rows)))
        heads = (*self.by, *(["seeds"] if self.seeds else []), *self.shown, "commit")
        return markdown(heads, cells)


@dataclasses.dataclass(frozen=True)
class Pivot:
    """Lines of one column, columns of another, one number in each cell.

    Attributes:
        file: The csv file, without its ending.
        line: Head and column of the lines.
        column: The column whose values are the columns of the table.
        heads: Value of `column` → head, in order.
        value: The column of the numbers.
        digits: Of mean ± deviation.
        where: As in `Table`.
    """

    file: str
    line: tuple[str, str]
    column: str
    heads: Mapping[str, str]
    value: str
    digits: int = 2
    where: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        head, column = self.line
        cells = []
        for (line,), rows in grouped(rows_of(self.file, self.where), (column,)).items():
            values = [
                _shown([r[self.value] for r in rows if r[self.column] == each], self.digits)
                for each in self.heads
            ]
            cells.append((line, *values, commits(rows)))
        return markdown((head, *self.heads.values(), "commit"), cells)


def rows_of(file: str, where: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The rows of `recipes/results/FILE.csv` whose columns have one of the given values."""
    with (RESULTS / f"{file}.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    return [row for row in rows if all(row[name] in values for name, values in where.items())]


def commits(rows: Sequence[Row]) -> str:
    """The commits of rows, each once, in order."""
    return ", ".join(dict.fromkeys(row["commit"] for row in rows))


def _shown(values: Sequence[str], digits: Digits, percent: bool = False) -> str:
    if not values or not all(values):
        return ""
    if digits == "raw":
        return ", ".join(dict.fromkeys(values))
    numbers = [float(value) * (100 if percent else 1) for value in values]
    if digits is None:
        return f"{statistics.mean(numbers):,.0f}"
    return mean_and_deviation(numbers, digits)
