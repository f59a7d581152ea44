"""Plain-text tables, for everything that is printed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any


def render_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, width: int = 140
) -> str:
    """Returns a table as text; numbers are aligned right.

    Args:
        title: Printed above the table; empty for none.
        columns: Headings.
        rows: One sequence of cells per row; anything with a `str`.
        width: Characters to a line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [[_cell(cell) for cell in row] for row in rows]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[i], _Number) or not row[i] for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


class _Number(str):
    __slots__ = ()


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return _Number(f"{value:,}")
    if isinstance(value, float):
        return _Number(f"{value:.4g}")
    return str(value)
