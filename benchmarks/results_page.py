"""The tables of results that stand between two marks of a page of the documentation."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from recipes.results import grouped, markdown, mean_and_deviation

_BEGIN, _END = "<!-- tables of results: begin -->", "<!-- tables of results: end -->"


def put(page: pathlib.Path, tables: str) -> None:
    """Puts tables into a page, in place of those that are there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}", encoding="utf-8")


def table(rows: Iterable[Mapping[str, str]], columns: Mapping[str, tuple[str, int]]) -> str:
    """A Markdown table: a line per row and epochs, with means over its seeds.

    Args:
        rows: Rows of the file of results.
        columns: Head → column of the rows, digits after the point.
    """
    cells = []
    for (row, epochs), same in grouped(rows, ("row", "epochs")).items():
        means = [_mean([r[name] for r in same], digits) for name, digits in columns.values()]
        cells.append((row, epochs, str(len(same)), *means, commits(same)))
    return markdown(("row", "epochs", "seeds", *columns, "commit"), cells)


def commits(rows: Iterable[Mapping[str, str]]) -> str:
    """The commits that rows were measured at, each once."""
    return ", ".join(dict.fromkeys(row["commit"] for row in rows))


def _mean(values: Sequence[str], digits: int) -> str:
    return mean_and_deviation(list(map(float, values)), digits) if all(values) else ""
